"""The search of the Square attack as a value, for models inside and outside of JAX.

    state = begin(space, dtype)                        nothing is known yet
    state = update(state, space, x, loss, wrong)       what the model says of x itself
    images = propose(state, space)                     what to show the model next
    state = update(state, space, images, loss, wrong)

All functions are pure and compile. The last two lines are repeated. `square` runs them
in one compiled loop around the model, `square_queries` one by one around any Python
function. All samples move in step; a solved one stays as it is.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from robjax.attacks.result import Best
from robjax.attacks.square import proposals
from robjax.balls import L1, L2, Ball, Linf
from robjax.checks import Bounds, check_count
from robjax.samples import fold_keys, mask_samples


class SearchSpace(NamedTuple):
    """What is searched.

    Attributes:
      x: [B, H, W, C] images, see `as_image`.
      keys: [B], where each sample's draws come from.
      ball: Linf(ε), L2(ε) or L1(ε).
      bounds: lowest and highest pixel value.
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
      number: of the next proposal; 0 is the starting point of the restart.
    """

    best: Best
    earlier: jax.Array
    earlier_loss: jax.Array
    restart: jax.Array
    number: jax.Array


def check_search(
    ball: Ball, x: jax.Array, queries: int, restarts: int, p_init: float
) -> None:
    """ValueError unless the options of the search are right, x being images [B, *S]."""
    check_count("queries", queries)
    check_count("restarts", restarts)
    if not isinstance(p_init, int | float) or not 0 < p_init <= 1:
        raise ValueError(f"p_init must be a number in (0, 1], got {p_init!r}")
    if not isinstance(ball, Linf | L2 | L1):
        raise ValueError(f"ball must be Linf(eps), L2(eps) or L1(eps), got {ball!r}")
    height, width, _ = as_image(x).shape[1:]
    if not isinstance(ball, Linf) and min(height, width) < 3:
        raise ValueError(
            "x must be images [B, H, W, C] of at least 3 × 3 pixels for square in L2 "
            f"and L1, got shape {x.shape}"
        )


def as_image(x: jax.Array) -> jax.Array:
    """[B, *S] as [B, H, W, C]; neither image nor matrix: one row of pixels."""
    if x.ndim == 4:
        return x
    return x[..., None] if x.ndim == 3 else x.reshape(x.shape[0], 1, -1, 1)


def begin(space: SearchSpace, loss_dtype: jax.typing.DTypeLike) -> SearchState:
    """Before any image has been shown; the first one to `update` with is x."""
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
    """The next image of every sample, [B, H, W, C]; not for use before x is known."""
    keys = fold_keys(fold_keys(space.keys, state.restart), state.number)
    shape = space.x.shape
    quirks = reference_quirks

    def start():
        draws = proposals.draw_start(keys, shape, space.ball, quirks)
        return proposals.start(draws, space.x, space.ball, space.bounds)

    def change():
        side = space.sides[state.number - 1]
        draws = proposals.draw_query(keys, shape, space.ball, quirks)
        window = proposals.place(draws, side, shape, quirks)
        v = state.best.x_adv
        return proposals.propose(
            v, space.x, draws, window, side, space.ball, space.bounds
        )

    return lax.cond(state.number == 0, start, change)


def update(
    state: SearchState,
    space: SearchSpace,
    images: jax.Array,
    loss: jax.Array,
    wrong: jax.Array,
) -> SearchState:
    """Takes in the verdict on `images` [B, H, W, C].

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
    """The best point of all restarts."""
    x_adv, loss = _better(state)
    return state.best._replace(x_adv=x_adv, loss=loss)


def _better(state: SearchState) -> tuple[jax.Array, jax.Array]:
    best = state.best
    better = best.success | (best.loss > state.earlier_loss)
    mask = mask_samples(better, best.x_adv)
    return (
        jnp.where(mask, best.x_adv, state.earlier),
        jnp.where(better, best.loss, state.earlier_loss),
    )
