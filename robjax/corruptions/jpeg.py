"""JPEG compression as libjpeg does it by default, on floating-point images.

An image of 8-bit values goes through these steps; all but the rounding is linear.

    RGB → Y, Cb, Cr            one luma and two colour channels
    2 × 2 means of Cb and Cr   "4:2:0"
    8 × 8 blocks → DCT         divided by a table that grows as the quality falls
    round                      what is lost
    and back                   colours are spread by the weights ¾ and ¼

ITU-T T.81 (1992), with the tables of its annex K, and the rounding of libjpeg.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike

from robjax.corruptions.levels import Level, corrupt

_LUMA = np.array(
    [
        [16, 11, 10, 16, 24, 40, 51, 61],
        [12, 12, 14, 19, 26, 58, 60, 55],
        [14, 13, 16, 24, 40, 57, 69, 56],
        [14, 17, 22, 29, 51, 87, 80, 62],
        [18, 22, 37, 56, 68, 109, 103, 77],
        [24, 35, 55, 64, 81, 104, 113, 92],
        [49, 64, 78, 87, 103, 121, 120, 101],
        [72, 92, 95, 98, 112, 100, 103, 99],
    ]
)
_COLOUR = np.full((8, 8), 99)
_COLOUR[:4, :4] = [
    [17, 18, 24, 47],
    [18, 21, 26, 66],
    [24, 26, 56, 99],
    [47, 66, 99, 99],
]

_FREQUENCY, _PLACE = np.mgrid[:8, :8]
_DCT = np.cos((2 * _PLACE + 1) * _FREQUENCY * np.pi / 16) / 2
_DCT[0] /= np.sqrt(2)

_TO_COLOURS = np.array(
    [[0.299, 0.587, 0.114], [-0.168736, -0.331264, 0.5], [0.5, -0.418688, -0.081312]]
)


def jpeg_compression(
    x: jax.Array, *, key: jax.Array | None = None, severity: ArrayLike
) -> jax.Array:
    """Compresses an image with JPEG, at a quality of 80 to 40 (large images: 25 to 7).

    Three channels are colours, stored at half their resolution as is the default of
    Pillow. Of any other number each is compressed as a grey image. Values come back in
    steps of 1/255.

    >>> x = jnp.full((1, 8, 8, 1), 0.5019608)  # 128 / 255
    >>> bool(jnp.allclose(jpeg_compression(x, severity=5), x))
    True

    Args:
      x, severity: as in `gaussian_noise`.
      key: not used.

    Returns:
      As in `gaussian_noise`.

    Raises:
      ValueError: an argument is malformed; the message names it.
    """
    return corrupt(_jpeg_compression, x, key, severity, draws=False)


def _jpeg_compression(image: jax.Array, key: jax.Array, level: Level) -> jax.Array:
    del key
    quality = level.pick((80, 65, 58, 50, 40), (25, 18, 15, 10, 7))
    return compressed(image, quality)


def compressed(image: jax.Array, quality: ArrayLike) -> jax.Array:
    """Compresses one image at any quality.

    >>> ramp = jnp.linspace(0, 1, 64).reshape(8, 8, 1)
    >>> bool(abs(compressed(ramp, 95) - ramp).max() < 0.02)
    True

    Args:
      image: [H, W, C] in [0, 1].
      quality: 1 to 100, traced.

    Returns:
      [H, W, C] in [0, 1].
    """
    levels = jnp.round(255 * image)
    if image.shape[2] != 3:
        planes = [_lossy(levels[..., c], _LUMA, quality) for c in range(image.shape[2])]
        return jnp.stack(planes, axis=2) / 255
    precise = lax.Precision.HIGHEST
    colours = jnp.einsum("hwc,dc->hwd", levels, _TO_COLOURS, precision=precise)
    luma = _lossy(jnp.round(colours[..., 0]), _LUMA, quality)
    blue, red = (
        _lossy_colour(jnp.round(colours[..., c] + 128), quality) for c in (1, 2)
    )
    back = jnp.stack(
        [
            luma + jnp.round(1.402 * red),
            luma + jnp.round(-0.344136 * blue - 0.714136 * red),
            luma + jnp.round(1.772 * blue),
        ],
        axis=2,
    )
    return jnp.clip(back, 0, 255) / 255


def _lossy(plane: jax.Array, base: np.ndarray, quality: ArrayLike) -> jax.Array:
    """One plane [h, w] of levels 0 to 255 through the blocks, and back."""
    height, width = plane.shape
    padded = _pad(plane, -height % 8, -width % 8)
    quality = jnp.asarray(quality, jnp.float32)
    scale = jnp.where(quality < 50, jnp.floor(5000 / quality), 200 - 2 * quality)
    table = jnp.clip(jnp.floor((base * scale + 50) / 100), 1, 255)
    rows, columns = padded.shape[0] // 8, padded.shape[1] // 8
    blocks = padded.reshape(rows, 8, columns, 8).transpose(0, 2, 1, 3) - 128
    stored = jnp.round(_along_blocks(_DCT, blocks) / table[None, None])
    found = jnp.round(_along_blocks(_DCT.T, stored * table[None, None])) + 128
    whole = found.transpose(0, 2, 1, 3).reshape(padded.shape)
    return jnp.clip(whole, 0, 255)[:height, :width]


def _along_blocks(matrix: np.ndarray, blocks: jax.Array) -> jax.Array:
    """M B Mᵀ of blocks [rows, columns, 8, 8]."""
    precise = lax.Precision.HIGHEST
    m = jnp.asarray(matrix, blocks.dtype)
    return jnp.einsum("ui,rcij,vj->rcuv", m, blocks, m, precision=precise)


def _pad(plane: jax.Array, down: int, right: int) -> jax.Array:
    return jnp.pad(plane, ((0, down), (0, right)), mode="edge")


def _lossy_colour(plane: jax.Array, quality: ArrayLike) -> jax.Array:
    """A colour plane [h, w] at half its resolution through the blocks; less 128."""
    height, width = plane.shape
    even = _pad(plane, height % 2, -width % 16)
    rows, columns = even.shape[0] // 2, even.shape[1] // 2
    total = even.reshape(rows, 2, columns, 2).sum(axis=(1, 3))
    # libjpeg rounds halves down in one column, up in the next
    halves = 1 + jnp.arange(columns) % 2
    small = jnp.floor((total + halves[None]) / 4)
    small = _lossy(small, _COLOUR, quality)[:, : (width + 1) // 2]
    tall = _spread(small, axis=0)
    wide = _spread(tall, axis=1)
    # rounded as libjpeg does: 8 sixteenths in even columns, 7 in odd ones
    bias = 8 - jnp.arange(wide.shape[1]) % 2
    return jnp.floor((wide + bias[None]) / 16)[:height, :width] - 128


def _spread(plane: jax.Array, axis: int) -> jax.Array:
    """Twice as many values along an axis, each 3 of the near and 1 of the far one."""
    count = plane.shape[axis]
    before = jnp.take(plane, jnp.maximum(jnp.arange(count) - 1, 0), axis=axis)
    after = jnp.take(plane, jnp.minimum(jnp.arange(count) + 1, count - 1), axis=axis)
    pair = jnp.stack([3 * plane + before, 3 * plane + after], axis=axis + 1)
    shape = list(plane.shape)
    shape[axis] = 2 * count
    return pair.reshape(shape)
