"""Carlini & Wagner's L2 attack, S&P 2017 (arXiv 1608.04644), section VI.A.

With v = m + h tanh u, where m is the middle of the box and h half its width, Adam
minimises over u, from the u of x itself,

    ‖v − x‖² / (2h)² + c max(κ − f(v), 0),    f = max_{i≠y} z_i − z_y

for the confidence κ. The weight c of each sample is searched for: ten times as large
after runs that found nothing, until one does, and the middle between the largest that
did not and the smallest that did afterwards. The nearest point with f ≥ κ counts. A
step costs one gradient. The refinements of `refinement` follow, which the authors' code
has not; here every sample, not the batch, stops its run for want of progress.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax

from robjax import losses, lowering
from robjax.attacks.minimal_norm.refinement import refine
from robjax.attacks.minimal_norm.search import Found, Search, check_constants
from robjax.attacks.problem import Problem, check_classes, check_problem
from robjax.attacks.result import AttackResult
from robjax.balls import L2
from robjax.checks import Bounds, check_count
from robjax.model import LogitsFn
from robjax.samples import flatten_samples, mask_samples

_INSIDE = 0.999999
_CHECKS = 10
_PROGRESS = 0.9999


def carlini_wagner(
    logits_fn: LogitsFn,
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
    reference_quirks: bool = False,
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
      reference_quirks: as the authors' code, without the refinements at the end.

    Returns:
      AttackResult as that of `fab`. `queries` counts forward passes: at most
      1 + n × searches, and 27 for the refinements.

    Raises:
      ValueError: an argument is malformed; the message names it.
    """
    del key
    problem = check_problem(logits_fn, x, ball, bounds, (L2,))
    y, _ = check_classes(problem, y)
    check_count("steps", steps)
    check_count("searches", searches)
    numbers = {"step_size": step_size, "init_weight": init_weight}
    numbers |= {"confidence": confidence}
    return _carlini_wagner(
        problem,
        y,
        check_constants(problem.x.dtype, **numbers),
        steps=steps,
        searches=searches,
        abort_early=bool(abort_early),
        early_exit=bool(early_exit),
        refined=not reference_quirks,
    )


class Descent(NamedTuple):
    """Where the run for one weight c stands.

    Attributes:
      i: steps taken.
      u: [B, *S] the variable.
      adam: state of the optimiser.
      going: [B] bool, the sample still makes progress.
      hit: [B] bool, the run has met an image that counts.
      checked: [B] objective at the last look for progress.
      found: the nearest image of all runs.
    """

    i: jax.Array
    u: jax.Array
    adam: optax.OptState
    going: jax.Array
    hit: jax.Array
    checked: jax.Array
    found: Found


@functools.partial(
    jax.jit,
    static_argnames=("steps", "searches", "abort_early", "early_exit", "refined"),
)
def _carlini_wagner(
    problem: Problem,
    y: jax.Array,
    constants: dict[str, jax.Array],
    *,
    steps: int,
    searches: int,
    abort_early: bool,
    early_exit: bool,
    refined: bool,
) -> AttackResult:
    problem = lax.stop_gradient(problem)
    logits_fn, x, _, bounds = problem
    confidence = constants["confidence"]
    search, found = Search.begin(
        problem, y, early_exit=early_exit, confidence=confidence
    )
    optimiser = optax.adam(constants["step_size"])
    middle = (bounds[0] + bounds[1]) / 2
    half = (bounds[1] - bounds[0]) / 2
    start = jnp.arctanh(_INSIDE * (x - middle) / half)
    interval = -(-steps // _CHECKS)

    def total(u, weight):
        v = jnp.clip(middle + half * jnp.tanh(u), *bounds)
        logits = logits_fn(v)
        size = jnp.sum(flatten_samples((v - x) / (2 * half)) ** 2, axis=1)
        missing = jnp.maximum(confidence - losses.margin(logits, y), 0)
        objective = size + weight * missing.astype(x.dtype)
        return jnp.sum(objective), (v, logits, objective)

    gradient = lowering.fast(jax.grad(total, has_aux=True))

    def descend(r, weight, found):
        def step(now: Descent) -> Descent:
            g, (v, logits, objective) = gradient(now.u, weight)
            count = r * steps + now.i + 1
            updates, adam = optimiser.update(g, now.adam)
            due = (now.i % interval == 0) & abort_early
            going = now.going & (~due | (objective <= _PROGRESS * now.checked))
            return Descent(
                i=now.i + 1,
                u=jnp.where(mask_samples(going, now.u), now.u + updates, now.u),
                adam=adam,
                going=going,
                hit=now.hit | (now.going & search.wrong(logits)),
                checked=jnp.where(due, objective, now.checked),
                found=search.note(now.found, v, logits, count, passes=now.going),
            )

        def unfinished(now: Descent) -> jax.Array:
            open_ = now.found.distance > search.enough
            return (now.i < steps) & (now.going & open_).any()

        begin = Descent(
            i=jnp.int32(0),
            u=start,
            adam=optimiser.init(start),
            going=jnp.ones(y.shape, bool),
            hit=jnp.zeros(y.shape, bool),
            checked=jnp.full(y.shape, jnp.inf, x.dtype),
            found=found,
        )
        end = lax.while_loop(unfinished, step, begin)
        return end.hit, end.found

    def run(carry):
        r, weight, low, high, found = carry
        hit, found = descend(r, weight, found)
        low = jnp.where(hit, low, weight)
        high = jnp.where(hit, weight, high)
        between = (low + jnp.where(jnp.isfinite(high), high, 0)) / 2
        weight = jnp.where(jnp.isfinite(high), between, 10 * weight)
        return r + 1, weight, low, high, found

    found = search.note(found, x, lowering.exact(logits_fn)(x), 0)
    weight = jnp.broadcast_to(constants["init_weight"], y.shape)
    low = jnp.zeros_like(weight)
    high = jnp.full_like(weight, jnp.inf)
    found = search.repeat(searches, run, weight, low, high, found)[-1]
    if refined:
        found = refine(search, found, steps=searches * steps)
    return search.result(found)
