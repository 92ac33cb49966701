"""Auto-PGD's rules for L1: sparse steps whose density follows the best point's.

Croce & Hein, "Mind the box: l1-APGD for sparse adversarial attacks on image
classifiers", ICML 2021, algorithm 1. With d pixels, k = share of pixels to move and
‖·‖₀ the number of nonzero entries,

    x_{i+1} = P( x_i + s e / ‖e‖₁ ),    e = sign(g_i) on the k·d pixels of largest |g_i|

with P the exact projection onto ball ∩ box. At a checkpoint k = ‖x_best − x‖₀ / 1.5 d;
if x_best has become sparser by 5 %, the step returns to s = ε and x_i to x_best,
otherwise s shrinks by 1.5, down to ε/10. `phases` of radius 3ε, 2ε and ε, each starting
from the best point of the one before, are the paper's "large ε" schedule.

Equal steps on many pixels leave a few per cent of what a linear model allows. So the
last step of a run goes to the maximiser of ⟨g, δ⟩ over ball ∩ box, g being the gradient
at x_best: it spends ε on the room of the pixels in the order of falling |g|. The
reference has no such step.
"""

import dataclasses
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from robjax import numerics
from robjax.attacks import hyperplanes
from robjax.attacks.apgd_steps import Peak, Plan, select
from robjax.balls import L1, per_sample
from robjax.inputs import Bounds

_FIRST_DENSITY = 0.2
_SHRINK = 1.5
_SMALLEST = 10.0
_SPARSER = 0.95


class SparseClimb(NamedTuple):
    """Where a run stands; every leaf is per sample.

    Attributes:
      x: point to be evaluated next.
      peak: x_best.
      step_size: [B] s.
      density: [B] k, share of the pixels that the next step moves.
      support: [B] ‖x_best − x‖₀ at the last checkpoint.
    """

    x: jax.Array
    peak: Peak
    step_size: jax.Array
    density: jax.Array
    support: jax.Array


def phases(steps: int, *, large_reps: bool) -> list[tuple[float, list[int], int]]:
    """(radius in ε, windows between checkpoints, steps) of each phase."""

    def windows(count):
        window = max(int(0.04 * count), 1)
        return [window] * (count // window)

    if not large_reps:
        return [(1.0, windows(steps), steps)]
    early = math.ceil(0.3 * steps)
    counts = (early, early, steps - 2 * early)
    return [
        (radius, windows(count), count)
        for radius, count in zip((3.0, 2.0, 1.0), counts, strict=True)
    ]


def noise(
    keys: jax.Array, x: jax.Array, ball: L1, bounds: Bounds, radius: float
) -> jax.Array:
    """Random starts: standard normal noise, projected onto the ball of radius · ε."""
    t = jax.vmap(lambda key: jax.random.normal(key, x.shape[1:], x.dtype))(keys)
    wide = dataclasses.replace(ball, eps=radius * ball.eps)
    return wide.project(x + t, x, bounds)


def begin(start: jax.Array, x: jax.Array, ball: L1, loss_dtype: Any) -> SparseClimb:
    """The state of a run before its start, drawn by `noise`, is evaluated."""
    batch, pixels = x.shape[0], x[0].size
    return SparseClimb(
        x=start,
        peak=Peak.none(start, loss_dtype),
        step_size=jnp.broadcast_to(ball.eps, (batch,)),
        density=jnp.full(batch, _FIRST_DENSITY, x.dtype),
        support=jnp.full(batch, pixels, x.dtype),
    )


def advance(
    climb: SparseClimb,
    gradient: jax.Array,
    loss: jax.Array,
    row: Plan,
    x: jax.Array,
    *,
    ball: L1,
    bounds: Bounds,
    given_start: Any,
    reference_quirks: bool,
) -> SparseClimb:
    """One step of algorithm 1: takes in (gradient, loss) at climb.x and moves on.

    `given_start`: density and support of a phase come from the point it starts at.
    """
    pixels, eps = x[0].size, ball.eps * row.scale
    peak = climb.peak.update(climb.x, gradient, loss, row.first)
    support_now = _support(peak.x - x)
    follow = support_now / pixels / _SHRINK

    checkpoint, fresh = row.window > 0, row.first & given_start
    ratio = support_now / jnp.where(climb.support > 0, climb.support, 1)
    sparser = checkpoint & (ratio < _SPARSER) & (climb.support > 0)
    slower = jnp.clip(climb.step_size / _SHRINK, eps / _SMALLEST, eps)
    step_size = jnp.where(checkpoint, slower, climb.step_size)
    step_size = jnp.where(sparser | row.first, eps, step_size)
    density = jnp.where(checkpoint | fresh, follow, climb.density)
    support = jnp.where(checkpoint | fresh, support_now, climb.support)

    here, g = select(sparser, (peak.x, peak.gradient), (climb.x, gradient))
    moved = here + per_sample(step_size, x) * _sparse_sign(g, density)
    moved = jnp.where(row.hop, peak.x, moved)
    if not reference_quirks:
        final = lambda: x + _maximiser(peak.gradient, x, eps, bounds)  # noqa: E731
        moved = lax.cond(row.last, final, lambda: moved)
    radius = dataclasses.replace(ball, eps=eps)
    return SparseClimb(
        radius.project(moved, x, bounds), peak, step_size, density, support
    )


def _maximiser(g: jax.Array, x: jax.Array, eps: Any, bounds: Bounds) -> jax.Array:
    """argmax ⟨g, δ⟩ over ‖δ‖₁ ≤ ε with x + δ in the box."""
    flat, x_flat = g.reshape(g.shape[0], -1), x.reshape(x.shape[0], -1)
    room = jnp.where(flat > 0, bounds[1] - x_flat, x_flat - bounds[0])
    room = jnp.where(flat == 0, 0, room)
    budget = jnp.broadcast_to(eps, (x.shape[0],))[:, None]
    size = hyperplanes.spend_largest(jnp.abs(flat), room, room, budget)
    return (jnp.sign(flat) * size).reshape(x.shape)


def _support(delta: jax.Array) -> jax.Array:
    """‖δ‖₀ [B]."""
    nonzero = (delta != 0).reshape(delta.shape[0], -1)
    return jnp.sum(nonzero, axis=1, dtype=delta.dtype)


def _sparse_sign(g: jax.Array, density: jax.Array) -> jax.Array:
    """sign(g) on the share `density` [B] of pixels of largest |g|, of L1 norm 1."""
    flat = g.reshape(g.shape[0], -1)
    size = jnp.abs(flat)
    pixels = flat.shape[1]
    index = jnp.clip((1 - density) * pixels, 0, pixels - 1).astype(jnp.int32)
    # the one at this place in rising order
    more = pixels - 1 - index[:, None]
    least = numerics.threshold(size, numerics.count, more)
    sign = jnp.where(size >= least, jnp.sign(flat), 0)
    count = jnp.sum(jnp.abs(sign), axis=1, keepdims=True)
    return (sign / jnp.where(count > 0, count, 1)).reshape(g.shape)
