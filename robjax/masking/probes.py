"""What the battery measures of a model, each in one compiled program.

`look` compares the gradient with differences at the image and at points around it,
`climb` runs every gradient attack of a plan, `linear_transfer` attacks a linear model
fitted to the logits alone, `logits` is a plain forward pass. A sample's numbers depend
on its own image, label and key.

g = input gradient of the margin m = max_{i≠y} z_i − z_y, u = a direction of length 1
in the ball's norm, h = a step along it.
"""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from robjax import losses, lowering
from robjax.attacks.problem import Problem
from robjax.model import mean_logits
from robjax.samples import fold_keys, mask_samples, per_sample

POINTS = 4
DIRECTIONS = 8
STEPS = 20
SMALL = 0.001  # of ε
COARSE = 0.25  # of ε
TINY = 1e-6  # of the range of a pixel: a few roundings of float32

LOSSES = (losses.log_odds, losses.margin, losses.dlr)
LOG_ODDS, MARGIN, DLR = range(3)

_DRAWS = DIRECTIONS + 2  # for the small step, the tiny one and the point itself
_PAIRS = 12
_ROUNDS = 8


@functools.partial(jax.jit, static_argnames="eot")
def logits(model, x: jax.Array, keys: jax.Array, eot: int | None) -> jax.Array:
    """Logits [B, K] of a model, or with `eot` the mean over as many draws."""
    forward = lowering.fast(
        lambda v, keys: mean_logits(model, v, keys, eot), forward=True
    )
    return forward(x, keys)


@jax.jit
def gradient(model, x: jax.Array, y: jax.Array) -> jax.Array:
    """Input gradient of the margin, [B, *S]."""
    return lowering.fast(jax.grad(lambda v: jnp.sum(losses.margin(model(v), y))))(x)


class Look(NamedTuple):
    """Seen from P points of the ball (the first is the image), with J steps from each.

    Attributes:
      logits: [P, B, K].
      zero: [P, B] bool, the gradient of the margin or of the cross-entropy is 0.
      finite: [P, B] bool, logits and both gradients are finite.
      dlr: [P, B] length of DLR's gradient over that of the margin's, times the spread
        that DLR divides by; NaN where the label is not on top, or for two classes.
      predicted: [P, J, B] ⟨g, x₊ − x₋⟩ for the two ends x± of a step.
      measured: [P, J, B] m(x₊) − m(x₋).
      jump: [P, J, B] largest change of a logit from x₋ to x₊.

    Steps: 0 is COARSE · ε along the gradient, 1 is SMALL · ε along it, 2 is TINY in
    all pixels, and the others are SMALL · ε in random directions.
    """

    logits: jax.Array
    zero: jax.Array
    finite: jax.Array
    dlr: jax.Array
    predicted: jax.Array
    measured: jax.Array
    jump: jax.Array


@jax.jit
def look(problem: Problem, y: jax.Array, keys: jax.Array) -> Look:
    """Compares gradient and differences; P gradients and P (2 J + 1) forward passes."""
    model, x, ball, bounds = lax.stop_gradient(problem)
    low, high = bounds
    scales = jnp.asarray([COARSE, SMALL, 0.0] + [SMALL] * DIRECTIONS, x.dtype)
    forward = lowering.fast(model, forward=True)

    def from_point(number):
        # all draws in one place: random bits are most of what there is to compile
        noise = lax.map(
            lambda j: ball.sample(fold_keys(keys, number * _DRAWS + j), x),
            jnp.arange(_DRAWS),
        )
        # Bounced off the border, not stopped there: flat areas are full of ties in
        # pooling and of ReLUs at 0, where an honest network has no gradient.
        away = x + noise[-1]
        away = jnp.where((away < low) | (away > high), x - noise[-1], away)
        p = ball.project(jnp.where(number > 0, away, x), x, bounds)
        # room for the small step on both sides, since images sit on the borders
        edge = jnp.minimum(per_sample(SMALL * ball.eps, x), (high - low) / 4)
        p = jnp.clip(p, low + edge, high - edge)
        z, g, g_ce, g_dlr = lowering.fast(functools.partial(_gradients, model, y))(p)
        uphill = _unit(ball.steepest(g, p, bounds), ball)

        def step(j):
            random = _unit(noise[j - 2], ball)
            u = jnp.where(j < 2, uphill, random)
            tiny = TINY * (high - low) * jnp.sign(random)
            delta = jnp.where(j == 2, tiny, per_sample(scales[j] * ball.eps, x) * u)
            ends = jnp.clip(jnp.stack([p + delta, p - delta]), low, high)
            z_ends = lax.map(forward, ends)
            m = losses.margin(z_ends[0], y) - losses.margin(z_ends[1], y)
            jump = jnp.max(jnp.abs(z_ends[0] - z_ends[1]), axis=1)
            return _sum(g * (ends[0] - ends[1])), m, jump

        zero = (_sum(jnp.abs(g)) == 0) | (_sum(jnp.abs(g_ce)) == 0)
        finite = jnp.isfinite(_sum(g) + _sum(g_ce)) & jnp.isfinite(z).all(axis=1)
        dlr = _dlr_length(z, y, _sum(jnp.abs(g_dlr)) / _sum(jnp.abs(g)))
        return Look(z, zero, finite, dlr, *lax.map(step, jnp.arange(len(scales))))

    return lax.map(from_point, jnp.arange(POINTS))


def _gradients(model, y, p):
    """Logits and the input gradients of margin, cross-entropy and DLR."""
    z, pull = jax.vjp(model, p)
    ways = [losses.margin, losses.log_odds, LOSSES[-1 if z.shape[1] > 2 else MARGIN]]
    return z, *(pull(jax.grad(lambda z, w=way: jnp.sum(w(z, y)))(z))[0] for way in ways)


def _dlr_length(z, y, relative):
    if z.shape[1] < 3:
        return jnp.full(z.shape[0], jnp.nan, relative.dtype)
    top = lax.top_k(z, 3)[0]
    return jnp.where(
        jnp.argmax(z, axis=1) == y, relative * (top[:, 0] - top[:, 2]), jnp.nan
    )


def _sum(v: jax.Array) -> jax.Array:
    return jnp.sum(v, axis=tuple(range(1, v.ndim)))


def _unit(u: jax.Array, ball) -> jax.Array:
    length = ball.norm(u)
    return u / per_sample(jnp.where(length > 0, length, 1), u)


class Run(NamedTuple):
    """One gradient attack of a plan; `plan` stacks them to arrays [R].

    Attributes:
      loss: index into LOSSES.
      radius: in ε; 0 means that the whole box is allowed.
      seed: of the random start; −1 starts at the image.
      steps: gradient steps; one step is as long as the radius.
    """

    loss: Any
    radius: Any = 1.0
    seed: Any = 0
    steps: Any = STEPS


def plan(runs: list[Run]) -> Run:
    """Stacks runs to arrays, so that one compiled program serves them all."""
    return Run(*(np.asarray(column) for column in zip(*runs, strict=True)))


@jax.jit
def climb(problem: Problem, y: jax.Array, keys: jax.Array, runs: Run) -> jax.Array:
    """Largest margin [R, B] that each run met; steps + 1 gradients a run."""
    model, x, given, bounds = lax.stop_gradient(problem)
    ball: Any = given
    low, high = bounds
    everything = ball.norm(jnp.full_like(x[:1], high - low))[0]

    def total(v, loss):
        z = model(v)
        ways = LOSSES[: 3 if z.shape[1] > 2 else 2]
        value = lax.switch(loss, ways, z, y)
        m = jnp.where(jnp.isfinite(z).all(axis=1), losses.margin(z, y), jnp.inf)
        return jnp.sum(value), m

    slope = lowering.fast(jax.grad(total, has_aux=True))

    def attack(run: Run):
        whole = run.radius == 0
        radius = jnp.where(whole, everything, run.radius * ball.eps)
        reach = dataclasses.replace(ball, eps=radius)
        stride = jnp.where(whole, high - low, radius)
        stride = stride * jnp.where(run.steps == 1, 1, 2.5 / run.steps)
        noise = reach.sample(fold_keys(keys, run.seed), x)
        start = reach.project(x + (run.seed >= 0) * noise, x, bounds)

        def step(_, carry):
            v, best = carry
            g, m = slope(v, run.loss)
            g = jnp.where(jnp.isfinite(g), g, 0)
            # in the whole box every norm allows the signed step, which gets around
            direction = jnp.where(whole, jnp.sign(g), ball.steepest(g, v, bounds))
            moved = v + per_sample(stride, v) * direction
            return reach.project(moved, x, bounds), jnp.maximum(best, m)

        best = jnp.full(x.shape[0], -jnp.inf, jax.eval_shape(total, x, 0)[1].dtype)
        return lax.fori_loop(0, run.steps + 1, step, (start, best))[1]

    return lax.map(attack, jax.tree.map(jnp.asarray, runs))


@jax.jit
def linear_transfer(problem: Problem, y: jax.Array, keys: jax.Array) -> jax.Array:
    """Largest margin [B] met by attacks on a linear surrogate of each sample.

    The surrogate is distilled from the logits around the sample: its slope is the sum
    of δ · (m(c + δ) − m(c − δ)) over random δ of up to half the radius, c the best
    image so far (as SPSA: Uesato et al., ICML 2018). 1 + 8 · 25 forward passes.
    """
    model, x, ball, bounds = lax.stop_gradient(problem)
    forward = lowering.fast(model, forward=True)

    def value(v):
        z = forward(v)
        return jnp.where(jnp.isfinite(z).all(axis=1), losses.margin(z, y), jnp.inf)

    def round_(i, carry):
        c, best, slope = carry

        def pair(j, slope):
            delta = ball.sample(fold_keys(keys, i * _PAIRS + j), x) / 2
            ends = jnp.stack([c + delta, c - delta])
            ends = jax.vmap(lambda v: ball.project(v, x, bounds))(ends)
            m = lax.map(value, ends)
            rise = jnp.where(jnp.isfinite(m).all(axis=0), m[0] - m[1], 0)
            return slope + per_sample(rise, x) * (ends[0] - ends[1])

        slope = lax.fori_loop(0, _PAIRS, pair, slope)
        step = per_sample(ball.eps, x) * ball.steepest(slope, x, bounds)
        moved = ball.project(x + step, x, bounds)
        m = value(moved)
        better = m > best
        c = jnp.where(mask_samples(better, x), moved, c)
        return c, jnp.where(better, m, best), slope

    carry = (x, value(x), jnp.zeros_like(x))
    return lax.fori_loop(0, _ROUNDS, round_, carry)[1]
