"""The nearest point of a hyperplane inside the box, exactly and without sorting.

A point t lies off the hyperplane {v : ⟨w, v⟩ = b} by the excess c = ⟨w, t⟩ − b. A shift
d leads onto it if ⟨w, d⟩ = −c. The box leaves pixel i the room m_i in the direction
that helps, so |d_i| ≤ m_i. The shift of least norm is (Croce & Hein, "Minimally
distorted adversarial examples with a fast adaptive boundary attack", ICML 2020, eq. 4
and §2.2)

    Linf   |d_i| = min(λ, m_i)
    L2     |d_i| = min(λ |w_i|, m_i)
    L1     |d_i| = m_i where |w_i| > τ, a share of it where |w_i| = τ, else 0
    L0     |d_i| = m_i for the fewest i, of largest |w_i| m_i, that reach the hyperplane

* λ ≥ 0 solves Σ |w_i| |d_i| = |c|. The sum is concave and piecewise linear in λ, so
  Newton's method rises from λ = 0 to the solution. It takes as many rounds as the set
  of used-up pixels grows, a handful.
* τ is a `numerics.threshold`. All pixels with |w_i| = τ use the same share.
* The L0 shift goes beyond the hyperplane, as far as its pixels can.
* If even the whole room is not enough, all of it is used.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax

from robjax import numerics
from robjax.balls import L0, L1, L2, Ball, Linf, largest
from robjax.checks import Bounds

_NEGLIGIBLE = 1e-8


def shift(
    ball: Ball | L0, t: jax.Array, w: jax.Array, c: jax.Array, bounds: Bounds
) -> jax.Array:
    """The shortest way from points t to a hyperplane, inside the box.

    That is the shift d of least norm with ⟨w, d⟩ = −c and t + d in the box.

    >>> t = jnp.array([[0.5, 0.5]])
    >>> w = jnp.array([[1.0, 2.0]])
    >>> shift(L1(1.0), t, w, jnp.array([-0.5]), (0.0, 1.0)).tolist()
    [[0.0, 0.25]]

    Args:
      ball: Linf, L2, L1 or L0; only its norm matters.
      t: [B, n] points inside `bounds`.
      w: [B, n] normals; entries below 1e-8 of the largest count as 0 and do not move.
      c: [B] signed excess ⟨w, t⟩ − b.
      bounds: lowest and highest value, two numbers or two arrays [B, n].

    Returns:
      [B, n], d.
    """
    steepest = jnp.max(jnp.abs(w), axis=1, keepdims=True)
    scale = jnp.where(steepest > 0, steepest, 1)
    w = w / scale
    c = c[:, None] / scale
    w = jnp.where(c >= 0, w, -w)
    size = jnp.where(jnp.abs(w) < _NEGLIGIBLE, 0, jnp.abs(w))
    room = jnp.maximum(jnp.where(w > 0, t - bounds[0], bounds[1] - t), 0)
    room = jnp.where(size > 0, room, 0)
    reach = jnp.sum(size * room, axis=1, keepdims=True)
    need = jnp.minimum(jnp.abs(c), reach)
    if isinstance(ball, L1):
        length = numerics.spend_largest(size, room, size * room, need)
    elif isinstance(ball, L0):
        length = jnp.where(_fewest(size * room, need), room, 0)
    else:
        speed = size if isinstance(ball, L2) else jnp.ones_like(size)
        length = jnp.minimum(_multiplier(size, speed, room, need) * speed, room)
    return -jnp.sign(w) * jnp.where(need < reach, length, room)


def dual_norm(ball: Ball, w: jax.Array) -> jax.Array:
    """How much ⟨w, d⟩ can be with ‖d‖ ≤ 1: the dual norm of w.

    It is the L1 norm of w for Linf, the L2 norm for L2 and the Linf norm for L1.

    >>> w = jnp.array([[3.0, -4.0]])
    >>> [float(dual_norm(ball, w)[0]) for ball in (Linf(1.0), L2(1.0), L1(1.0))]
    [7.0, 5.0, 4.0]

    Args:
      ball: Linf, L2 or L1; only its norm matters.
      w: [B, n].

    Returns:
      [B].
    """
    dual = L1(0.0) if isinstance(ball, Linf) else ball
    return (Linf(0.0) if isinstance(ball, L1) else dual).norm(w)


def _multiplier(
    size: jax.Array, speed: jax.Array, room: jax.Array, need: jax.Array
) -> jax.Array:
    """λ ≥ 0 with Σ size · min(λ speed, room) = need, [B, 1]."""

    def newton(multiplier: jax.Array) -> jax.Array:
        used_up = multiplier * speed >= room
        spent = jnp.sum(jnp.where(used_up, size * room, 0), axis=1, keepdims=True)
        slope = jnp.sum(jnp.where(used_up, 0, size * speed), axis=1, keepdims=True)
        root = (need - spent) / jnp.where(slope > 0, slope, 1)
        return jnp.where(slope > 0, jnp.maximum(multiplier, root), multiplier)

    def rise(carry: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        multiplier, _ = carry
        risen = newton(multiplier)
        return risen, jnp.any(risen > multiplier)

    start = (jnp.zeros_like(need), jnp.array(True))
    return lax.while_loop(lambda carry: carry[1], rise, start)[0]


def _fewest(gain: jax.Array, need: jax.Array) -> jax.Array:
    """The fewest pixels, as bool [B, n], whose gains ≥ 0 [B, n] add up to `need`."""
    total = functools.partial(numerics.chosen_sum, gain)
    least = numerics.threshold(gain, total, need)
    left = need - total(gain > least)
    of_equal = jnp.where(least > 0, jnp.ceil(left / jnp.where(least > 0, least, 1)), 0)
    return largest(gain, (numerics.count(gain > least) + of_equal)[:, 0])
