"""Carlini & Wagner's L2 attack, S&P 2017 (arXiv 1608.04644), section VI.A.

With v = m + h tanh u, where m is the middle of the box and h half its width, Adam
minimises over u, from the u of x itself,

    ‖v − x‖² / (2h)² + c max(κ − f(v), 0),    f = max_{i≠y} z_i − z_y

for the confidence κ. The weight c of each sample is searched for: ten times as large
after runs that found nothing, until one does, and the middle between the largest that
did not and the smallest that did afterwards. The nearest point with f ≥ κ counts. A
step costs one gradient. The refinements of `nearest` follow, which the authors' code
has not; here every sample, not the batch, stops its run for want of progress.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import lax

from robjax import inputs, losses, lowering
from robjax.attacks import nearest
from robjax.attacks.ascent import AttackResult, per_sample_mask
from robjax.balls import L2
from robjax.inputs import Bounds

_INSIDE = 0.999999
_CHECKS = 10
_PROGRESS = 0.9999


def carlini_wagner(
    logits_fn: Any,
    x: jax.Array,
    y: jax.Array,
    *,
    key: jax.Array | None = None,
    ball: L2,
    bounds: Bounds = (0.0, 1.0),
    steps: int = 1000,
    searches: int = 9,
    step_size: float = 0.01,
    init_weight: float = 1e-3,
    confidence: float = 0.0,
    abort_early: bool = True,
    early_exit: bool = False,
    refine: bool = True,
) -> AttackResult:
    """The nearest misclassified image that Carlini & Wagner's attack finds in L2.

    The radius ε plays no part in the search, as in `fab`: take a large one for the
    smallest distances rather than a verdict.

    Args:
      logits_fn, x, y, bounds: as in `pgd`.
      key: not used; nothing here is random.
      ball: L2(ε); ε a number or [B].
      steps: n ≥ 1 of each run (the authors' 10,000), static.
      searches: runs, each with another c, static.
      step_size: Adam's.
      init_weight: the first c.
      confidence: κ ≥ 0; an image with a smaller margin does not count, not even x.
      abort_early: end a sample's run when a tenth of its steps has not lowered the
        objective by 0.01 %.
      early_exit: freeze a sample at its first success, and stop when all are solved.
      refine: off, as the authors' code.

    Returns:
      AttackResult as that of `fab`. `queries` counts forward passes: at most
      1 + n × searches, and 27 for the refinements.

    Raises:
      ValueError: an argument is malformed; the message names it.
    """
    del key
    problem, y, _ = nearest.check(logits_fn, x, y, ball, bounds, (L2,))
    inputs.check_count("steps", steps)
    inputs.check_count("searches", searches)
    numbers = {"step_size": step_size, "init_weight": init_weight}
    numbers |= {"confidence": confidence}
    return _carlini_wagner(
        problem,
        y,
        nearest.check_numbers(problem.x.dtype, **numbers),
        steps=steps,
        searches=searches,
        abort_early=bool(abort_early),
        early_exit=bool(early_exit),
        refine=bool(refine),
    )


@functools.partial(
    jax.jit,
    static_argnames=("steps", "searches", "abort_early", "early_exit", "refine"),
)
def _carlini_wagner(
    problem, y, numbers, *, steps, searches, abort_early, early_exit, refine
):
    problem = lax.stop_gradient(problem)
    logits_fn, x, _, bounds = problem
    confidence = numbers["confidence"]
    search, found = nearest.Search.begin(
        problem, y, early_exit=early_exit, confidence=confidence
    )
    optimiser = optax.adam(numbers["step_size"])
    middle, half = (bounds[0] + bounds[1]) / 2, (bounds[1] - bounds[0]) / 2
    start = jnp.arctanh(_INSIDE * (x - middle) / half)
    interval = -(-steps // _CHECKS)

    def total(u, weight):
        v = jnp.clip(middle + half * jnp.tanh(u), *bounds)
        logits = logits_fn(v)
        size = jnp.sum(((v - x) / (2 * half)).reshape(y.size, -1) ** 2, axis=1)
        missing = jnp.maximum(confidence - losses.margin(logits, y), 0)
        objective = size + weight * missing.astype(x.dtype)
        return jnp.sum(objective), (v, logits, objective)

    gradient = lowering.fast(jax.grad(total, has_aux=True))

    def run(carry):
        r, weight, low, high, found = carry

        def step(carry):
            i, u, state, going, hit, checked, found = carry
            g, (v, logits, objective) = gradient(u, weight)
            count = r * steps + i + 1
            found = search.note(found, v, logits, count, passes=going)
            hit |= going & search.wrong(logits)
            due = (i % interval == 0) & abort_early
            going &= ~due | (objective <= _PROGRESS * checked)
            updates, state = optimiser.update(g, state)
            u = jnp.where(per_sample_mask(going, u), u + updates, u)
            return (
                i + 1,
                u,
                state,
                going,
                hit,
                jnp.where(due, objective, checked),
                found,
            )

        def unfinished(carry):
            i, _, _, going, *_, found = carry
            open_ = found.distance > search.enough
            return (i < steps) & (going & open_).any()

        true, no = jnp.ones(y.shape, bool), jnp.zeros(y.shape, bool)
        far = jnp.full(y.shape, jnp.inf, x.dtype)
        state = (0, start, optimiser.init(start), true, no, far, found)
        *_, hit, _, found = lax.while_loop(unfinished, step, state)
        low, high = jnp.where(hit, low, weight), jnp.where(hit, weight, high)
        between = (low + jnp.where(jnp.isfinite(high), high, 0)) / 2
        weight = jnp.where(jnp.isfinite(high), between, 10 * weight)
        return r + 1, weight, low, high, found

    found = search.note(found, x, lowering.exact(logits_fn)(x), 0)
    weight = jnp.broadcast_to(numbers["init_weight"], y.shape)
    none = jnp.zeros_like(weight)
    found = search.repeat(searches, run, weight, none, none + jnp.inf, found)[-1]
    if refine:
        found = nearest.refine(search, found, steps=searches * steps)
    return search.result(found)
