"""The rules of Auto-PGD for L1: sparse steps, as sparse as the best point so far.

Croce & Hein, "Mind the box: l1-APGD for sparse adversarial attacks on image
classifiers", ICML 2021, algorithm 1. With d pixels, k = share of pixels to move and
‖·‖₀ the number of nonzero entries,

    x_{i+1} = P( x_i + s e / ‖e‖₁ ),    e = sign(g_i) on the k·d pixels of largest |g_i|

with P the exact projection onto ball ∩ box. At a checkpoint k = ‖x_best − x‖₀ / 1.5 d.
Then

* if x_best has become sparser by 5 %, s returns to ε and x_i to x_best;
* otherwise s is divided by 1.5, down to ε/10.

The paper's "large ε" schedule has `phases` of radius 3ε, 2ε and ε. Each starts from the
best point of the one before.

Equal steps on many pixels miss a few per cent of the loss that a linear model allows.
So the last step of a run goes to the maximiser of ⟨g, δ⟩ over ball ∩ box, with g the
gradient at x_best. It spends ε on the pixels in the order of falling |g|, as far as
each has room in the box. The reference implementation has no such step.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike

from robjax import numerics
from robjax.attacks.apgd.plan import Options, Phase, Plan
from robjax.attacks.apgd.step_rule import Peak
from robjax.attacks.problem import Problem
from robjax.balls import with_radius
from robjax.boxes import free_pixels
from robjax.checks import Bounds
from robjax.samples import flatten_samples, per_sample, select_samples

_FIRST_DENSITY = 0.2
_SHRINK = 1.5
_SMALLEST = 10.0
_SPARSER = 0.95


class SparseClimb(NamedTuple):
    """Where a run stands; every leaf is per sample.

    Attributes:
      x: [B, *S] x_i, the point to be evaluated next.
      peak: x_best.
      step_size: [B] s.
      density: [B] k, share of the pixels that the next step moves.
      support: [B] ‖x_best − x‖₀ at the last checkpoint.
      given: [] bool, the caller gave the start.
    """

    x: jax.Array
    peak: Peak
    step_size: jax.Array
    density: jax.Array
    support: jax.Array
    given: jax.Array


def phases(options: Options) -> list[Phase]:
    """Lists the phases of a run: one of radius ε, or with `large_reps` 3ε, 2ε and ε.

    >>> from robjax import losses
    >>> [phase.steps for phase in phases(Options(losses.margin, large_reps=True))]
    [30, 30, 40]
    """
    steps = options.steps

    def phase(radius: float, count: int) -> Phase:
        window = max(int(0.04 * count), 1)
        return Phase(radius, [window] * (count // window), count)

    if not options.large_reps:
        return [phase(1.0, steps)]
    early = math.ceil(0.3 * steps)
    return [phase(3.0, early), phase(2.0, early), phase(1.0, steps - 2 * early)]


def noise(keys: jax.Array, problem: Problem, options: Options) -> jax.Array:
    """Draws random starts: normal noise, projected onto the ball of the first phase.

    >>> from robjax import losses
    >>> from robjax.attacks.problem import check_problem
    >>> from robjax.balls import L1
    >>> x = jnp.full((1, 4), 0.5)
    >>> problem = check_problem(lambda x: x, x, L1(0.25), (0.0, 1.0))
    >>> keys = jax.random.split(jax.random.key(0), 1)
    >>> start = noise(keys, problem, Options(losses.margin))
    >>> problem.ball.norm(start - x).round(4).tolist()
    [0.25]

    Args:
      keys: [B].
      problem: what is attacked.
      options: of the run, which decide about its phases.
    """
    _, x, ball, bounds = problem
    t = jax.vmap(lambda key: jax.random.normal(key, x.shape[1:], x.dtype))(keys)
    wide = with_radius(ball, phases(options)[0].radius * ball.eps)
    return wide.project(x + t, x, bounds)


def begin(
    start: jax.Array, problem: Problem, given: jax.Array, loss_dtype: DTypeLike
) -> SparseClimb:
    """Makes the state of a run before its start is evaluated.

    >>> from robjax.attacks.problem import check_problem
    >>> from robjax.balls import L1
    >>> x = jnp.full((1, 4), 0.5)
    >>> problem = check_problem(lambda x: x, x, L1(0.25), (0.0, 1.0))
    >>> climb = begin(x, problem, jnp.asarray(False), x.dtype)
    >>> climb.step_size.tolist(), climb.support.tolist()
    ([0.25], [4.0])

    Args:
      start: [B, *S] first point.
      problem: what is attacked.
      given: [] bool, the caller gave the start; then it sets density and support.
      loss_dtype: of the losses to come.
    """
    x = problem.x
    batch = x.shape[0]
    pixels = jnp.asarray(free_pixels(x, problem.bounds), x.dtype)
    return SparseClimb(
        x=start,
        peak=Peak.none(start, loss_dtype),
        step_size=jnp.broadcast_to(problem.ball.eps, (batch,)),
        density=jnp.full(batch, _FIRST_DENSITY, x.dtype),
        support=jnp.broadcast_to(pixels, batch),
        given=given,
    )


def advance(
    climb: SparseClimb,
    gradient: jax.Array,
    loss: jax.Array,
    row: Plan,
    problem: Problem,
    options: Options,
) -> SparseClimb:
    """Takes one step of algorithm 1, or the last step of a run (see the module).

    With 20 % of five pixels, the first step moves one:

    >>> from robjax import losses
    >>> from robjax.attacks.apgd.plan import make_plan
    >>> from robjax.attacks.problem import check_problem
    >>> from robjax.balls import L1
    >>> x = jnp.full((1, 5), 0.5)
    >>> problem = check_problem(lambda x: x, x, L1(0.25), (0.0, 1.0))
    >>> options = Options(losses.margin, steps=5)
    >>> climb = begin(x, problem, jnp.asarray(False), x.dtype)
    >>> row = jax.tree.map(lambda column: column[0], make_plan(phases(options)))
    >>> gradient = jnp.array([[1.0, 0.0, 3.0, -2.0, 0.0]])
    >>> advance(climb, gradient, jnp.zeros(1), row, problem, options).x.tolist()
    [[0.5, 0.5, 0.75, 0.5, 0.5]]

    Args:
      climb: where the run stands.
      gradient: [B, *S] at climb.x.
      loss: [B] at climb.x.
      row: of the plan, for this evaluation.
      problem: what is attacked.
      options: of the run.
    """
    _, x, ball, bounds = problem
    pixels = free_pixels(x, bounds)
    eps = ball.eps * row.scale
    peak = climb.peak.update(climb.x, gradient, loss, row.first)
    support_now = _support(peak.x - x)
    follow = support_now / pixels / _SHRINK

    checkpoint = row.window > 0
    fresh = row.first & (climb.given | options.large_reps)
    ratio = support_now / jnp.where(climb.support > 0, climb.support, 1)
    sparser = checkpoint & (ratio < _SPARSER) & (climb.support > 0)
    slower = jnp.clip(climb.step_size / _SHRINK, eps / _SMALLEST, eps)
    step_size = jnp.where(checkpoint, slower, climb.step_size)
    step_size = jnp.where(sparser | row.first, eps, step_size)
    density = jnp.where(checkpoint | fresh, follow, climb.density)
    support = jnp.where(checkpoint | fresh, support_now, climb.support)

    here, g = select_samples(sparser, (peak.x, peak.gradient), (climb.x, gradient))
    moved = here + per_sample(step_size, x) * _sparse_sign(g, density, pixels)
    moved = jnp.where(row.hop, peak.x, moved)
    if not options.reference_quirks:
        moved = lax.cond(
            row.last,
            lambda: x + _maximiser(peak.gradient, x, eps, bounds),
            lambda: moved,
        )
    return SparseClimb(
        x=with_radius(ball, eps).project(moved, x, bounds),
        peak=peak,
        step_size=step_size,
        density=density,
        support=support,
        given=climb.given,
    )


def _maximiser(g: jax.Array, x: jax.Array, eps: jax.Array, bounds: Bounds) -> jax.Array:
    """argmax ⟨g, δ⟩ over ‖δ‖₁ ≤ ε with x + δ in the box."""
    flat = flatten_samples(g)
    room = jnp.where(g > 0, bounds[1] - x, x - bounds[0])
    room = flatten_samples(jnp.where(g == 0, 0, room))
    budget = jnp.broadcast_to(eps, (x.shape[0],))[:, None]
    size = numerics.spend_largest(jnp.abs(flat), room, room, budget)
    return (jnp.sign(flat) * size).reshape(x.shape)


def _support(delta: jax.Array) -> jax.Array:
    """‖δ‖₀ [B]."""
    nonzero = (delta != 0).reshape(delta.shape[0], -1)
    return jnp.sum(nonzero, axis=1, dtype=delta.dtype)


def _sparse_sign(
    g: jax.Array, density: jax.Array, pixels: int | jax.Array
) -> jax.Array:
    """sign(g) on the share `density` [B] of `pixels` of largest |g|, of L1 norm 1."""
    flat = g.reshape(g.shape[0], -1)
    size = jnp.abs(flat)
    index = jnp.clip((1 - density) * pixels, 0, pixels - 1).astype(jnp.int32)
    # `index` counts from the smallest, `threshold` from the largest
    from_largest = (pixels - 1 - index)[:, None]
    least = numerics.threshold(size, numerics.count, from_largest)
    sign = jnp.where(size >= least, jnp.sign(flat), 0)
    count = jnp.sum(jnp.abs(sign), axis=1, keepdims=True)
    return (sign / jnp.where(count > 0, count, 1)).reshape(g.shape)
