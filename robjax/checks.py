"""Checks of arguments: bounds, images, labels, numbers, logits.

Every public function of robjax passes its arguments through this file, so that a
mistake is a ``ValueError`` that names the argument, before anything compiles.

* Shapes and dtypes are checked always, also inside a trace.
* Values are checked whenever they are concrete. That takes NumPy for arrays on the
  CPU, elsewhere one small reduction and one fetch. Tracers are never fetched.
"""

import math
from typing import Any

import jax
import jax.core
import jax.numpy as jnp
import numpy as np

Bounds = tuple[float, float]


def _concrete(value: Any) -> bool:
    return not isinstance(value, jax.core.Tracer)


def _on_host(x: Any) -> bool:
    if isinstance(x, np.ndarray):
        return True
    return all(d.platform == "cpu" for d in x.devices()) and x.is_fully_addressable


@jax.jit
def _range(x: jax.Array) -> jax.Array:
    finite = jnp.isfinite(x).all().astype(x.dtype)
    return jnp.stack([finite, x.min(), x.max()])


def check_bounds(bounds: Any) -> Bounds:
    """Returns (lowest, highest) pixel value as floats; ValueError unless lo < hi."""
    try:
        low, high = (float(bound) for bound in bounds)
    except (TypeError, ValueError):
        raise ValueError(f"bounds must be two numbers, got {bounds!r}") from None
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise ValueError(f"bounds must be finite with low < high, got {bounds!r}")
    return low, high


def check_images(x: Any, *, bounds: Bounds | None = None, name: str = "x") -> jax.Array:
    """Returns images as a floating jax.Array [B, *S], B ≥ 1.

    Raises:
      ValueError: `x` is not an array, is empty, has no batch axis or no feature axis,
        is not floating (integer images must be scaled first), has NaN or infinite
        values, or leaves `bounds` (checked exactly; tolerance 0).
    """
    if not isinstance(x, jax.Array | np.ndarray):
        raise ValueError(f"{name} must be an array [B, *S], got {type(x).__name__}")
    if x.ndim < 2 or x.size == 0:
        raise ValueError(
            f"{name} must be a non-empty batch of images [B, *S], got shape {x.shape}"
        )
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise ValueError(
            f"{name} must be floating point, got {x.dtype}; scale integer images to "
            "the bounds first (for 8-bit images: x / 255)"
        )
    if _concrete(x):
        x = jnp.asarray(x)
        if _on_host(x):
            values = np.asarray(x)
            finite, low, high = np.isfinite(values).all(), values.min(), values.max()
        else:
            finite, low, high = jax.device_get(_range(x))
        if not finite:
            raise ValueError(f"{name} must be finite, got NaN or infinite values")
        if bounds is not None and (low < bounds[0] or high > bounds[1]):
            raise ValueError(
                f"{name} must lie inside bounds {bounds}, got values from {low:.6g} to "
                f"{high:.6g}"
            )
    return jnp.asarray(x)


def check_labels(
    y: Any, batch_size: int, *, num_classes: int | None = None, name: str = "y"
) -> jax.Array:
    """Returns labels as an integer jax.Array [B].

    Raises:
      ValueError: `y` is no integer array of shape [batch_size], or a label is
        negative or not below `num_classes`.
    """
    if not isinstance(y, jax.Array | np.ndarray | list | tuple):
        raise ValueError(f"{name} must be an integer array [B], got {type(y).__name__}")
    if isinstance(y, list | tuple):
        y = np.asarray(y)
    if y.shape != (batch_size,):
        raise ValueError(
            f"{name} must have shape ({batch_size},), one label for each image, got "
            f"{y.shape}"
        )
    if not jnp.issubdtype(y.dtype, jnp.integer):
        raise ValueError(f"{name} must be integer class labels, got dtype {y.dtype}")
    if _concrete(y):
        low, high = int(np.min(np.asarray(y))), int(np.max(np.asarray(y)))
        if low < 0 or (num_classes is not None and high >= num_classes):
            allowed = "0 or more" if num_classes is None else f"0 to {num_classes - 1}"
            raise ValueError(
                f"{name} must hold labels {allowed}, got values from {low} to {high}"
            )
    return jnp.asarray(y, jnp.int32)


def check_number(
    name: str,
    value: Any,
    *,
    minimum: float = -math.inf,
    batch_size: int | None = None,
) -> Any:
    """Returns a finite real number, or one for each sample, of at least `minimum`.

    Raises:
      ValueError: not real, not scalar (nor [batch_size], where that is given), or
        concrete and NaN, infinite or below `minimum`.
    """
    real = (int, float, np.number, np.ndarray, jax.Array)
    dtype = jnp.result_type(value) if isinstance(value, real) else None
    if dtype is None or not (
        jnp.issubdtype(dtype, jnp.floating) or jnp.issubdtype(dtype, jnp.integer)
    ):
        raise ValueError(f"{name} must be a real number, got {value!r}")
    shape = jnp.shape(value)
    allowed = [()] if batch_size is None else [(), (batch_size,)]
    if shape not in allowed:
        raise ValueError(f"{name} must have shape {allowed}, got {shape}")
    if _concrete(value):
        numbers = np.asarray(value)
        if not np.isfinite(numbers).all() or (numbers < minimum).any():
            raise ValueError(
                f"{name} must be finite and at least {minimum:g}, got {value}"
            )
    return value


def check_count(name: str, value: Any, *, minimum: int = 1) -> int:
    """Returns a static whole number of at least `minimum`, else ValueError."""
    whole = isinstance(value, int | np.integer) and not isinstance(value, bool)
    if not whole or value < minimum:
        raise ValueError(
            f"{name} must be a whole number of at least {minimum}, got {value!r}"
        )
    return int(value)


def check_logits(logits: jax.Array, batch_size: int) -> jax.Array:
    """Returns `logits` unless they are not floating [batch_size, K], K ≥ 2."""
    shape, dtype = jnp.shape(logits), jnp.result_type(logits)
    if len(shape) != 2 or shape[0] != batch_size or shape[1] < 2:
        raise ValueError(
            f"logits_fn must return logits [{batch_size}, K], K >= 2, for a batch of "
            f"{batch_size}, got shape {shape}"
        )
    if not jnp.issubdtype(dtype, jnp.floating):
        raise ValueError(f"logits_fn must return floating-point logits, got {dtype}")
    return logits


def check_range(
    name: str,
    value: Any,
    low: float = -np.inf,
    high: float = np.inf,
    *,
    below: float = np.inf,
) -> Any:
    """Returns the value, a list as an array, of a parameter with a range.

    >>> check_range("p", 0.7, 0, 1)
    0.7

    Args:
      name: what the caller calls it.
      value: a number or numbers; not checked while they are traced.
      low: smallest value allowed.
      high: largest value allowed.
      below: a bound that is not allowed itself.

    Raises:
      ValueError: not real numbers, none of them, or one not finite or out of range.
    """
    if isinstance(value, jax.core.Tracer):
        return value
    numbers = np.asarray(value)
    if not (
        jnp.issubdtype(numbers.dtype, jnp.number)
        and numbers.size
        and np.isfinite(numbers).all()
        and (numbers >= low).all()
        and (numbers <= high).all()
        and (numbers < below).all()
    ):
        bracket = f"[{low:g}, {below:g})" if below < np.inf else f"[{low:g}, {high:g}]"
        raise ValueError(f"{name} must be finite and in {bracket}, got {value!r}")
    return numbers if isinstance(value, list | tuple) else value
