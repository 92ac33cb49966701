"""The rules of Auto-PGD for L∞ and L2: where to step, how far, when to fall back.

Croce & Hein, "Reliable evaluation of adversarial robustness with an ensemble of diverse
parameter-free attacks", ICML 2020, algorithm 1. For evaluation i of a run of N steps,

    x        clean image            s   step size, 2ε at the start
    x_i      point, with gradient   a   1 at the first step, ¾ later
    x_best   highest loss so far    P   projection onto ball and box

    u       = P( x_i + s · steepest(g_i) )
    x_{i+1} = P( x_i + a (u − x_i) + (1 − a) (x_i − x_{i−1}) )

A checkpoint looks back on a window of k evaluations. There s is halved, and x_i falls
back to x_best, in two cases:

* at most ρk of the evaluations raised the loss over the one before;
* s was not halved at the previous checkpoint, and x_best has not changed since.

Here P is the exact projection. The reference implementation clips to the ball and then
to the box. In L2 that stops short of the maximum where the box is in the way.
`reference_quirks` asks for it.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from robjax.attacks.apgd.plan import Options, Phase, Plan
from robjax.attacks.problem import Problem
from robjax.balls import Ball, Linf
from robjax.boxes import hold
from robjax.checks import Bounds
from robjax.samples import per_sample, select_samples

_TINY = 1e-12


def checkpoint_windows(steps: int) -> list[int]:
    """Lists the windows of a run: evaluations from each checkpoint to the next.

    The first window has 22 % of the steps. Each has 3 % of the steps less than the one
    before, down to 6 %.

    >>> checkpoint_windows(100)
    [22, 19, 16, 13, 10, 7, 6, 6]
    """
    window = max(int(0.22 * steps), 1)
    shrink = max(int(0.03 * steps), 1)
    smallest = max(int(0.06 * steps), 1)
    windows = []
    while sum(windows) + window <= steps:
        windows.append(window)
        window = max(window - shrink, smallest)
    return windows


def phases(options: Options) -> list[Phase]:
    """Lists the phases of a run, of which there is one.

    >>> from robjax import losses
    >>> phases(Options(losses.margin, steps=10))
    [Phase(radius=1.0, windows=[2, 1, 1, 1, 1, 1, 1, 1, 1], steps=10)]
    """
    return [Phase(1.0, checkpoint_windows(options.steps), options.steps)]


class Peak(NamedTuple):
    """The point of highest loss in a phase, with its gradient."""

    x: jax.Array
    gradient: jax.Array
    loss: jax.Array

    @classmethod
    def none(cls, x: jax.Array, loss_dtype: DTypeLike) -> "Peak":
        """Returns the peak before any evaluation; every loss is higher."""
        low = jnp.full(x.shape[0], -jnp.inf, loss_dtype)
        return cls(x, jnp.zeros_like(x), low)

    def update(
        self, x: jax.Array, gradient: jax.Array, loss: jax.Array, first: jax.Array
    ) -> "Peak":
        """Takes in an evaluated point; the `first` of a phase always wins."""
        higher = first | (loss > self.loss)
        return select_samples(higher, Peak(x, gradient, loss), self)


class Climb(NamedTuple):
    """Where a run stands; every leaf is per sample.

    Attributes:
      x: [B, *S] x_i, the point to be evaluated next.
      x_previous: [B, *S] x_{i−1}, the point before it.
      peak: x_best.
      step_size: [B] s.
      increases: [B] int32, how many evaluations since the last checkpoint raised the
        loss.
      loss_previous: [B] loss of the last evaluation.
      loss_checkpoint: [B] loss of x_best at the last checkpoint.
      reduced: [B] bool, s was halved at the last checkpoint.
    """

    x: jax.Array
    x_previous: jax.Array
    peak: Peak
    step_size: jax.Array
    increases: jax.Array
    loss_previous: jax.Array
    loss_checkpoint: jax.Array
    reduced: jax.Array


def noise(keys: jax.Array, problem: Problem, options: Options) -> jax.Array:
    """Draws random starts at distance ε from x, and clips them to the box.

    L∞: uniform in the cube, then scaled up to its surface. L2: uniform on the sphere.

    >>> from robjax import losses
    >>> from robjax.attacks.problem import check_problem
    >>> x = jnp.full((1, 4), 0.5)
    >>> problem = check_problem(lambda x: x, x, Linf(0.25), (0.0, 1.0))
    >>> keys = jax.random.split(jax.random.key(0), 1)
    >>> start = noise(keys, problem, Options(losses.margin))
    >>> problem.ball.norm(start - x).tolist()
    [0.25]

    Args:
      keys: [B].
      problem: what is attacked.
      options: not used.
    """
    del options
    x = problem.x
    ball = problem.ball
    uniform = isinstance(ball, Linf)

    def draw(key: jax.Array) -> jax.Array:
        if uniform:
            return jax.random.uniform(key, x.shape[1:], x.dtype, -1, 1)
        return jax.random.normal(key, x.shape[1:], x.dtype)

    t = hold(jax.vmap(draw)(keys), problem.bounds)
    length = per_sample(ball.norm(t) + _TINY, x)
    start = x + per_sample(ball.eps, x) * (t / length)
    return clip_into(start, x, ball, problem.bounds)


def clip_into(v: jax.Array, x: jax.Array, ball: Ball, bounds: Bounds) -> jax.Array:
    """Scales v into the ball, then clips it to the box.

    In L2 the result is not the nearest point of ball ∩ box, which `ball.project` finds.

    >>> from robjax.balls import L2
    >>> x = jnp.array([[0.0, 5.0]])
    >>> v = x + jnp.array([[-6.0, 8.0]])
    >>> clip_into(v, x, L2(5.0), (0.0, 10.0)).round(3).tolist()
    [[0.0, 9.0]]

    Args:
      v: [B, *S] points.
      x: [B, *S] centres of the ball.
      ball: Linf or L2.
      bounds: lowest and highest pixel value.
    """
    if isinstance(ball, Linf):
        return ball.project(v, x, bounds)
    d = v - x
    length = ball.norm(d)
    unit = d / per_sample(length + _TINY, x)
    return jnp.clip(x + unit * per_sample(jnp.minimum(ball.eps, length), x), *bounds)


def begin(
    start: jax.Array, problem: Problem, given: jax.Array, loss_dtype: DTypeLike
) -> Climb:
    """Makes the state of a run before its start is evaluated.

    >>> from robjax.attacks.problem import check_problem
    >>> x = jnp.full((1, 2), 0.5)
    >>> problem = check_problem(lambda x: x, x, Linf(0.25), (0.0, 1.0))
    >>> begin(x, problem, jnp.asarray(False), x.dtype).step_size.tolist()
    [0.5]

    Args:
      start: [B, *S] first point.
      problem: what is attacked.
      given: not used; whether the caller gave the start.
      loss_dtype: of the losses to come.
    """
    del given
    batch = start.shape[0]
    low = jnp.full(batch, -jnp.inf, loss_dtype)
    return Climb(
        x=start,
        x_previous=start,
        peak=Peak.none(start, loss_dtype),
        step_size=jnp.broadcast_to(2 * problem.ball.eps, (batch,)),
        increases=jnp.zeros(batch, jnp.int32),
        loss_previous=low,
        loss_checkpoint=low,
        reduced=jnp.ones(batch, bool),  # so the first checkpoint counts increases only
    )


def advance(
    climb: Climb,
    gradient: jax.Array,
    loss: jax.Array,
    row: Plan,
    problem: Problem,
    options: Options,
) -> Climb:
    """Takes one step of algorithm 1.

    >>> from robjax import losses
    >>> from robjax.attacks.apgd.plan import make_plan
    >>> from robjax.attacks.problem import check_problem
    >>> x = jnp.full((1, 2), 0.5)
    >>> problem = check_problem(lambda x: x, x, Linf(0.25), (0.0, 1.0))
    >>> options = Options(losses.margin, steps=5)
    >>> climb = begin(x, problem, jnp.asarray(False), x.dtype)
    >>> row = jax.tree.map(lambda column: column[0], make_plan(phases(options)))
    >>> gradient = jnp.array([[1.0, -2.0]])
    >>> advance(climb, gradient, jnp.zeros(1), row, problem, options).x.tolist()
    [[0.75, 0.25]]

    Args:
      climb: where the run stands.
      gradient: [B, *S] at climb.x.
      loss: [B] at climb.x.
      row: of the plan, for this evaluation.
      problem: what is attacked.
      options: of the run.
    """
    _, x, ball, bounds = problem
    quirks = options.reference_quirks
    peak = climb.peak.update(climb.x, gradient, loss, row.first)

    increases = climb.increases + (~row.first & (loss > climb.loss_previous))
    checkpoint = row.window > 0
    stalled = increases <= options.rho * row.window
    stuck = ~climb.reduced & (climb.loss_checkpoint >= peak.loss)
    reduce = checkpoint & (stalled | stuck)
    step_size = jnp.where(reduce, climb.step_size / 2, climb.step_size)
    here, g = select_samples(reduce, (peak.x, peak.gradient), (climb.x, gradient))

    inertia = jnp.where(row.first, 1.0, 0.75).astype(x.dtype)
    project = functools.partial(clip_into, ball=ball) if quirks else ball.project
    direction = ball.steepest(g, here, bounds)
    u = project(here + per_sample(step_size, x) * direction, x, bounds=bounds)
    momentum = here - climb.x_previous
    moved = here + (u - here) * inertia + momentum * (1 - inertia)
    # the reference compares its first loss with an array entry that is not filled yet
    forgets = row.first & quirks
    return Climb(
        x=project(moved, x, bounds=bounds),
        x_previous=here,
        peak=peak,
        step_size=step_size,
        increases=jnp.where(checkpoint, 0, increases),
        loss_previous=jnp.where(forgets, 0, loss),
        loss_checkpoint=jnp.where(checkpoint, peak.loss, climb.loss_checkpoint),
        reduced=jnp.where(checkpoint, reduce, climb.reduced),
    )
