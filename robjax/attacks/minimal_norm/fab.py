"""Fast adaptive boundary attack, minimal norm: Croce & Hein, ICML 2020 (1907.02044).

A step linearises the difference f = z_c − z_y of two logits at the iterate x_i,
projects both x_i (shift d_i) and the original x (shift d) onto {f = 0} ∩ box, and goes
a little beyond the boundary, with a bias towards the original:

    x_{i+1} = box( (1−α)(x_i + η d_i) + α (x + η d) ),
    α = min( ‖d_i‖ / (‖d_i‖ + ‖d‖), α_max )

A misclassified x_{i+1} nearer to x than all before is kept, and the walk goes on from
x + β (x_{i+1} − x). Untargeted, c is the class whose linearised boundary is nearest;
FAB-T runs once for each of the T most likely wrong classes c. A step costs one
gradient (untargeted K − 1 of them, on one forward pass) and one forward pass.

Because η and β keep the walk about 1 % away from the boundary, the refinements of
`nearest` follow, which the authors' code has not.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from robjax import lowering
from robjax.attacks.minimal_norm import hyperplanes
from robjax.attacks.minimal_norm.boundary import (
    Boundary,
    likely_wrong_classes,
    nearest_boundary,
    shift_to,
    towards_class,
)
from robjax.attacks.minimal_norm.refinement import CLASSES, refine
from robjax.attacks.minimal_norm.search import Search, check_constants
from robjax.attacks.problem import Problem, check_classes, check_problem
from robjax.attacks.result import AttackResult
from robjax.balls import L1, L2, Ball, Linf
from robjax.checks import Bounds, check_count
from robjax.model import LogitsFn
from robjax.samples import (
    flatten_samples,
    fold_keys,
    mask_samples,
    per_sample,
    sample_keys,
)

_TINY = 1e-12
_SMALLEST_SHIFT = 1e-8


def fab(
    logits_fn: LogitsFn,
    x: jax.Array,
    y: jax.Array,
    *,
    key: jax.Array | None = None,
    ball: Ball,
    bounds: Bounds = (0.0, 1.0),
    steps: int = 100,
    restarts: int = 1,
    targets: int | None = None,
    alpha_max: float = 0.1,
    eta: float = 1.05,
    beta: float = 0.9,
    early_exit: bool = False,
    reference_quirks: bool = False,
) -> AttackResult:
    """The nearest misclassified image that FAB finds, in the norm of `ball`.

    The radius ε plays no part in the search: it decides what counts as success, scales
    random starts, and says with `early_exit` when a sample is done. For the smallest
    distances rather than a verdict, take a large ε.

    Args:
      logits_fn, x, y, bounds: as in `pgd`.
      key: one key, or one for each sample; needed only for restarts > 1.
      ball: Linf(ε), L2(ε) or L1(ε); ε a number or [B].
      steps: n ≥ 1 of each run, static.
      restarts: runs (for each target); the first starts at x, the others within ε/2 of
        it, static.
      targets: FAB-T over that many of the other classes with the highest clean logits
        (at most K − 1 of them); None: untargeted. Static.
      alpha_max: largest bias α towards the original.
      eta: overshoot η ≥ 1.
      beta: backward step β in [0, 1].
      early_exit: freeze a sample at its first success, and stop when all are solved.
      reference_quirks: as the authors' code, without the refinements at the end.

    Returns:
      AttackResult. `distance` is that of the nearest misclassified image found, inside
      the ball or not; infinite if there was none, 0 for an image misclassified as it
      is. `x_adv` is that image where it lies inside the ball (`success`), else x.
      `loss` is the margin max_{i≠y} z_i − z_y at `x_adv`. `first_success` is the first
      step, counted through all runs, that found one inside the ball. `queries` counts
      forward passes: at most 1 + 2 × (steps × runs + 10), untargeted 7 more.

    Raises:
      ValueError: an argument is malformed; the message names it.
    """
    problem = check_problem(logits_fn, x, ball, bounds, (Linf, L2, L1))
    y, num_classes = check_classes(problem, y)
    check_count("steps", steps)
    check_count("restarts", restarts)
    if targets is not None:
        targets = min(check_count("targets", targets), num_classes - 1)
    numbers = {"alpha_max": alpha_max, "eta": eta, "beta": beta}
    walk = Walk(**check_constants(problem.x.dtype, **numbers))
    return _fab(
        problem,
        y,
        sample_keys(key, x.shape[0]) if restarts > 1 else None,
        walk,
        steps=steps,
        restarts=restarts,
        targets=targets,
        early_exit=bool(early_exit),
        refined=not reference_quirks,
    )


class Walk(NamedTuple):
    """The constants of a step."""

    alpha_max: jax.Array
    eta: jax.Array
    beta: jax.Array


@functools.partial(
    jax.jit,
    static_argnames=("steps", "restarts", "targets", "early_exit", "refined"),
)
def _fab(
    problem: Problem,
    y: jax.Array,
    keys: jax.Array | None,
    walk: Walk,
    *,
    steps: int,
    restarts: int,
    targets: int | None,
    early_exit: bool,
    refined: bool,
) -> AttackResult:
    problem = lax.stop_gradient(problem)
    logits_fn, x, ball, bounds = problem
    search, found = Search.begin(problem, y, early_exit=early_exit)
    judge = lowering.exact(logits_fn)
    clean = judge(x)
    found = search.note(found, x, clean, 0)
    runs = restarts * (targets or 1)
    all_classes = clean.shape[1]
    if targets is not None:
        likely = likely_wrong_classes(clean, y, targets)

    def boundary(run, v):
        if targets is None:
            length = functools.partial(_distance, ball)
            return nearest_boundary(logits_fn, y, v, all_classes, length)[1]
        return towards_class(logits_fn, y, v, likely[run // restarts])

    def step(run, carry):
        i, v, found = carry
        candidate = approach(boundary(run, v), v, problem, walk)
        logits = judge(candidate)
        found = search.note(found, candidate, logits, run * steps + i + 1, passes=2)
        wrong = mask_samples(search.wrong(logits), x)
        back = x + walk.beta * (candidate - x)
        return i + 1, jnp.where(wrong, back, candidate), found

    def run_once(carry):
        run, found = carry
        v = x if keys is None else _start(keys, run, restarts, x, ball, bounds)
        walked = search.repeat(steps, functools.partial(step, run), v, found)
        return run + 1, walked[-1]

    _, found = search.repeat(runs, run_once, found)
    if refined:
        # FAB-T has aimed at the likeliest classes already
        classes = CLASSES if targets is None else 1
        found = refine(search, found, steps=runs * steps, classes=classes)
    return search.result(found)


def approach(
    boundary: Boundary, v: jax.Array, problem: Problem, walk: Walk
) -> jax.Array:
    """The next iterate from v [B, *S], with the boundary linearised there."""
    _, x, ball, bounds = problem
    batch = x.shape[0]
    # both projections at once: half as many passes over the pixels
    twice = functools.partial(jnp.tile, reps=(2,) + (1,) * (x.ndim - 1))
    points = jnp.concatenate([v, x])
    shifts = shift_to(
        jnp.tile(boundary.f, 2), twice(boundary.w), twice(v), points, ball, bounds
    )
    lengths = jnp.maximum(ball.norm(shifts), _SMALLEST_SHIFT)
    alpha = lengths[:batch] / (lengths[:batch] + lengths[batch:])
    alpha = per_sample(jnp.minimum(alpha, walk.alpha_max), x)
    from_v = v + walk.eta * shifts[:batch]
    from_x = x + walk.eta * shifts[batch:]
    return jnp.clip((1 - alpha) * from_v + alpha * from_x, *bounds)


def _distance(ball: Ball, boundary: Boundary) -> jax.Array:
    """[B] from an iterate to the boundary linearised there, were there no box."""
    slope = hyperplanes.dual_norm(ball, flatten_samples(boundary.w))
    return jnp.abs(boundary.f) / (slope + _TINY)


def _start(keys, run, restarts, x, ball, bounds):
    """Starts the first run for a target at x, the others at random, ε/2 from it."""
    keys = fold_keys(keys, run)
    draw = jax.random.normal
    if isinstance(ball, Linf):
        draw = functools.partial(jax.random.uniform, minval=-1)
    noise = jax.vmap(lambda key: draw(key, x.shape[1:], x.dtype))(keys)
    length = per_sample(0.5 * ball.eps / ball.norm(noise), x)
    moved = jnp.clip(x + length * noise, *bounds)
    return jnp.where(run % restarts == 0, x, moved)
