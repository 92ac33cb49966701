"""Threat models: the sets B(x) = {x + δ : ‖δ‖ ≤ ε} an attack may move in.

A ball is a frozen value. Its radius ε is traced: a scalar, or [B] for one radius for
each sample. All methods act on batches [B, *S], each sample alone.

    norm(δ)                [B]    ‖δ‖ of each sample
    project(v, x, bounds)  [B,*S] the point of B(x) ∩ [low, high]^S nearest to v (L2)
    sample(keys, x)        [B,*S] uniform draws from the ball around 0
    steepest(g, v, bounds) [B,*S] argmax ⟨g, δ⟩ over ‖δ‖ ≤ 1, the step to take from v; 0
                                  for g = 0 (L1: over the pixels that have room)

`bounds` are two numbers, or a box for each pixel (`robjax.boxes`). In L2 and L1 no
length is spent on pixels that are held.

**Projection.** It is exact for the intersection of ball and box, which one projection
after the other is not. With d = v − x and the room m_i that the box [low, high]^S
leaves in the direction of d_i,

    Linf   δ_i = clip(d_i, −ε, ε), then the box
    L2     δ_i = sign(d_i) min(t |d_i|, m_i),             t ∈ [0, 1] with ‖δ‖₂ = ε
    L1     δ_i = sign(d_i) clip(|d_i| − α, 0, m_i),       α ≥ 0     with ‖δ‖₁ = ε

If t = 1 or α = 0 already gives a point of the ball, that point is the projection. The
L1 form is Croce & Hein, "Mind the box", ICML 2021, Prop. 2.1.

**Rounding** (float32). The box holds exactly. The ball holds up to 1e-7 (L∞) or a
relative 1e-6 (L2, L1). In L2 and L1 each pixel is rounded towards x, so that the
roundings of many pixels cannot add up.

**L0**, the number of changed coordinates, is a threat model for `fmn` alone. It has no
steepest step, since ⟨g, δ⟩ has no maximum over ‖δ‖₀ ≤ 1.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, TypeVar

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from robjax import numerics
from robjax.boxes import free_pixels, hold
from robjax.checks import Bounds
from robjax.samples import flatten_samples, per_sample

_L1_ITERATIONS = 64


class Ball(Protocol):
    """What Linf, L2 and L1 have in common.

    `eps` is what the user gave, a number or [B], and inside an attack an array.

    >>> delta = jnp.array([[3.0, -4.0]])
    >>> [float(ball.norm(delta)[0]) for ball in (Linf(1.0), L2(1.0), L1(1.0))]
    [4.0, 5.0, 7.0]
    """

    @property
    def eps(self) -> Any: ...
    def norm(self, delta: jax.Array) -> jax.Array: ...
    def project(self, v: jax.Array, x: jax.Array, bounds: Bounds) -> jax.Array: ...
    def sample(
        self, keys: jax.Array, x: jax.Array, bounds: Bounds = ...
    ) -> jax.Array: ...
    def steepest(self, g: jax.Array, v: jax.Array, bounds: Bounds) -> jax.Array: ...


_BallClass = TypeVar("_BallClass", bound=type)


def _register(ball_type: _BallClass) -> _BallClass:
    """Makes a ball a pytree: ε is its leaf, the other fields are static.

    `register_dataclass` would not do. With jaxlib 0.10 the tree structures of two
    dataclasses with the same fields compare equal, and jit may run the code of the
    other ball.
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


def _project(
    sizes: Callable[..., jax.Array],
    eps: ArrayLike,
    v: jax.Array,
    x: jax.Array,
    bounds: Bounds,
) -> jax.Array:
    """The projection of L2 or L1; `sizes` is `_l2_sizes` or `_l1_sizes`."""
    d = flatten_samples(v - x)
    room = flatten_samples(_room(v - x, x, bounds))
    size = sizes(jnp.abs(d), room, per_sample(eps, d))
    return _move(x, jnp.sign(v - x), size.reshape(x.shape), bounds)


def _draw(
    sampler: Callable[..., jax.Array], keys: jax.Array, x: jax.Array
) -> jax.Array:
    """One draw of `sampler` for each pixel: keys [B] to [B, *S]."""
    return jax.vmap(lambda key: sampler(key, x.shape[1:], x.dtype))(keys)


@_register
@dataclasses.dataclass(frozen=True)
class Linf:
    """Every pixel moves by at most ε (in units of the image).

    >>> x = jnp.array([[0.0, 0.5]])
    >>> Linf(0.25).project(x + jnp.array([[-1.0, 1.0]]), x, (0.0, 1.0)).tolist()
    [[0.0, 0.75]]
    """

    eps: Any

    def norm(self, delta: jax.Array) -> jax.Array:
        return jnp.max(jnp.abs(flatten_samples(delta)), axis=1)

    def project(self, v: jax.Array, x: jax.Array, bounds: Bounds) -> jax.Array:
        eps = per_sample(self.eps, x)
        return jnp.clip(jnp.clip(v, x - eps, x + eps), *bounds)

    def sample(
        self, keys: jax.Array, x: jax.Array, bounds: Bounds = (0.0, 1.0)
    ) -> jax.Array:
        del bounds  # no pixel takes from another
        return per_sample(self.eps, x) * (2 * _draw(jax.random.uniform, keys, x) - 1)

    def steepest(self, g: jax.Array, v: jax.Array, bounds: Bounds) -> jax.Array:
        del v, bounds  # the projection undoes what leaves the box
        return jnp.sign(g)


@_register
@dataclasses.dataclass(frozen=True)
class L2:
    """The Euclidean length of the change is at most ε.

    >>> x = jnp.zeros((1, 2))
    >>> L2(5.0).project(jnp.array([[6.0, 8.0]]), x, (0.0, 10.0)).round().tolist()
    [[3.0, 4.0]]
    """

    eps: Any

    def norm(self, delta: jax.Array) -> jax.Array:
        return _length(flatten_samples(delta))[:, 0]

    def project(self, v: jax.Array, x: jax.Array, bounds: Bounds) -> jax.Array:
        return _project(_l2_sizes, self.eps, v, x, bounds)

    def sample(
        self, keys: jax.Array, x: jax.Array, bounds: Bounds = (0.0, 1.0)
    ) -> jax.Array:
        # radius ~ ε U^{1/d}, direction uniform on the sphere
        pairs = jax.vmap(jax.random.split)(keys)
        direction = hold(_draw(jax.random.normal, pairs[:, 0], x), bounds)
        length = _length(flatten_samples(direction))[:, 0]
        uniform = jax.vmap(lambda key: jax.random.uniform(key, (), x.dtype))(
            pairs[:, 1]
        )
        radius = self.eps * uniform ** (1 / free_pixels(x, bounds))
        # one factor: two are rounded in another order where a batch is one sample
        factor = radius / jnp.where(length > 0, length, 1)
        return per_sample(factor, x) * direction

    def steepest(self, g: jax.Array, v: jax.Array, bounds: Bounds) -> jax.Array:
        del v
        return _unit(hold(g, bounds))


@_register
@dataclasses.dataclass(frozen=True)
class L1:
    """The absolute changes of all pixels add up to at most ε.

    The exact steepest step moves one pixel, which is slow. So `steepest` spreads the
    unit step evenly over several pixels: SLIDE, Tramèr & Boneh, NeurIPS 2019. It takes
    those with the largest |g| among the pixels that have room in the box. `density` is
    their share of all pixels, at least one pixel; 0 is the exact steepest step.

    >>> x = jnp.zeros((1, 2))
    >>> L1(2.0).project(jnp.array([[3.0, 1.0]]), x, (0.0, 10.0)).tolist()
    [[2.0, 0.0]]
    >>> L1(2.0, density=1).steepest(jnp.array([[3.0, 1.0]]), x, (0.0, 10.0)).tolist()
    [[0.5, 0.5]]
    """

    eps: Any
    density: float = 0.01

    def norm(self, delta: jax.Array) -> jax.Array:
        return jnp.sum(jnp.abs(flatten_samples(delta)), axis=1)

    def project(self, v: jax.Array, x: jax.Array, bounds: Bounds) -> jax.Array:
        return _project(_l1_sizes, self.eps, v, x, bounds)

    def sample(
        self, keys: jax.Array, x: jax.Array, bounds: Bounds = (0.0, 1.0)
    ) -> jax.Array:
        # |δ_i|/ε = E_i / (E_0 + Σ E_j) with E ~ Exp(1) is uniform on the simplex
        triples = jax.vmap(lambda key: jax.random.split(key, 3))(keys)
        size = hold(_draw(jax.random.exponential, triples[:, 0], x), bounds)
        sign = _draw(jax.random.rademacher, triples[:, 1], x)
        rest = jax.vmap(lambda key: jax.random.exponential(key, (), x.dtype))(
            triples[:, 2]
        )
        total = rest + jnp.sum(flatten_samples(size), axis=1)
        return per_sample(self.eps / total, x) * sign * size

    def steepest(self, g: jax.Array, v: jax.Array, bounds: Bounds) -> jax.Array:
        flat = flatten_samples(g)
        # a pixel that the box stops would take the whole step and lose it
        room = flatten_samples(_room(g, v, bounds))
        size = jnp.where(room > 0, jnp.abs(flat), 0)
        count: Any = free_pixels(g, bounds)
        if isinstance(count, int):
            count = max(1, round(self.density * count))
        else:
            count = jnp.maximum(1, jnp.round(self.density * count))
            count = count.astype(jnp.int32)[:, None]
        least = numerics.threshold(size, numerics.count, count - 1)
        chosen = (size >= least) & (size > 0)
        # argmax breaks ties, so that density = 0 moves one coordinate
        first = jnp.arange(size.shape[1])[None] == jnp.argmax(size, axis=1)[:, None]
        chosen = chosen & (first | (count > 1))
        share = chosen / jnp.maximum(jnp.sum(chosen, axis=1, keepdims=True), 1)
        return (jnp.sign(flat) * share.astype(flat.dtype)).reshape(g.shape)


@_register
@dataclasses.dataclass(frozen=True)
class L0:
    """At most ε coordinates change (channels of a pixel count one by one).

    >>> x = jnp.zeros((1, 3))
    >>> L0(1).project(jnp.array([[3.0, 1.0, 2.0]]), x, (0.0, 10.0)).tolist()
    [[3.0, 0.0, 0.0]]
    """

    eps: Any

    def norm(self, delta: jax.Array) -> jax.Array:
        return jnp.sum(flatten_samples(delta) != 0, axis=1).astype(delta.dtype)

    def project(self, v: jax.Array, x: jax.Array, bounds: Bounds) -> jax.Array:
        inside = jnp.clip(v, *bounds)
        # what moving a coordinate with v takes off the squared distance to v
        saved = flatten_samples((inside - x) * ((v - x) + (v - inside)))
        kept = largest(saved, jnp.asarray(self.eps)).reshape(x.shape)
        return jnp.where(kept, inside, x)


BallType = TypeVar("BallType", bound=Ball | L0)


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
    """Marks the `count` largest values of each row.

    Of equal values the first are taken. Fractions of `count` are dropped.

    >>> largest(jnp.array([[3.0, 1.0, 2.0]]), jnp.array([2])).tolist()
    [[True, False, True]]

    Args:
      values: [B, n].
      count: a number or [B]; where it is more than n, all are marked.

    Returns:
      Bool [B, n].
    """
    whole = jnp.floor(count).astype(jnp.int32)
    whole = jnp.broadcast_to(whole, values.shape[:1])[:, None]
    least = numerics.threshold(values, numerics.count, whole - 1)
    above = values > least
    at = values == least
    left = whole - jnp.sum(above, axis=1, keepdims=True)
    return above | (at & (jnp.cumsum(at, axis=1) <= left))


def _length(flat: jax.Array) -> jax.Array:
    """‖row‖₂ of rows [B, n], as [B, 1]."""
    return jnp.sqrt(jnp.sum(flat * flat, axis=1, keepdims=True))


def _unit(g: jax.Array) -> jax.Array:
    """g / ‖g‖₂ for each sample; 0 for g = 0."""
    flat = flatten_samples(g)
    # dividing by the largest entry first keeps tiny gradients from underflowing
    peak = jnp.max(jnp.abs(flat), axis=1, keepdims=True)
    scaled = flat / jnp.where(peak > 0, peak, 1)
    length = _length(scaled)
    return (scaled / jnp.where(length > 0, length, 1)).reshape(g.shape)


def _move(x: jax.Array, sign: jax.Array, size: jax.Array, bounds: Bounds) -> jax.Array:
    """x + sign · size inside the box, rounded towards x: never farther than `size`."""
    moved = jnp.clip(x + sign * size, *bounds)
    return jnp.where(jnp.abs(moved - x) > size, jnp.nextafter(moved, x), moved)


class _Stopped(NamedTuple):
    """State of the loop of `_l2_sizes`."""

    stopped: jax.Array  # [B, n] bool, pixels at the box
    t: jax.Array  # [B, 1], the solution for the pixels stopped before
    growing: bool | jax.Array


@jax.jit
def _l2_sizes(d: jax.Array, room: jax.Array, eps: jax.Array) -> jax.Array:
    """min(t d, room) for the t ∈ [0, 1] that makes its length ε; t = 1 if it is less.

    The pixels that the box stops are those with t d_i ≥ m_i. Each round solves for t
    with the pixels stopped so far. This t rises to the solution, and the rounds end
    when no more pixels stop, after a handful.

    Args:
      d: [B, n] sizes of the steps wanted, ≥ 0.
      room: [B, n], m.
      eps: ε, broadcasts to [B, 1].

    Returns:
      [B, n].
    """
    eps = jnp.broadcast_to(eps, (d.shape[0], 1))
    nearest = jnp.minimum(d, room)
    inside = _length(nearest) <= eps
    # squares of huge steps would overflow
    peak = jnp.max(d, axis=1, keepdims=True)
    d = d / jnp.where(peak > 0, peak, 1)

    def solve(stopped: jax.Array) -> jax.Array:
        spent = jnp.sum(jnp.where(stopped, room, 0) ** 2, axis=1, keepdims=True)
        free = jnp.sum(jnp.where(stopped, 0, d) ** 2, axis=1, keepdims=True)
        left = jnp.maximum(eps**2 - spent, 0)
        return jnp.sqrt(left / jnp.where(free > 0, free, 1))

    def grow(before: _Stopped) -> _Stopped:
        t = solve(before.stopped)
        stopped = before.stopped | (t * d >= room)
        growing = jnp.any((stopped != before.stopped) & ~inside)
        return _Stopped(stopped, t, growing)

    start = _Stopped(room <= 0, jnp.zeros_like(eps), growing=True)
    t = jax.lax.while_loop(lambda state: state.growing, grow, start).t
    return jnp.where(inside, nearest, jnp.minimum(t * d, nearest))


class _Root(NamedTuple):
    """State of the loop of `_l1_sizes`: α [B, 1] inside its bracket."""

    alpha: jax.Array
    low: jax.Array  # [B, 1], the sum is above ε there
    high: jax.Array  # [B, 1], the sum is at most ε there
    unsettled: jax.Array  # [B, 1] bool
    rounds: int | jax.Array


@jax.jit
def _l1_sizes(d: jax.Array, room: jax.Array, eps: jax.Array) -> jax.Array:
    """clip(d − α, 0, room) for the α ≥ 0 that makes its sum ε; α = 0 if it is less.

    The sum falls piecewise linearly in α. Newton's step is exact once α is on the
    right piece. Before that, a bracket [low, high] that only shrinks makes it safe.

    Args:
      d: [B, n] sizes of the steps wanted, ≥ 0.
      room: [B, n], m.
      eps: ε, broadcasts to [B, 1].

    Returns:
      [B, n].
    """
    eps = jnp.broadcast_to(eps, (d.shape[0], 1))
    rounding = jnp.finfo(d.dtype).eps

    def total(alpha: jax.Array) -> jax.Array:
        return jnp.sum(jnp.clip(d - alpha, 0, room), axis=1, keepdims=True)

    def refine(root: _Root) -> _Root:
        alpha = root.alpha
        above = total(alpha) - eps
        low = jnp.where(above > 0, alpha, root.low)
        high = jnp.where(above > 0, root.high, alpha)
        moving = (d > alpha) & (d - alpha < room)
        slope = jnp.sum(moving, axis=1, keepdims=True).astype(d.dtype)
        newton = alpha + above / jnp.maximum(slope, 1)
        safe = (slope > 0) & (newton > low) & (newton <= high)
        # as near as the rounding of α allows: the last step
        near = jnp.abs(above) <= rounding * (eps + slope * alpha)
        middle = jnp.where(near, alpha, (low + high) / 2)
        proposal = jnp.where(safe, newton, middle)
        moved = root.unsettled & (proposal != alpha) & (above != 0)
        return _Root(
            alpha=jnp.where(moved, proposal, alpha),
            low=low,
            high=high,
            unsettled=moved & ~near,
            rounds=root.rounds + 1,
        )

    def going_on(root: _Root) -> jax.Array:
        return root.unsettled.any() & (root.rounds < _L1_ITERATIONS)

    zero = jnp.zeros((d.shape[0], 1), d.dtype)
    highest = jnp.max(d, axis=1, keepdims=True)
    inside = total(zero) <= eps
    start = _Root(
        alpha=zero,
        low=zero,
        high=jnp.where(inside, 0, highest),
        unsettled=~inside,
        rounds=0,
    )
    alpha = jax.lax.while_loop(going_on, refine, start).alpha
    size = jnp.clip(d - jnp.where(inside, 0, alpha), 0, room)
    # the rounding of α, times the number of pixels, may be more than that of ε
    excess = jnp.sum(size, axis=1, keepdims=True) / jnp.where(eps > 0, eps, 1)
    return jnp.where(eps > 0, size / jnp.maximum(excess, 1), 0)
