"""Adversarial images betray themselves by scattered attributions.

Yang et al., "ML-LOO: Detecting Adversarial Examples with Feature Attribution", AAAI
2020, arXiv 1906.03499: leave out one part of the image after the other, and see how
much the changes scatter. Ren et al., arXiv 2103.07364, section 4.3, say why this works:
the change is an attribution of the highest order, which sums up the interactions of
all orders,

    v(N) − v(N∖i) = φ^(n−1)(i) = φ^(0)(i) + Σ_m E_j I_ij^(m)
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from robjax.arrays import check_array
from robjax.checks import check_count
from robjax.metrics.interactions.exact import play
from robjax.metrics.interactions.games import ValueFn
from robjax.samples import is_concrete


class Dispersion(NamedTuple):
    """How much attributions scatter; several games put their axes first.

    Attributes:
      deviation: the standard deviation, over n.
      absolute: the median of |φ − median φ|.
      quartiles: the distance between the first and the third quartile.
    """

    deviation: np.ndarray
    absolute: np.ndarray
    quartiles: np.ndarray

    def __repr__(self) -> str:
        """Means over the games."""
        if not all(map(is_concrete, self)):
            return "Dispersion(traced)"
        deviation, absolute, quartiles = (np.mean(field) for field in self)
        return (
            f"Dispersion(deviation {deviation:.4g}, median absolute deviation "
            f"{absolute:.4g}, between quartiles {quartiles:.4g})"
        )


def leave_one_out(value_fn: ValueFn, n: int) -> np.ndarray:
    """What is lost with each player alone, φ^(n−1)(i) = v(N) − v(N∖i); n + 1 forwards.

    >>> leave_one_out(lambda masks: masks.sum(1) ** 2, 3).tolist()
    [5.0, 5.0, 5.0]

    Args:
      value_fn: masks, bool [M, n] -> [M], or [*G, M] for several games.
      n: players.

    Returns:
      [*G, n].

    Raises:
      ValueError: n is not a positive whole number, or `value_fn` returns no numbers of
        such a shape.
    """
    n = check_count("n", n)
    values = play(value_fn, ~np.eye(n + 1, n, dtype=bool))
    return values[..., n:] - values[..., :n]


def dispersion(attributions: ArrayLike) -> Dispersion:
    """Measures how much attributions scatter over the players, in three ways.

    >>> dispersion([0.0, 1.0, 2.0, 3.0, 9.0]).quartiles.tolist()
    2.0

    Args:
      attributions: [..., n].

    Raises:
      ValueError: there are no players.
    """
    checked = check_array("attributions", attributions, "[…, n]", finite=False)
    values = np.asarray(checked, float)
    median = np.median(values, axis=-1, keepdims=True)
    low, high = np.quantile(values, [0.25, 0.75], axis=-1)
    return Dispersion(
        deviation=np.asarray(values.std(-1)),
        absolute=np.asarray(np.median(np.abs(values - median), axis=-1)),
        quartiles=np.asarray(high - low),
    )


def auroc(positive: ArrayLike, negative: ArrayLike) -> float:
    """The area under the ROC curve: how often a positive has the higher score.

    P(positive > negative) + ½ P(equal): 1 for a perfect detector, ½ for chance.

    >>> auroc([2.0, 3.0], [1.0, 2.0])
    0.875

    Args:
      positive: [N] scores of what is to be detected.
      negative: [M] scores of the rest.

    Returns:
      NaN if a score is NaN.

    Raises:
      ValueError: a group is empty or no row of numbers.
    """
    above = np.asarray(check_array("positive", positive, "[N]", finite=False), float)
    below = np.asarray(check_array("negative", negative, "[M]", finite=False), float)
    if np.isnan(above).any() or np.isnan(below).any():
        return float("nan")
    ordered = np.sort(below)
    less = np.searchsorted(ordered, above, side="left")
    not_more = np.searchsorted(ordered, above, side="right")
    return float((less + not_more).mean() / (2 * len(below)))
