"""Classifiers for which the paper's "if and only if" is wrong."""

from typing import NamedTuple

import numpy as np
from jax.typing import ArrayLike

from robjax.checks import check_number
from robjax.theory.feature_spaces.arguments import check_points
from robjax.theory.feature_spaces.classifiers import minimal_flip_distance
from robjax.theory.feature_spaces.maps import FeatureSpaces, compare


class CounterExample(NamedTuple):
    """A classifier that the paper's "if and only if" is wrong or right about.

    Attributes:
      spaces: the features, with the verdict of the table.
      distance: [B] least oracle distance at which f₁ flips; inf: never.
      flipped: [B, d] points at the oracle distance 0 where f₁ differs; NaN: none.
    """

    spaces: FeatureSpaces
    distance: np.ndarray
    flipped: np.ndarray


def constant_classifier(a1: ArrayLike, a2: ArrayLike, x: ArrayLike) -> CounterExample:
    """A classifier that says the same everywhere is robust, whatever its features.

    c₁ = sign(⟨0, A₁x⟩ + 1). In the cases I and II the paper's theorem says that it is
    not strong-robust, and the theorem is wrong.

    >>> found = constant_classifier(np.eye(2), [[1.0, 0.0]], np.ones((3, 2)))
    >>> found.spaces.strong_robust, found.distance
    (False, array([inf, inf, inf]))

    Args:
      a1, a2: as in `compare`.
      x: [B, d] points.

    Raises:
      ValueError: as in `compare`, or x is not [B, d] finite real numbers.
    """
    spaces = compare(a1, a2)
    points = check_points(x, np.shape(a1)[1])
    distance = minimal_flip_distance(np.zeros(points.shape[1]), 1.0, points, a2)
    return CounterExample(spaces, distance, np.full(points.shape, np.nan))


def ignored_direction(x: ArrayLike, *, weight: float) -> CounterExample:
    """One feature that the oracle ignores ruins a classifier, if it is used at all.

    A₁ = I, A₂ = (1 0): the oracle is sign(x₁), the classifier sign(x₁ + weight · x₂).
    Whatever the weight, this is case II. With weight ≠ 0 every x flips at the oracle
    distance 0, by a move of x₂ alone. With 0 the distance is |x₁|: the classifier is
    the oracle. So not the features alone decide. Figure 2 of the paper.

    >>> ignored_direction([[2.0, 1.0]], weight=0.5).flipped  # the score 2.5 to −2.5
    array([[ 2., -9.]])
    >>> ignored_direction([[2.0, 1.0]], weight=0.0).distance
    array([2.])

    Args:
      x: [B, 2] points.
      weight: of x₂, 0 or at least 1e-12 in absolute value.

    Raises:
      ValueError: x is not [B, 2] finite real numbers, or so large that the flipped
        points are not; or the weight is not allowed.
    """
    points = check_points(x, 2)
    check_number("weight", weight)
    if 0 < abs(weight) < 1e-12:
        raise ValueError(f"weight must be 0 or at least 1e-12, got {weight}")
    a2 = np.array([[1.0, 0.0]])
    distance = minimal_flip_distance(np.array([1.0, weight]), 0.0, points, a2)
    flipped = np.full(points.shape, np.nan)
    if weight:
        with np.errstate(over="ignore"):
            score = points[:, 0] + weight * points[:, 1]
        target = np.where(score == 0, 1, -score)  # a score of 0 is the class −1
        flipped = points.copy()
        with np.errstate(over="ignore"):
            flipped[:, 1] = (target - points[:, 0]) / weight
        if not np.isfinite(flipped).all():
            raise ValueError(
                f"x must be small enough to be flipped in float64, got {points}"
            )
    return CounterExample(compare(np.eye(2), a2), distance, flipped)
