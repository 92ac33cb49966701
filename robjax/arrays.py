"""What is known of arrays; checks of those that are no images.

As in `robjax.checks`, axes and dtypes are checked always, values when they are known.
"""

import math
import reprlib
from typing import Any, NamedTuple

import jax
import jax.core
import jax.numpy as jnp
import numpy as np

REAL = (jnp.floating, jnp.integer)


class Extremes(NamedTuple):
    """Of all values of an array, each a scalar; `finite` is 1 or 0."""

    finite: Any
    low: Any
    high: Any


def extremes(x: jax.Array | np.ndarray) -> Extremes:
    """Lowest and highest value of a concrete array, and whether all are finite.

    On a CPU NumPy looks at them; elsewhere it is one small reduction and one fetch.

    >>> [float(value) for value in extremes(jnp.array([0.5, 2.0]))]
    [1.0, 0.5, 2.0]
    """
    if isinstance(x, np.ndarray) or is_on_cpu(x):
        values = np.asarray(x)
        return Extremes(np.isfinite(values).all(), values.min(), values.max())
    return Extremes(*jax.device_get(_extremes_on_device(x)))


def is_on_cpu(x: jax.Array) -> bool:
    """Whether all of a concrete array is on CPUs of this process.

    >>> is_on_cpu(jnp.ones(2)) == (jax.default_backend() == "cpu")
    True
    """
    return all(d.platform == "cpu" for d in x.devices()) and x.is_fully_addressable


@jax.jit
def _extremes_on_device(x: jax.Array) -> jax.Array:
    finite = jnp.isfinite(x).all().astype(x.dtype)
    # one array, so that one fetch brings all three
    return jnp.stack([finite, x.min(), x.max()])


def check_array(
    name: str,
    value: Any,
    shape: str,
    *,
    kinds: tuple[Any, ...] = REAL,
    finite: bool = True,
    low: float = -math.inf,
    high: float = math.inf,
) -> Any:
    """Checks an array of numbers, or lists of them.

    >>> check_array("w", [1, 2], "[d]").tolist()
    [1, 2]
    >>> check_array("w", [[1.0, 2.0]], "[d]")
    Traceback (most recent call last):
      ...
    ValueError: w must have shape [d], got (1, 2)

    Args:
      name: what the caller calls `value`, for the message.
      value: anything.
      shape: the axes, a letter for any size, as in "[B, 3]"; "[…, K]" is one or more.
      kinds: what the dtype may be. `jnp.bool_` allows truth values.
      finite: refuse infinite values, too; NaN is refused in any case when `low` or
        `high` is given.
      low: smallest value allowed.
      high: largest value allowed.

    Returns:
      The value as it is, a number, list or tuple as a NumPy array.

    Raises:
      ValueError: `value` has another shape or dtype, is empty, or is concrete and
        holds a value that is not allowed.
    """
    array = as_array(value)
    if array is None or not any(jnp.issubdtype(array.dtype, kind) for kind in kinds):
        words = {jnp.floating: "floating-point", jnp.integer: "whole"}
        words[jnp.bool_] = "truth values"
        real = set(REAL) <= set(kinds)
        found = [words[kind] for kind in kinds if not (real and kind in REAL)]
        found += ["real"] if real else []
        what = " or ".join(found) + " numbers"
        raise ValueError(f"{name} must hold {what} {shape}, got {_shown(value)}")
    axes = shape.strip("[]").split(", ") if shape != "[]" else []
    open_end = "…" in axes
    fits = array.ndim >= len(axes) - 1 if open_end else array.ndim == len(axes)
    fixed = {i - len(axes): int(a) for i, a in enumerate(axes) if a.isdigit()}
    if not fits or any(array.shape[i] != size for i, size in fixed.items()):
        raise ValueError(f"{name} must have shape {shape}, got {array.shape}")
    if not array.size:
        raise ValueError(f"{name} must not be empty, got shape {array.shape}")
    bounded = low > -math.inf or high < math.inf
    if isinstance(array, jax.core.Tracer) or not (finite or bounded):
        return array
    _check_values(name, array, finite=finite, low=low, high=high)
    return array


def _check_values(
    name: str, array: Any, *, finite: bool, low: float, high: float
) -> None:
    found = extremes(jnp.asarray(array)) if isinstance(array, jax.Array) else None
    if found is None:
        found = (np.isfinite(array).all(), array.min(), array.max())
    all_finite, least, most = found
    if (finite and not all_finite) or not (least >= low and most <= high):
        allowed = "finite" if finite else "numbers, inf allowed,"
        span = f" from {low:g} to {high:g}" if high < math.inf else f" at least {low:g}"
        span = span if low > -math.inf or high < math.inf else ""
        raise ValueError(
            f"{name} must be {allowed}{span}, got values from {least:g} to {most:g}"
        )


def on_host(value: Any) -> bool:
    """Whether the numbers of an array can be looked at for nothing.

    >>> on_host(np.ones(2)), on_host([1, 2]), on_host(None)
    (True, True, False)

    Args:
      value: anything.

    Returns:
      False for tracers, for arrays on other devices than the CPU, and for no arrays.
    """
    array = as_array(value)
    if isinstance(array, jax.core.Tracer) or array is None:
        return False
    return isinstance(array, np.ndarray) or is_on_cpu(array)


def check_classes(name: str, value: Any, batch_size: int, classes: int) -> Any:
    """Checks a class for each sample, [B] whole numbers below K.

    Unlike those of `robjax.checks.check_labels`, which are checked once for an attack,
    numbers on another device than the CPU are not fetched.

    >>> check_classes("labels", [0, 2], batch_size=2, classes=3).tolist()
    [0, 2]

    Raises:
      ValueError: `value` is something else.
    """
    known = on_host(value)
    return check_array(
        name,
        value,
        f"[{batch_size}]",
        kinds=(jnp.integer,),
        finite=False,
        low=0 if known else -math.inf,
        high=classes - 1 if known else math.inf,
    )


def as_array(value: Any) -> Any:
    """The value as an array if it is one, or a number, or lists of them; else None.

    >>> as_array([1, 2]).shape, as_array([[1], [1, 2]]), as_array(None)
    ((2,), None, None)
    """
    if isinstance(value, jax.Array | np.ndarray):
        return value
    if not isinstance(value, int | float | np.generic | list | tuple | range):
        return None
    try:
        return np.asarray(value)
    except ValueError:  # rows of different lengths
        return None


def _shown(value: Any) -> str:
    if isinstance(value, jax.Array | np.ndarray):
        return f"{value.dtype} of shape {value.shape}"
    return reprlib.repr(value)


def check_axis(name: str, value: Any, ndim: int) -> int:
    """Checks which axis of an array with `ndim` of them is meant.

    >>> check_axis("axis", -1, ndim=2)
    -1

    Raises:
      ValueError: `value` is no whole number from −ndim to ndim − 1.
    """
    whole = isinstance(value, int | np.integer) and not isinstance(value, bool)
    if not whole or not -ndim <= value < ndim:
        raise ValueError(
            f"{name} must be a whole number from {-ndim} to {ndim - 1}, got {value!r}"
        )
    return int(value)


def check_floating(name: str, value: Any) -> Any:
    """Checks a floating-point type.

    >>> check_floating("dtype", jnp.float32).__name__
    'float32'

    Returns:
      The value as it is.

    Raises:
      ValueError: `value` is no type, or one of other numbers.
    """
    try:
        floating = jnp.issubdtype(value, jnp.floating)
    except TypeError:  # no type at all
        floating = False
    if not floating:
        raise ValueError(f"{name} must be a floating-point type, got {value!r}")
    return value
