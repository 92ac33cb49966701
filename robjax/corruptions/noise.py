"""Noise: of the sensor, of few photons, of broken pixels."""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from robjax.corruptions.levels import Level, corrupt


def gaussian_noise(x: jax.Array, *, key: jax.Array, severity: ArrayLike) -> jax.Array:
    """Adds normal noise to every value, as a sensor in low light does.

        x + σ n,   n ~ N(0, 1)

    >>> x = jnp.full((1, 8, 8, 1), 0.5)
    >>> moved = gaussian_noise(x, key=jax.random.key(0), severity=1) - x
    >>> bool(abs(moved).max() > 0)
    True

    Args:
      x: [B, H, W, C] floating-point images in [0, 1], H and W at least 8.
      key: one key, or one for each image; image i draws from ``fold_in(key, i)``.
      severity: 1 to 5, a whole number or [B] of them; traced.

    Returns:
      Images of the same shape, float32 or better, in [0, 1].

    Raises:
      ValueError: an argument is malformed; the message names it.
    """
    return corrupt(_gaussian_noise, x, key, severity)


def _gaussian_noise(image: jax.Array, key: jax.Array, level: Level) -> jax.Array:
    sigma = level.pick((0.04, 0.06, 0.08, 0.09, 0.1), (0.08, 0.12, 0.18, 0.26, 0.38))
    return image + sigma * jax.random.normal(key, image.shape, image.dtype)


def shot_noise(x: jax.Array, *, key: jax.Array, severity: ArrayLike) -> jax.Array:
    """Counts photons: every value becomes a Poisson number of mean λx, over λ.

    >>> dark = jnp.zeros((1, 8, 8, 1))  # no light, no noise
    >>> float(shot_noise(dark, key=jax.random.key(0), severity=5).max())
    0.0

    Args:
      x, key, severity: as in `gaussian_noise`.

    Returns:
      As in `gaussian_noise`.

    Raises:
      ValueError: an argument is malformed; the message names it.
    """
    return corrupt(_shot_noise, x, key, severity)


def _shot_noise(image: jax.Array, key: jax.Array, level: Level) -> jax.Array:
    photons = level.pick((500, 250, 100, 75, 50), (60, 25, 12, 5, 3))
    return jax.random.poisson(key, photons * image) / photons


def impulse_noise(x: jax.Array, *, key: jax.Array, severity: ArrayLike) -> jax.Array:
    """Replaces single values by 0 or 1, as broken pixels and bit errors do.

    Each value of each channel is hit with a probability of 1 % to 7 % (large images:
    3 % to 27 %), and then black or white with ½ each.

    >>> x = jnp.full((1, 8, 8, 1), 0.5)
    >>> found = impulse_noise(x, key=jax.random.key(0), severity=5)
    >>> sorted(set(found.ravel().tolist()))
    [0.0, 0.5, 1.0]

    Args:
      x, key, severity: as in `gaussian_noise`.

    Returns:
      As in `gaussian_noise`.

    Raises:
      ValueError: an argument is malformed; the message names it.
    """
    return corrupt(_impulse_noise, x, key, severity)


def _impulse_noise(image: jax.Array, key: jax.Array, level: Level) -> jax.Array:
    amount = level.pick((0.01, 0.02, 0.03, 0.05, 0.07), (0.03, 0.06, 0.09, 0.17, 0.27))
    drawn = jax.random.uniform(key, image.shape, image.dtype)
    white = jnp.where(drawn < amount, 1.0, image)
    return jnp.where(drawn < amount / 2, 0.0, white)
