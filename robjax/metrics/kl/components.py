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
    network = log E_{q_lin}[e^ρ],  ρ = r − E[r], the sum over q_lin − p and p apart

So for a linear network `network` is zero up to the rounding of the logits, however
large the total.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from robjax import lowering
from robjax.checks import check_images, check_labels, check_logits
from robjax.model import LogitsFn, as_logits_fn
from robjax.numerics import (
    SMALL_KL,
    centre,
    exp_remainder,
    kl_from_logits,
    map_batched,
)
from robjax.samples import is_concrete
from robjax.traced import TracedCallable

# Pairs per pass on a CPU, where activations that stay in the cache halve the time.
_CPU_CHUNK = 32
# Passes per turn of the loop, so that XLA can overlap them.
_CPU_UNROLL = 4


class KLComponents(NamedTuple):
    """The KL divergence and its parts in nats, signed, one number for each pair.

    total = fisher + softmax + network. Where the softmax saturates, `fisher` can exceed
    `total`; then `robust` is negative.

    Attributes:
      total: D_KL(p(·|x) ‖ p(·|x′)).
      fisher: the non-robust component ½ ΔᵀFΔ.
      softmax: the curvature of the log-partition.
      network: the curvature of the network.
    """

    total: jax.Array
    fisher: jax.Array
    softmax: jax.Array
    network: jax.Array

    def __repr__(self) -> str:
        """Means over the pairs, NaN left out; not the arrays."""
        if not all(map(is_known, self)):
            return "KLComponents(traced)"
        pairs = np.count_nonzero(~np.isnan(self.total))
        total, fisher, softmax, network = (
            f"{_mean_known(np.asarray(part)):.3g}" for part in self
        )
        return (
            f"KLComponents({pairs} pairs, mean {total} nats = fisher {fisher} + "
            f"softmax {softmax} + network {network})"
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


def _mean_known(values: np.ndarray) -> float:
    """Mean of the entries that are not NaN; NaN if all are."""
    known = values[~np.isnan(values)]
    return float(np.mean(known)) if known.size else float("nan")


def kl_components(
    logits_fn: LogitsFn, x: jax.Array, x_prime: jax.Array
) -> KLComponents:
    """Splits D_KL(p(·|x) ‖ p(·|x′)) pair by pair; see the module's docstring.

    Costs one `jax.jvp` at x and one forward pass at x′: three forward passes.

    Source: arXiv 1906.02494, section 3 (fisher and the remainder); the split of the
    remainder is this library's.

    From p = (½, ½) to (¾, ¼) the divergence is ½ log 4/3, and ½ Var[v] = ⅛ (log 3)²:

    >>> x = jnp.zeros((1, 2))
    >>> parts = kl_components(lambda x: x, x, x.at[0, 0].set(jnp.log(3)))
    >>> parts
    KLComponents(1 pairs, mean 0.144 nats = fisher 0.151 + softmax -0.00703 + network 0)
    >>> parts.network.tolist()  # the network is linear
    [0.0]

    Args:
      logits_fn: images [B, *S] -> logits [B, K].
      x: [B, *S] reference images.
      x_prime: [B, *S] images compared with them.

    Returns:
      KLComponents of arrays [B].

    Raises:
      ValueError: an image array is not floating or not finite, or shapes differ.
    """
    x, x_prime = _check_pair(x, x_prime)
    return _kl_components(as_logits_fn(logits_fn), x, x_prime)


def _check_pair(x: object, x_prime: object) -> tuple[jax.Array, jax.Array]:
    x = check_images(x)
    x_prime = check_images(x_prime, name="x_prime")
    if x_prime.shape != x.shape:
        raise ValueError(
            f"x_prime must have the shape of x, {x.shape}, got {x_prime.shape}"
        )
    return x, x_prime


def kl_path(
    logits_fn: LogitsFn, x: jax.Array, x_prime: jax.Array, times: ArrayLike
) -> KLComponents:
    """Splits D_KL(p(·|x) ‖ p(·|x + tΔ)), Δ = x′ − x, for several t.

    The Fisher part is t² times that of `kl_components`. Where the robust parts take
    over, the second order has ceased to describe the network. Costs one `jax.jvp` at x
    and one forward pass for each t.

    >>> x = jnp.zeros((1, 2))
    >>> path = kl_path(lambda x: x, x, x.at[0, 0].set(1.0), jnp.array([0.5, 1.0]))
    >>> bool(jnp.allclose(path.fisher[0], path.fisher[1] / 4))
    True

    Args:
      logits_fn, x, x_prime: as in `kl_components`.
      times: [T] values of t, in [0, 1] between x and x′.

    Returns:
      KLComponents of arrays [T, B].

    Raises:
      ValueError: as in `kl_components`, or `times` not a finite vector.
    """
    x, x_prime = _check_pair(x, x_prime)
    times = jnp.asarray(times, x.dtype)
    if times.ndim != 1:
        raise ValueError(f"times must be a vector, got shape {times.shape}")
    if is_concrete(times) and not np.isfinite(times).all():
        raise ValueError(f"times must be finite, got {times}")
    return _kl_path(as_logits_fn(logits_fn), x, x_prime, times)


@jax.jit
def _kl_path(
    logits_fn: TracedCallable, x: jax.Array, x_prime: jax.Array, times: jax.Array
) -> KLComponents:
    def path(x, x_prime):
        delta = x_prime - x
        logits, change = jax.jvp(logits_fn, (x,), (delta,))
        check_logits(logits, x.shape[0])

        def at(t):
            return split_kl(logits, t * change, logits_fn(x + t * delta))

        return jax.lax.map(at, times)

    return lowering.fast(path, forward=True)(x, x_prime)


def kl_to_class_means(logits_fn: LogitsFn, x: jax.Array, y: ArrayLike) -> KLComponents:
    """Splits D_KL(p(·|x) ‖ p(·|μ_c)) for the mean image μ_c of every class c.

    Costs three forward passes for each class that has images.

    >>> x = jnp.array([[0.0, 0.0], [1.0, 0.0]])
    >>> parts = kl_to_class_means(lambda x: x, x, jnp.array([0, 2]))
    >>> np.asarray(parts.total, float).round(2).tolist()  # class 1 has no image
    [[0.0, nan, 0.12], [0.11, nan, 0.0]]

    Args:
      logits_fn, x: as in `kl_components`; the means are those of x itself.
      y: [B] integer labels.

    Returns:
      KLComponents of arrays [B, C], C the highest label + 1; NaN for a class without
      images.

    Raises:
      ValueError: images not floating or not finite, labels not integer or not [B].
    """
    x = check_images(x)
    labels = np.asarray(check_labels(y, x.shape[0]))
    columns = {}
    for c in np.unique(labels):
        mean = jnp.mean(x[labels == c], axis=0, keepdims=True)
        columns[c] = kl_components(logits_fn, x, jnp.broadcast_to(mean, x.shape))
    first = columns[labels[0]]
    missing = jax.tree.map(lambda part: jnp.full_like(part, jnp.nan), first)
    every = [columns.get(c, missing) for c in range(labels.max() + 1)]
    return jax.tree.map(lambda *parts: jnp.stack(parts, axis=1), *every)


@jax.jit
def _kl_components(
    logits_fn: TracedCallable, x: jax.Array, x_prime: jax.Array
) -> KLComponents:
    def logits_and_change(x, x_prime):
        z, change = jax.jvp(logits_fn, (x,), (x_prime - x,))
        return z, change, logits_fn(x_prime)

    # "forward": a tangent runs through the layers as the values do
    fast = lowering.fast(logits_and_change, forward=True)
    chunk = _CPU_CHUNK if jax.default_backend() == "cpu" else x.shape[0]
    logits, change, logits_prime = map_batched(
        lambda pair: fast(*pair), (x, x_prime), chunk, unroll=_CPU_UNROLL
    )
    check_logits(logits, x.shape[0])
    return split_kl(logits, change, logits_prime)


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
    """
    dtype = jnp.promote_types(jnp.result_type(logits, logits_prime), jnp.float32)
    z, v, z_prime = (jnp.asarray(a, dtype) for a in (logits, change, logits_prime))
    log_p = jax.nn.log_softmax(z, axis)
    p = jnp.exp(log_p)
    u = centre(v, p, axis)
    fisher = jnp.sum(p * u * u, axis) / 2
    log_q = jax.nn.log_softmax(log_p + u, axis)
    softmax = _softmax_part(p, u, log_p, log_q, fisher, axis)
    kl_lin = jnp.expand_dims(fisher + softmax, axis)
    network = _network_part(p, log_q, u - kl_lin, (z_prime - z) - v, axis)
    total = kl_from_logits(z, z_prime, axis)
    return KLComponents(total=total, fisher=fisher, softmax=softmax, network=network)


def _softmax_part(
    p: jax.Array,
    u: jax.Array,
    log_p: jax.Array,
    log_q: jax.Array,
    fisher: jax.Array,
    axis: int,
) -> jax.Array:
    """KL(p ‖ q_lin) − fisher; `log_q` is log q_lin."""
    direct = jnp.sum(p * (log_p - log_q), axis, keepdims=True)
    small = jax.lax.stop_gradient(direct) < SMALL_KL
    near = small & (jnp.abs(u) < 1)
    u_near = jnp.where(near, u, 0)
    u_far = jnp.where(small, u, 0)
    p_exp_u = jnp.exp(jnp.where(small, log_q + direct, 0))  # p e^u = q_lin e^KL
    third = jnp.where(
        near,
        p * exp_remainder(u_near, 3),
        p_exp_u - p * (1 + u_far + u_far * u_far / 2),
    )
    third = jnp.sum(jnp.where(small, third, 0), axis)
    small = jnp.squeeze(small, axis)
    direct = jnp.squeeze(direct, axis)
    # log1p(G) − G = −(e^KL − 1 − KL)
    kl_lin = jnp.log1p(jnp.where(small, third + fisher, 0))
    return jnp.where(small, third - exp_remainder(kl_lin, 2), direct - fisher)


def _network_part(
    p: jax.Array, log_q: jax.Array, log_ratio: jax.Array, r: jax.Array, axis: int
) -> jax.Array:
    """log E_{q_lin}[e^ρ]; `log_q` is log q_lin, `log_ratio` log q_lin / p."""
    q = jnp.exp(log_q)
    rho = centre(r, p, axis)
    size = jnp.max(jnp.abs(jax.lax.stop_gradient(rho)), axis, keepdims=True)
    small = size < 1
    near = small & (jnp.abs(log_ratio) < 1)
    q_minus_p = jnp.where(near, p * jnp.expm1(jnp.where(near, log_ratio, 0)), q - p)
    rho_near = jnp.where(small, rho, 0)
    # E_q[e^ρ − 1] with E_p[ρ] = 0 taken off, lest the first order cancels
    excess = jnp.sum(q_minus_p * rho_near + q * exp_remainder(rho_near, 2), axis)
    small = jnp.squeeze(small, axis)
    excess = jnp.where(small, excess, 0)
    return jnp.where(small, jnp.log1p(excess), jax.nn.logsumexp(log_q + rho, axis))
