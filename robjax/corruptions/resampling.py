"""Images looked up at other places; shared by blur, weather and digital corruptions.

Operations along one axis are matrices [n, n], so that one traced number, such as a
width or a factor, gives every severity the same program.
"""

import jax
import jax.numpy as jnp
from jax import lax
from jax.scipy.ndimage import map_coordinates
from jax.typing import ArrayLike


def along_axes(rows: jax.Array, columns: jax.Array, image: jax.Array) -> jax.Array:
    """Applies a matrix to the rows of an image and one to its columns.

    >>> swap = jnp.array([[0.0, 1.0], [1.0, 0.0]])
    >>> image = jnp.arange(4.0).reshape(2, 2, 1)
    >>> along_axes(swap, jnp.eye(2), image)[..., 0].tolist()
    [[2.0, 3.0], [0.0, 1.0]]

    Args:
      rows: [H', H].
      columns: [W', W].
      image: [H, W, C].

    Returns:
      [H', W', C].
    """
    precise = lax.Precision.HIGHEST
    halfway = jnp.einsum("hi,ijc->hjc", rows, image, precision=precise)
    return jnp.einsum("wj,hjc->hwc", columns, halfway, precision=precise)


def gaussian(image: jax.Array, sigma: ArrayLike, truncate: float = 4) -> jax.Array:
    """Blurs an image with a normal density of standard deviation σ pixels.

    It ends at `truncate` σ, and sees the image mirrored at its edges, up to three times
    its size.

    >>> point = jnp.zeros((5, 5, 1)).at[2, 2].set(1)
    >>> [round(float(value), 2) for value in gaussian(point, 0.5)[2, 2:, 0]]
    [0.62, 0.08, 0.0]

    Args:
      image: [H, W, C].
      sigma: σ ≥ 0, traced.
      truncate: in units of σ.
    """
    rows, columns = (_gaussian_matrix(n, sigma, truncate) for n in image.shape[:2])
    return along_axes(rows, columns, image)


def _gaussian_matrix(size: int, sigma: ArrayLike, truncate: float) -> jax.Array:
    offset = jnp.arange(-size, 2 * size)[None] - jnp.arange(size)[:, None]
    inside = jnp.abs(offset) <= jnp.floor(truncate * sigma + 0.5)
    width = jnp.maximum(sigma, 1e-3)  # 0: the image as it is
    weight = jnp.where(inside, jnp.exp(-(offset**2) / (2 * width**2)), 0)
    left, middle, right = jnp.split(weight, 3, axis=1)
    folded = middle + left[:, ::-1] + right[:, ::-1]
    return folded / jnp.sum(folded, axis=1, keepdims=True)


def zoom(image: jax.Array, factor: ArrayLike) -> jax.Array:
    """Magnifies the middle of an image, with linear interpolation.

    >>> image = jnp.arange(5.0).reshape(1, 5, 1)
    >>> zoom(image, 2.0)[0, :, 0].tolist()
    [1.0, 1.5, 2.0, 2.5, 3.0]

    Args:
      image: [H, W, C].
      factor: ≥ 1, traced.
    """
    rows, columns = (_zoom_matrix(n, factor) for n in image.shape[:2])
    return along_axes(rows, columns, image)


def _zoom_matrix(size: int, factor: ArrayLike) -> jax.Array:
    places = jnp.arange(size, dtype=jnp.float32)
    middle = (size - 1) / 2
    wanted = middle + (places - middle) / factor
    return jnp.maximum(0, 1 - jnp.abs(wanted[:, None] - places[None]))


def streak(
    image: jax.Array,
    *,
    radius: jax.Array,
    sigma: jax.Array,
    angle: jax.Array,
    most: int,
) -> jax.Array:
    """Blurs an image in one direction, as ImageMagick's motion blur does.

    Pixel p becomes Σ_i k_i image[p + i (sin angle, cos angle)], with k_i ∝ exp(−i²/2σ²)
    for i = 0, …, 2 ⌈radius⌉. Places are rounded; beyond the edge the image goes on.

    >>> image = jnp.array([0.0, 0.0, 1.0, 0.0]).reshape(1, 4, 1)
    >>> one = jnp.float32(1)
    >>> streak(image, radius=one, sigma=one, angle=0 * one, most=1)[0, :, 0].round(2)
    Array([0.08, 0.35, 0.57, 0.  ], dtype=float32)

    Args:
      image: [H, W, C].
      radius, sigma, angle: traced; the angle in radians, from the right downwards.
      most: the largest ⌈radius⌉, static.
    """
    count = 2 * most + 1
    steps = jnp.arange(count)
    weights = jnp.where(
        steps <= 2 * jnp.ceil(radius), jnp.exp(-(steps**2) / (2 * sigma**2)), 0
    )
    weights = weights / jnp.sum(weights)
    height, width = image.shape[:2]

    def add(i: jax.Array, total: jax.Array) -> jax.Array:
        down = jnp.ceil(i * jnp.sin(angle) - 0.5).astype(jnp.int32)
        right = jnp.ceil(i * jnp.cos(angle) - 0.5).astype(jnp.int32)
        rows = jnp.clip(jnp.arange(height) + down, 0, height - 1)
        columns = jnp.clip(jnp.arange(width) + right, 0, width - 1)
        moved = jnp.take(jnp.take(image, rows, axis=0), columns, axis=1)
        return total + weights[i] * moved

    return lax.fori_loop(0, count, add, jnp.zeros_like(image))


def look_up(image: jax.Array, rows: jax.Array, columns: jax.Array) -> jax.Array:
    """The image at any places, with bilinear interpolation; mirrored beyond its edge.

    >>> image = jnp.arange(4.0).reshape(2, 2, 1)
    >>> look_up(image, jnp.array([[0.5]]), jnp.array([[0.0]]))[..., 0].tolist()
    [[1.0]]

    Args:
      image: [H, W, C].
      rows, columns: [h, w] places in pixels.

    Returns:
      [h, w, C].
    """

    def channel(values: jax.Array) -> jax.Array:
        return map_coordinates(values, [rows, columns], order=1, mode="mirror")

    return jax.vmap(channel, in_axes=2, out_axes=2)(image)
