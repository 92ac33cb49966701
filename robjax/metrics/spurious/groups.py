"""Accuracies of groups of images, and what is made of them, with standard errors."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike

from robjax.arrays import REAL, check_array
from robjax.checks import check_count, check_labels, check_range
from robjax.samples import is_concrete


class Estimate(NamedTuple):
    """A number measured on images, and how far other images would move it.

    `float(estimate)` and `np.asarray(estimate)` are the number alone.

    Attributes:
      value: [...].
      stderr: [...] its standard error; NaN where the images do not say.
    """

    value: jax.Array
    stderr: jax.Array

    def __float__(self) -> float:
        return float(self.value)

    def __array__(
        self, dtype: np.dtype | None = None, copy: bool | None = None
    ) -> np.ndarray:
        return np.array(self.value, dtype, copy=copy)

    def __repr__(self) -> str:
        """The number ± its standard error."""
        if not (is_concrete(self.value) and is_concrete(self.stderr)):
            return "Estimate(traced)"
        if np.ndim(self.value):
            return f"Estimate({list(np.shape(self.value))})"
        return f"Estimate({float(self.value):.4g} ± {float(self.stderr):.2g})"


@jax.jit
def mean(values: jax.Array, classes: jax.Array | None = None) -> Estimate:
    """The mean over the last axis, the images, with its standard error; NaN left out.

    >>> mean(jnp.array([1.0, 0.0, jnp.nan, 1.0, 0.0]))
    Estimate(0.5 ± 0.29)
    >>> mean(jnp.array([1.0, 0.0, 0.0, 0.0]), jnp.array([7, 7, 3, 3]))
    Estimate(0.25 ± 0.25)

    Args:
      values: [..., N].
      classes: int [N]; then the mean of the means of the classes that have images, with
        √(Σ_k stderr_k²) / K.

    Returns:
      The mean, and √(Σ (v − mean)² / (n − 1) / n); NaN for n < 2.
    """
    values = jnp.asarray(values, jnp.promote_types(jnp.result_type(values), "float32"))
    if classes is not None:
        return _mean_of_classes(values, classes)
    known = ~jnp.isnan(values)
    count = jnp.sum(known, -1, keepdims=True)
    total = jnp.sum(jnp.where(known, values, 0), -1, keepdims=True)
    centre = total / count
    squares = jnp.sum(jnp.where(known, values - centre, 0) ** 2, -1)
    count = jnp.squeeze(count, -1)
    freedom = jnp.where(count > 1, count - 1, jnp.nan)
    return Estimate(jnp.squeeze(centre, -1), jnp.sqrt(squares / freedom / count))


def _mean_of_classes(values: jax.Array, classes: jax.Array) -> Estimate:
    images = values.shape[-1]
    # numbered anew, so that there are at most as many classes as images
    _, place = jnp.unique(classes, size=images, return_inverse=True)
    known = ~jnp.isnan(values)

    def total(numbers: jax.Array) -> jax.Array:
        """Sums of the classes, [N, ...]."""
        return jax.ops.segment_sum(jnp.moveaxis(numbers, -1, 0), place, images)

    count = total(known.astype(values.dtype))
    centre = total(jnp.where(known, values, 0)) / jnp.maximum(count, 1)
    apart = values - jnp.moveaxis(centre[place], 0, -1)
    squares = total(jnp.where(known, apart, 0) ** 2)
    seen = count > 0
    freedom = jnp.where(count > 1, count - 1, jnp.nan)
    variance = jnp.where(seen, squares / freedom / jnp.maximum(count, 1), 0)
    number = jnp.sum(seen, 0)
    return Estimate(
        jnp.sum(jnp.where(seen, centre, 0), 0) / number,
        jnp.sqrt(jnp.sum(variance, 0)) / number,
    )


class GroupAccuracies(NamedTuple):
    """The accuracy of each of G groups.

    Attributes:
      accuracy: [G]; NaN for a group without images.
      stderr: [G] its standard error; NaN for fewer than two images.
      images: int [G] how many there are.
    """

    accuracy: jax.Array
    stderr: jax.Array
    images: jax.Array

    def __repr__(self) -> str:
        """Every group in one line."""
        if not is_concrete(self.accuracy):
            return "GroupAccuracies(traced)"
        rows = zip(self.accuracy, self.stderr, self.images, strict=True)
        groups = [f"{float(a):.3f} ± {float(s):.2g} of {int(n)}" for a, s, n in rows]
        return f"GroupAccuracies({', '.join(groups)})"


def group_accuracies(
    correct: ArrayLike, groups: ArrayLike, *, num_groups: int | None = None
) -> GroupAccuracies:
    """The share of each group that is classified correctly.

    With the share of each group as its weight, the accuracies average to that of all
    images.

    >>> group_accuracies([True, True, False, True], [0, 0, 1, 1])
    GroupAccuracies(1.000 ± 0 of 2, 0.500 ± 0.5 of 2)

    Args:
      correct: [N] verdicts, 0 to 1 (means over trials, say).
      groups: int [N] in 0..num_groups − 1.
      num_groups: G; default: the largest group + 1.

    Raises:
      ValueError: the shapes differ, or a value is out of its range.
    """
    verdicts = _check_correct("correct", correct)
    groups = check_labels(groups, len(verdicts), name="groups")
    if num_groups is None:
        if not is_concrete(groups):
            raise ValueError("num_groups must be given inside a trace, got None")
        num_groups = int(groups.max()) + 1
    check_count("num_groups", num_groups)
    check_labels(groups, len(verdicts), num_classes=num_groups, name="groups")
    member = groups[None] == jnp.arange(num_groups)[:, None]
    found = mean(jnp.where(member, verdicts[None], jnp.nan))
    return GroupAccuracies(found.value, found.stderr, jnp.sum(member, axis=1))


def worst_group_accuracy(
    correct: ArrayLike, groups: ArrayLike, *, num_groups: int | None = None
) -> Estimate:
    """The smallest accuracy of a group, and the standard error of that group's.

    Groups without images do not count. The smallest of several noisy numbers is too
    small on average: with few images in a group, repeat it over seeds.

    >>> worst_group_accuracy([True, True, False, True], [0, 0, 1, 1])
    Estimate(0.5 ± 0.5)

    Args:
      correct, groups, num_groups: as in `group_accuracies`.
    """
    found = group_accuracies(correct, groups, num_groups=num_groups)
    worst = jnp.nanargmin(found.accuracy)
    return Estimate(found.accuracy[worst], found.stderr[worst])


def reweighted_accuracy(
    correct: ArrayLike,
    groups: ArrayLike,
    shares: ArrayLike,
) -> Estimate:
    """The accuracy that there would be if groups had other shares: Σ_g share_g acc_g.

    Average accuracies on Waterbirds are reported with the shares of the training data.
    The standard error is √(Σ_g share_g² stderr_g²).

    >>> reweighted_accuracy([True, True, False, True], [0, 0, 1, 1], [90, 10])
    Estimate(0.95 ± 0.05)

    Args:
      correct, groups: as in `group_accuracies`.
      shares: [G] shares or numbers of images of the groups, scaled to the sum 1.

    Raises:
      ValueError: as in `group_accuracies`, or a group has a share but no images.
    """
    shares = check_range("shares", shares, 0)
    weights = jnp.asarray(shares, jnp.float32)
    if weights.ndim != 1:
        raise ValueError(f"shares must have shape [G], got {list(weights.shape)}")
    found = group_accuracies(correct, groups, num_groups=len(weights))
    if is_concrete(weights) and is_concrete(found.images):
        given = np.asarray(weights)
        absent = np.flatnonzero((given > 0) & (np.asarray(found.images) == 0))
        if absent.size or not given.any():
            raise ValueError(
                "shares must be positive somewhere, and 0 for groups without images, "
                f"got {given.tolist()}, no images in groups {absent.tolist()}"
            )
    weights = weights / weights.sum()
    used = weights > 0
    value = jnp.sum(jnp.where(used, weights * found.accuracy, 0))
    variance = jnp.sum(jnp.where(used, (weights * found.stderr) ** 2, 0))
    return Estimate(value, jnp.sqrt(variance))


def _check_correct(name: str, correct: ArrayLike) -> jax.Array:
    """Verdicts as floats [N]."""
    verdicts = check_array(name, correct, "[N]", kinds=(jnp.bool_, *REAL), finite=False)
    verdicts = jnp.asarray(verdicts)
    verdicts = verdicts.astype(jnp.promote_types(verdicts.dtype, jnp.float32))
    check_range(name, verdicts, 0, 1)
    return verdicts
