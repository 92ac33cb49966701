"""The nearest change of an image that an oracle takes for a given one."""

import jax
import jax.numpy as jnp
from jax import lax

_SHARES = (1.0, 0.5, 0.1)  # of a Newton step that are tried


def nearest(
    v: jax.Array,
    target: jax.Array,
    basis: jax.Array,
    low: jax.Array,
    high: jax.Array,
    *,
    rounds: int,
) -> jax.Array:
    """argmin ‖r − v‖₂ over Q r = target and low ≤ r ≤ high.

    r(λ) = clip(v − Qᵀλ, low, high) for the λ with Q r(λ) = target: R equations that are
    piecewise linear and monotone. Newton's method takes the pixels inside the bounds as
    free. Of the whole step, parts of it and the step Q r(λ) − target, the one with the
    least residual is taken; the last of them never makes the residual larger.

    >>> basis = jnp.array([[0.6, 0.8]])
    >>> low, high = jnp.array([-1.0, 0.0]), jnp.array([1.0, 1.0])
    >>> r = nearest(jnp.array([2.0, 0.5]), jnp.zeros(1), basis, low, high, rounds=9)
    >>> jnp.abs(r).max().item() < 1e-6  # Q r = 0 leaves no room: r = 0
    True

    Args:
      v: [n]; where it is far outside the bounds, many rounds are needed.
      target: [R], reached by some r inside the bounds.
      basis: [R, n] Q, rows orthonormal or 0.
      low, high: [n].
      rounds: at most so many steps; fewer where the residual is at its rounding.

    Returns:
      r [n], inside the bounds; Q r = target up to what the rounds leave.
    """
    rounding = 32 * jnp.finfo(v.dtype).eps

    def at(multipliers: jax.Array) -> tuple[jax.Array, jax.Array]:
        r = jnp.clip(v - multipliers @ basis, low, high)
        return r, jnp.matmul(basis, r, precision="highest") - target

    def size(values: jax.Array) -> jax.Array:
        return jnp.max(jnp.abs(values))

    def going_on(state: tuple[jax.Array, ...]) -> jax.Array:
        i, _, r, residual = state
        least = rounding * jnp.maximum(size(r), size(target))
        return (i < rounds) & (size(residual) > least)

    def newton(state: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        i, multipliers, r, residual = state
        free = (r > low) & (r < high)
        slope = jnp.matmul(basis * free[None], basis.T, precision="highest")
        slope = slope + rounding * jnp.eye(len(basis), dtype=v.dtype)
        way = jax.scipy.linalg.cho_solve((jnp.linalg.cholesky(slope), True), residual)
        shares = jnp.asarray(_SHARES, v.dtype)
        ways = jnp.concatenate([shares[:, None] * way[None], residual[None]])
        tried = multipliers[None] + ways
        left = jax.vmap(lambda each: jnp.sum(at(each)[1] ** 2))(tried)
        # a slope that is singular up to rounding may have no Cholesky factor
        multipliers = tried[jnp.argmin(jnp.where(jnp.isnan(left), jnp.inf, left))]
        return (i + 1, multipliers, *at(multipliers))

    start = jnp.zeros_like(target)
    return lax.while_loop(going_on, newton, (jnp.array(0), start, *at(start)))[2]
