"""What the battery measures of a model, each in one compiled program.

    logits           a plain forward pass
    gradient         the input gradient of the margin
    look             the gradient and differences of the margin, at points of the ball
    climb            every gradient attack of a `plan`
    linear_transfer  an attack on a linear model that is fitted to the logits alone

A sample's numbers depend on its own image, label and key.

Notation: m = max_{i≠y} z_i − z_y the margin; g its input gradient; p a point of the
ball; u a direction of length 1 in the ball's norm; x₊, x₋ the two ends of a step.
"""

import functools
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend import core

from robjax import losses, lowering
from robjax.attacks.problem import Problem
from robjax.balls import Ball, with_radius
from robjax.model import mean_logits
from robjax.samples import fold_keys, mask_samples, per_sample
from robjax.traced import TracedCallable

POINTS = 4
DIRECTIONS = 8
STEPS = 20
SMALL = 0.001  # of ε
COARSE = 0.25  # of ε
TINY = 1e-6  # of the range of a pixel: a few roundings of float32

LOSSES = (losses.log_odds, losses.margin, losses.dlr)
LOG_ODDS = 0
MARGIN = 1
DLR = 2

# Random draws at each point: of the tiny step, of the directions, of the point itself.
_DRAWS = 1 + DIRECTIONS + 1
_PAIRS = 12
_ROUNDS = 8

Number = int | float | jax.Array | np.ndarray


@functools.partial(jax.jit, static_argnames="eot")
def logits(
    model: TracedCallable, x: jax.Array, keys: jax.Array, eot: int | None
) -> jax.Array:
    """Logits [B, K] of a model, or with `eot` their mean over as many draws.

    >>> from robjax.model import as_logits_fn
    >>> model = as_logits_fn(lambda x: 2 * x)
    >>> keys = jax.random.split(jax.random.key(0), 1)
    >>> logits(model, jnp.array([[1.0, 3.0]]), keys, None).tolist()
    [[2.0, 6.0]]
    """
    forward = lowering.exact(lambda v, keys: mean_logits(model, v, keys, eot))
    return forward(x, keys)


@jax.jit
def gradient(model: TracedCallable, x: jax.Array, y: jax.Array) -> jax.Array:
    """Input gradient of the margin, [B, *S].

    >>> from robjax.model import as_logits_fn
    >>> model = as_logits_fn(lambda x: 2 * x)
    >>> gradient(model, jnp.array([[1.0, 3.0]]), jnp.array([1])).tolist()
    [[2.0, -2.0]]
    """
    slope = jax.grad(lambda v: jnp.sum(losses.margin(model(v), y)))
    return lowering.exact(slope, forward=False)(x)


def precision(model: TracedCallable, x: jax.Array) -> float:
    """Relative rounding of a model: that of the coarsest type in which it computes.

    >>> from robjax.model import as_logits_fn
    >>> model = as_logits_fn(lambda x: 2 * x.astype(jnp.bfloat16))
    >>> precision(model, jnp.ones((1, 2)))
    0.0078125
    """
    found = {x.dtype, *_types(_call.trace(model, x).jaxpr.jaxpr)}
    floating = [dtype for dtype in found if jnp.issubdtype(dtype, jnp.floating)]
    return max(float(jnp.finfo(dtype).eps) for dtype in floating)


@jax.jit
def _call(model: TracedCallable, x: jax.Array) -> jax.Array:
    return model(x)


def _types(jaxpr: core.Jaxpr) -> Iterator[np.dtype]:
    """The types of all that a jaxpr and those inside it compute."""
    for equation in jaxpr.eqns:
        outputs: list[Any] = [variable.aval for variable in equation.outvars]
        yield from (value.dtype for value in outputs if hasattr(value, "dtype"))
        for param in jax.tree.leaves(equation.params):
            if isinstance(param, core.ClosedJaxpr):
                yield from _types(param.jaxpr)
            elif isinstance(param, core.Jaxpr):
                yield from _types(param)


class Look(NamedTuple):
    """Seen from P points of the ball (the first is the image), with J steps from each.

    Steps go from x₋ to x₊, with the point in the middle:

    * step 0 along the gradient, COARSE · ε to each side;
    * step 1 along the gradient, SMALL · ε;
    * step 2 in all pixels, TINY;
    * the others in random directions, SMALL · ε.

    Attributes:
      logits: [P, B, K].
      zero: [P, B] bool, the gradient of the margin or of the cross-entropy is 0.
      finite: [P, B] bool, logits and both gradients are finite.
      dlr: [P, B] length of DLR's gradient over that of the margin's gradient, times
        z_(1) − z_(3), by which DLR divides. NaN where the label is not on top, and for
        two classes.
      dlr_rise: [P, B] ⟨g, u⟩ with u the steepest step of DLR: below 0 it lowers the
        margin.
      dlr_share: [P, B] (z_(1) − z_(2)) / (z_(1) − z_(3)), NaN as in `dlr`.
      predicted: [P, J, B] ⟨g, x₊ − x₋⟩.
      measured: [P, J, B] m(x₊) − m(x₋).
      jump: [P, J, B] largest change of a logit from x₋ to x₊.
    """

    logits: jax.Array
    zero: jax.Array
    finite: jax.Array
    dlr: jax.Array
    dlr_rise: jax.Array
    dlr_share: jax.Array
    predicted: jax.Array
    measured: jax.Array
    jump: jax.Array


@jax.jit
def look(problem: Problem, y: jax.Array, keys: jax.Array) -> Look:
    """Compares gradient and differences; P gradients and P (2 J + 1) forward passes.

    >>> from robjax.attacks.problem import check_problem
    >>> from robjax.balls import Linf
    >>> x = jnp.array([[0.4, 0.6]])
    >>> problem = check_problem(lambda x: 2 * x, x, Linf(0.1), (0.0, 1.0))
    >>> seen = look(problem, jnp.array([1]), jax.random.split(jax.random.key(0), 1))
    >>> bool(jnp.allclose(seen.predicted, seen.measured, rtol=0.01, atol=1e-6))
    True
    """
    problem = lax.stop_gradient(problem)
    return lax.map(functools.partial(_look_from, problem, y, keys), jnp.arange(POINTS))


def _look_from(
    problem: Problem, y: jax.Array, keys: jax.Array, number: jax.Array
) -> Look:
    """What is seen from one point; number 0 is the image."""
    model, x, ball, bounds = problem
    low, high = bounds
    scales = jnp.asarray([COARSE, SMALL, 0.0] + [SMALL] * DIRECTIONS, x.dtype)
    forward = lowering.exact(model)
    # all draws in one place: random bits are most of what there is to compile
    noise = lax.map(
        lambda j: ball.sample(fold_keys(keys, number * _DRAWS + j), x),
        jnp.arange(_DRAWS),
    )
    p = _point(problem, noise[-1], number > 0)
    at_p = lowering.exact(functools.partial(_gradients, model, y), forward=False)(p)
    g = at_p.margin
    uphill = _unit(ball.steepest(g, p, bounds), ball)

    def step(j):
        random = _unit(noise[j - 2], ball)
        u = jnp.where(j < 2, uphill, random)
        tiny = TINY * (high - low) * jnp.sign(random)
        delta = jnp.where(j == 2, tiny, per_sample(scales[j] * ball.eps, x) * u)
        ends = jnp.clip(jnp.stack([p + delta, p - delta]), low, high)
        z_ends = lax.map(forward, ends)
        predicted = _sum(g * (ends[0] - ends[1]))
        measured = losses.margin(z_ends[0], y) - losses.margin(z_ends[1], y)
        return predicted, measured, jnp.max(jnp.abs(z_ends[0] - z_ends[1]), axis=1)

    z = at_p.logits
    length = _sum(jnp.abs(g))
    apart, share = _dlr_parts(z, y)
    finite = jnp.isfinite(_sum(g) + _sum(at_p.cross_entropy))
    predicted, measured, jump = lax.map(step, jnp.arange(len(scales)))
    return Look(
        logits=z,
        zero=(length == 0) | (_sum(jnp.abs(at_p.cross_entropy)) == 0),
        finite=finite & jnp.isfinite(z).all(axis=1),
        dlr=apart * _sum(jnp.abs(at_p.dlr)) / length,
        dlr_rise=_sum(g * ball.steepest(at_p.dlr, p, bounds)),
        dlr_share=share,
        predicted=predicted,
        measured=measured,
        jump=jump,
    )


def _point(problem: Problem, noise: jax.Array, moves: jax.Array) -> jax.Array:
    """The image, or if `moves` a random point of the ball; off the box's border."""
    _, x, ball, bounds = problem
    low, high = bounds
    # Bounced off the border, not stopped there: flat areas are full of ties in
    # pooling and of ReLUs at 0, where an honest network has no gradient.
    away = x + noise
    away = jnp.where((away < low) | (away > high), x - noise, away)
    p = ball.project(jnp.where(moves, away, x), x, bounds)
    # room for the small step on both sides, since images sit on the borders
    edge = jnp.minimum(per_sample(SMALL * ball.eps, x), (high - low) / 4)
    return jnp.clip(p, low + edge, high - edge)


class _Gradients(NamedTuple):
    """Logits [B, K] at a point, and input gradients [B, *S] of three losses."""

    logits: jax.Array
    margin: jax.Array
    cross_entropy: jax.Array
    dlr: jax.Array


def _gradients(model: TracedCallable, y: jax.Array, p: jax.Array) -> _Gradients:
    """One forward pass and three backward passes; for two classes DLR is the margin."""
    z, pull = jax.vjp(model, p)

    def input_gradient(loss: losses.Loss) -> jax.Array:
        (g,) = pull(jax.grad(lambda z: jnp.sum(loss(z, y)))(z))
        return g

    return _Gradients(
        logits=z,
        margin=input_gradient(losses.margin),
        cross_entropy=input_gradient(losses.log_odds),
        dlr=input_gradient(losses.dlr if z.shape[1] > 2 else losses.margin),
    )


def _dlr_parts(z: jax.Array, y: jax.Array) -> tuple[jax.Array, jax.Array]:
    """z_(1) − z_(3) and the share of z_(1) − z_(2) in it; NaN as in `Look.dlr`."""
    if z.shape[1] < 3:
        unknown = jnp.full(z.shape[0], jnp.nan, z.dtype)
        return unknown, unknown
    top = lax.top_k(z, 3)[0]
    apart = jnp.where(jnp.argmax(z, axis=1) == y, top[:, 0] - top[:, 2], jnp.nan)
    return apart, (top[:, 0] - top[:, 1]) / apart


def _sum(v: jax.Array) -> jax.Array:
    return jnp.sum(v, axis=tuple(range(1, v.ndim)))


def _unit(u: jax.Array, ball: Ball) -> jax.Array:
    length = ball.norm(u)
    return u / per_sample(jnp.where(length > 0, length, 1), u)


class Run(NamedTuple):
    """One gradient attack of a plan; `plan` stacks them to arrays [R].

    >>> Run(MARGIN, radius=0, seed=3)  # the margin, in the whole box
    Run(loss=1, radius=0, seed=3, steps=20)

    Attributes:
      loss: index into LOSSES.
      radius: in ε; 0 means that the whole box is allowed.
      seed: of the random start; −1 starts at the image.
      steps: gradient steps; one step is as long as the radius.
    """

    loss: Number
    radius: Number = 1.0
    seed: Number = 0
    steps: Number = STEPS


def plan(runs: list[Run]) -> Run:
    """Stacks runs to arrays, so that one compiled program serves them all.

    >>> plan([Run(LOG_ODDS), Run(MARGIN, radius=0.25)]).radius.tolist()
    [1.0, 0.25]
    """
    return jax.tree.map(lambda *column: np.asarray(column), *runs)


@jax.jit
def climb(problem: Problem, y: jax.Array, keys: jax.Array, runs: Run) -> jax.Array:
    """Largest margin [R, B] that each run met; steps + 1 gradients a run.

    >>> from robjax.attacks.problem import check_problem
    >>> from robjax.balls import Linf
    >>> x = jnp.array([[0.4, 0.6]])
    >>> problem = check_problem(lambda x: 2 * x, x, Linf(0.05), (0.0, 1.0))
    >>> keys = jax.random.split(jax.random.key(0), 1)
    >>> met = climb(problem, jnp.array([1]), keys, plan([Run(MARGIN)]))
    >>> met.shape, round(float(met[0, 0]), 3)  # −0.4 at x, and 2 · 0.1 more at ε
    ((1, 1), -0.2)
    """
    model, x, ball, bounds = lax.stop_gradient(problem)
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
        reach = with_radius(ball, radius)
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

    The surrogate is distilled from the logits around the sample. Its slope is the sum
    of δ · (m(c + δ) − m(c − δ)) over random δ of up to half the radius, with c the best
    image so far (as in SPSA: Uesato et al., ICML 2018). Costs 1 + 8 · 25 forward
    passes.

    >>> from robjax.attacks.problem import check_problem
    >>> from robjax.balls import Linf
    >>> x = jnp.array([[0.4, 0.6]])
    >>> problem = check_problem(lambda x: 2 * x, x, Linf(0.05), (0.0, 1.0))
    >>> keys = jax.random.split(jax.random.key(0), 1)
    >>> round(float(linear_transfer(problem, jnp.array([1]), keys)[0]), 3)
    -0.2
    """
    model, x, ball, bounds = lax.stop_gradient(problem)
    forward = lowering.exact(model)

    def margin_at(v):
        z = forward(v)
        return jnp.where(jnp.isfinite(z).all(axis=1), losses.margin(z, y), jnp.inf)

    def fit_and_attack(i, carry):
        c, best, slope = carry

        def add_pair(j, slope):
            delta = ball.sample(fold_keys(keys, i * _PAIRS + j), x) / 2
            ends = jnp.stack([c + delta, c - delta])
            ends = jax.vmap(lambda v: ball.project(v, x, bounds))(ends)
            m = lax.map(margin_at, ends)
            rise = jnp.where(jnp.isfinite(m).all(axis=0), m[0] - m[1], 0)
            return slope + per_sample(rise, x) * (ends[0] - ends[1])

        slope = lax.fori_loop(0, _PAIRS, add_pair, slope)
        step = per_sample(ball.eps, x) * ball.steepest(slope, x, bounds)
        moved = ball.project(x + step, x, bounds)
        m = margin_at(moved)
        better = m > best
        c = jnp.where(mask_samples(better, x), moved, c)
        return c, jnp.where(better, m, best), slope

    carry = (x, margin_at(x), jnp.zeros_like(x))
    return lax.fori_loop(0, _ROUNDS, fit_and_attack, carry)[1]
