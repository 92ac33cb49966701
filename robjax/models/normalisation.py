"""The first step of every model: check the images, then (x − mean) / std."""

import jax
import jax.numpy as jnp


def normalise(
    x: jax.Array, mean: tuple[float, ...], std: tuple[float, ...]
) -> jax.Array:
    """Returns (x − mean) / std, with one mean and std for each channel or one for all.

    >>> x = jnp.array([[0.5, 1.0], [0.0, 0.5]])  # two images of two channels
    >>> normalise(x, mean=(0.5, 0.0), std=(0.25,)).tolist()
    [[0.0, 4.0], [-2.0, 2.0]]

    Args:
      x: floating images [B, *S], channels last.
      mean: per channel, in the units of `x`; empty: 0.
      std: per channel, in the units of `x`; empty: 1.

    Returns:
      [B, *S] of the dtype of `x`.

    Raises:
      ValueError: `x` is not floating or has no feature axis, the length of `mean` or
        `std` is neither 1 nor the number of channels, or a std is not positive.
    """
    if x.ndim < 2 or not jnp.issubdtype(x.dtype, jnp.floating):
        raise ValueError(
            f"x must be a batch of floating-point images [B, *S], got {x.dtype}"
            f"{list(x.shape)}; scale integer images first"
        )
    if any(not value > 0 for value in std):
        raise ValueError(f"std must be positive, got {std}")
    if mean:
        x = x - _per_channel("mean", mean, x)
    if std:
        x = x / _per_channel("std", std, x)
    return x


def normalise_maps(
    x: jax.Array, mean: tuple[float, ...], std: tuple[float, ...]
) -> jax.Array:
    """Does the same as `normalise` for images [B, H, W, C] and takes no others.

    Convolutional models need that check: a convolution would silently take [B, H, W]
    for one image with W channels.

    >>> normalise_maps(jnp.ones((2, 8, 8, 1)), mean=(0.5,), std=()).max().tolist()
    0.5

    Args:
      x, mean, std: as in `normalise`.

    Raises:
      ValueError: as in `normalise`, or `x` is not [B, H, W, C].
    """
    if x.ndim != 4:
        raise ValueError(
            f"x must be a batch of images [B, H, W, C], got shape {list(x.shape)}"
        )
    return normalise(x, mean, std)


def _per_channel(name: str, values: tuple[float, ...], x: jax.Array) -> jax.Array:
    channels = x.shape[-1]
    if len(values) not in (1, channels):
        raise ValueError(
            f"{name} must hold 1 or {channels} numbers, one for each channel, got "
            f"{values}"
        )
    return jnp.asarray(values, x.dtype).reshape((1,) * (x.ndim - 1) + (-1,))
