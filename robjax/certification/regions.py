"""Where an image may be: the intersection of its ball with the box of the pixels.

The minimum of a linear function ⟨Λ, v⟩ over it, with δ = v − x and the room m_i ≥ 0
that the box leaves against the sign of Λ_i,

    Linf   exact: every pixel goes min(ε, m_i)
    L1     exact: pixels spend their room, those of largest |Λ_i| first
    L2     the Lagrange dual, Σ_i min over 0 ≤ d ≤ m_i of d²/(2t) − |Λ_i| d, − ε²/(2t):
           a lower bound for every t > 0, exact at the t that makes the step as long as
           ε; t comes from five rounds of dropping the pixels that the box stops

`robjax.evaluation.verdicts` forgives an attack that leaves the ball by 1e-7 max(1,
|bounds|) (L∞) or 1e-6 ε + 1e-7 (L2, L1). The ball is larger by twice that, which covers
the rounding of its ends, too.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from robjax.balls import L1, Ball, Linf
from robjax.boxes import has_arrays
from robjax.certification.intervals import Interval, roundoff
from robjax.checks import Bounds
from robjax.numerics import spend_largest

_ROUNDS = 5
_FORGIVEN = 2e-7
_SHARE = 2e-6


def total(terms: jax.Array) -> jax.Array:
    """A sum, less what rounding may have added to it.

    >>> float(total(jnp.array([1.0, -1.0]))) < 0
    True
    """
    rounded = roundoff(terms.dtype, terms.size) * jnp.sum(jnp.abs(terms))
    return jnp.sum(terms) - rounded


def least_inner(
    row: jax.Array,
    lower: jax.Array,
    upper: jax.Array,
    error: jax.Array | float = 0.0,
) -> jax.Array:
    """A lower bound of ⟨row, v⟩ for v in [lower, upper], and of what rounding makes it.

    The ends go outwards by m with m ≥ error + ρ (|end| + m), ρ that of a sum. The sums
    themselves are products of matrices once there are many rows.

    >>> row, ends = jnp.array([2.0, -1.0]), jnp.array([[0.0, 1.0], [0.5, 3.0]])
    >>> least = float(least_inner(row, *ends))
    >>> -3.001 < least < -3.0
    True

    Args:
      row: [*S].
      lower, upper: [*S] finite.
      error: [*S] or a number ≥ 0, by which v may leave the interval.
    """
    share = roundoff(row.dtype, row.size)
    low, high = ((error + share * jnp.abs(end)) / (1 - share) for end in (lower, upper))
    positive, negative = jnp.maximum(row, 0), jnp.minimum(row, 0)
    inner = functools.partial(jnp.vdot, precision=lax.Precision.HIGHEST)
    return inner(positive, lower - low) + inner(negative, upper + high)


class Region(NamedTuple):
    """Where one image may be; made by `region`.

    Attributes:
      image: x [*S].
      eps: ε, enlarged.
      kind: Linf, L2 or L1.
      box: the smallest box that holds the region.
    """

    image: jax.Array
    eps: jax.Array
    kind: type[Ball]
    box: Interval

    @property
    def is_box(self) -> bool:
        """Whether the region is the whole box."""
        return self.kind is Linf

    def minimum(self, row: jax.Array) -> jax.Array:
        """A lower bound of ⟨row, v⟩ over the region; exact up to rounding but for L2.

        Args:
          row: [*S].
        """
        lower, upper = self.box
        if self.is_box:
            return least_inner(row, lower, upper)
        size = jnp.abs(row).reshape(1, -1)
        room = jnp.where(row > 0, self.image - lower, upper - self.image)
        room = room.reshape(1, -1)
        gain = _l1_gain if self.kind is L1 else _l2_gain
        return total(row * self.image) + total(gain(size, room, self.eps)[0])


def region(
    image: jax.Array, eps: jax.Array, kind: type[Ball], bounds: Bounds
) -> Region:
    """The region around one image.

    >>> found = region(jnp.array([0.9, 0.5]), jnp.array(0.25), Linf, (0.0, 1.0))
    >>> [round(end, 3) for end in found.box.upper.tolist()]
    [1.0, 0.75]

    Args:
      image: [*S].
      eps: ε.
      kind: Linf, L2 or L1.
      bounds: lowest and highest pixel value, two numbers or two arrays [*S].
    """
    ends = [jnp.max(jnp.abs(end)) if has_arrays(bounds) else abs(end) for end in bounds]
    scale = functools.reduce(jnp.maximum, ends, 1.0) if kind is Linf else 1.0
    eps = eps * (1 + (0.0 if kind is Linf else _SHARE)) + _FORGIVEN * scale
    lower = jnp.clip(image - eps, *bounds)
    upper = jnp.clip(image + eps, *bounds)
    return Region(image, eps, kind, Interval(lower, upper))


def _l1_gain(size: jax.Array, room: jax.Array, eps: jax.Array) -> jax.Array:
    """What each pixel takes off ⟨Λ, x⟩ in L1, ≤ 0; [1, n]."""
    spent = spend_largest(size, room, room, eps.reshape(1, 1))
    return -size * lax.stop_gradient(spent)  # the best does not change with it


def _l2_gain(size: jax.Array, room: jax.Array, eps: jax.Array) -> jax.Array:
    """What each pixel takes off ⟨Λ, x⟩ in L2 by the dual, and its share of −ε²/2t."""
    tiny = jnp.finfo(size.dtype).tiny
    stopped = room <= 0
    t = jnp.zeros((1, 1), size.dtype)
    for _ in range(_ROUNDS):
        spent = jnp.sum(jnp.where(stopped, room, 0) ** 2, axis=1, keepdims=True)
        free = jnp.sum(jnp.where(stopped, 0, size) ** 2, axis=1, keepdims=True)
        left = jnp.maximum(eps**2 - spent, 0)
        t = jnp.sqrt(left / jnp.maximum(free, tiny))
        stopped = stopped | (t * size >= room)
    t = lax.stop_gradient(jnp.maximum(t, tiny))  # the best does not change with it
    step = jnp.minimum(t * size, room)
    dual = step * (step / t / 2 - size) - eps**2 / t / 2 / size.size
    # the box alone bounds it, too, and holds where t has no meaning
    box = -size * room
    return jnp.where(jnp.sum(dual) > jnp.sum(box), dual, box)
