"""Where each pixel may move: the box [low, high], two numbers or two arrays [B, *S].

Everything else is made of boxes, so that all attacks can do it, and exactly:

    a mask             the box of a pixel that must not move is [x, x]
    ε for each pixel   the box is [x − ε, x + ε]
    tabular data       the box of a feature is the range that it may have

`limits` makes such arrays. A pixel whose box has no width is *held*: nothing is spent
on it. Its gradient counts as 0, and random steps do not go that way. So an attack does
with held pixels what it would do with a model that sees the others only.
"""

from typing import Any

import jax
import jax.core
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from robjax.arrays import REAL, as_array
from robjax.checks import Bounds, check_attacked, check_bounds, check_images
from robjax.samples import flatten_samples

_ROUNDINGS = 4  # by which a box may miss a pixel and be meant to hold it


def limits(
    x: jax.Array | np.ndarray,
    *,
    bounds: Bounds = (0.0, 1.0),
    mask: ArrayLike | None = None,
    eps: ArrayLike | None = None,
) -> Bounds:
    """The bounds of attacks that may change some pixels only, or each by so much.

    Give them as `bounds` to an attack, `evaluate` or `autoattack`, with the same x. The
    ball limits the change as a whole, on top of it. For ε of each pixel alone, take
    ``Linf(eps.max())``, which every attack knows what to do with.

    >>> x = jnp.array([[0.25, 0.5, 0.875]])
    >>> low, high = limits(x, mask=jnp.array([False, True, True]), eps=0.25)
    >>> low.tolist(), high.tolist()
    ([[0.25, 0.25, 0.625]], [[0.25, 0.75, 1.0]])

    Args:
      x: [B, *S] images inside `bounds`.
      bounds: lowest and highest value: two numbers, or two arrays as `mask` may have
        them, for example [d] for the ranges of the features of tabular data [B, d].
      mask: true where a pixel may change; bool, or numbers 0 and 1. One for all images
        [*S] or one for each [B, *S], and what broadcasts to these. Where x has four
        axes or more the last one, the channels, may be missing: [H, W] and [B, H, W]
        for x [B, H, W, C].
      eps: the most by which a pixel may change, at least 0; a number or as `mask`.

    Returns:
      (low, high), each [B, *S], of the dtype of x, float32 at least.

    Raises:
      ValueError: an argument is malformed; the message names it.
    """
    x, bounds = check_box(x, bounds)
    dtype = jnp.promote_types(x.dtype, jnp.float32)
    low, high = (jnp.broadcast_to(jnp.asarray(end, dtype), x.shape) for end in bounds)
    x = x.astype(dtype)
    if eps is not None:
        size = _fitted("eps", eps, x).astype(dtype)
        if not _holds(jnp.isfinite(size) & (size >= 0)):
            raise ValueError(
                "eps must be finite and at least 0, got values from "
                f"{size.min():.6g} to {size.max():.6g}"
            )
        low, high = jnp.maximum(low, x - size), jnp.minimum(high, x + size)
    if mask is not None:
        free = _fitted("mask", mask, x)
        if not _holds((free == 0) | (free == 1)):
            raise ValueError(
                "mask must be bool, or hold 0 and 1 alone, got values from "
                f"{free.min()} to {free.max()}: give, for example, mask > 0.5"
            )
        low, high = jnp.where(free, low, x), jnp.where(free, high, x)
    return low, high


def _fitted(name: str, value: ArrayLike, x: jax.Array) -> jax.Array:
    """An array for all images or for each, with channels or without, as [B, *S]."""
    array = as_array(value)
    kinds = (jnp.bool_, *REAL)
    if array is None or not any(jnp.issubdtype(array.dtype, kind) for kind in kinds):
        found = getattr(array, "dtype", repr(value))
        raise ValueError(f"{name} must be an array of numbers, got {found}")
    pixels = x.ndim > 3 and array.shape in (x.shape[1:-1], x.shape[:-1])
    if pixels and array.shape in (x.shape[1:], (*x.shape[1:-1], 1)):
        raise ValueError(
            f"{name} must say what its axes are, for {array.shape} may be one for all "
            f"images or one for each of x {x.shape}: give {name}[None] or "
            f"{name}[..., None]"
        )
    if not (pixels or _fits(array.shape, x.shape)):
        bare = f", or without channels {x.shape[:-1]}" if x.ndim > 3 else ""
        raise ValueError(
            f"{name} must have shape {x.shape[1:]} or {x.shape}{bare}, got "
            f"{array.shape}"
        )
    return jnp.broadcast_to(jnp.asarray(array[..., None] if pixels else array), x.shape)


def _fits(shape: tuple[int, ...], of_x: tuple[int, ...]) -> bool:
    """Whether arrays of this shape broadcast to images [B, *S]."""
    try:
        return np.broadcast_shapes(shape, of_x) == of_x
    except ValueError:
        return False


def _holds(condition: jax.Array) -> bool:
    """Whether it holds everywhere; true as long as nobody knows."""
    return isinstance(condition, jax.core.Tracer) or bool(condition.all())


def check_box(x: object, bounds: Any, *, name: str = "x") -> tuple[jax.Array, Bounds]:
    """Checks images to be attacked (`check_attacked`), and the box of each pixel.

    >>> x, (low, high) = check_box(jnp.array([[0.5, 2.0]]), (0, jnp.array([1.0, 9.0])))
    >>> low.tolist(), high.tolist()
    ([[0.0, 0.0]], [[1.0, 9.0]])

    Args:
      x: [B, *S] floating-point images.
      bounds: two numbers low < high, or two of which one is or both are arrays [*S] or
        [B, *S], low ≤ high. Boxes that miss their pixel by rounding are moved to it.
      name: what the caller calls `x`, for the message.

    Returns:
      The images, and two floats or two arrays [B, *S] of the dtype of the images.

    Raises:
      ValueError: either is malformed, or an image leaves its box.
    """
    if not has_arrays(bounds):
        bounds = check_bounds(bounds)
        return check_attacked(x, bounds, name=name), bounds
    images = check_images(x, name=name)
    dtype = jnp.promote_types(images.dtype, jnp.float32)
    ends = [jnp.asarray(end) for end in bounds]
    shapes = [end.shape for end in ends]
    if not all(_fits(shape, images.shape) for shape in shapes):
        raise ValueError(
            f"bounds must be two numbers, or two arrays {images.shape[1:]} or "
            f"{images.shape} as {name} has them, got {shapes[0]} and {shapes[1]}"
        )
    low, high = (jnp.broadcast_to(end.astype(dtype), images.shape) for end in ends)
    if not _holds(jnp.isfinite(low) & jnp.isfinite(high) & (low <= high)):
        raise ValueError(
            "bounds must be finite with low <= high for every pixel, got low from "
            f"{low.min():.6g} to {low.max():.6g} and high from {high.min():.6g} to "
            f"{high.max():.6g}"
        )
    low, high = _around(images.astype(dtype), low, high)
    return check_attacked(images, (low, high), name=name), (low, high)


def _around(
    x: jax.Array, low: jax.Array, high: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """The boxes, those that miss x by rounding moved to x, as long as that is known.

    Images that are scaled in NumPy and in JAX differ in their last bits.
    """
    if isinstance(x, jax.core.Tracer) or isinstance(low, jax.core.Tracer):
        return low, high
    slack = _ROUNDINGS * jnp.finfo(x.dtype).eps * jnp.abs(x)
    kept = (low == high) & (jnp.abs(x - low) <= slack)
    below = kept | ((x < low) & (low <= x + slack))
    above = kept | ((x > high) & (high >= x - slack))
    return jnp.where(below, x, low), jnp.where(above, x, high)


def has_arrays(bounds: Any) -> bool:
    """Whether these bounds are a box for each pixel.

    >>> has_arrays((0.0, 1.0)), has_arrays((0.0, np.ones(3)))
    (False, True)
    """
    pair = isinstance(bounds, tuple | list) and len(bounds) == 2
    return pair and any(np.ndim(end) > 0 for end in bounds)


def held(bounds: Bounds) -> jax.Array:
    """Marks the pixels whose box has no width, [B, *S] bool; a scalar for numbers.

    >>> held((jnp.array([[0.0, 0.5]]), jnp.array([[1.0, 0.5]]))).tolist()
    [[False, True]]
    """
    return jnp.asarray(bounds[0] >= bounds[1])


def hold(g: jax.Array, bounds: Bounds) -> jax.Array:
    """Directions g [B, *S], 0 where a pixel is held.

    >>> box = (jnp.array([[0.0, 0.5]]), jnp.array([[1.0, 0.5]]))
    >>> hold(jnp.array([[3.0, 4.0]]), box).tolist()
    [[3.0, 0.0]]
    """
    return jnp.where(held(bounds), 0, g) if np.ndim(bounds[0]) else g


def free_pixels(x: jax.Array, bounds: Bounds) -> Any:
    """How many pixels are not held, at least 1: a number, or [B].

    >>> free_pixels(jnp.ones((2, 3)), (0.0, 1.0))
    3
    """
    if not np.ndim(bounds[0]):
        return x[0].size
    return jnp.maximum(jnp.sum(flatten_samples(~held(bounds)), axis=1), 1)


def width(bounds: Bounds) -> Any:
    """How wide the box is in the pixel where it is widest: a number, or [B], 1 for 0.

    >>> width((jnp.zeros((1, 2)), jnp.array([[1.0, 3.0]]))).tolist()
    [3.0]
    """
    size = bounds[1] - bounds[0]
    if not np.ndim(size):
        return size
    widest = jnp.max(flatten_samples(size), axis=1)
    return jnp.where(widest > 0, widest, 1)


def box_rows(bounds: Bounds) -> Bounds:
    """The bounds of flattened images [B, n]; numbers stay as they are.

    >>> low, high = box_rows((jnp.zeros((2, 3, 4)), jnp.ones((2, 3, 4))))
    >>> low.shape
    (2, 12)
    """
    if not np.ndim(bounds[0]):
        return bounds
    return flatten_samples(bounds[0]), flatten_samples(bounds[1])


def boxes_of(bounds: Bounds, index: np.ndarray) -> Bounds:
    """The bounds of some of N images; numbers stay as they are.

    >>> boxes_of((0.0, 1.0), np.array([3]))
    (0.0, 1.0)

    Args:
      bounds: two numbers or two arrays [N, *S].
      index: [n] which images.
    """
    return (bounds[0][index], bounds[1][index]) if has_arrays(bounds) else bounds


def extent(bounds: Bounds) -> tuple[float, float]:
    """The lowest and the highest value that any pixel may have, as numbers.

    >>> extent((np.array([[0.0, 2.0]]), np.array([[1.0, 3.0]])))
    (0.0, 3.0)
    """
    low, high = bounds
    return (float(low.min()), float(high.max())) if np.ndim(low) else (low, high)
