"""The search of the Square attack as a value, for models inside and outside of JAX.

    state = begin(space, dtype)                        nothing is known yet
    state = update(state, space, x, loss, wrong)       what the model says of x itself
    images = propose(state, space)                     what to show the model next
    state = update(state, space, images, loss, wrong)

The last two lines are repeated. All these functions are pure and compile. `square` runs
them in one compiled loop around the model, `square_queries` one by one around any
Python function. All samples move in step; a solved one stays as it is.
"""

import numbers
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from robjax.attacks.result import Best
from robjax.attacks.square import proposals
from robjax.balls import Ball, Linf
from robjax.boxes import has_arrays
from robjax.checks import Bounds, check_count
from robjax.samples import fold_keys, mask_samples


class SearchSpace(NamedTuple):
    """What is searched; made by `search_space`.

    Attributes:
      x: [B, H, W, C] images, made by `as_image`.
      keys: [B], where each sample's draws come from.
      ball: Linf(ε), L2(ε) or L1(ε).
      bounds: lowest and highest pixel value, two numbers or two arrays [B, H, W, C].
      sides: [Q, 2] height and width of the window of each of Q proposals.
    """

    x: jax.Array
    keys: jax.Array
    ball: Ball
    bounds: Bounds
    sides: jax.Array


class SearchState(NamedTuple):
    """Where the search stands.

    Attributes:
      best: the best point of this restart, with verdict and counts over all of them.
      earlier: [B, H, W, C] the best image of the restarts before (or x itself).
      earlier_loss: [B] its margin.
      restart: the restart of the next proposal.
      number: of the next proposal, from 0 to Q; 0 is the starting point of the restart.
    """

    best: Best
    earlier: jax.Array
    earlier_loss: jax.Array
    restart: jax.Array
    number: jax.Array


def check_search(queries: int, restarts: int, p_init: float) -> None:
    """Checks the options of a search.

    >>> check_search(5000, 1, p_init=2)
    Traceback (most recent call last):
    ValueError: p_init must be a number in (0, 1], got 2

    Raises:
      ValueError: an option is malformed.
    """
    check_count("queries", queries)
    check_count("restarts", restarts)
    if not isinstance(p_init, numbers.Real) or not 0 < p_init <= 1:
        raise ValueError(f"p_init must be a number in (0, 1], got {p_init!r}")


def as_image(x: jax.Array, ball: Ball) -> jax.Array:
    """Brings images [B, *S] into the form [B, H, W, C].

    Where S has neither two axes nor three, it becomes one row of pixels. In L2 and L1
    so does an image without room for squares, whose channels are then pixels, too.

    >>> from robjax.balls import L2
    >>> x = jnp.ones((2, 2, 8, 3))
    >>> as_image(x, Linf(0.1)).shape, as_image(x, L2(0.1)).shape
    ((2, 2, 8, 3), (2, 1, 48, 1))

    Args:
      x: [B, *S].
      ball: Linf, L2 or L1.
    """
    if x.ndim in (3, 4):
        _, height, width = x.shape[:3]
        if isinstance(ball, Linf) or proposals.has_room(height, width):
            return x.reshape(*x.shape[:3], -1)
    return x.reshape(x.shape[0], 1, -1, 1)


def search_space(
    x: jax.Array,
    keys: jax.Array,
    ball: Ball,
    bounds: Bounds,
    *,
    queries: int,
    p_init: float = 0.8,
    reference_quirks: bool = False,
) -> SearchSpace:
    """Images, where they may move to, and the windows to try.

    >>> keys = jax.random.split(jax.random.key(0), 1)
    >>> x = jnp.ones((1, 8, 8, 3))
    >>> search_space(x, keys, Linf(0.1), (0.0, 1.0), queries=5).sides.shape
    (5, 2)

    Args:
      x: [B, *S] images inside `bounds`.
      keys: [B].
      ball: Linf(ε), L2(ε) or L1(ε).
      bounds: lowest and highest pixel value.
      queries: Q, proposals for each restart.
      p_init: as in `square`.
      reference_quirks: as in `square`.
    """
    x = as_image(x, ball)
    if has_arrays(bounds):
        bounds = bounds[0].reshape(x.shape), bounds[1].reshape(x.shape)
    sides = proposals.window_sides(ball, x.shape, queries, p_init, reference_quirks)
    return SearchSpace(
        x=x, keys=keys, ball=ball, bounds=bounds, sides=jnp.asarray(sides)
    )


def begin(space: SearchSpace, loss_dtype: jax.typing.DTypeLike) -> SearchState:
    """The state before any image has been shown; x is the first to `update` with.

    >>> x = jnp.full((1, 1, 2, 1), 0.5)
    >>> keys = jax.random.split(jax.random.key(0), 1)
    >>> space = search_space(x, keys, Linf(0.25), (0.0, 1.0), queries=9)
    >>> begin(space, jnp.float32).best.queries.tolist()
    [0]

    Args:
      space: what is searched.
      loss_dtype: of the margins to come.
    """
    best = Best.none(space.x, loss_dtype)
    # one step before the starting point of restart 0
    return SearchState(
        best=best,
        earlier=space.x,
        earlier_loss=best.loss,
        restart=jnp.int32(0),
        number=jnp.int32(-1),
    )


def propose(
    state: SearchState, space: SearchSpace, *, reference_quirks: bool = False
) -> jax.Array:
    """The next image of every sample, [B, H, W, C].

    The first one is the starting point: in Linf, every pixel ε away from x.

    >>> x = jnp.full((1, 1, 2, 1), 0.5)
    >>> keys = jax.random.split(jax.random.key(0), 1)
    >>> space = search_space(x, keys, Linf(0.25), (0.0, 1.0), queries=9)
    >>> state = begin(space, jnp.float32)
    >>> state = update(state, space, x, jnp.array([-1.0]), jnp.array([False]))
    >>> jnp.abs(propose(state, space) - x).ravel().tolist()
    [0.25, 0.25]

    Args:
      state: the verdict on x must have been taken in.
      space: what is searched.
      reference_quirks: as in `square`.
    """
    keys = fold_keys(fold_keys(space.keys, state.restart), state.number)
    x = space.x
    ball = space.ball
    quirks = reference_quirks

    def start() -> jax.Array:
        draws = proposals.draw_start(keys, x.shape, ball, quirks)
        return proposals.start(draws, x, ball, space.bounds)

    def change() -> jax.Array:
        side = space.sides[state.number - 1]
        draws = proposals.draw_query(keys, x.shape, ball, quirks)
        window = proposals.place(draws, side, x.shape, quirks)
        best = state.best.x_adv
        return proposals.propose(best, x, draws, window, side, ball, space.bounds)

    return lax.cond(state.number == 0, start, change)


def update(
    state: SearchState,
    space: SearchSpace,
    images: jax.Array,
    loss: jax.Array,
    wrong: jax.Array,
) -> SearchState:
    """Takes in the verdict on `images` [B, H, W, C].

    >>> x = jnp.full((1, 1, 2, 1), 0.5)
    >>> keys = jax.random.split(jax.random.key(0), 1)
    >>> space = search_space(x, keys, Linf(0.25), (0.0, 1.0), queries=9)
    >>> state = begin(space, jnp.float32)
    >>> state = update(state, space, x, jnp.array([2.0]), jnp.array([True]))
    >>> state.best.success.tolist(), state.best.queries.tolist()
    ([True], [1])

    Args:
      state: the state that `images` were proposed from.
      space: what is searched.
      images: what the model was shown.
      loss: [B] margin max_{i≠y} z_i − z_y of its answer; for a sample that is solved
        already, any number.
      wrong: [B] bool, whether it was fooled; for a sample that is solved, anything.
    """
    is_start = state.number == 0
    # a restart begins from a point that may be worse than the best before it
    earlier, earlier_loss = lax.cond(
        is_start, _better, lambda state: (state.earlier, state.earlier_loss), state
    )
    best = state.best.update(images, loss, wrong, freeze=True, replace=is_start)
    over = state.number == space.sides.shape[0]
    return SearchState(
        best=best,
        earlier=earlier,
        earlier_loss=earlier_loss,
        restart=state.restart + over,
        number=jnp.where(over, 0, state.number + 1),
    )


def result(state: SearchState) -> Best:
    """The best point of all restarts.

    >>> x = jnp.full((1, 1, 2, 1), 0.5)
    >>> keys = jax.random.split(jax.random.key(0), 1)
    >>> space = search_space(x, keys, Linf(0.25), (0.0, 1.0), queries=9)
    >>> state = begin(space, jnp.float32)
    >>> state = update(state, space, x, jnp.array([-1.0]), jnp.array([False]))
    >>> result(state).loss.tolist()
    [-1.0]
    """
    x_adv, loss = _better(state)
    return state.best._replace(x_adv=x_adv, loss=loss)


def _better(state: SearchState) -> tuple[jax.Array, jax.Array]:
    """The best image so far, of this restart or an earlier one, and its margin."""
    best = state.best
    better = best.success | (best.loss > state.earlier_loss)
    mask = mask_samples(better, best.x_adv)
    return (
        jnp.where(mask, best.x_adv, state.earlier),
        jnp.where(better, best.loss, state.earlier_loss),
    )
