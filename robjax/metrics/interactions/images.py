"""What the paper does to images: rank reduction, pixel dropout, cutout, Fourier rings.

Ren et al., arXiv 2103.07364, section 4.3 and supplement. Attacks work through
interactions of high orders, so what destroys these should undo an attack:

    reduce_rank          the best approximation of rank k, by singular values
    pixel_dropout        random pixels become the mean of what surrounds them
    cutout               a random square becomes grey

and they should tell adversarial images from normal ones better than frequencies do:

    fourier_magnitudes   F^(r), the strength of each frequency
    fisher_ratio         how well one number separates two groups

Images are [B, H, W, C].
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from robjax.arrays import check_array
from robjax.checks import check_count, check_images, check_range
from robjax.samples import sample_keys


def reduce_rank(x: jax.Array, rank: int) -> jax.Array:
    """The images of rank k that are nearest, channel by channel.

    X = U diag(s) Vᵀ becomes U diag(s_1 … s_k, 0 …) Vᵀ.

    >>> x = jnp.diag(jnp.array([3.0, 2.0, 1.0]))[None, :, :, None]
    >>> reduce_rank(x, 2)[0, :, :, 0].round(5).tolist()
    [[3.0, 0.0, 0.0], [0.0, 2.0, 0.0], [0.0, 0.0, 0.0]]

    Args:
      x: [B, H, W, C] images.
      rank: k, 1 to min(H, W).

    Returns:
      [B, H, W, C]; it may leave the bounds of the images.

    Raises:
      ValueError: malformed images, or a rank out of range.
    """
    x = _check(x)
    most = min(x.shape[1:3])
    if check_count("rank", rank) > most:
        raise ValueError(f"rank must be 1 to {most}, got {rank}")
    return _reduce_rank(x, rank)


@functools.partial(jax.jit, static_argnums=1)
def _reduce_rank(x: jax.Array, rank: int) -> jax.Array:
    dtype = jnp.promote_types(x.dtype, jnp.float32)  # LAPACK knows no half precision
    u, s, v = jnp.linalg.svd(jnp.moveaxis(x.astype(dtype), 3, 1), full_matrices=False)
    few = jnp.matmul(
        u[..., :rank] * s[..., None, :rank], v[..., :rank, :], precision="highest"
    )
    return jnp.moveaxis(few, 1, 3).astype(x.dtype)


def pixel_dropout(x: jax.Array, *, key: jax.Array, share: ArrayLike) -> jax.Array:
    """Replaces random pixels by the mean of the 8 pixels around them.

    Every pixel is dropped on its own with probability α, in all channels at once. Its
    surroundings are those of the image before; at the border there are fewer of them.

    >>> x = jnp.arange(9.0).reshape(1, 3, 3, 1)
    >>> pixel_dropout(x, key=jax.random.key(0), share=1.0)[0, 1, 1].tolist()
    [4.0]

    Args:
      x: [B, H, W, C] images.
      key: one key, or one for each image.
      share: α, 0 to 1.

    Raises:
      ValueError: malformed images, or a share out of range.
    """
    x = _check(x)
    check_range("share", share, 0, 1)
    if x.shape[1:3] == (1, 1):
        raise ValueError("x must be images of several pixels, got 1×1")
    return _pixel_dropout(x, sample_keys(key, len(x)), jnp.asarray(share))


@jax.jit
def _pixel_dropout(x: jax.Array, keys: jax.Array, share: jax.Array) -> jax.Array:
    def around(values: jax.Array) -> jax.Array:
        rows, columns = values.shape[1:3]
        wide = jnp.pad(values, ((0, 0), (1, 1), (1, 1), (0, 0)))
        shifted = [
            wide[:, row : row + rows, column : column + columns]
            for row in range(3)
            for column in range(3)
        ]
        return sum(shifted, -values)

    inside = jnp.ones((1, *x.shape[1:3], 1), x.dtype)
    mean = around(x) / jnp.maximum(around(inside), 1)
    drop = jax.vmap(lambda key: jax.random.bernoulli(key, share, x.shape[1:3]))(keys)
    return jnp.where(drop[..., None], mean, x)


def cutout(
    x: jax.Array, *, key: jax.Array, share: float = 0.25, fill: ArrayLike = 0.5
) -> jax.Array:
    """Fills a random square that lies inside the image; a rectangle of its proportions.

    DeVries & Taylor, arXiv 1708.04552; the paper's square of 112² pixels in 224² is a
    quarter of the image.

    >>> x = jnp.zeros((1, 4, 4, 1))
    >>> float(cutout(x, key=jax.random.key(0), share=0.25, fill=1.0).sum())
    4.0

    Args:
      x: [B, H, W, C] images.
      key: one key, or one for each image.
      share: of the image's area, 0 to 1, static; the side is rounded.
      fill: a number, or one for each channel [C].

    Raises:
      ValueError: malformed images, a share out of range, or a fill of another shape.
    """
    x = _check(x)
    check_range("share", share, 0, 1)
    colour = check_range("fill", fill)
    if np.shape(colour) not in ((), x.shape[3:]):
        raise ValueError(
            f"fill must be a number or one for each of {x.shape[3]} channels, got "
            f"shape {list(np.shape(colour))}"
        )
    sides = tuple(round(float(np.sqrt(share)) * side) for side in x.shape[1:3])
    return _cutout(x, sample_keys(key, len(x)), sides, jnp.asarray(colour, x.dtype))


@functools.partial(jax.jit, static_argnums=2)
def _cutout(
    x: jax.Array, keys: jax.Array, sides: tuple[int, int], fill: jax.Array
) -> jax.Array:
    def inside(key: jax.Array, side: int, length: int) -> jax.Array:
        start = jax.random.randint(key, (), 0, length - side + 1)
        place = jnp.arange(length)
        return (place >= start) & (place < start + side)

    def square(key: jax.Array) -> jax.Array:
        row, column = (
            inside(one, side, length)
            for one, side, length in zip(
                jax.random.split(key), sides, x.shape[1:3], strict=True
            )
        )
        return row[:, None] & column[None]

    fill = jnp.broadcast_to(fill, x.shape[3:])
    return jnp.where(jax.vmap(square)(keys)[..., None], fill[None, None, None], x)


def fourier_magnitudes(x: jax.Array) -> jax.Array:
    """How strong each frequency is in an image.

    F^(r) = √(Σ ‖F_{h,w}‖²) over the frequencies (h, w), counted from the centre, that
    are nearest to the ring of radius r: round(√(h² + w²)) = r. F is the orthonormal
    Fourier transform, so the squares add up to those of the image, up to the corners
    beyond the last ring.

    >>> fourier_magnitudes(jnp.ones((1, 4, 4, 1))).tolist()  # constant
    [[4.0, 0.0, 0.0]]

    Args:
      x: [B, H, W, C] images.

    Returns:
      [B, R], r = 0 … min(H, W) // 2.

    Raises:
      ValueError: malformed images.
    """
    return _fourier_magnitudes(_check(x))


@jax.jit
def _fourier_magnitudes(x: jax.Array) -> jax.Array:
    rows, columns = x.shape[1:3]
    energy = jnp.abs(jnp.fft.fft2(x, axes=(1, 2), norm="ortho")) ** 2
    h, w = (np.rint(np.fft.fftfreq(side) * side) for side in (rows, columns))
    ring = np.rint(np.hypot(h[:, None], w[None])).astype(int)
    rings = np.arange(min(rows, columns) // 2 + 1)
    belongs = jnp.asarray(ring.ravel()[:, None] == rings[None], energy.dtype)
    total = energy.sum(3).reshape(len(x), -1)
    return jnp.sqrt(jnp.matmul(total, belongs, precision="highest"))


def fisher_ratio(a: ArrayLike, b: ArrayLike) -> np.ndarray:
    """How well a number separates two groups: (μ_a − μ_b)² / (σ_a² + σ_b²).

    >>> fisher_ratio([[0.0], [2.0]], [[5.0], [7.0]]).tolist()
    [12.5]

    Args:
      a: [N, ...] the numbers of the first group.
      b: [M, ...] those of the second.

    Returns:
      [...]; without any spread inf, or NaN where the means agree, too.

    Raises:
      ValueError: a group is empty, or the shapes do not fit.
    """
    a = np.asarray(check_array("a", a, "[N, …]", finite=False), float)
    b = np.asarray(check_array("b", b, "[M, …]", finite=False), float)
    if a.shape[1:] != b.shape[1:]:
        raise ValueError(
            "a and b must be groups of numbers of one shape, got "
            f"{list(a.shape)} and {list(b.shape)}"
        )
    with np.errstate(divide="ignore", invalid="ignore"):
        return (a.mean(0) - b.mean(0)) ** 2 / (a.var(0) + b.var(0))


def _check(x: object) -> jax.Array:
    images = check_images(x)
    if images.ndim != 4:
        raise ValueError(f"x must be images [B, H, W, C], got {list(images.shape)}")
    return images
