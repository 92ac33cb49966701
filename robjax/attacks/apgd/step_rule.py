"""Auto-PGD's rules for L∞ and L2: where to step from, how far, when to fall back.

Croce & Hein, "Reliable evaluation of adversarial robustness with an ensemble of diverse
parameter-free attacks", ICML 2020, algorithm 1. For evaluation i of a run of N steps,

    x        clean image            s   step size, 2ε at the start
    x_i      point, with gradient   a   1 at the first step, ¾ later
    x_best   highest loss so far    P   projection onto ball and box

    u       = P( x_i + s · steepest(g_i) )
    x_{i+1} = P( x_i + a (u − x_i) + (1 − a) (x_i − x_{i−1}) )

At a checkpoint with a window of k evaluations the step is halved, and x_i falls back to
x_best, if at most ρk of them raised the loss over the one before, or if the step was
not halved at the previous checkpoint and x_best has not changed since.

The reference implementation clips to the ball and then to the box, which in L2 stops
short of the maximum where the box is in the way; here P is the exact projection, unless
`reference_quirks` asks for the other one.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from robjax.attacks.apgd.plan import Options, Phase, Plan
from robjax.attacks.problem import Problem
from robjax.balls import Ball, Linf
from robjax.checks import Bounds
from robjax.samples import per_sample, select_samples

_TINY = 1e-12


def checkpoint_windows(steps: int) -> list[int]:
    """Evaluations between the checkpoints of a run; the windows shrink.

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
    """The one phase of a run.

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
        """Before any evaluation; every loss is higher."""
        low = jnp.full(x.shape[0], -jnp.inf, loss_dtype)
        return cls(x, jnp.zeros_like(x), low)

    def update(self, x, gradient, loss, first) -> "Peak":
        """Takes in an evaluated point; the first of a phase always wins."""
        higher = first | (loss > self.loss)
        return select_samples(higher, Peak(x, gradient, loss), self)


class Climb(NamedTuple):
    """Where a run stands; every leaf is per sample.

    Attributes:
      x: point to be evaluated next, x_i.
      x_previous: point it was stepped from, x_{i−1}.
      peak: x_best.
      step_size: [B] s.
      increases: [B] int32, evaluations since the checkpoint that raised the loss.
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
    """Random starts: a point of the sphere of radius ε around x, put into the box.

    L∞: uniform in a cube, scaled up to its surface; L2: uniform on the sphere.
    """
    del options
    x = problem.x
    ball = problem.ball
    uniform = isinstance(ball, Linf)

    def draw(key):
        if uniform:
            return jax.random.uniform(key, x.shape[1:], x.dtype, -1, 1)
        return jax.random.normal(key, x.shape[1:], x.dtype)

    t = jax.vmap(draw)(keys)
    length = per_sample(ball.norm(t) + _TINY, x)
    start = x + per_sample(ball.eps, x) * (t / length)
    return clip_into(start, x, ball, problem.bounds)


def clip_into(v: jax.Array, x: jax.Array, ball: Ball, bounds: Bounds) -> jax.Array:
    """Into the ball, then into the box: in L2 not the nearest point of both."""
    if isinstance(ball, Linf):
        return ball.project(v, x, bounds)
    d = v - x
    length = ball.norm(d)
    unit = d / per_sample(length + _TINY, x)
    return jnp.clip(x + unit * per_sample(jnp.minimum(ball.eps, length), x), *bounds)


def begin(
    start: jax.Array, problem: Problem, given: jax.Array, loss_dtype: DTypeLike
) -> Climb:
    """The state of a run before its start is evaluated.

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
    """One step of algorithm 1: takes in gradient and loss at climb.x and moves on."""
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
