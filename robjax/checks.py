"""Checks of arguments: bounds, images, labels, numbers, logits.

Every public function of robjax passes its arguments through this file. A mistake is
then a ``ValueError`` that names the argument, before anything compiles.

* Shapes and dtypes are checked always, also inside a trace.
* Values are checked whenever they are concrete. For arrays on the CPU that is NumPy's
  work, elsewhere it takes one small reduction and one fetch. Tracers are never fetched.
"""

import math
from typing import Any, TypeVar

import jax
import jax.core
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from robjax.arrays import extremes

Bounds = tuple[Any, Any]
"""Lowest and highest pixel value: two numbers, or for attacks two arrays, a box for
each pixel (`robjax.boxes`)."""

Number = TypeVar("Number")


def _concrete(value: object) -> bool:
    return not isinstance(value, jax.core.Tracer)


def check_bounds(bounds: Any) -> tuple[float, float]:
    """Checks the lowest and the highest pixel value, where both must be numbers.

    >>> check_bounds((0, 1))
    (0.0, 1.0)

    Returns:
      Both as floats.

    Raises:
      ValueError: `bounds` is not two finite numbers with low < high.
    """
    try:
        if any(isinstance(bound, str) for bound in bounds):
            raise TypeError("float would read numbers in them")
        low, high = (float(bound) for bound in bounds)
    except (TypeError, ValueError):
        pair = isinstance(bounds, tuple | list)
        if pair and any(np.ndim(bound) > 0 for bound in bounds):
            raise ValueError(
                "bounds must be two numbers here, got arrays: a box for each pixel is "
                "for attacks on single images, for evaluate, autoattack, "
                "robust_accuracy_curve, doubts and certify"
            ) from None
        raise ValueError(f"bounds must be two numbers, got {bounds!r}") from None
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise ValueError(f"bounds must be finite with low < high, got {bounds!r}")
    return low, high


def check_images(
    x: object, *, bounds: Bounds | None = None, name: str = "x"
) -> jax.Array:
    """Checks a batch of images.

    >>> check_images(np.full((2, 8, 8, 1), 0.5, np.float32), bounds=(0, 1)).shape
    (2, 8, 8, 1)

    Args:
      x: [B, *S] floating-point images, B ≥ 1.
      bounds: lowest and highest pixel value, numbers or arrays [B, *S]; None: any
        finite value will do.
      name: what the caller calls `x`, for the message.

    Returns:
      The images as a jax.Array.

    Raises:
      ValueError: `x` is not an array, is empty, has no batch axis or no feature axis,
        is not floating (integer images must be scaled first), has NaN or infinite
        values, or leaves `bounds` (checked exactly; tolerance 0).
    """
    if not isinstance(x, jax.Array | np.ndarray):
        kind = type(x).__name__
        raise ValueError(
            f"{name} must be an array [B, *S], got {kind}: give np.asarray({name})"
        )
    if x.ndim < 2 or x.size == 0:
        one = f"; one image is the batch {name}[None]" if x.ndim == 1 and x.size else ""
        raise ValueError(
            f"{name} must be a non-empty batch of images [B, *S], got shape {x.shape}"
            f"{one}"
        )
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise ValueError(
            f"{name} must be floating point, got {x.dtype}; scale integer images to "
            "the bounds first (for 8-bit images: x / 255)"
        )
    if _concrete(x):  # NumPy stays so: inside a trace its jax.Array would be a tracer
        finite, low, high = extremes(x)
        if not finite:
            raise ValueError(f"{name} must be finite, got NaN or infinite values")
        if bounds is not None and np.ndim(bounds[0]):
            _check_inside(x, bounds, name)
        elif bounds is not None and (low < bounds[0] or high > bounds[1]):
            raise ValueError(
                f"{name} must lie inside bounds {bounds}, got values from {low:.6g} to "
                f"{high:.6g}: {_fit(low, high, bounds, name)}"
            )
    return jnp.asarray(x)


def _check_inside(x: jax.Array | np.ndarray, bounds: Bounds, name: str) -> None:
    """Checks that each pixel is in its box [B, *S], as long as that is known."""
    outside = (x < bounds[0]) | (x > bounds[1])
    if _concrete(outside) and (count := int(outside.sum())):
        at = tuple(int(i) for i in np.argwhere(np.asarray(outside))[0])
        raise ValueError(
            f"{name} must lie inside bounds, got {count} values outside their box, the "
            f"first {name}{list(at)} = {x[at]:.6g} outside [{bounds[0][at]:.6g}, "
            f"{bounds[1][at]:.6g}]: make bounds by attacks.limits of this {name}"
        )


def _fit(low: float, high: float, bounds: Bounds, name: str) -> str:
    """What to do with images that leave the bounds."""
    if bounds == (0, 1) and low >= 0 and 1.5 < high <= 255:
        return f"give {name} / 255, or bounds=(0, 255)"
    return (
        f"scale {name} to the bounds, or give the lowest and the highest value that a "
        "pixel may have as bounds"
    )


def is_half(dtype: DTypeLike) -> bool:
    """Whether numbers of this type are floating, and shorter than float32.

    >>> is_half(jnp.bfloat16), is_half(jnp.float32), is_half(jnp.int8)
    (True, False, False)
    """
    return jnp.issubdtype(dtype, jnp.floating) and jnp.finfo(dtype).bits < 32


def check_attacked(x: object, bounds: Bounds, *, name: str = "x") -> jax.Array:
    """Checks images to be attacked, and makes half-precision ones float32.

    Half precision rounds the bounds, too. So images clipped to the rounded bounds are
    taken as they are meant, and clipped to the bounds.

    >>> half = jnp.array([[0.25, 0.3]], jnp.bfloat16)  # 0.3 becomes 0.30078125
    >>> x = check_attacked(half, (0.0, 0.3))
    >>> x.dtype.name, x.round(6).tolist() == jnp.array([[0.25, 0.3]]).tolist()
    ('float32', True)

    Args:
      x: [B, *S] floating-point images.
      bounds: lowest and highest pixel value, numbers or arrays [B, *S]; `check_box`
        checks them, too.
      name: what the caller calls `x`, for the message.

    Raises:
      ValueError: `x` is malformed (`robjax.checks.check_images`).
    """
    if not (isinstance(x, jax.Array | np.ndarray) and is_half(x.dtype)):
        return check_images(x, bounds=bounds, name=name)
    if np.ndim(bounds[0]):
        low, high = (end.astype(x.dtype).astype(jnp.float32) for end in bounds)
        rounded = (jnp.minimum(low, bounds[0]), jnp.maximum(high, bounds[1]))
    else:
        low, high = (float(np.asarray(bound).astype(x.dtype)) for bound in bounds)
        rounded = (min(low, bounds[0]), max(high, bounds[1]))
    images = check_images(x, bounds=rounded, name=name)
    return jnp.clip(images.astype(jnp.float32), *bounds)


def check_labels(
    y: object, batch_size: int, *, num_classes: int | None = None, name: str = "y"
) -> jax.Array:
    """Checks the labels of a batch.

    >>> check_labels([2, 0], batch_size=2, num_classes=3).tolist()
    [2, 0]

    Args:
      y: [B] integers.
      batch_size: B.
      num_classes: K; None: not known.
      name: what the caller calls `y`, for the message.

    Returns:
      The labels as a jax.Array of int32.

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
            f"{y.shape}{_relabelled(y.shape, batch_size, name)}"
        )
    if not jnp.issubdtype(y.dtype, jnp.integer):
        raise ValueError(
            f"{name} must be integer class labels, got dtype {y.dtype}: give "
            f"{name}.astype(int) if it holds whole numbers"
        )
    if _concrete(y):
        labels = np.asarray(y)
        low = int(labels.min())
        high = int(labels.max())
        if low < 0 or (num_classes is not None and high >= num_classes):
            allowed = "0 or more" if num_classes is None else f"0 to {num_classes - 1}"
            from_one = low == 1 and high == num_classes
            hint = f": count from 0, give {name} - 1" if from_one else ""
            raise ValueError(
                f"{name} must hold labels {allowed}, got values from {low} to {high}"
                f"{hint}"
            )
    return jnp.asarray(y, jnp.int32)


def _relabelled(shape: tuple[int, ...], batch_size: int, name: str) -> str:
    """What may make labels of an array; empty if nothing is likely."""
    if shape == (batch_size, 1):
        return f": give {name}[:, 0]"
    if len(shape) == 2 and shape[0] == batch_size:
        return f": one-hot labels are given as {name}.argmax(axis=1)"
    if shape in ((), (1,)):
        return "; if x is one image, give x[None] and its label as an array [1]"
    return ""


def check_number(
    name: str,
    value: Number,
    *,
    minimum: float = -math.inf,
    batch_size: int | None = None,
) -> Number:
    """Checks a finite real number, or one for each sample.

    >>> check_number("eps", 0.5, minimum=0)
    0.5

    Args:
      name: what the caller calls `value`, for the message.
      value: anything.
      minimum: the least value allowed.
      batch_size: B; then an array [B] is allowed, too.

    Returns:
      The value as it is.

    Raises:
      ValueError: the value is not real, has another shape, or is concrete and NaN,
        infinite or below `minimum`.
    """
    numeric = (int, float, np.number, np.ndarray, jax.Array)
    if not (isinstance(value, numeric) and _is_real(jnp.result_type(value))):
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


def _is_real(dtype: np.dtype) -> bool:
    return jnp.issubdtype(dtype, jnp.floating) or jnp.issubdtype(dtype, jnp.integer)


def check_count(name: str, value: object, *, minimum: int = 1) -> int:
    """Checks a static whole number.

    >>> check_count("steps", np.int64(10))
    10

    Args:
      name: what the caller calls `value`, for the message.
      value: anything.
      minimum: the least value allowed.

    Returns:
      The value as an int.

    Raises:
      ValueError: the value is not an integer, or below `minimum`.
    """
    whole = isinstance(value, int | np.integer)
    if not whole or isinstance(value, bool) or value < minimum:
        raise ValueError(
            f"{name} must be a whole number of at least {minimum}, got {value!r}"
        )
    return int(value)


def check_flags(**flags: object) -> None:
    """Checks arguments that are either True or False.

    Anything else would count as one of them: the word "no" as True.

    >>> check_flags(early_exit=True, keep_best=np.bool_(False))
    >>> check_flags(early_exit="no")
    Traceback (most recent call last):
      ...
    ValueError: early_exit must be True or False, got 'no'

    Args:
      **flags: values, by what the caller calls them.

    Raises:
      ValueError: a value is neither True nor False.
    """
    for name, value in flags.items():
        if not isinstance(value, bool | np.bool_):
            raise ValueError(f"{name} must be True or False, got {value!r}")


def check_text(name: str, value: object) -> str:
    """Checks a name: a string that is not empty.

    >>> check_text("metric", "accuracy")
    'accuracy'

    Raises:
      ValueError: the value is no such string.
    """
    if not isinstance(value, str) or not value:
        raise ValueError(f"{name} must be a string that is not empty, got {value!r}")
    return value


def check_logits(logits: Any, batch_size: int, *, name: str = "logits_fn") -> Any:
    """Checks that what a model returns are logits.

    >>> check_logits(jnp.zeros((2, 3)), batch_size=2).shape
    (2, 3)
    >>> check_logits({"logits": jnp.zeros((2, 3))}, batch_size=2)
    Traceback (most recent call last):
      ...
    ValueError: logits_fn must return one array, got dict; return its ['logits'] \
alone, as in lambda x: logits_fn(x)['logits']

    Args:
      logits: anything; arrays may be traced, or shapes and dtypes only.
      batch_size: B.
      name: what the caller calls the model, for the message.

    Returns:
      The logits as they are.

    Raises:
      ValueError: they are not [B, K] with K ≥ 2 of float16, bfloat16, float32 or
        float64.
    """
    if not isinstance(logits, jax.Array | np.ndarray | jax.ShapeDtypeStruct):
        raise ValueError(
            f"{name} must return one array, got {type(logits).__name__}"
            f"{_where(logits, batch_size, name)}"
        )
    shape = logits.shape
    wanted = f"logits [{batch_size}, K], K >= 2, for a batch of {batch_size}"
    if not jnp.issubdtype(logits.dtype, jnp.floating):
        raise ValueError(
            f"{name} must return floating-point {wanted}, got {logits.dtype} of shape "
            f"{shape}; return the scores of the classes, not the class that argmax "
            "finds, which has no gradient"
        )
    if jnp.finfo(logits.dtype).bits < 16:
        raise ValueError(
            f"{name} must return logits of float16, bfloat16, float32 or float64, got "
            f"{logits.dtype}: return logits.astype(jnp.float32)"
        )
    if shape in ((batch_size,), (batch_size, 1)):
        raise ValueError(
            f"{name} must return {wanted}, got shape {shape}; one logit z of two "
            "classes is [0, z]: return jnp.stack([jnp.zeros(len(z)), z.reshape(-1)], "
            "axis=1)"
        )
    if len(shape) != 2 or shape[0] != batch_size or shape[1] < 2:
        raise ValueError(
            f"{name} must return {wanted}, got shape {shape}"
            f"{_reshaped(shape, batch_size)}"
        )
    return logits


def _where(outputs: Any, batch_size: int, name: str) -> str:
    """Where in what a model returned its logits may be; empty if nowhere."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(outputs)
    paths = [
        jax.tree_util.keystr(path)
        for path, leaf in leaves
        if len(shape := getattr(leaf, "shape", ())) == 2
        and shape[0] == batch_size
        and shape[1] > 1
    ]
    if not paths:
        return ""
    path = next((path for path in paths if "logit" in path), paths[0])
    return f"; return its {path} alone, as in lambda x: {name}(x){path}"


def _reshaped(shape: tuple[int, ...], batch_size: int) -> str:
    """What may make logits of an array; empty if nothing is likely."""
    if shape[:1] == (batch_size,) and sum(size > 1 for size in shape[1:]) == 1:
        return "; return logits.reshape(len(logits), -1)"
    if len(shape) == 2 and shape[1] == batch_size:
        return "; return logits.T"
    if len(shape) == 1 and shape[0] > 1:
        return "; a model of single images is given as jax.vmap(logits_fn)"
    return ""


def check_range(
    name: str,
    value: Any,
    low: float = -np.inf,
    high: float = np.inf,
    *,
    below: float = np.inf,
) -> Any:
    """Checks a parameter, one number or several, that has a range.

    >>> check_range("p", 0.7, 0, 1)
    0.7

    Args:
      name: what the caller calls `value`, for the message.
      value: a number or numbers; not checked while they are traced.
      low: smallest value allowed.
      high: largest value allowed.
      below: a bound that is not allowed itself.

    Returns:
      The value as it is, a list or tuple as an array.

    Raises:
      ValueError: `value` holds no numbers, or one that is not finite or out of range.
    """
    if isinstance(value, jax.core.Tracer):
        return value
    try:
        numbers = np.asarray(value)
    except ValueError:  # rows of different lengths
        numbers = np.asarray(None)
    real = _is_real(numbers.dtype)
    if not (
        real
        and numbers.size
        and np.isfinite(numbers).all()
        and (numbers >= low).all()
        and (numbers <= high).all()
        and (numbers < below).all()
    ):
        bracket = f"[{low:g}, {below:g})" if below < np.inf else f"[{low:g}, {high:g}]"
        found = f"{value!r}"
        if numbers.size > 9 and real:
            found = f"values from {numbers.min():g} to {numbers.max():g}"
        raise ValueError(f"{name} must be finite and in {bracket}, got {found}")
    return numbers if isinstance(value, list | tuple) else value
