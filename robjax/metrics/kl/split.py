"""KL divergence between a model's outputs at two images, and its exact parts.

Shi et al., "Understanding Adversarial Behavior of DNNs by Disentangling Non-Robust
and Robust Components in Performance Metric", arXiv 1906.02494, with the second-order
remainder split once more.

Notation: images x and x' = x + Δ; logits z(x) [K]; p = softmax z(x); J = ∂z/∂x;
F = Jᵀ(diag(p) − ppᵀ)J, the Fisher information of the input;
v = JΔ, the linear change of the logits;
z_lin = z(x) + v, the linearised logits; q_lin = softmax z_lin;
r = z(x') − z_lin, what the network adds to its linearisation;
E and Var, mean and variance under p.

    total   = KL(p ‖ softmax z(x'))
    fisher  = ½ ΔᵀFΔ = ½ Var[v]                  the non-robust component
    softmax = KL(p ‖ q_lin) − fisher             curvature of the log-partition alone
    network = total − KL(p ‖ q_lin)              curvature of the network
    total = fisher + softmax + network           robust component: softmax + network

Each part is computed on its own, from an expression that does not cancel:

    u = v − E[v]       KL_lin = log E[e^u] = log1p(G), G = E[e^u − 1 − u]
    softmax = E[e^u − 1 − u − ½u²] + log1p(G) − G
    network = log E_{q_lin}[e^ρ],  ρ = r − E[r], the sum over q_lin − p and p apart;
              total − KL_lin where some |ρ| > 1

So for a linear network `network` is zero up to the rounding of the logits, however
large the total.

**Rounding.** No formula brings back what the logits have lost. Let each logit of z(x),
v and z(x′) be off by δ, δ_v and δ′ at most. With q = softmax z(x′), to first order that
moves

    total      Σ |q − p| δ′ + Σ p |log p/q − total| δ
    fisher     Σ p |u| δ_v + ½ Σ p |u² − Var u| δ
    softmax    Σ |q_lin − p − p u| δ_v + Σ |q_lin − p − p u − ½p (u² − Var u)| δ
    network    Σ |q − p| δ′ + Σ |q_lin − p| (δ + δ_v) + Σ p |ρ| δ

at most. δ is taken as `_ROUNDINGS` roundings of the largest of the K logits. Then 99 %
of the errors of random networks of up to ten layers are below the estimate, which is
some 20 times their mean (tests/metrics/test_rounding.py).
"""

from collections.abc import Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from robjax.arrays import check_array, check_axis
from robjax.metrics.finite import summary
from robjax.numerics import SMALL_KL, centre, exp_remainder, kl_from_logits
from robjax.samples import is_concrete

# Roundings of the largest logit that any logit may be off by.
_ROUNDINGS = 8
# Errors of logits whose square is forgotten.
_SMALL = 0.1


class _Parts(NamedTuple):
    total: jax.Array
    fisher: jax.Array
    softmax: jax.Array
    network: jax.Array


@jax.tree_util.register_pytree_with_keys_class
class KLComponents(_Parts):
    """The KL divergence and its parts in nats, signed, one number for each pair.

    total = fisher + softmax + network. Where the softmax saturates, `fisher` can exceed
    `total`; then `robust` is negative.

    Attributes:
      total: D_KL(p(·|x) ‖ p(·|x′)).
      fisher: the non-robust component ½ ΔᵀFΔ.
      softmax: the curvature of the log-partition.
      network: the curvature of the network.
      rounding: how far rounding may have moved each of the four, KLComponents of the
        same shape; None if that is not known. It is no field of the tuple, lest four
        parts unpack as five.
    """

    rounding: "KLComponents | None" = None

    def __new__(
        cls,
        total: jax.Array,
        fisher: jax.Array,
        softmax: jax.Array,
        network: jax.Array,
        *,
        rounding: "KLComponents | None" = None,
    ) -> "KLComponents":
        parts = super().__new__(cls, total, fisher, softmax, network)
        parts.rounding = rounding
        return parts

    def tree_flatten_with_keys(self) -> tuple[list[Any], None]:
        keys = map(jax.tree_util.GetAttrKey, (*self._fields, "rounding"))
        return list(zip(keys, (*self, self.rounding), strict=True)), None

    @classmethod
    def tree_unflatten(cls, _: None, children: Iterable[Any]) -> "KLComponents":
        *parts, rounding = children
        return cls(*parts, rounding=rounding)

    def __repr__(self) -> str:
        """Means over the pairs, NaN left out, and rounding where it can be seen."""
        if not all(map(is_known, self)):
            return "KLComponents(traced)"
        lost = np.isnan(np.asarray(self).sum(axis=0))
        off = self.rounding
        if off is None or not all(map(is_known, off)):
            off = np.zeros((4, *lost.shape))
        parts = [
            _in_words(*(np.asarray(each)[~lost] for each in both))
            for both in zip(self, off, strict=True)
        ]
        total, fisher, softmax, network = parts
        left_out = f", {lost.sum()} NaN left out" if lost.any() else ""
        return (
            f"KLComponents({np.count_nonzero(~lost)} pairs{left_out}, mean {total} "
            f"nats = fisher {fisher} + softmax {softmax} + network {network})"
        )

    @property
    def non_robust(self) -> jax.Array:
        """½ ΔᵀFΔ: what the model owes to its local sensitivity."""
        return self.fisher

    @property
    def robust(self) -> jax.Array:
        """All higher orders in Δ: total − ½ ΔᵀFΔ."""
        return self.softmax + self.network


def is_known(value: object) -> bool:
    """Whether something is a number, or an array that has values already.

    >>> is_known(0.5), is_known(np.ones(3)), is_known(None)
    (True, True, False)
    """
    return isinstance(value, int | float | np.number) or is_concrete(value)


def _in_words(values: ArrayLike, rounding: ArrayLike) -> str:
    mean, _ = summary(values, np.mean)
    off, _ = summary(rounding, np.mean)
    return f"{mean:.3g}{rounding_in_words(mean, off)}"


def rounding_in_words(value: float, rounding: float, unit: str = "") -> str:
    """What to add to a number of three digits that rounding may have changed.

    >>> rounding_in_words(4e-5, 3e-4), rounding_in_words(1.0, 3e-4)
    (' ± 0.0003 by rounding', '')
    """
    seen = rounding > 1e-3 * abs(value)
    return f" ± {rounding:.1g}{unit} by rounding" if seen else ""


def split_kl(
    logits: jax.Array, change: jax.Array, logits_prime: jax.Array, axis: int = -1
) -> KLComponents:
    """The parts of the divergence from z(x), v = JΔ and z(x′).

    >>> z = jnp.zeros(2)
    >>> v = jnp.array([1.0, 0.0])
    >>> split_kl(z, v, z + v).network.tolist()  # the change is the linear one
    0.0
    >>> bool(split_kl(z, v, z + 2 * v).network > 0)
    True

    Args:
      logits: z(x); the class axis is `axis`, and the other axes broadcast.
      change: v, how the linearised logits change.
      logits_prime: z(x′).
      axis: the class axis.

    Returns:
      KLComponents without the class axis, in float32 or better.

    Raises:
      ValueError: an argument is no array of numbers, or has no such axis.
    """
    given = {"logits": logits, "change": change, "logits_prime": logits_prime}
    logits, change, logits_prime = (
        check_array(name, value, "[…, K]", finite=False)
        for name, value in given.items()
    )
    axis = check_axis("axis", axis, max(np.ndim(value) for value in given.values()))
    dtype = jnp.promote_types(jnp.result_type(logits, logits_prime), jnp.float32)
    z, v, z_prime = (jnp.asarray(a, dtype) for a in (logits, change, logits_prime))
    log_p = jax.nn.log_softmax(z, axis)
    p = jnp.exp(log_p)
    u = centre(v, p, axis)
    rho = centre((z_prime - z) - v, p, axis)
    log_q_lin = jax.nn.log_softmax(log_p + u, axis)
    total = kl_from_logits(z, z_prime, axis)
    fisher = jnp.sum(p * u * u, axis) / 2
    softmax, linear = _softmax_part(p, u, log_p, log_q_lin, fisher, axis)
    log_ratio = u - jnp.expand_dims(linear, axis)
    network = _network_part(p, log_q_lin, log_ratio, rho, total - linear, axis)
    off = [_off_by(jnp.asarray(a), axis) for a in (logits, change, logits_prime)]
    logs = log_p, log_q_lin, jax.nn.log_softmax(z_prime, axis)
    parts = KLComponents(total, fisher, softmax, network)
    rounding = _rounding(*jax.lax.stop_gradient((off, logs, u, rho, parts)), axis)
    return KLComponents(*parts, rounding=rounding)


def _softmax_part(
    p: jax.Array,
    u: jax.Array,
    log_p: jax.Array,
    log_q_lin: jax.Array,
    fisher: jax.Array,
    axis: int,
) -> tuple[jax.Array, jax.Array]:
    """KL(p ‖ q_lin) − fisher, and KL(p ‖ q_lin)."""
    direct = jnp.sum(p * (log_p - log_q_lin), axis, keepdims=True)
    small = jax.lax.stop_gradient(direct) < SMALL_KL
    near = small & (jnp.abs(u) < 1)
    u_near = jnp.where(near, u, 0)
    u_far = jnp.where(small, u, 0)
    # p e^u = q_lin e^KL
    p_exp_u = jnp.exp(jnp.where(small, log_q_lin + direct, 0))
    far = p_exp_u - p * (1 + u_far)  # p (e^u − 1 − u)
    third = jnp.where(near, p * exp_remainder(u_near, 3), far - p * u_far * u_far / 2)
    second = jnp.where(near, third + p * u_near * u_near / 2, far)
    third, second = (jnp.sum(jnp.where(small, a, 0), axis) for a in (third, second))
    small = jnp.squeeze(small, axis)
    direct = jnp.squeeze(direct, axis)
    # log1p(G) − G = −(e^KL − 1 − KL)
    linear = jnp.log1p(second)
    softmax = jnp.where(small, third - exp_remainder(linear, 2), direct - fisher)
    return softmax, jnp.where(small, linear, direct)


def _network_part(
    p: jax.Array,
    log_q_lin: jax.Array,
    log_ratio: jax.Array,
    rho: jax.Array,
    difference: jax.Array,
    axis: int,
) -> jax.Array:
    """log E_{q_lin}[e^ρ]; `log_ratio` is log q_lin / p, `difference` total − KL_lin."""
    q_lin = jnp.exp(log_q_lin)
    size = jnp.max(jnp.abs(jax.lax.stop_gradient(rho)), axis, keepdims=True)
    small = size < 1
    near = small & (jnp.abs(log_ratio) < 1)
    moved = jnp.where(near, p * jnp.expm1(jnp.where(near, log_ratio, 0)), q_lin - p)
    rho = jnp.where(small, rho, 0)
    # E_q[e^ρ − 1] with E_p[ρ] = 0 taken off, lest the first order cancels
    excess = jnp.sum(moved * rho + q_lin * exp_remainder(rho, 2), axis)
    return jnp.where(jnp.squeeze(small, axis), jnp.log1p(excess), difference)


def _off_by(logits: jax.Array, axis: int) -> jax.Array:
    """How far each of the logits may be off, without the class axis."""
    largest = jnp.max(jnp.abs(logits), axis)
    return _ROUNDINGS * jnp.finfo(logits.dtype).eps * largest.astype(jnp.float32)


def _rounding(
    off: list[jax.Array],
    logs: tuple[jax.Array, jax.Array, jax.Array],
    u: jax.Array,
    rho: jax.Array,
    parts: KLComponents,
    axis: int,
) -> KLComponents:
    """The module's formulas; `off` is δ, δ_v, δ′ and `logs` log p, log q_lin, log q."""

    def size(terms: jax.Array) -> jax.Array:
        return jnp.sum(jnp.abs(terms), axis)

    log_p, _, log_q = logs
    p, q_lin, q = map(jnp.exp, logs)
    delta, delta_v, delta_prime = off
    total, fisher, softmax, linear = (
        jnp.expand_dims(part, axis)
        for part in (
            parts.total,
            parts.fisher,
            parts.softmax,
            parts.total - parts.network,
        )
    )
    square = u * u
    variation = p * (square / 2 - fisher)
    second = q_lin - p - p * u
    third = second - variation
    # where these cancel, what |e^(u − L) − 1 − u| is at most, and what is left of it
    near = (jnp.abs(u) < 1) & (linear < 1)
    second = jnp.where(near, p * (square / 2 + linear), second)
    rest = jnp.abs(u) * (square / 4 + linear) + linear * linear + jnp.abs(softmax)
    third = jnp.where(near, p * rest, third)
    # the first order knows nothing where δ is of the order of 1
    lost = jnp.maximum(delta + delta_v + delta_prime - _SMALL, 0)
    lost = lost * jnp.minimum(lost / 2, 2) * size(p * (1 - p))
    ahead = size(q - p) * delta_prime + lost
    change = p * (log_p - log_q - total)
    return KLComponents(
        total=ahead + size(change) * delta,
        fisher=size(p * u) * delta_v + size(variation) * delta,
        softmax=size(second) * delta_v + size(third) * delta,
        network=ahead + size(q_lin - p) * (delta + delta_v) + size(p * rho) * delta,
    )
