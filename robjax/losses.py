"""Losses of one sample: logits [B, K] and labels [B] to [B], to be *maximised*.

z = logits, y = label, z_(1) ≥ z_(2) ≥ … the sorted logits.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from robjax.numerics import kl_from_logits as kl

__all__ = [
    "Loss",
    "cross_entropy",
    "dlr",
    "kl",
    "log_odds",
    "margin",
    "misclassified",
    "targeted_dlr",
]

Loss = Callable[..., jax.Array]
"""(logits [B, K], labels [B]) -> losses [B]; targeted ones take targets [B] too."""

_TINY = 1e-12


def _at(logits: jax.Array, labels: jax.Array) -> jax.Array:
    return jnp.take_along_axis(logits, labels[:, None], axis=1)[:, 0]


def cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """−log softmax(z)_y = softplus(m) with m of `log_odds`, nats.

    (In float32 logsumexp z − z_y and its gradient round to 0 from a gap of 17 on.)
    """
    return jax.nn.softplus(log_odds(logits, labels))


def log_odds(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """m = log Σ_{k≠y} e^{z_k} − z_y, the log-odds against the label.

    Rises with the cross-entropy, and its gradient never vanishes by rounding.
    """
    is_label = jnp.arange(logits.shape[1])[None] == labels[:, None]
    others = jax.nn.logsumexp(jnp.where(is_label, -jnp.inf, logits), axis=1)
    return others - _at(logits, labels)


def misclassified(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Bool [B]: another class is the largest, or a logit is NaN or +inf."""
    # of logits with NaN, argmax is the first NaN, which may be at the label
    known = (logits < jnp.inf).all(axis=1)
    return ~known | (jnp.argmax(logits, axis=1) != labels)


def margin(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """max_{i≠y} z_i − z_y: positive exactly where the sample is misclassified.

    Carlini & Wagner, "Towards evaluating the robustness of neural networks", 2017,
    f_6 with κ = ∞ and the sign of a loss to be maximised.
    """
    is_label = jnp.arange(logits.shape[1])[None] == labels[:, None]
    others = jnp.max(jnp.where(is_label, -jnp.inf, logits), axis=1)
    return others - _at(logits, labels)


def dlr(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Difference of logits ratio: (max_{i≠y} z_i − z_y) / (z_(1) − z_(3)), K ≥ 3.

    Invariant to shift and scale of the logits. Croce & Hein, ICML 2020, eq. 6.
    """
    if logits.shape[1] < 3:
        raise ValueError(f"dlr needs at least 3 classes, got {logits.shape[1]}")
    top = jax.lax.top_k(logits, 3)[0]
    return margin(logits, labels) / (top[:, 0] - top[:, 2] + _TINY)


def targeted_dlr(logits: jax.Array, labels: jax.Array, targets: jax.Array) -> jax.Array:
    """(z_t − z_y) / (z_(1) − ½(z_(3) + z_(4))), K ≥ 4. Croce & Hein 2020, eq. 7."""
    if logits.shape[1] < 4:
        raise ValueError(
            f"targeted_dlr needs at least 4 classes, got {logits.shape[1]}"
        )
    top = jax.lax.top_k(logits, 4)[0]
    spread = top[:, 0] - 0.5 * (top[:, 2] + top[:, 3]) + _TINY
    return (_at(logits, targets) - _at(logits, labels)) / spread
