"""Where decision-based attacks begin: an image that the model takes for another class.

They try images that the user gives, the same for all samples, and then noise. Uniform
noise alone does not do. It is grey on average, and many models have one class for all
of it. So brightness and contrast of the noise are random, too.
"""

import jax
import jax.numpy as jnp
from jax.scipy.special import ndtr

from robjax.boxes import has_arrays
from robjax.checks import Bounds, check_images
from robjax.samples import per_sample

_BRIGHTNESS = 2.0  # of one standard deviation of a pixel of uniform noise


def check_starts(starts: object, x: jax.Array, bounds: Bounds) -> jax.Array:
    """Checks the images that are tried first; None gives none of them.

    >>> x = jnp.full((2, 3), 0.5)
    >>> check_starts(None, x, (0.0, 1.0)).shape
    (0, 3)
    >>> check_starts(jnp.zeros((1, 4)), x, (0.0, 1.0))
    Traceback (most recent call last):
      ...
    ValueError: starts must be images [M, *S] as x has them, [M, 3], got shape (1, 4)

    Args:
      starts: [M, *S] images inside `bounds`, or None. Where every pixel has a box of
        its own, they are moved into it.
      x: [B, *S] the images attacked.
      bounds: lowest and highest pixel value.

    Raises:
      ValueError: `starts` are malformed, or no images of the shape of x.
    """
    if starts is None:
        return x[:0]
    fixed = None if has_arrays(bounds) else bounds
    images = check_images(starts, bounds=fixed, name="starts")
    if images.shape[1:] != x.shape[1:]:
        wanted = ", ".join(map(str, ("M", *x.shape[1:])))
        raise ValueError(
            f"starts must be images [M, *S] as x has them, [{wanted}], got shape "
            f"{images.shape}"
        )
    return images.astype(x.dtype)


def candidate(
    number: jax.Array,
    starts: jax.Array,
    keys: jax.Array,
    gaussian: jax.Array,
    bounds: Bounds,
) -> jax.Array:
    """The image to try as evaluation `number`, [B, *S]; number 0 was x itself.

    >>> starts = jnp.array([[0.25, 0.75]])
    >>> keys = jax.random.split(jax.random.key(0), 3)
    >>> candidate(jnp.int32(1), starts, keys, jnp.zeros((3, 2)), (0.0, 1.0)).tolist()
    [[0.25, 0.75], [0.25, 0.75], [0.25, 0.75]]

    Args:
      number: from 1.
      starts: [M, *S] tried first, M ≥ 0.
      keys: [B] for brightness and contrast.
      gaussian: [B, *S] standard normal, of which the noise is made.
      bounds: lowest and highest pixel value.
    """
    dtype = gaussian.dtype
    pair = jax.vmap(lambda key: jax.random.normal(key, (2,), dtype))(keys)
    first = number == len(starts) + 1  # uniform noise
    brightness = jnp.where(first, 0, _BRIGHTNESS * pair[:, 0])
    contrast = jnp.where(first, 1, jnp.exp(pair[:, 1]))
    level = per_sample(brightness, gaussian) + per_sample(contrast, gaussian) * gaussian
    noise = jnp.clip(bounds[0] + (bounds[1] - bounds[0]) * ndtr(level), *bounds)
    if not len(starts):
        return noise
    given = starts[jnp.clip(number - 1, 0, len(starts) - 1)][None]
    return jnp.where(number <= len(starts), jnp.clip(given, *bounds), noise)
