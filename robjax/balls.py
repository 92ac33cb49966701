"""Threat models: the sets B(x) = {x + δ : ‖δ‖ ≤ ε} an attack may move in.

A ball is a frozen value whose radius ε is traced: a scalar, or [B] for one radius
for each sample. All methods act on batches [B, *S], each sample alone.

    norm(δ)                [B]    ‖δ‖ of each sample
    project(v, x, bounds)  [B,*S] the point of B(x) ∩ [low, high]^S nearest to v (L2)
    sample(keys, x)        [B,*S] uniform draws from the ball around 0
    steepest(g, v, bounds) [B,*S] argmax ⟨g, δ⟩ over ‖δ‖ ≤ 1, the step to take from v; 0
                                  for g = 0 (L1: over the pixels that have room)

Projections onto the intersection are exact, not one projection after the other:
with d = v − x and the room m_i that the box leaves in the direction of d_i,

    Linf   δ_i = clip(d_i, −ε, ε), then the box
    L2     δ_i = sign(d_i) min(t |d_i|, m_i),             t ∈ [0, 1] with ‖δ‖₂ = ε
    L1     δ_i = sign(d_i) clip(|d_i| − α, 0, m_i),       α ≥ 0     with ‖δ‖₁ = ε

(t = 1, α = 0 if that already lies in the ball); the L1 form is Croce & Hein,
"Mind the box", ICML 2021, Prop. 2.1. The box holds exactly, the ball up to 1e-7 (L∞)
or a relative 1e-6 (L2, L1), the rounding of float32: in L2 and L1 a pixel is rounded
towards x, so that the roundings of many pixels cannot add up.

L0, the number of changed coordinates, is a threat model for `fmn` alone: it has no
steepest step, since ⟨g, δ⟩ has no maximum over ‖δ‖₀ ≤ 1.
"""

import dataclasses
from typing import Any, Protocol, TypeVar

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from robjax import numerics
from robjax.checks import Bounds
from robjax.samples import flatten_samples, per_sample

_L1_ITERATIONS = 64


class Ball(Protocol):
    """What Linf, L2 and L1 have in common."""

    @property
    def eps(self) -> Any: ...
    def norm(self, delta: jax.Array) -> jax.Array: ...
    def project(self, v: jax.Array, x: jax.Array, bounds: Bounds) -> jax.Array: ...
    def sample(self, keys: jax.Array, x: jax.Array) -> jax.Array: ...
    def steepest(self, g: jax.Array, v: jax.Array, bounds: Bounds) -> jax.Array: ...


def _register(ball_type):
    """Makes a ball a pytree: ε is its leaf, the other fields are static.

    (Not `register_dataclass`: with jaxlib 0.10 the tree structures of two dataclasses
    with the same fields compare equal, and jit may run the code of the other ball.)
    """
    static = [field.name for field in dataclasses.fields(ball_type)[1:]]
    jax.tree_util.register_pytree_node(
        ball_type,
        lambda ball: ((ball.eps,), tuple(getattr(ball, name) for name in static)),
        lambda values, leaves: ball_type(*leaves, *values),
    )
    return ball_type


def _room(d: jax.Array, x: jax.Array, bounds: Bounds) -> jax.Array:
    """How far x may move in the direction of d before it leaves the box; ≥ 0."""
    return jnp.where(d > 0, bounds[1] - x, x - bounds[0])


def _draw(sampler, keys: jax.Array, x: jax.Array) -> jax.Array:
    return jax.vmap(lambda key: sampler(key, x.shape[1:], x.dtype))(keys)


@_register
@dataclasses.dataclass(frozen=True)
class Linf:
    """Every pixel moves by at most ε (in units of the image)."""

    eps: Any

    def norm(self, delta: jax.Array) -> jax.Array:
        return jnp.max(jnp.abs(flatten_samples(delta)), axis=1)

    def project(self, v: jax.Array, x: jax.Array, bounds: Bounds) -> jax.Array:
        eps = per_sample(self.eps, x)
        return jnp.clip(jnp.clip(v, x - eps, x + eps), *bounds)

    def sample(self, keys: jax.Array, x: jax.Array) -> jax.Array:
        return per_sample(self.eps, x) * (2 * _draw(jax.random.uniform, keys, x) - 1)

    def steepest(self, g: jax.Array, v: jax.Array, bounds: Bounds) -> jax.Array:
        del v, bounds  # the projection undoes what leaves the box
        return jnp.sign(g)


@_register
@dataclasses.dataclass(frozen=True)
class L2:
    """The Euclidean length of the change is at most ε."""

    eps: Any

    def norm(self, delta: jax.Array) -> jax.Array:
        return _length(flatten_samples(delta))[:, 0]

    def project(self, v: jax.Array, x: jax.Array, bounds: Bounds) -> jax.Array:
        d, x_flat = flatten_samples(v - x), flatten_samples(x)
        size = _l2_sizes(jnp.abs(d), _room(d, x_flat, bounds), per_sample(self.eps, d))
        return _move(x_flat, jnp.sign(d), size, bounds).reshape(x.shape)

    def sample(self, keys: jax.Array, x: jax.Array) -> jax.Array:
        # radius ~ ε U^{1/d}, direction uniform on the sphere
        pairs = jax.vmap(jax.random.split)(keys)
        direction = _draw(jax.random.normal, pairs[:, 0], x)
        length = _length(flatten_samples(direction))[:, 0]
        uniform = jax.vmap(lambda key: jax.random.uniform(key, (), x.dtype))(
            pairs[:, 1]
        )
        radius = self.eps * uniform ** (1 / flatten_samples(x).shape[1])
        # one factor: two are rounded in another order where a batch is one sample
        factor = radius / jnp.where(length > 0, length, 1)
        return per_sample(factor, x) * direction

    def steepest(self, g: jax.Array, v: jax.Array, bounds: Bounds) -> jax.Array:
        del v, bounds
        return _unit(g)


@_register
@dataclasses.dataclass(frozen=True)
class L1:
    """The absolute changes of all pixels add up to at most ε.

    `steepest` spreads the unit step evenly over the `density` share of pixels (at least
    one) with the largest |g| among those that have room in the box, because one pixel a
    step is slow: SLIDE, Tramèr & Boneh, NeurIPS 2019. density = 0 is the exact steepest
    step.
    """

    eps: Any
    density: float = 0.01

    def norm(self, delta: jax.Array) -> jax.Array:
        return jnp.sum(jnp.abs(flatten_samples(delta)), axis=1)

    def project(self, v: jax.Array, x: jax.Array, bounds: Bounds) -> jax.Array:
        d, x_flat = flatten_samples(v - x), flatten_samples(x)
        size = _l1_sizes(jnp.abs(d), _room(d, x_flat, bounds), per_sample(self.eps, d))
        return _move(x_flat, jnp.sign(d), size, bounds).reshape(x.shape)

    def sample(self, keys: jax.Array, x: jax.Array) -> jax.Array:
        # |δ_i|/ε = E_i / (E_0 + Σ E_j) with E ~ Exp(1) is uniform on the simplex
        triples = jax.vmap(lambda key: jax.random.split(key, 3))(keys)
        size = _draw(jax.random.exponential, triples[:, 0], x)
        sign = _draw(jax.random.rademacher, triples[:, 1], x)
        rest = jax.vmap(lambda key: jax.random.exponential(key, (), x.dtype))(
            triples[:, 2]
        )
        total = rest + jnp.sum(flatten_samples(size), axis=1)
        return per_sample(self.eps / total, x) * sign * size

    def steepest(self, g: jax.Array, v: jax.Array, bounds: Bounds) -> jax.Array:
        flat = flatten_samples(g)
        # a pixel that the box stops would take the whole step and lose it
        size = jnp.where(_room(flat, flatten_samples(v), bounds) > 0, jnp.abs(flat), 0)
        count = max(1, round(self.density * size.shape[1]))
        least = numerics.threshold(size, numerics.count, count - 1)
        chosen = (size >= least) & (size > 0)
        # argmax breaks ties, so that density = 0 moves one coordinate
        first = jnp.arange(size.shape[1])[None] == jnp.argmax(size, axis=1)[:, None]
        chosen = chosen & first if count == 1 else chosen
        share = chosen / jnp.maximum(jnp.sum(chosen, axis=1, keepdims=True), 1)
        return (jnp.sign(flat) * share.astype(flat.dtype)).reshape(g.shape)


@_register
@dataclasses.dataclass(frozen=True)
class L0:
    """At most ε coordinates change (channels of a pixel count one by one)."""

    eps: Any

    def norm(self, delta: jax.Array) -> jax.Array:
        return jnp.sum(flatten_samples(delta) != 0, axis=1).astype(delta.dtype)

    def project(self, v: jax.Array, x: jax.Array, bounds: Bounds) -> jax.Array:
        inside = jnp.clip(v, *bounds)
        # what moving a coordinate with v takes off the squared distance to v
        saved = flatten_samples((inside - x) * ((v - x) + (v - inside)))
        kept = largest(saved, jnp.asarray(self.eps)).reshape(x.shape)
        return jnp.where(kept, inside, x)


BallType = TypeVar("BallType", bound=Ball)


def with_radius(ball: BallType, eps: ArrayLike) -> BallType:
    """The same kind of ball with another radius.

    >>> with_radius(L1(0.5, density=0.1), 2.0)
    L1(eps=2.0, density=0.1)

    Args:
      ball: Linf, L2, L1 or L0.
      eps: a number or [B].
    """
    return dataclasses.replace(ball, eps=eps)  # pyright: ignore[reportArgumentType]


def largest(values: jax.Array, count: jax.Array) -> jax.Array:
    """Bool [B, n]: the `count` [B] (or fewer, or scalar) largest of values [B, n].

    Of equal values the first are taken; fractions of `count` are dropped.
    """
    whole = jnp.floor(count).astype(jnp.int32)
    whole = jnp.broadcast_to(whole, values.shape[:1])[:, None]
    least = numerics.threshold(values, numerics.count, whole - 1)
    above, at = values > least, values == least
    left = whole - jnp.sum(above, axis=1, keepdims=True)
    return above | (at & (jnp.cumsum(at, axis=1) <= left))


def _length(flat: jax.Array) -> jax.Array:
    return jnp.sqrt(jnp.sum(flat * flat, axis=1, keepdims=True))


def _unit(g: jax.Array) -> jax.Array:
    """g / ‖g‖₂ for each sample; 0 for g = 0."""
    flat = flatten_samples(g)
    # dividing by the largest entry first keeps tiny gradients from underflowing
    largest = jnp.max(jnp.abs(flat), axis=1, keepdims=True)
    scaled = flat / jnp.where(largest > 0, largest, 1)
    length = _length(scaled)
    return (scaled / jnp.where(length > 0, length, 1)).reshape(g.shape)


def _move(x: jax.Array, sign: jax.Array, size: jax.Array, bounds: Bounds) -> jax.Array:
    """x + sign · size inside the box, rounded towards x: never farther than `size`."""
    moved = jnp.clip(x + sign * size, *bounds)
    return jnp.where(jnp.abs(moved - x) > size, jnp.nextafter(moved, x), moved)


@jax.jit
def _l2_sizes(d: jax.Array, room: jax.Array, eps: jax.Array) -> jax.Array:
    """min(t d, room) for the t ∈ [0, 1] that makes its length ε; t = 1 if it is less.

    The pixels that the box stops are those with t d_i ≥ m_i. Solving for t with the
    stopped set of the previous t gives a sequence that rises to the solution and
    stops in as many rounds as the set grows: a handful.
    """
    eps = jnp.broadcast_to(eps, (d.shape[0], 1))
    nearest = jnp.minimum(d, room)
    inside = _length(nearest) <= eps
    # squares of huge steps would overflow
    largest = jnp.max(d, axis=1, keepdims=True)
    d = d / jnp.where(largest > 0, largest, 1)

    def solve(stopped):
        spent = jnp.sum(jnp.where(stopped, room, 0) ** 2, axis=1, keepdims=True)
        free = jnp.sum(jnp.where(stopped, 0, d) ** 2, axis=1, keepdims=True)
        left = jnp.maximum(eps**2 - spent, 0)
        return jnp.sqrt(left / jnp.where(free > 0, free, 1))

    def grow(carry):
        stopped, _, _ = carry
        t = solve(stopped)
        grown = stopped | (t * d >= room)
        return grown, t, jnp.any((grown != stopped) & ~inside)

    carry = room <= 0, jnp.zeros_like(eps), True
    _, t, _ = jax.lax.while_loop(lambda carry: carry[2], grow, carry)
    return jnp.where(inside, nearest, jnp.minimum(t * d, nearest))


@jax.jit
def _l1_sizes(d: jax.Array, room: jax.Array, eps: jax.Array) -> jax.Array:
    """clip(d − α, 0, room) for the α ≥ 0 that makes its sum ε; α = 0 if it is less.

    The sum falls piecewise linearly in α. Newton's step is exact once α is on the
    right piece; a bracket [low, high] that only shrinks makes it safe before.
    """
    eps = jnp.broadcast_to(eps, (d.shape[0], 1))
    rounding = jnp.finfo(d.dtype).eps

    def total(alpha):
        return jnp.sum(jnp.clip(d - alpha, 0, room), axis=1, keepdims=True)

    def refine(carry):
        alpha, low, high, open_, count = carry
        above = total(alpha) - eps
        low, high = jnp.where(above > 0, alpha, low), jnp.where(above > 0, high, alpha)
        moving = (d > alpha) & (d - alpha < room)
        slope = jnp.sum(moving, axis=1, keepdims=True).astype(d.dtype)
        newton = alpha + above / jnp.maximum(slope, 1)
        safe = (slope > 0) & (newton > low) & (newton <= high)
        # as near as the rounding of α allows: the last step
        near = jnp.abs(above) <= rounding * (eps + slope * alpha)
        middle = jnp.where(near, alpha, (low + high) / 2)
        proposal = jnp.where(safe, newton, middle)
        moved = open_ & (proposal != alpha) & (above != 0)
        return jnp.where(moved, proposal, alpha), low, high, moved & ~near, count + 1

    def unsettled(carry):
        return carry[3].any() & (carry[4] < _L1_ITERATIONS)

    low = jnp.zeros((d.shape[0], 1), d.dtype)
    high = jnp.max(d, axis=1, keepdims=True)
    inside = total(low) <= eps
    carry = (low, low, jnp.where(inside, 0, high), ~inside, 0)
    alpha = jax.lax.while_loop(unsettled, refine, carry)[0]
    size = jnp.clip(d - jnp.where(inside, 0, alpha), 0, room)
    # the rounding of α, times the number of pixels, may be more than that of ε
    excess = jnp.sum(size, axis=1, keepdims=True) / jnp.where(eps > 0, eps, 1)
    return jnp.where(eps > 0, size / jnp.maximum(excess, 1), 0)
