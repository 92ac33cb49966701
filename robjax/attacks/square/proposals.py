"""What the Square attack draws and tries: starts, windows and changes.

    Linf   start: x ± ε in vertical stripes; a window moves by ±2ε, then ball and box
    L2     start: a 5 × 5 grid of bumps; a window gets a bump on top of its own change,
           paid for by a second window, which is cleared, and by what ε leaves over
    L1     as L2, with sums of sizes for lengths and sharper bumps

A bump η_s is a pair of pyramids of opposite sign, side by side or one above the other.
Windows are comparisons of coordinates, so that all their sizes, which are traced, share
one compiled loop. Images are [B, H, W, C] throughout. Sources: see `square`.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from robjax.balls import L1, Ball, Linf
from robjax.checks import Bounds
from robjax.samples import per_sample

_TINY = 1e-12
_HALVINGS = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)
_GRID = 5


def window_sides(ball, shape, queries, p_init, reference_quirks) -> np.ndarray:
    """Height and width of the window of each query, int32 [queries, 2]."""
    _, height, width, _ = shape
    short, sides = min(height, width), []
    halvings = np.searchsorted(_HALVINGS, np.arange(queries), side="left")
    for halved in range(len(_HALVINGS) + 1):
        area = p_init / 2**halved * height * width
        side = round(math.sqrt(area))
        if isinstance(ball, Linf):
            side = max(side, 1)
            # where a square does not fit, a rectangle of its area does
            long = min(round(area / short), max(height, width))
            fits = side <= short or reference_quirks
            other = min(side, short) if fits else long
            side = min(side, short)
            sides.append((side, other) if height <= width else (other, side))
        else:
            side = max(side, 3)
            side = min(side + 1 - side % 2, short)
            sides.append((side, side))
    return np.asarray(sides, np.int32)[halvings]


class Draws(NamedTuple):
    """The randomness of one query.

    Attributes:
      places: [B, 2, 2] in [0, 1), row and column of the first and second window.
      turned: [B] bool, whether the bump is transposed.
      sign: [B, C] ±1.
    """

    places: jax.Array
    turned: jax.Array
    sign: jax.Array


def draw_query(keys, shape, ball, reference_quirks) -> Draws:
    """What the samples with these keys draw for one query."""
    count = 5 + shape[-1]
    uniform = jax.vmap(lambda key: jax.random.uniform(key, (count,)))(keys)
    if reference_quirks:
        shared = jnp.arange(count) < (count if isinstance(ball, Linf) else 5)
        uniform = jnp.where(shared[None], uniform[:1], uniform)
    places = uniform[:, :4].reshape(-1, 2, 2)
    return Draws(places, uniform[:, 4] > 0.5, _sign(uniform[:, 5:]))


def _sign(uniform: jax.Array) -> jax.Array:
    return jnp.where(uniform < 0.5, -1, 1)


class Window(NamedTuple):
    """The windows of a query: masks [B, H, W, 1] and the first one's corner [B, 2]."""

    first: jax.Array
    second: jax.Array
    corner: jax.Array


def place(draws: Draws, side: jax.Array, shape, reference_quirks: bool) -> Window:
    """Puts windows of height and width `side` [2] where the draws say."""
    free = jnp.asarray(shape[1:3]) - side + (0 if reference_quirks else 1)
    free = jnp.maximum(free, 1)
    corners = (draws.places * free[None, None]).astype(jnp.int32)
    # a product of floats may round up to `free` itself
    corners = jnp.minimum(corners, (free - 1)[None, None]).astype(jnp.int32)

    def mask(corner):
        rows, columns = (
            (jnp.arange(size)[None] >= corner[:, axis, None])
            & (jnp.arange(size)[None] < corner[:, axis, None] + side[axis])
            for axis, size in enumerate(shape[1:3])
        )
        return (rows[:, :, None] & columns[:, None, :])[..., None]

    return Window(mask(corners[:, 0]), mask(corners[:, 1]), corners[:, 0])


def propose(v, x, draws, window, side, ball, bounds) -> jax.Array:
    """The next candidate from the best image v so far, [B, H, W, C]."""
    sign = draws.sign[:, None, None, :].astype(x.dtype)
    if isinstance(ball, Linf):
        step = jnp.where(window.first, 2 * per_sample(ball.eps, x) * sign, 0)
        return ball.project(v + step, x, bounds)
    change = v - x
    bump = _bump_at(ball, side[0], window.corner, draws.turned, x.shape, x.dtype)
    old = jnp.where(window.first, change, 0)
    new = bump * sign + old / (_length(ball, old, (1, 2)) + _TINY)
    new = new / (_length(ball, new, (1, 2)) + _TINY)
    both = window.first | window.second
    amount = _amount(ball, change, jnp.where(both, change, 0))
    return _fill(jnp.where(both, 0, change) + amount * new, x, ball, bounds)


def _amount(ball, change, windows) -> jax.Array:
    """Length of each channel's new window, [B, 1, 1, C]: what both had, and the rest.

    The channels share what the whole change leaves over of ε.
    """
    eps, channels = per_sample(ball.eps, change), change.shape[-1]
    have = _length(ball, change, (1, 2, 3))
    windows = _length(ball, windows, (1, 2))
    if isinstance(ball, L1):
        return jnp.maximum(eps - have, 0) + windows * channels
    return jnp.sqrt(jnp.maximum(eps**2 - have**2, 0) / channels + windows**2)


def _fill(change, x, ball, bounds) -> jax.Array:
    """L2: scaled to length ε, then the box. L1: projected onto ball ∩ box."""
    if isinstance(ball, L1):
        return ball.project(x + change, x, bounds)
    change = change / (_length(ball, change, (1, 2, 3)) + _TINY)
    return jnp.clip(x + per_sample(ball.eps, x) * change, *bounds)


def _length(ball, z, axes) -> jax.Array:
    if isinstance(ball, L1):
        return jnp.sum(jnp.abs(z), axis=axes, keepdims=True)
    return jnp.sqrt(jnp.sum(z * z, axis=axes, keepdims=True))


def bumps(ball: Ball, side, shape: tuple[int, int], corner: tuple[int, int]):
    """η_s with its corner at `corner` of an image, and transposed: [2, *shape].

    Each half is a sum of nested squares of radius k, weighted (k + 1)^−2 (L1: −4), has
    length 1 and the opposite sign of the other; together they have length 1.
    """
    # [n, k]: Σ_{k ≤ j < n} (j + 1)^−power, summed from the small end
    count = max(shape) // 2 + 2
    weights = 1.0 / np.arange(1, count + 1) ** (4 if isinstance(ball, L1) else 2)
    kept = np.arange(count + 1)[:, None] > np.arange(count)[None]
    tails = np.cumsum((weights[None] * kept)[:, ::-1], axis=1)[:, ::-1]
    tails = jnp.asarray(tails, jnp.float32)

    def upright(along, across):
        upper = side // 2
        lower = along >= upper
        height = jnp.where(lower, side - upper, upper)
        row = jnp.where(lower, along - upper, along)
        ring = jnp.maximum(jnp.abs(row - height // 2), jnp.abs(across - side // 2))
        inside = (along >= 0) & (along < side) & (across >= 0) & (across < side)
        ring = jnp.clip(ring, 0, count - 1)
        values = jnp.where(inside, tails[side // 2 + 1][ring], 0)
        halves = [jnp.where(lower == half, values, 0) for half in (False, True)]
        lengths = [_length(ball, half, (0, 1)) for half in halves]
        first, second = (
            half / jnp.where(length > 0, length, 1)
            for half, length in zip(halves, lengths, strict=True)
        )
        whole = first - second
        return whole / _length(ball, whole, (0, 1))

    rows = jnp.arange(shape[0])[:, None] - corner[0]
    columns = jnp.arange(shape[1])[None] - corner[1]
    grid = jnp.broadcast_arrays(rows, columns)
    return jnp.stack([upright(*grid), upright(*reversed(grid))])


def _bump_at(ball, side, corner, turned, shape, dtype) -> jax.Array:
    """Every sample's bump where its first window is, [B, H, W, 1]."""
    _, height, width, _ = shape
    # slices of an image twice as large move the bump without a gather for each pixel
    table = bumps(ball, side, (2 * height, 2 * width), (height, width)).astype(dtype)

    def cut(corner, turned):
        at = (turned.astype(jnp.int32), height - corner[0], width - corner[1])
        return lax.dynamic_slice(table, at, (1, height, width))[0]

    return jax.vmap(cut)(corner, turned)[..., None]


class StartDraws(NamedTuple):
    """The randomness of a start: `turned` [B, T] bool and `sign` [B, T, C] ±1.

    T counts the tiles of the grid, row by row; for Linf the columns of the image.
    """

    turned: jax.Array
    sign: jax.Array


def draw_start(keys, shape, ball, reference_quirks) -> StartDraws:
    """What the samples with these keys draw for a starting point."""
    _, height, width, channels = shape
    tiles = width if isinstance(ball, Linf) else np.prod(_grid(height, width)[1])
    size = (int(tiles), 1 + channels)
    uniform = jax.vmap(lambda key: jax.random.uniform(key, size))(keys)
    turned = uniform[..., 0] > 0.5
    if reference_quirks:
        turned = jnp.broadcast_to(turned[:1], turned.shape)
    return StartDraws(turned, _sign(uniform[..., 1:]))


def start(draws: StartDraws, x: jax.Array, ball: Ball, bounds: Bounds) -> jax.Array:
    """Linf: vertical stripes of ±ε; L2 and L1: a grid of bumps."""
    _, height, width, _ = x.shape
    if isinstance(ball, Linf):
        stripes = draws.sign[:, None, :, :].astype(x.dtype)
        return ball.project(x + per_sample(ball.eps, x) * stripes, x, bounds)
    side, counts, offset = _grid(height, width)
    row, column = (
        np.arange(size)[shape] - offset
        for size, shape in ((height, np.s_[:, None]), (width, np.s_[None]))
    )
    tile = row // side * counts[1] + column // side
    covered = (row >= 0) & (row // side < counts[0])
    covered = covered & (column >= 0) & (column // side < counts[1])
    tile = np.where(covered, tile, 0)
    bump = bumps(ball, side, (side, side), (0, 0)).astype(x.dtype)
    bump = bump[:, row % side, column % side]
    change = jnp.where(draws.turned[:, tile], bump[1][None], bump[0][None])
    change = jnp.where(covered[None], change, 0)[..., None] * draws.sign[:, tile]
    return _fill(change, x, ball, bounds)


def _grid(height: int, width: int) -> tuple[int, tuple[int, int], int]:
    """Side of the tiles of the starting grid, their numbers, the first one's corner."""
    side = max(height // _GRID, 1)
    offset = max((height - side * _GRID) // 2, 0)
    return side, ((height - offset) // side, (width - offset) // side), offset
