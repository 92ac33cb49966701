"""Numbers with their uncertainty, and Markdown tables of them."""

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import ArrayLike


def mean_stderr(values: ArrayLike, axis: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard error over one axis.

    The standard error is s / √n, where s is the sample standard deviation (n − 1 in its
    denominator). It is NaN for a single repetition, which says nothing of its error.

    >>> mean, stderr = mean_stderr([[1.0, 5.0], [3.0, 5.0]])
    >>> mean.tolist(), stderr.round(6).tolist()
    ([2.0, 5.0], [1.0, 0.0])

    Args:
      values: independent repetitions along `axis`, for example seeds.
      axis: the axis to average over.

    Returns:
      The mean and its standard error, arrays without that axis.
    """
    values = np.asarray(values, dtype=float)
    count = values.shape[axis]
    mean = values.mean(axis)
    if count < 2:
        return mean, np.full_like(mean, np.nan)
    return mean, values.std(axis, ddof=1) / np.sqrt(count)


def plus_minus(values: ArrayLike, *, unit: str = "", digits: int = 3) -> str:
    """Writes repetitions as ``"mean ± s.e. unit"``.

    A single repetition has no error, and a mean that is not finite is "undefined".

    >>> plus_minus([1.0, 3.0], unit="nats")
    '2.00 ± 1.00 nats'
    >>> plus_minus([0.4, 0.6], unit="%")
    '50.0 ± 10.0 %'

    Args:
      values: [n] repetitions.
      unit: stands behind the numbers; "%" turns shares into per cent.
      digits: significant digits of the mean.
    """
    scale = 100 if unit == "%" else 1
    mean, stderr = mean_stderr(np.asarray(values, float) * scale)
    if not np.isfinite(mean):
        return "undefined"
    magnitude = np.floor(np.log10(abs(mean))) if mean else 0
    places = int(max(0, digits - 1 - magnitude))
    scientific = places > 6 or abs(mean) >= 1e6
    style = f".{digits - 1}e" if scientific else f".{places}f"
    text = format(mean, style)
    if not np.isnan(stderr):
        text += f" ± {format(stderr, style)}"
    return f"{text} {unit}".strip()


def markdown(header: Sequence[object], rows: Iterable[Sequence[object]]) -> str:
    """A Markdown table; bars inside the cells are escaped.

    >>> print(markdown(["attack", "robust"], [["FGSM", "50 %"]]), end="")
    | attack | robust |
    | --- | --- |
    | FGSM | 50 % |

    Args:
      header: the titles of the columns.
      rows: as many cells each, written by `str`.
    """
    lines = [header, ["---"] * len(header), *rows]
    texts = [[str(cell).replace("|", "\\|") for cell in line] for line in lines]
    return "\n".join("| " + " | ".join(line) + " |" for line in texts) + "\n"
