"""Weather: snow, frost, fog, brightness."""

import math

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from robjax.corruptions.levels import Level, corrupt
from robjax.corruptions.resampling import streak, zoom

# mean and deviation of the flakes, their size, the least that shows, radius and σ of
# their streaks, share of the image that keeps its colour
_SNOW = (
    (
        (0.1, 0.2, 1, 0.6, 8, 3, 0.95),
        (0.1, 0.2, 1, 0.5, 10, 4, 0.9),
        (0.15, 0.3, 1.75, 0.55, 10, 4, 0.9),
        (0.25, 0.3, 2.25, 0.6, 12, 6, 0.85),
        (0.3, 0.3, 1.25, 0.65, 14, 12, 0.8),
    ),
    (
        (0.1, 0.3, 3, 0.5, 10, 4, 0.8),
        (0.2, 0.3, 2, 0.5, 12, 4, 0.7),
        (0.55, 0.3, 4, 0.9, 12, 8, 0.7),
        (0.55, 0.3, 4.5, 0.85, 12, 8, 0.65),
        (0.55, 0.3, 2.5, 0.85, 12, 12, 0.55),
    ),
)
# weights of the image and of the frost
_FROST = (
    ((1, 0.2), (1, 0.3), (0.9, 0.4), (0.85, 0.4), (0.75, 0.45)),
    ((1, 0.4), (0.8, 0.6), (0.7, 0.7), (0.65, 0.7), (0.6, 0.75)),
)
# how much fog, and how fast its finer parts get weaker
_FOG = (
    ((0.2, 3), (0.5, 3), (0.75, 2.5), (1, 2), (1.5, 1.75)),
    ((1.5, 2), (2, 2), (2.5, 1.7), (2.5, 1.5), (3, 1.4)),
)
_ROUGH = 1.5  # the same decay for the texture of frost


def snow(x: jax.Array, *, key: jax.Array, severity: ArrayLike) -> jax.Array:
    """Whitens an image and lets flakes fall over it.

    Flakes are normal noise above a threshold, magnified and smeared downwards; a second
    layer is the first one turned by 180°. The tables are not in order everywhere: on
    small images severity 4 may change more than 5.

    >>> x = jnp.zeros((1, 8, 8, 1))
    >>> bool(snow(x, key=jax.random.key(0), severity=5).max() > 0)
    True

    Args:
      x, key, severity: as in `gaussian_noise`.

    Returns:
      As in `gaussian_noise`.

    Raises:
      ValueError: an argument is malformed; the message names it.
    """
    return corrupt(_snow, x, key, severity)


def _snow(image: jax.Array, key: jax.Array, level: Level) -> jax.Array:
    mean, spread, size, least, radius, sigma, kept = level.pick(*_SNOW)
    noise_key, angle_key = jax.random.split(key)
    noise = jax.random.normal(noise_key, (*image.shape[:2], 1), image.dtype)
    flakes = zoom(mean + spread * noise, jnp.maximum(level.unit * size, 1))
    flakes = jnp.clip(jnp.where(flakes < least, 0, flakes), 0, 1)
    flakes = streak(
        flakes,
        radius=level.unit * radius,
        sigma=level.unit * sigma,
        angle=jax.random.uniform(
            angle_key, minval=-3 * math.pi / 4, maxval=-math.pi / 4
        ),
        most=math.ceil(level.unit * level.table(*_SNOW)[:, 4].max()),
    )
    white = jnp.maximum(image, 1.5 * _grey(image) + 0.5)
    whitened = kept * image + (1 - kept) * white
    return whitened + flakes + flakes[::-1, ::-1]


def _grey(image: jax.Array) -> jax.Array:
    """[H, W, 1]: the luma of three channels, of any other number their mean."""
    if image.shape[2] == 3:
        luma = jnp.array([0.299, 0.587, 0.114], image.dtype)
        return jnp.sum(image * luma[None, None], axis=2, keepdims=True)
    return jnp.mean(image, axis=2, keepdims=True)


def frost(x: jax.Array, *, key: jax.Array, severity: ArrayLike) -> jax.Array:
    """Lays ice crystals over an image.

        a x + b t,   t = (1 − |2p − 1|)²,   p a rough plasma fractal in [0, 1]

    The published code lays crops of six photographs of frost instead. The texture here
    needs no file; a and b are theirs.

    >>> x = jnp.zeros((1, 8, 8, 1))
    >>> bool(frost(x, key=jax.random.key(0), severity=1).max() <= 0.2)
    True

    Args:
      x, key, severity: as in `gaussian_noise`.

    Returns:
      As in `gaussian_noise`.

    Raises:
      ValueError: an argument is malformed; the message names it.
    """
    return corrupt(_frost, x, key, severity)


def _frost(image: jax.Array, key: jax.Array, level: Level) -> jax.Array:
    kept, ice = level.pick(*_FROST)
    crystals = (1 - jnp.abs(2 * _plasma(key, image.shape, _ROUGH) - 1)) ** 2
    return kept * image + ice * crystals


def fog(x: jax.Array, *, key: jax.Array, severity: ArrayLike) -> jax.Array:
    """Mixes an image with clouds, and keeps its brightest value.

        (x + a p) m / (m + a),   m = max x,   p a plasma fractal in [0, 1]

    >>> dark = jnp.zeros((1, 8, 8, 1))
    >>> float(fog(dark, key=jax.random.key(0), severity=5).max())
    0.0

    Args:
      x, key, severity: as in `gaussian_noise`.

    Returns:
      As in `gaussian_noise`.

    Raises:
      ValueError: an argument is malformed; the message names it.
    """
    return corrupt(_fog, x, key, severity)


def _fog(image: jax.Array, key: jax.Array, level: Level) -> jax.Array:
    amount, decay = level.pick(*_FOG)
    brightest = jnp.max(image)
    mixed = image + amount * _plasma(key, image.shape, decay)
    return mixed * brightest / (brightest + amount)


def _plasma(key: jax.Array, shape: tuple[int, ...], decay: ArrayLike) -> jax.Array:
    """A cloudy texture [H, W, 1] in [0, 1], by the diamond-square algorithm.

    A grid that joins at its edges is refined until it has as many points as the next
    power of two. New points are the mean of the four around them, plus uniform noise
    that gets weaker by decay² each time.
    """
    rounds = (max(shape[:2]) - 1).bit_length()
    noise = jax.random.uniform(key, (4**rounds,), minval=-1, maxval=1)
    grid = jnp.zeros((1, 1))
    for number in range(rounds):
        start = grid.size
        own = noise[start : 4 * start].reshape(3, *grid.shape)
        grid = _refined(grid, own / decay ** (2 * number))
    low = jnp.min(grid)
    grid = (grid - low) / (jnp.max(grid) - low)
    return grid[: shape[0], : shape[1], None]


def _refined(grid: jax.Array, noise: jax.Array) -> jax.Array:
    """The grid with twice as many points on each axis; noise [3, n, n]."""
    below = grid + jnp.roll(grid, -1, axis=0)
    right = grid + jnp.roll(grid, -1, axis=1)
    middle = (below + jnp.roll(below, -1, axis=1)) / 4 + noise[0]
    on_rows = (right + middle + jnp.roll(middle, 1, axis=0)) / 4 + noise[1]
    on_columns = (below + middle + jnp.roll(middle, 1, axis=1)) / 4 + noise[2]
    size = 2 * len(grid)
    even = jnp.stack([grid, on_rows], axis=2).reshape(len(grid), size)
    odd = jnp.stack([on_columns, middle], axis=2).reshape(len(grid), size)
    return jnp.stack([even, odd], axis=1).reshape(size, size)


def brightness(
    x: jax.Array, *, key: jax.Array | None = None, severity: ArrayLike
) -> jax.Array:
    """Raises the value V of the colours in HSV, and keeps hue and saturation.

    V is the largest channel, so all channels are multiplied by V'/V, with V' = min(V +
    c, 1). Black becomes grey.

    >>> x = jnp.full((1, 8, 8, 1), 0.5)
    >>> float(brightness(x, severity=2)[0, 0, 0, 0].round(3))
    0.6000000238418579

    Args:
      x, severity: as in `gaussian_noise`.
      key: not used.

    Returns:
      As in `gaussian_noise`.

    Raises:
      ValueError: an argument is malformed; the message names it.
    """
    return corrupt(_brightness, x, key, severity, draws=False)


def _brightness(image: jax.Array, key: jax.Array, level: Level) -> jax.Array:
    del key
    amount = level.pick((0.05, 0.1, 0.15, 0.2, 0.3), (0.1, 0.2, 0.3, 0.4, 0.5))
    value = jnp.max(image, axis=2, keepdims=True)
    raised = jnp.minimum(value + amount, 1)
    black = value == 0
    return jnp.where(black, raised, image * (raised / jnp.where(black, 1, value)))
