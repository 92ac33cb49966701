"""Random crops and flips on the device, drawn for each sample by its own key."""

import jax
import jax.numpy as jnp
import numpy as np

from robjax.arrays import check_array
from robjax.checks import check_count, check_flags
from robjax.samples import sample_keys


def augment(
    images: jax.Array | np.ndarray, key: jax.Array, *, pad: int = 4, flip: bool = True
) -> jax.Array:
    """Moves images by a few pixels and mirrors half of them, at random.

    Each image is padded with zeros and cropped back at a random place. This is the
    usual augmentation of CIFAR-10 (He et al., arXiv 1512.03385, section 4.2). Sample i
    depends on its own key only, whatever else is in the batch.

    >>> row = np.array([1, 2]).reshape(1, 1, 2, 1)  # one image of 1×2 pixels
    >>> images = np.repeat(row, 100, axis=0)
    >>> augmented = np.asarray(augment(images, jax.random.key(0), pad=0))
    >>> sorted({tuple(image.ravel().tolist()) for image in augmented})
    [(1, 2), (2, 1)]

    Args:
      images: [B, H, W, C] of any dtype; zero is black.
      key: one key, or B keys (see `robjax.samples.sample_keys`).
      pad: pixels on each side, so that the image moves by up to `pad`; 0: no crop.
      flip: whether to mirror images left-right, each with probability 1/2.

    Returns:
      [B, H, W, C] of the same dtype.

    Raises:
      ValueError: `images` is not [B, H, W, C], `pad` is not a whole number of at
        least 0, or `key` is neither one key nor B keys.
    """
    check_flags(flip=flip)
    images = check_array("images", images, "[B, H, W, C]")
    check_count("pad", pad, minimum=0)
    keys = sample_keys(key, images.shape[0])
    return jax.vmap(lambda image, key: _augment_one(image, key, pad, flip))(
        jnp.asarray(images), keys
    )


def _augment_one(image: jax.Array, key: jax.Array, pad: int, flip: bool) -> jax.Array:
    crop_key, flip_key = jax.random.split(key)
    row, column = jax.random.randint(crop_key, (2,), 0, 2 * pad + 1)
    padded = jnp.pad(image, ((pad, pad), (pad, pad), (0, 0)))
    moved = jax.lax.dynamic_slice(padded, (row, column, 0), image.shape)
    if not flip:
        return moved
    return jnp.where(jax.random.bernoulli(flip_key), moved[:, ::-1], moved)
