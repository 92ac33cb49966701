"""Square attack, a random search without gradients: Andriushchenko et al., ECCV 2020.

(arXiv 1912.00049; the L1 form is that of Croce & Hein, "Mind the box", ICML 2021.)
Each query changes one square window of the best image so far and keeps the change if
the margin max_{i≠y} z_i − z_y rises. The side of the window falls with the number of
queries: √(p H W), where p starts at `p_init` and is halved at fixed query counts.
`square_proposals` holds starts, windows and changes.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from robjax import inputs, losses, lowering
from robjax.attacks import ascent
from robjax.attacks import square_proposals as proposals
from robjax.attacks.ascent import AttackResult, per_sample_mask
from robjax.balls import L1, L2, Ball, Linf
from robjax.inputs import Bounds


def square(
    logits_fn: Any,
    x: jax.Array,
    y: jax.Array,
    *,
    key: jax.Array,
    ball: Ball,
    bounds: Bounds = (0.0, 1.0),
    queries: int = 5000,
    p_init: float = 0.8,
    restarts: int = 1,
    reference_quirks: bool = False,
) -> AttackResult:
    """Raises the margin by random changes of square windows; forward passes only.

    A sample is frozen at its first success, and the loop ends when all are solved.

    Args:
      logits_fn, y, bounds: as in `pgd`.
      x: [B, H, W, C] or [B, H, W]. For Linf also any other [B, *S], taken as one row of
        pixels, whose windows are intervals.
      key: one key, or one for each sample.
      ball: Linf(ε), L2(ε) or L1(ε); ε a number or [B].
      queries: proposals for each restart, static; the starting point comes on top.
      p_init: share of the image that the first windows cover, in (0, 1], static.
      restarts: independent searches, static.
      reference_quirks: as the authors' code, which draws one window (and, for Linf, one
        colour) for the whole batch, here with the key of its first sample, never
        reaches the last row and column, and cuts windows to the shorter side.

    Returns:
      AttackResult. `loss` is the margin; an unsolved sample gets its best image, x
      itself included. `queries` counts forward passes: 1 for x and queries + 1 for each
      restart, fewer where the attack succeeds; `first_success` is the number of the
      pass that did, 0 for x.

    Raises:
      ValueError: an argument is malformed; the message names it.
    """
    problem = ascent.check(logits_fn, x, ball, bounds)
    num_classes = inputs.count_classes(problem.logits_fn, problem.x)
    y = inputs.check_labels(y, x.shape[0], num_classes=num_classes)
    inputs.check_count("queries", queries)
    inputs.check_count("restarts", restarts)
    if not isinstance(p_init, int | float) or not 0 < p_init <= 1:
        raise ValueError(f"p_init must be a number in (0, 1], got {p_init!r}")
    if not isinstance(ball, Linf | L2 | L1):
        raise ValueError(f"ball must be Linf(eps), L2(eps) or L1(eps), got {ball!r}")
    height, width, _ = _as_image(problem.x).shape[1:]
    if not isinstance(ball, Linf) and min(height, width) < 3:
        raise ValueError(
            "x must be images [B, H, W, C] of at least 3 × 3 pixels for square in L2 "
            f"and L1, got shape {x.shape}"
        )
    return _square(
        problem,
        y,
        inputs.sample_keys(key, x.shape[0]),
        queries=queries,
        p_init=float(p_init),
        restarts=restarts,
        reference_quirks=bool(reference_quirks),
    )


@functools.partial(
    jax.jit, static_argnames=("queries", "p_init", "restarts", "reference_quirks")
)
def _square(problem, y, keys, *, queries, p_init, restarts, reference_quirks):
    logits_fn, x_given, ball, bounds = lax.stop_gradient(problem)
    model, x = lowering.fast(logits_fn), _as_image(x_given)
    sides = proposals.window_sides(ball, x.shape, queries, p_init, reference_quirks)
    sides = jnp.asarray(sides)

    def note(best, v, *, replace=False):
        logits = model(v.reshape(x_given.shape))
        wrong = jnp.argmax(logits, axis=1) != y
        loss = losses.margin(logits, y)
        return best.update(v, loss, wrong, freeze=True, replace=replace)

    def query(keys, carry):
        i, best = carry
        draws = proposals.draw_query(
            _fold(keys, i + 1), x.shape, ball, reference_quirks
        )
        window = proposals.place(draws, sides[i], x.shape, reference_quirks)
        proposal = proposals.propose(
            best.x_adv, x, draws, window, sides[i], ball, bounds
        )
        return i + 1, note(best, proposal)

    def run(restart, best):
        of_run = _fold(keys, restart)
        draws = proposals.draw_start(_fold(of_run, 0), x.shape, ball, reference_quirks)
        walk = note(best, proposals.start(draws, x, ball, bounds), replace=True)
        _, walk = lax.while_loop(
            lambda carry: (carry[0] < queries) & ~carry[1].success.all(),
            functools.partial(query, of_run),
            (jnp.int32(0), walk),
        )
        # the search starts anew from a point that may be worse than the best before it
        better = walk.success | (walk.loss > best.loss)
        return walk._replace(
            x_adv=jnp.where(per_sample_mask(better, x), walk.x_adv, best.x_adv),
            loss=jnp.where(better, walk.loss, best.loss),
        )

    loss_dtype = jax.eval_shape(model, x_given).dtype
    best = note(ascent.Best.none(x, loss_dtype), x)
    best = run(0, best) if restarts == 1 else lax.fori_loop(0, restarts, run, best)
    result = best.result(x, ball)
    return result._replace(x_adv=result.x_adv.reshape(x_given.shape))


def _fold(keys: jax.Array, number: Any) -> jax.Array:
    return jax.vmap(jax.random.fold_in, in_axes=(0, None))(keys, number)


def _as_image(x: jax.Array) -> jax.Array:
    """[B, *S] as [B, H, W, C]; neither image nor matrix: one row of pixels."""
    if x.ndim == 4:
        return x
    return x[..., None] if x.ndim == 3 else x.reshape(x.shape[0], 1, -1, 1)
