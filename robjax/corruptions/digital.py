"""What happens to digital images: contrast, distortion, few pixels."""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from robjax.corruptions.levels import Level, corrupt
from robjax.corruptions.resampling import along_axes, gaussian, look_up

# strength and width of the bends, farthest move of a corner, in shares of the side
_ELASTIC = (
    ((0, 0, 0.08), (0.05, 0.2, 0.07), (0.08, 0.06, 0.06), (0.1, 0.04, 0.05),
     (0.1, 0.03, 0.03)),
    ((2, 0.7, 0.1), (2, 0.08, 0.2), (0.05, 0.01, 0.02), (0.07, 0.01, 0.02),
     (0.12, 0.01, 0.02)),
)  # fmt: skip


def contrast(
    x: jax.Array, *, key: jax.Array | None = None, severity: ArrayLike
) -> jax.Array:
    """Draws all values towards the mean of their channel: m + c (x − m).

    >>> x = jnp.zeros((1, 8, 8, 1)).at[0, :4].set(1)
    >>> low, high = contrast(x, severity=2)[0, (7, 0), 0, 0].tolist()
    >>> low, high
    (0.25, 0.75)

    Args:
      x, severity: as in `gaussian_noise`.
      key: not used.

    Returns:
      As in `gaussian_noise`.

    Raises:
      ValueError: an argument is malformed; the message names it.
    """
    return corrupt(_contrast, x, key, severity, draws=False)


def _contrast(image: jax.Array, key: jax.Array, level: Level) -> jax.Array:
    del key
    kept = level.pick((0.75, 0.5, 0.4, 0.3, 0.15), (0.4, 0.3, 0.2, 0.1, 0.05))
    mean = jnp.mean(image, axis=(0, 1), keepdims=True)
    return mean + kept * (image - mean)


def elastic_transform(
    x: jax.Array, *, key: jax.Array, severity: ArrayLike
) -> jax.Array:
    """Shears, turns and bends an image at random.

    Three corners of a square are moved by up to a share of the side each, which is an
    affine map. Each pixel is then moved by smooth noise. One interpolation does both,
    where the published code has two. The severities are of different character: the low
    ones shear, the high ones bend.

    >>> x = jnp.full((1, 8, 8, 1), 0.5)
    >>> moved = elastic_transform(x, key=jax.random.key(0), severity=5)
    >>> bool(jnp.allclose(moved, 0.5))
    True

    Args:
      x, key, severity: as in `gaussian_noise`.

    Returns:
      As in `gaussian_noise`.

    Raises:
      ValueError: an argument is malformed; the message names it.
    """
    return corrupt(_elastic_transform, x, key, severity)


def _elastic_transform(image: jax.Array, key: jax.Array, level: Level) -> jax.Array:
    strength, width, shear = level.side * level.pick(*_ELASTIC)
    height, columns = image.shape[:2]
    drawn = jax.random.uniform(key, (2 * height * columns + 6,), minval=-1, maxval=1)
    middle = jnp.array([[height // 2, columns // 2]], jnp.float32)
    arm = level.side // 3
    source = middle + arm * jnp.array([[1.0, 1.0], [-1.0, 1.0], [-1.0, -1.0]])
    target = source + shear * drawn[:6].reshape(3, 2)
    noise = drawn[6:].reshape(height, columns, 2)
    bends = strength * gaussian(noise, width, truncate=3)
    places = jnp.indices((height, columns)).transpose(1, 2, 0) + bends
    rows, places_across = _affine(target, source, places)
    return look_up(image, rows, places_across)


def _affine(
    before: jax.Array, after: jax.Array, places: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Maps places [h, w, 2] by the affine map that takes three points to three."""
    (a, b), (c, d) = before[1:] - before[:1]
    edges = after[1:] - after[:1]  # of rows: edge_before @ matrix = edge_after
    inverse = jnp.array([[d, -b], [-c, a]]) / (a * d - b * c)
    matrix = inverse @ edges
    moved = after[None, :1] + (places - before[None, :1]) @ matrix
    return moved[..., 0], moved[..., 1]


def pixelate(
    x: jax.Array, *, key: jax.Array | None = None, severity: ArrayLike
) -> jax.Array:
    """Shows an image with fewer pixels, of which each is the mean of those it covers.

    The sides shrink to 95 % to 65 % (large images: 60 % to 25 %). As in Pillow's BOX
    filter a pixel is covered whole or not at all.

    >>> x = jnp.arange(8.0).reshape(1, 1, 8, 1) * jnp.ones((1, 8, 1, 1)) / 8
    >>> (8 * pixelate(x, severity=5)[0, 0, :, 0]).round(1).tolist()  # five pixels
    [0.5, 0.5, 2.0, 3.5, 3.5, 5.0, 6.5, 6.5]

    Args:
      x, severity: as in `gaussian_noise`.
      key: not used.

    Returns:
      As in `gaussian_noise`.

    Raises:
      ValueError: an argument is malformed; the message names it.
    """
    return corrupt(_pixelate, x, key, severity, draws=False)


def _pixelate(image: jax.Array, key: jax.Array, level: Level) -> jax.Array:
    del key
    share = level.pick((0.95, 0.9, 0.85, 0.75, 0.65), (0.6, 0.5, 0.4, 0.3, 0.25))
    rows, columns = (_cells(size, share) for size in image.shape[:2])
    return along_axes(rows, columns, image)


def _cells(size: int, share: jax.Array) -> jax.Array:
    """[n, n]: pixel i becomes the mean of the pixels of the cell at its place."""
    cells = jnp.floor(size * share + 1e-4).astype(jnp.int32)  # 20 · 0.85 is 17
    # the centre of a pixel in units of cells is whole / (2 size): exact in integers
    whole = (2 * jnp.arange(size) + 1) * cells
    shown = whole // (2 * size)
    # a centre between two cells shows the second of them, but belongs to the first
    covered = (whole - 1) // (2 * size)
    member = (shown[:, None] == covered[None]).astype(jnp.float32)
    return member / jnp.sum(member, axis=1, keepdims=True)
