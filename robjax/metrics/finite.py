"""What is not finite in a model and what is told of it; half-precision images.

A component of an input gradient that is NaN or infinite counts as 0. Where logits are
NaN or infinite, the numbers of that image are NaN, and means leave the image out. Both
are counted in a warning, wherever values are concrete.
"""

import functools
import warnings
from collections.abc import Callable
from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from robjax.checks import check_images
from robjax.samples import is_concrete

Tree = TypeVar("Tree")

# Images that are measured again at a time.
_ROWS = 8


def check_measured(x: object, *, name: str = "x") -> jax.Array:
    """Checks images to be measured, and makes half-precision ones float32.

    >>> check_measured(np.ones((2, 3), np.float16)).dtype.name
    'float32'

    Args:
      x: [B, *S] images.
      name: what the caller calls `x`, for the message.

    Raises:
      ValueError: as in `robjax.checks.check_images`.
    """
    return widened(check_images(x, name=name))


def widened(values: jax.Array) -> jax.Array:
    """The values in float32 or better.

    >>> widened(jnp.ones(2, jnp.bfloat16)).dtype.name
    'float32'
    """
    return values.astype(jnp.promote_types(values.dtype, jnp.float32))


def finite_samples(values: jax.Array) -> jax.Array:
    """Whether everything about a sample is finite, [B].

    >>> finite_samples(jnp.array([[1.0, 2.0], [jnp.nan, 3.0]])).tolist()
    [True, False]

    Args:
      values: [B, …].
    """
    return jnp.all(jnp.isfinite(values), tuple(range(1, values.ndim)))


def measure_again(
    values: Tree,
    *,
    logits: ArrayLike,
    gradients: ArrayLike,
    measure: Callable[[np.ndarray], Tree],
    axis: int = 0,
) -> Tree:
    """Replaces the numbers of images whose gradients alone are not finite.

    It waits for `gradients`. Inside `jax.jit` it replaces nothing.

    >>> values = np.array([1.0, np.nan, 3.0])
    >>> known = ~np.isnan(values)
    >>> measure_again(
    ...     values, logits=np.ones(3, bool), gradients=known, measure=lambda i: 2.0 * i
    ... ).tolist()
    [1.0, 2.0, 3.0]

    Args:
      values: arrays [B, …].
      logits, gradients: as in `warn_not_finite`.
      measure: maps [n] row numbers, `_ROWS` at a time, to arrays [n, …] like `values`.
      axis: that of the images in the arrays.
    """
    if not (is_concrete(logits) and is_concrete(gradients)):
        return values
    lost = np.flatnonzero(np.asarray(logits) & ~np.asarray(gradients))

    def put(old: jax.Array, new: jax.Array, rows: np.ndarray) -> jax.Array:
        moved = jnp.moveaxis(jnp.asarray(old), axis, 0)
        return jnp.moveaxis(moved.at[rows].set(jnp.moveaxis(new, axis, 0)), 0, axis)

    for start in range(0, len(lost), _ROWS):
        # always as many rows, lest every number of them compile anew
        rows = np.resize(lost[start : start + _ROWS], _ROWS)
        found = measure(rows)
        values = jax.tree.map(functools.partial(put, rows=rows), values, found)
    return values


def warn_not_finite(
    *,
    logits: ArrayLike,
    gradients: ArrayLike,
    what: str = "images",
    then: str = "their numbers are NaN",
    stacklevel: int = 3,
) -> None:
    """Warns the caller of a metric of images that are not finite, if that is known.

    >>> with warnings.catch_warnings(record=True) as said:
    ...     warnings.simplefilter("always")
    ...     warn_not_finite(logits=np.array([True, False]), gradients=np.ones(2, bool))
    >>> print(said[0].message)
    1 of 2 images have logits that are not finite: their numbers are NaN

    Args:
      logits: [B] whether the logits are finite.
      gradients: [B] whether the input gradients are.
      what: what there are B of.
      then: what becomes of those whose logits are not.
      stacklevel: as in `warnings.warn`.
    """
    if not (is_concrete(logits) and is_concrete(gradients)):
        return
    known = np.asarray(logits)
    cases = {
        f"logits that are not finite: {then}": ~known,
        "input gradients that are not finite: those components count as 0": known
        & ~np.asarray(gradients),
    }
    for case, lost in cases.items():
        if lost.any():
            found = f"{np.count_nonzero(lost)} of {lost.size} {what} have {case}"
            warnings.warn(found, stacklevel=stacklevel)


def summary(
    values: ArrayLike, of: Callable[[np.ndarray], np.floating]
) -> tuple[float, str]:
    """The mean or median of the values that are not NaN, and how many are left out.

    >>> summary(np.array([1.0, np.nan, 3.0]), np.mean)
    (2.0, ', 1 NaN left out')
    """
    values = np.asarray(values)
    known = values[~np.isnan(values)]
    lost = values.size - known.size
    words = f", {lost} NaN left out" if lost else ""
    return float(of(known)) if known.size else float("nan"), words
