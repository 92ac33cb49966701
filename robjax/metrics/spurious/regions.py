"""Regions of an image that count as core or as spurious."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from robjax.arrays import check_array
from robjax.checks import check_count, check_range


def dilate(
    masks: jax.Array | np.ndarray, *, kernel: int = 5, iterations: int = 15
) -> jax.Array:
    """Lets masks grow by (kernel − 1) / 2 · iterations pixels to all sides.

    Each pixel gets the largest value of a mask within that many rows and columns, so
    that soft masks stay soft. For RCS the core region of an image of 224×224 pixels is
    its mask, dilated 15 times with a kernel of 5×5, and the spurious region is the
    rest: give the result to `noise_sensitivity` in the place of the masks. For another
    size scale `iterations`.

    >>> mask = np.zeros((1, 5, 5), bool)
    >>> mask[0, 2, 0] = True
    >>> dilate(mask, kernel=3, iterations=1)[0].astype(int).tolist()[1]
    [1, 1, 0, 0, 0]

    Args:
      masks: [B, H, W] bool, or weights in [0, 1].
      kernel: side of the square, odd.
      iterations: how often; 0 changes nothing.

    Returns:
      [B, H, W] of the same dtype.

    Raises:
      ValueError: masks are not [B, H, W] in [0, 1], kernel is even, or either number is
        not a whole one.
    """
    kinds = (jnp.bool_, jnp.floating)
    values = check_array("masks", masks, "[B, H, W]", kinds=kinds, finite=False)
    values = jnp.asarray(values)
    soft = jnp.issubdtype(values.dtype, jnp.floating)
    if soft:
        check_range("masks", values, 0, 1)
    if check_count("kernel", kernel) % 2 == 0:
        raise ValueError(f"kernel must be odd, got {kernel}")
    check_count("iterations", iterations, minimum=0)
    # so many dilations with a square are one with a larger square
    return _largest_within(values, kernel // 2 * iterations)


@functools.partial(jax.jit, static_argnums=1)
def _largest_within(values: jax.Array, reach: int) -> jax.Array:
    found = values if values.dtype != bool else values.astype(jnp.float32)
    least = np.array(-np.inf, found.dtype)
    for axis in (1, 2):
        window = [1, 1, 1]
        window[axis] = 2 * min(reach, values.shape[axis]) + 1
        ones = (1, 1, 1)
        found = jax.lax.reduce_window(found, least, jax.lax.max, window, ones, "SAME")
    return found.astype(values.dtype)
