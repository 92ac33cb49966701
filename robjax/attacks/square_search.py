"""The search of the Square attack as a value, for models inside and outside of JAX.

    search = begin(task, dtype)                        nothing is known yet
    search = update(search, task, x, …)                what the model says of x itself
    images = propose(search, task)                     what to show the model next
    search = update(search, task, images, loss, wrong)

Both functions are pure and compile; the last two lines are repeated until `finished`.
`square` runs them in one compiled loop around the model, `square_queries` one by one
around any Python function. All samples move in step, a solved one stays as it is.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from robjax import inputs
from robjax.attacks import ascent
from robjax.attacks import square_proposals as proposals
from robjax.attacks.ascent import Best, per_sample_mask
from robjax.attacks.draws import fold
from robjax.balls import L1, L2, Ball, Linf
from robjax.inputs import Bounds


class Task(NamedTuple):
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


class Search(NamedTuple):
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


def check(ball: Any, x: jax.Array, queries: Any, restarts: Any, p_init: Any) -> None:
    """ValueError unless the options of the search are right, x being images [B, *S]."""
    inputs.check_count("queries", queries)
    inputs.check_count("restarts", restarts)
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


def begin(task: Task, loss_dtype: Any) -> Search:
    """Before any image has been shown; the first one to `update` with is x."""
    best = ascent.Best.none(task.x, loss_dtype)
    # one step before the starting point of restart 0
    return Search(best, task.x, best.loss, jnp.int32(0), jnp.int32(-1))


def propose(search: Search, task: Task, *, reference_quirks: bool = False) -> jax.Array:
    """The next image of every sample, [B, H, W, C]; not for use before x is known."""
    keys = fold(fold(task.keys, search.restart), search.number)
    shape, quirks = task.x.shape, reference_quirks

    def start():
        draws = proposals.draw_start(keys, shape, task.ball, quirks)
        return proposals.start(draws, task.x, task.ball, task.bounds)

    def change():
        side = task.sides[search.number - 1]
        draws = proposals.draw_query(keys, shape, task.ball, quirks)
        window = proposals.place(draws, side, shape, quirks)
        v = search.best.x_adv
        return proposals.propose(v, task.x, draws, window, side, task.ball, task.bounds)

    return lax.cond(search.number == 0, start, change)


def update(
    search: Search, task: Task, images: jax.Array, loss: jax.Array, wrong: jax.Array
) -> Search:
    """Takes in the verdict on `images` [B, H, W, C].

    Args:
      search: the state that `images` were proposed from.
      task: what is searched.
      images: what the model was shown.
      loss: [B] margin max_{i≠y} z_i − z_y of its answer; for a sample that is solved
        already, any number.
      wrong: [B] bool, whether it was fooled; for a sample that is solved, anything.
    """
    is_start: Any = search.number == 0
    # a restart begins from a point that may be worse than the best before it
    earlier, earlier_loss = lax.cond(
        is_start, _better, lambda search: (search.earlier, search.earlier_loss), search
    )
    best = search.best.update(images, loss, wrong, freeze=True, replace=is_start)
    over = search.number == task.sides.shape[0]
    return Search(
        best,
        earlier,
        earlier_loss,
        search.restart + over,
        jnp.where(over, 0, search.number + 1),
    )


def result(search: Search) -> Best:
    """The best point of all restarts."""
    x_adv, loss = _better(search)
    return search.best._replace(x_adv=x_adv, loss=loss)


def _better(search: Search) -> tuple[jax.Array, jax.Array]:
    best = search.best
    better = best.success | (best.loss > search.earlier_loss)
    mask = per_sample_mask(better, best.x_adv)
    return (
        jnp.where(mask, best.x_adv, search.earlier),
        jnp.where(better, best.loss, search.earlier_loss),
    )
