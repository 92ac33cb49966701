"""What the Square attack draws and tries: starts, windows and changes.

    Linf   start: x ± ε in vertical stripes; a window moves by ±2ε, then ball and box
    L2     start: a 5 × 5 grid of bumps; a window gets a bump on top of its own change,
           paid for by a second window, which is cleared, and by what ε leaves over
    L1     as L2, with sums of sizes for lengths and sharper bumps

A bump η_s is a pair of pyramids of opposite sign, side by side or one above the other.
Images are [B, H, W, C] throughout. Sources: see `square`.

**Rows.** The papers know square images only. In L2 and L1 a row [B, 1, d, 1] has
intervals for windows, and its start is ±ε/√d (L1: ±ε/d) everywhere, then the box.
A bump that lies across the row has one half only, a single pyramid. A bump changes
several pixels together, and the box may stop one of them. So every third window is a
single pixel.

The sizes of windows are traced, so that all of them share one compiled loop. A window
is therefore a mask, made by comparing coordinates.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from robjax.balls import L1, Ball, Linf
from robjax.boxes import hold
from robjax.checks import Bounds
from robjax.samples import per_sample

_TINY = 1e-12
# Below this length a sum of two opposite changes of length 1 is nothing but rounding,
# which the compiled sum and its compiled length need not share. It counts as 0.
_OPPOSITE = 1e-2
_HALVINGS = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)
_GRID = 5
_SMALLEST = 3  # side of a square in L2 and L1
_SINGLE = 3  # in a row, one of this many windows is a single pixel


def has_room(height: int, width: int) -> bool:
    """Whether an image has room for squares, in L2 and L1.

    It has at least 3 rows and columns, and the tiles of the start fit side by side.

    >>> has_room(8, 8), has_room(2, 8), has_room(14, 3)
    (True, False, False)
    """
    return min(height, width) >= _SMALLEST and _grid(height, width).columns > 0


def window_sides(
    ball: Ball,
    shape: tuple[int, ...],
    queries: int,
    p_init: float,
    reference_quirks: bool,
) -> np.ndarray:
    """Height and width of the window of each query.

    A window covers the share p of the image. p starts at `p_init` and is halved after
    the queries of `_HALVINGS`.

    >>> sides = window_sides(Linf(0.1), (1, 8, 8, 1), 12, 0.25, False)
    >>> sides[[0, -1]].tolist()
    [[4, 4], [3, 3]]

    Args:
      ball: in L2 and L1, windows are squares with an odd side of at least 3. In a row
        they are intervals as long, and every third one is a single pixel.
      shape: of the images, [B, H, W, C].
      queries: Q.
      p_init: in (0, 1].
      reference_quirks: cut windows to the shorter side of the image.

    Returns:
      [Q, 2] int32.
    """
    _, height, width, _ = shape
    sides = []
    for halved in range(len(_HALVINGS) + 1):
        area = p_init / 2**halved * height * width
        if isinstance(ball, Linf):
            sides.append(_rectangle(area, height, width, square=reference_quirks))
        else:
            sides.append(_odd_square(area, height, width))
    halvings = np.searchsorted(_HALVINGS, np.arange(queries), side="left")
    sides = np.asarray(sides, np.int32)[halvings]
    if height == 1 and not isinstance(ball, Linf):
        sides[_SINGLE - 1 :: _SINGLE] = 1
    return sides


def _rectangle(area: float, height: int, width: int, square: bool) -> tuple[int, int]:
    """A square of this area; where it does not fit, a rectangle, or what fits of it."""
    side = max(round(math.sqrt(area)), 1)
    short = min(height, width)
    if side <= short or square:
        return min(side, short), min(side, short)
    long = min(round(area / short), max(height, width))
    return (short, long) if height <= width else (long, short)


def _odd_square(area: float, height: int, width: int) -> tuple[int, int]:
    """A square of this area and an odd side, or what fits of it."""
    side = max(round(math.sqrt(area)), _SMALLEST)
    side += 1 - side % 2
    if height == 1:
        return 1, min(side, width)
    side = min(side, height, width)
    return side, side


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


def draw_query(
    keys: jax.Array, shape: tuple[int, ...], ball: Ball, reference_quirks: bool
) -> Draws:
    """What each sample draws for one query.

    >>> keys = jax.random.split(jax.random.key(0), 2)
    >>> draws = draw_query(keys, (2, 8, 8, 3), Linf(0.1), False)
    >>> draws.places.shape, draws.turned.shape, draws.sign.shape
    ((2, 2, 2), (2,), (2, 3))

    Args:
      keys: [B].
      shape: of the images, [B, H, W, C].
      ball: Linf, L2 or L1.
      reference_quirks: all samples have the windows of the first, and in Linf its
        signs.
    """
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
    """The windows of a query.

    Attributes:
      first: [B, H, W, 1] bool, the pixels of the first window.
      second: [B, H, W, 1] bool, those of the second.
      corner: [B, 2] row and column of the first pixel of the first window.
    """

    first: jax.Array
    second: jax.Array
    corner: jax.Array


def place(
    draws: Draws, side: jax.Array, shape: tuple[int, ...], reference_quirks: bool
) -> Window:
    """Puts windows where the draws say.

    >>> draws = Draws(jnp.zeros((1, 2, 2)), jnp.array([False]), jnp.ones((1, 1)))
    >>> window = place(draws, jnp.array([1, 2]), (1, 2, 3, 1), False)
    >>> window.first[0, :, :, 0].astype(int).tolist()
    [[1, 1, 0], [0, 0, 0]]

    Args:
      draws: of one query.
      side: [2] height and width of both windows.
      shape: of the images, [B, H, W, C].
      reference_quirks: no window reaches the last row or column.
    """
    free = jnp.asarray(shape[1:3]) - side + (0 if reference_quirks else 1)
    free = jnp.maximum(free, 1)
    corners = (draws.places * free[None, None]).astype(jnp.int32)
    # a product of floats may round up to `free` itself
    corners = jnp.minimum(corners, (free - 1)[None, None]).astype(jnp.int32)

    def covers(corner: jax.Array, axis: int) -> jax.Array:
        """Which rows or columns a window covers."""
        size = shape[1 + axis]
        return (jnp.arange(size)[None] >= corner[:, axis, None]) & (
            jnp.arange(size)[None] < corner[:, axis, None] + side[axis]
        )

    def mask(corner: jax.Array) -> jax.Array:
        rows = covers(corner, 0)
        columns = covers(corner, 1)
        return (rows[:, :, None] & columns[:, None, :])[..., None]

    return Window(mask(corners[:, 0]), mask(corners[:, 1]), corners[:, 0])


def propose(
    v: jax.Array,
    x: jax.Array,
    draws: Draws,
    window: Window,
    side: jax.Array,
    ball: Ball,
    bounds: Bounds,
) -> jax.Array:
    """The next candidate: the best image so far with its windows changed.

    >>> x = jnp.full((1, 1, 2, 1), 0.5)
    >>> side = jnp.array([1, 1])
    >>> draws = Draws(jnp.zeros((1, 2, 2)), jnp.array([False]), jnp.ones((1, 1)))
    >>> window = place(draws, side, x.shape, False)
    >>> propose(x, x, draws, window, side, Linf(0.25), (0.0, 1.0)).ravel().tolist()
    [0.75, 0.5]

    Args:
      v: [B, H, W, C] the best image so far.
      x: [B, H, W, C] the clean image.
      draws: of this query.
      window: where its windows are.
      side: [2] their height and width.
      ball: Linf, L2 or L1.
      bounds: lowest and highest pixel value.

    Returns:
      [B, H, W, C].
    """
    sign = draws.sign[:, None, None, :].astype(x.dtype)
    if isinstance(ball, Linf):
        step = jnp.where(window.first, 2 * per_sample(ball.eps, x) * sign, 0)
        return ball.project(v + step, x, bounds)
    change = v - x
    bump = _bump_at(ball, side, window.corner, draws.turned, x.shape, x.dtype)
    old = jnp.where(window.first, change, 0)
    new = hold(bump * sign, bounds) + old / (_length(ball, old, (1, 2)) + _TINY)
    size = _length(ball, new, (1, 2))
    opposite = size < _OPPOSITE
    new = jnp.where(opposite, 0, new / jnp.where(opposite, 1, size))
    both = window.first | window.second
    amount = _amount(ball, change, jnp.where(both, change, 0))
    return _fill(jnp.where(both, 0, change) + amount * new, x, ball, bounds)


def _amount(ball: Ball, change: jax.Array, windows: jax.Array) -> jax.Array:
    """The length of the new change of each channel in the first window, [B, 1, 1, C].

    It is what the channel had in both windows, w, and a part of what the whole change δ
    leaves over of ε, which the C channels divide evenly:

        L2   √( max(ε² − ‖δ‖², 0) / C + w² )
        L1   max(ε − ‖δ‖, 0) + C w              (C times as much; `_fill` projects it)

    Args:
      ball: L2 or L1.
      change: [B, H, W, C] δ.
      windows: [B, H, W, C] δ inside both windows, else 0.
    """
    eps = per_sample(ball.eps, change)
    channels = change.shape[-1]
    have = _length(ball, change, (1, 2, 3))
    w = _length(ball, windows, (1, 2))
    if isinstance(ball, L1):
        return jnp.maximum(eps - have, 0) + w * channels
    return jnp.sqrt(jnp.maximum(eps**2 - have**2, 0) / channels + w**2)


def _fill(change: jax.Array, x: jax.Array, ball: Ball, bounds: Bounds) -> jax.Array:
    """L2: scaled to length ε, then the box. L1: projected onto ball ∩ box."""
    change = hold(change, bounds)
    if isinstance(ball, L1):
        return ball.project(x + change, x, bounds)
    change = change / (_length(ball, change, (1, 2, 3)) + _TINY)
    return jnp.clip(x + per_sample(ball.eps, x) * change, *bounds)


def _length(ball: Ball, z: jax.Array, axes: tuple[int, ...]) -> jax.Array:
    """L2 or L1 norm over these axes, which are kept."""
    if isinstance(ball, L1):
        return jnp.sum(jnp.abs(z), axis=axes, keepdims=True)
    return jnp.sqrt(jnp.sum(z * z, axis=axes, keepdims=True))


def bumps(
    ball: Ball,
    side: jax.Array | int,
    shape: tuple[int, int],
    corner: tuple[int, int],
) -> jax.Array:
    """The bump η_s in an image, upright and transposed.

    Each half of a bump is a sum of nested squares of radius k, weighted (k + 1)^−2
    (L1: −4), cut to the half. The halves have equal lengths and opposite signs; the
    whole has length 1. A side of one pixel has no halves: there the bump is one sum.

    >>> upright, turned = bumps(L1(1.0), 3, (3, 3), (0, 0))
    >>> jnp.sign(upright).astype(int).tolist()
    [[1, 1, 1], [-1, -1, -1], [-1, -1, -1]]

    Args:
      ball: L2 or L1.
      side: height and width of the window, or s for both; at most √(H W) + 2.
      shape: height and width of the image.
      corner: row and column of the first pixel of the bump.

    Returns:
      [2, *shape].
    """
    longest = math.isqrt(math.prod(shape))
    tails = jnp.asarray(_ring_values(longest // 2 + 2, ball), jnp.float32)
    height, width = jnp.broadcast_to(jnp.asarray(side), (2,))

    def pair(
        along: jax.Array, across: jax.Array, extent: jax.Array, breadth: jax.Array
    ) -> jax.Array:
        """Two halves one after the other, of this extent and breadth together."""
        upper = extent // 2
        lower = along >= upper
        size = jnp.where(lower, extent - upper, upper)
        place = jnp.where(lower, along - upper, along)
        ring = jnp.maximum(jnp.abs(place - size // 2), jnp.abs(across - breadth // 2))
        inside = (along >= 0) & (along < extent) & (across >= 0) & (across < breadth)
        ring = jnp.clip(ring, 0, tails.shape[1] - 1)
        squares = jnp.maximum(extent - upper, breadth) // 2 + 1
        values = jnp.where(inside, tails[squares][ring], 0)
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
    rows, columns = jnp.broadcast_arrays(rows, columns)
    upright = pair(rows, columns, height, width)
    return jnp.stack([upright, pair(columns, rows, width, height)])


def _ring_values(count: int, ball: Ball) -> np.ndarray:
    """Height of a half bump of n squares at distance k from its middle.

    Returns:
      [n, k]: Σ_{k ≤ j < n} (j + 1)^−2 (L1: −4), summed from the small end.
    """
    weights = 1.0 / np.arange(1, count + 1) ** (4 if isinstance(ball, L1) else 2)
    kept = np.arange(count + 1)[:, None] > np.arange(count)[None]
    return np.cumsum((weights[None] * kept)[:, ::-1], axis=1)[:, ::-1]


def _bump_at(
    ball: Ball,
    side: jax.Array,
    corner: jax.Array,
    turned: jax.Array,
    shape: tuple[int, ...],
    dtype: jax.typing.DTypeLike,
) -> jax.Array:
    """Every sample's bump where its first window is, [B, H, W, 1]."""
    _, height, width, _ = shape
    # slices of an image twice as large move the bump without a gather for each pixel
    table = bumps(ball, side, (2 * height, 2 * width), (height, width)).astype(dtype)

    def cut(corner: jax.Array, turned: jax.Array) -> jax.Array:
        at = (turned.astype(jnp.int32), height - corner[0], width - corner[1])
        return lax.dynamic_slice(table, at, (1, height, width))[0]

    return jax.vmap(cut)(corner, turned)[..., None]


class StartDraws(NamedTuple):
    """The randomness of a start, for each of T tiles of the image.

    Attributes:
      turned: [B, T] bool, whether the bump is transposed.
      sign: [B, T, C] ±1.

    The tiles are those of the grid, row by row; for Linf the columns of the image.
    """

    turned: jax.Array
    sign: jax.Array


def draw_start(
    keys: jax.Array, shape: tuple[int, ...], ball: Ball, reference_quirks: bool
) -> StartDraws:
    """What each sample draws for a starting point.

    >>> keys = jax.random.split(jax.random.key(0), 2)
    >>> draw_start(keys, (2, 8, 6, 3), Linf(0.1), False).sign.shape
    (2, 6, 3)

    Args:
      keys: [B].
      shape: of the images, [B, H, W, C].
      ball: Linf, L2 or L1.
      reference_quirks: the bumps of all samples are turned as those of the first.
    """
    _, height, width, channels = shape
    grid = _grid(height, width)
    tiles = width if isinstance(ball, Linf) else grid.rows * grid.columns
    size = (tiles, 1 + channels)
    uniform = jax.vmap(lambda key: jax.random.uniform(key, size))(keys)
    turned = uniform[..., 0] > 0.5
    if reference_quirks:
        turned = jnp.broadcast_to(turned[:1], turned.shape)
    return StartDraws(turned, _sign(uniform[..., 1:]))


def start(draws: StartDraws, x: jax.Array, ball: Ball, bounds: Bounds) -> jax.Array:
    """The starting point: in Linf vertical stripes of ±ε, else a grid of bumps.

    >>> x = jnp.full((1, 1, 2, 1), 0.5)
    >>> draws = StartDraws(jnp.zeros((1, 2), bool), jnp.array([[[1], [-1]]]))
    >>> start(draws, x, Linf(0.25), (0.0, 1.0)).ravel().tolist()
    [0.75, 0.25]

    Args:
      draws: made by `draw_start`.
      x: [B, H, W, C].
      ball: Linf, L2 or L1.
      bounds: lowest and highest pixel value.

    Returns:
      [B, H, W, C].
    """
    _, height, width, _ = x.shape
    if isinstance(ball, Linf):
        stripes = draws.sign[:, None, :, :].astype(x.dtype)
        return ball.project(x + per_sample(ball.eps, x) * stripes, x, bounds)
    grid = _grid(height, width)
    side = grid.side
    row = np.arange(height)[:, None] - grid.offset
    column = np.arange(width)[None] - grid.offset
    tile = row // side * grid.columns + column // side
    covered = (row >= 0) & (row // side < grid.rows)
    covered = covered & (column >= 0) & (column // side < grid.columns)
    tile = np.where(covered, tile, 0)
    bump = bumps(ball, side, (side, side), (0, 0)).astype(x.dtype)
    bump = bump[:, row % side, column % side]
    change = jnp.where(draws.turned[:, tile], bump[1][None], bump[0][None])
    change = jnp.where(covered[None], change, 0)[..., None] * draws.sign[:, tile]
    return _fill(change, x, ball, bounds)


class _Grid(NamedTuple):
    """The tiles of the starting grid.

    Attributes:
      side: of a tile, in pixels.
      rows: how many tiles are above one another.
      columns: how many are side by side.
      offset: row and column of the first pixel of the first tile.
    """

    side: int
    rows: int
    columns: int
    offset: int


def _grid(height: int, width: int) -> _Grid:
    side = max(height // _GRID, 1)
    offset = max((height - side * _GRID) // 2, 0)
    return _Grid(
        side=side,
        rows=(height - offset) // side,
        columns=(width - offset) // side,
        offset=offset,
    )
