"""What a lens found: numbers with their errors, notes and arrays."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np
from scipy import special

CONFIDENCE = 0.95
_RESAMPLES = 1000


class Number(NamedTuple):
    """One number of a report, and what it rests on.

    >>> print(Number("accuracy", 0.5, 0.05, 100, "%"))
    accuracy: 50.0 ± 5.0 % (100 images)

    Attributes:
      label: what it is, in words.
      value: the number; NaN where it could not be had. Shares are from 0 to 1.
      stderr: its standard error; NaN where there is none.
      images: how many it rests on.
      unit: "%" for a share, else the unit in words; may be empty.
    """

    label: str
    value: float
    stderr: float
    images: int
    unit: str = ""

    def shown(self) -> str:
        """Value, standard error and unit, as people write them."""
        if not np.isfinite(self.value):
            return "unknown"
        factor = 100 if self.unit == "%" else 1
        error = factor * self.stderr
        digits = _digits(factor * self.value, error)
        unit = f" {self.unit}" if self.unit else ""
        if not np.isfinite(error):
            return f"{factor * self.value:.{digits}f}{unit}"
        return f"{factor * self.value:.{digits}f} ± {error:.{digits}f}{unit}"

    def __str__(self) -> str:
        return f"{self.label}: {self.shown()} ({self.images} images)"


def _digits(value: float, error: float) -> int:
    """Decimals that show two digits of the error, or three of the value without one.

    At most six digits of the value, lest an error near 0 show its own noise.
    """
    known = np.isfinite(error) and error > 0
    scale, wanted = (error, 2) if known else (abs(value), 3)
    if value and 1e-4 * abs(value) > scale:
        scale, wanted = abs(value), 6
    if not scale:
        return 1
    return int(np.clip(wanted - 1 - np.floor(np.log10(scale)), 0, 12))


class Lens(NamedTuple):
    """What one way of looking at a model found.

    Attributes:
      numbers: short name -> number.
      notes: what there is to know about the numbers, a sentence each.
      arrays: name -> array, for figures and samples.
    """

    numbers: Mapping[str, Number] = {}
    notes: tuple[str, ...] = ()
    arrays: Mapping[str, np.ndarray] = {}

    def __repr__(self) -> str:
        """Its numbers; no arrays."""
        return f"Lens({'; '.join(map(str, self.numbers.values())) or 'no numbers'})"

    def value(self, name: str) -> float:
        """A number, or NaN where the lens does not have it."""
        return self.numbers[name].value if name in self.numbers else float("nan")


def share(label: str, verdicts: np.ndarray) -> Number:
    """How often a verdict is true, with its binomial standard error.

    >>> print(share("right", np.array([True, True, True, False])))
    right: 75 ± 22 % (4 images)
    """
    mean = float(np.mean(verdicts)) if len(verdicts) else float("nan")
    stderr = float(np.sqrt(mean * (1 - mean) / max(len(verdicts), 1)))
    return Number(label, mean, stderr, len(verdicts), "%")


def mean(label: str, values: np.ndarray, unit: str = "") -> Number:
    """The mean over the images, NaN left out, with its standard error.

    >>> print(mean("length", np.array([1.0, 3.0, np.nan]), "pixels"))
    length: 2.0 ± 1.0 pixels (2 images)
    """
    known = np.asarray(values, float)[np.isfinite(values)]
    if not len(known):
        return Number(label, float("nan"), float("nan"), 0, unit)
    stderr = known.std(ddof=1) / np.sqrt(len(known)) if len(known) > 1 else np.nan
    return Number(label, float(known.mean()), float(stderr), len(known), unit)


def resampled(
    label: str, statistic: Callable[..., float], *columns: np.ndarray, unit: str = ""
) -> Number:
    """A statistic of the images, with its standard error by the bootstrap.

    >>> print(resampled("median", np.median, np.full(9, 2.0)))
    median: 2.00 ± 0.00 (9 images)

    Args:
      label: what it is.
      statistic: columns [n], … -> a number.
      columns: [n], a value for each image.
      unit: of the statistic.
    """
    count = len(columns[0])
    if not count:
        return Number(label, float("nan"), float("nan"), 0, unit)
    rows = np.random.default_rng(0).integers(count, size=(_RESAMPLES, count))
    drawn = np.asarray([statistic(*(c[row] for c in columns)) for row in rows], float)
    known = drawn[~np.isnan(drawn)]
    spread = np.std(known) if known.size and np.isfinite(known).all() else np.nan
    return Number(label, float(statistic(*columns)), float(spread), count, unit)


def interval(successes: int, count: int) -> tuple[float, float]:
    """The exact 95 % confidence interval of a share (Clopper and Pearson, 1934).

    >>> interval(0, 10)
    (0.0, 0.308...)
    """
    tail = (1 - CONFIDENCE) / 2
    missed = count - successes
    low = special.betaincinv(successes, missed + 1, tail) if successes else 0.0
    high = special.betaincinv(successes + 1, missed, 1 - tail) if missed else 1.0
    return float(low), float(high)
