"""Blur: out of focus, behind frosted glass, in motion, while zooming."""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike

from robjax.corruptions.levels import Level, corrupt
from robjax.corruptions.resampling import gaussian, streak, zoom

# radius of the disk, σ of the blur of the disk
_DEFOCUS = (
    ((0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1, 0.2), (1.5, 0.1)),
    ((3, 0.1), (4, 0.5), (6, 0.5), (8, 0.5), (10, 0.5)),
)
# σ, farthest move in pixels, rounds
_GLASS = (
    ((0.05, 1, 1), (0.25, 1, 1), (0.4, 1, 1), (0.25, 1, 2), (0.4, 1, 2)),
    ((0.7, 1, 2), (0.9, 2, 1), (1, 2, 3), (1.1, 3, 2), (1.5, 4, 2)),
)
# radius, σ
_MOTION = (
    ((6, 1), (6, 1.5), (6, 2), (8, 2), (9, 2.5)),
    ((10, 3), (15, 5), (15, 8), (15, 12), (20, 15)),
)


def defocus_blur(
    x: jax.Array, *, key: jax.Array | None = None, severity: ArrayLike
) -> jax.Array:
    """Averages over a disk, as a lens out of focus does.

    The kernel is 1 where a pixel is at most r from the middle, else 0, blurred a little
    and made to add up to 1. The image is mirrored at its edges.

    >>> x = jnp.zeros((1, 9, 9, 1)).at[0, 4, 4].set(1)
    >>> blurred = defocus_blur(x, severity=4)  # r = 1: a cross of five pixels
    >>> round(float(blurred[0, 4, 5, 0]), 2)
    0.2

    Args:
      x, severity: as in `gaussian_noise`.
      key: not used.

    Returns:
      As in `gaussian_noise`.

    Raises:
      ValueError: an argument is malformed; the message names it.
    """
    return corrupt(_defocus_blur, x, key, severity, draws=False)


def _defocus_blur(image: jax.Array, key: jax.Array, level: Level) -> jax.Array:
    del key
    radius, sigma = level.unit * level.pick(*_DEFOCUS)
    reach = math.ceil(level.unit * level.table(*_DEFOCUS)[:, 0].max()) + 2
    places = jnp.arange(-reach, reach + 1)
    disk = places[:, None] ** 2 + places[None] ** 2 <= radius**2
    # 3 × 3 taps against aliasing, 5 × 5 for large disks
    taps = jnp.exp(-(jnp.arange(-2, 3) ** 2) / (2 * sigma**2))
    taps = jnp.where((jnp.abs(jnp.arange(-2, 3)) == 2) & (radius <= 8), 0, taps)

    def blurred(kernel: jax.Array, axis: int) -> jax.Array:
        moved = [taps[i] * jnp.roll(kernel, i - 2, axis) for i in range(5)]
        return sum(moved[1:], moved[0])

    kernel = blurred(blurred(disk.astype(image.dtype), 0), 1)
    kernel = (kernel / jnp.sum(kernel)).astype(image.dtype)
    padded = jnp.pad(image, ((reach, reach), (reach, reach), (0, 0)), mode="reflect")
    channels = jnp.moveaxis(padded, 2, 0)[..., None]
    found = lax.conv_general_dilated(
        channels,
        kernel[..., None, None],
        (1, 1),
        "VALID",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        precision=lax.Precision.HIGHEST,
    )
    return jnp.moveaxis(found[..., 0], 0, 2)


def glass_blur(x: jax.Array, *, key: jax.Array, severity: ArrayLike) -> jax.Array:
    """Moves pixels about within a few pixels, between two normal blurs.

    In each round every pixel is looked up at a random place near it. The published code
    swaps pixels one after the other instead, which cannot run in parallel; so here a
    pixel may be shown twice, or not at all.

    >>> x = jnp.full((1, 8, 8, 1), 0.5)
    >>> bool(jnp.allclose(glass_blur(x, key=jax.random.key(0), severity=5), 0.5))
    True

    Args:
      x, key, severity: as in `gaussian_noise`.

    Returns:
      As in `gaussian_noise`.

    Raises:
      ValueError: an argument is malformed; the message names it.
    """
    return corrupt(_glass_blur, x, key, severity)


def _glass_blur(image: jax.Array, key: jax.Array, level: Level) -> jax.Array:
    sigma, farthest, rounds = level.pick(*_GLASS)
    sigma = level.unit * sigma
    farthest = jnp.round(level.unit * farthest)
    most = int(level.table(*_GLASS)[:, 2].max())
    height, width = image.shape[:2]
    drawn = jax.random.uniform(key, (most, 2, height, width))

    def shuffle(i: jax.Array, image: jax.Array) -> jax.Array:
        moves = jnp.floor(drawn[i] * (2 * farthest + 1)) - farthest
        moves = moves.astype(jnp.int32)
        rows = jnp.clip(jnp.arange(height)[:, None] + moves[0], 0, height - 1)
        columns = jnp.clip(jnp.arange(width)[None] + moves[1], 0, width - 1)
        return image[rows, columns]

    blurred = gaussian(image, sigma)
    shuffled = lax.fori_loop(0, rounds.astype(jnp.int32), shuffle, blurred)
    return gaussian(shuffled, sigma)


def motion_blur(x: jax.Array, *, key: jax.Array, severity: ArrayLike) -> jax.Array:
    """Smears an image to one side, as a moving camera does.

    The direction is within 45° of the horizontal, at random. The weights fall like a
    normal density from the pixel on, as in ImageMagick, which the published code calls.

    >>> x = jnp.full((1, 8, 8, 1), 0.5)
    >>> bool(jnp.allclose(motion_blur(x, key=jax.random.key(0), severity=5), 0.5))
    True

    Args:
      x, key, severity: as in `gaussian_noise`.

    Returns:
      As in `gaussian_noise`.

    Raises:
      ValueError: an argument is malformed; the message names it.
    """
    return corrupt(_motion_blur, x, key, severity)


def _motion_blur(image: jax.Array, key: jax.Array, level: Level) -> jax.Array:
    radius, sigma = level.unit * level.pick(*_MOTION)
    most = math.ceil(level.unit * level.table(*_MOTION)[:, 0].max())
    angle = jax.random.uniform(key, minval=-math.pi / 4, maxval=math.pi / 4)
    return streak(image, radius=radius, sigma=sigma, angle=angle, most=most)


def _factors(*ranges: tuple[float, float]) -> tuple[tuple[float, float], ...]:
    """For each (end, step): how many factors there are, and the step."""
    return tuple((len(np.arange(1, end, step)), step) for end, step in ranges)


_ZOOM = (
    _factors((1.06, 0.01), (1.11, 0.01), (1.16, 0.01), (1.21, 0.01), (1.26, 0.01)),
    _factors((1.11, 0.01), (1.16, 0.01), (1.21, 0.02), (1.26, 0.02), (1.31, 0.03)),
)


def zoom_blur(
    x: jax.Array, *, key: jax.Array | None = None, severity: ArrayLike
) -> jax.Array:
    """Averages an image and magnified versions of it, as a moving zoom does.

    The largest factor is 1.06 to 1.26 (large images: 1.11 to 1.3).

    >>> x = jnp.full((1, 8, 8, 1), 0.5)
    >>> bool(jnp.allclose(zoom_blur(x, severity=5), 0.5))
    True

    Args:
      x, severity: as in `gaussian_noise`.
      key: not used.

    Returns:
      As in `gaussian_noise`.

    Raises:
      ValueError: an argument is malformed; the message names it.
    """
    return corrupt(_zoom_blur, x, key, severity, draws=False)


def _zoom_blur(image: jax.Array, key: jax.Array, level: Level) -> jax.Array:
    del key
    count, step = level.pick(*_ZOOM)

    def add(i: jax.Array, total: jax.Array) -> jax.Array:
        return total + zoom(image, 1 + i * step).astype(image.dtype)

    return lax.fori_loop(0, count.astype(jnp.int32), add, image) / (count + 1)
