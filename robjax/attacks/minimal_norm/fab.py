"""Fast adaptive boundary attack (FAB): steps to a boundary with a pull towards x.

Croce & Hein, ICML 2020 (arXiv 1907.02044). The walk is at x_i, and c is a class other
than y. A step

1. linearises f = z_c − z_y at x_i;
2. finds two shortest shifts to {f = 0} ∩ box: d_i from x_i, and d from the clean image
   x;
3. goes a little beyond the boundary (η ≥ 1), with a bias α towards x:

    x_{i+1} = box( (1 − α) (x_i + η d_i) + α (x + η d) )
    α       = min( ‖d_i‖ / (‖d_i‖ + ‖d‖), α_max )

If x_{i+1} is misclassified, the walk goes on from x + β (x_{i+1} − x) instead. The
nearest misclassified x_i counts.

* Untargeted, c is the class whose boundary, linearised at x_i, is nearest to x_i. A
  step costs K − 1 gradients on one forward pass, and another forward pass.
* FAB-T runs once for each of the T likeliest wrong classes c. A step costs one gradient
  and one forward pass.

η and β keep the walk about 1 % away from the boundary. Therefore the rounds of
`refinement` follow. The authors' code has no such rounds.
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
from robjax.attacks.problem import Problem, check_classes, check_draws, check_problem
from robjax.attacks.result import AttackResult
from robjax.balls import L1, L2, Ball, Linf
from robjax.boxes import has_arrays, hold
from robjax.checks import Bounds, check_count, check_flags
from robjax.model import LogitsFn
from robjax.samples import (
    flatten_samples,
    fold_keys,
    mask_samples,
    per_sample,
)

_TINY = 1e-12
_SMALLEST_SHIFT = 1e-8


class Constants(NamedTuple):
    """The numbers of a step; see `fab`."""

    alpha_max: jax.Array | float
    eta: jax.Array | float
    beta: jax.Array | float


class Options(NamedTuple):
    """What FAB compiles for; every field is static.

    Attributes:
      steps: of each run.
      restarts: runs for each target.
      targets: how many classes FAB-T aims at; None: untargeted.
      early_exit: a sample is done at its first success.
      refined: the rounds of `refinement` follow.
    """

    steps: int
    restarts: int
    targets: int | None
    early_exit: bool
    refined: bool


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

    The radius ε plays no part in the walk from x: it decides what counts as success,
    scales random starts, and says with `early_exit` when a sample is done. Pass a large
    one to ask for the smallest distances rather than a verdict.

    On random 2-dimensional networks of ReLUs 90 % of its L∞ distances, from one start,
    were within 1 % of those of a grid search, and 2 % of the images got none.
    `minimal_distance` asks several attacks from several starts.

    >>> x = jnp.array([[0.25, 0.75]])
    >>> y = jnp.array([1])
    >>> result = fab(lambda x: x, x, y, ball=Linf(1.0), steps=10)
    >>> round(float(result.distance[0]), 3)  # to [[0.5, 0.5]]
    0.25

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
      reference_quirks: as the authors' code, without the refinement at the end.

    Returns:
      AttackResult with

      * `x_adv`: the nearest misclassified image found if it lies inside the ball, else
        x;
      * `success`: whether it lies inside the ball;
      * `loss`: the margin max_{i≠y} z_i − z_y at `x_adv`;
      * `first_success`: the first step, counted through all runs, that found one inside
        the ball;
      * `distance`: of the nearest misclassified image found, inside the ball or not;
        infinite if there was none, 0 for an image misclassified as it is;
      * `queries`: forward passes, 8 to measure the rounding, and usually at most
        1 + 2 × (steps × runs + 10), untargeted 7 more (`refinement` may repeat itself).

    Raises:
      ValueError: an argument is malformed; the message names it.
    """
    check_flags(early_exit=early_exit, reference_quirks=reference_quirks)
    problem = check_problem(logits_fn, x, ball, bounds, (Linf, L2, L1))
    y, num_classes = check_classes(problem, y)
    check_count("steps", steps)
    check_count("restarts", restarts)
    if targets is not None:
        targets = min(check_count("targets", targets), num_classes - 1)
    constants = Constants(alpha_max=alpha_max, eta=eta, beta=beta)
    options = Options(
        steps=steps,
        restarts=restarts,
        targets=targets,
        early_exit=bool(early_exit),
        refined=not reference_quirks,
    )
    return _fab(
        problem,
        y,
        check_draws(None, key, x.shape[0], needed=restarts > 1),
        check_constants(constants, problem.x.dtype),
        options,
    )


@functools.partial(jax.jit, static_argnames="options")
def _fab(
    problem: Problem,
    y: jax.Array,
    keys: jax.Array | None,
    constants: Constants,
    options: Options,
) -> AttackResult:
    """All runs, one after the other, and the refinement; see `fab`."""
    problem = lax.stop_gradient(problem)
    logits_fn, x, ball, bounds = problem
    steps = options.steps
    restarts = options.restarts
    search, found = Search.begin(
        problem, y, early_exit=options.early_exit, refined=options.refined
    )
    judge = lowering.exact(logits_fn)
    clean = judge(x)
    found = search.note(found, x, clean, 0)
    runs = restarts * (options.targets or 1)
    all_classes = clean.shape[1]
    likely = None
    if options.targets is not None:
        likely = likely_wrong_classes(clean, y, options.targets)

    def boundary(run, v):
        if likely is None:
            length = functools.partial(_distance, ball)
            return nearest_boundary(logits_fn, y, v, all_classes, length)[1]
        return towards_class(logits_fn, y, v, likely[run // restarts])

    def step(run, carry):
        i, v, found = carry
        candidate = approach(boundary(run, v), v, problem, constants)
        logits = judge(candidate)
        found = search.note(found, candidate, logits, run * steps + i + 1, passes=2)
        wrong = mask_samples(search.wrong(logits), x)
        back = x + constants.beta * (candidate - x)
        return i + 1, jnp.where(wrong, back, candidate), found

    def run_once(carry):
        run, found = carry
        v = x if keys is None else _start(keys, run, restarts, x, ball, bounds)
        walked = search.repeat(steps, functools.partial(step, run), v, found)
        return run + 1, walked[-1]

    _, found = search.repeat(runs, run_once, found)
    if options.refined:
        # FAB-T has aimed at the likeliest classes already
        classes = CLASSES if likely is None else 1
        found = refine(search, found, steps=runs * steps, classes=classes)
    return search.result(found)


def approach(
    boundary: Boundary, v: jax.Array, problem: Problem, constants: Constants
) -> jax.Array:
    """The next iterate from v [B, *S], with the boundary linearised there.

    >>> x = jnp.array([[0.25, 0.75]])
    >>> problem = check_problem(lambda x: x, x, Linf(1.0), (0.0, 1.0))
    >>> boundary = towards_class(lambda x: x, jnp.array([1]), x, jnp.array([0]))
    >>> constants = Constants(alpha_max=0.1, eta=1.2, beta=0.9)
    >>> (10 * approach(boundary, x, problem, constants)).round(1).tolist()
    [[5.5, 4.5]]
    """
    _, x, ball, bounds = problem
    batch = x.shape[0]
    # both projections at once: half as many passes over the pixels
    twice = functools.partial(jnp.tile, reps=(2,) + (1,) * (x.ndim - 1))
    points = jnp.concatenate([v, x])
    box = jax.tree.map(twice, bounds) if has_arrays(bounds) else bounds
    shifts = shift_to(
        jnp.tile(boundary.f, 2), twice(boundary.w), twice(v), points, ball, box
    )
    lengths = jnp.maximum(ball.norm(shifts), _SMALLEST_SHIFT)
    alpha = lengths[:batch] / (lengths[:batch] + lengths[batch:])
    alpha = per_sample(jnp.minimum(alpha, constants.alpha_max), x)
    from_v = v + constants.eta * shifts[:batch]
    from_x = x + constants.eta * shifts[batch:]
    return jnp.clip((1 - alpha) * from_v + alpha * from_x, *bounds)


def _distance(ball: Ball, boundary: Boundary) -> jax.Array:
    """[B] from an iterate to the boundary linearised there, were there no box."""
    slope = hyperplanes.dual_norm(ball, flatten_samples(boundary.w))
    return jnp.abs(boundary.f) / (slope + _TINY)


def _start(
    keys: jax.Array,
    run: jax.Array,
    restarts: int,
    x: jax.Array,
    ball: Ball,
    bounds: Bounds,
) -> jax.Array:
    """Starts the first run for a target at x, the others at random, ε/2 from it."""
    keys = fold_keys(keys, run)
    draw = jax.random.normal
    if isinstance(ball, Linf):
        draw = functools.partial(jax.random.uniform, minval=-1)
    noise = hold(jax.vmap(lambda key: draw(key, x.shape[1:], x.dtype))(keys), bounds)
    size = ball.norm(noise)
    length = per_sample(0.5 * ball.eps / jnp.where(size > 0, size, 1), x)
    moved = jnp.clip(x + length * noise, *bounds)
    return jnp.where(run % restarts == 0, x, moved)
