"""Losses of single samples, to be *maximised*: logits [B, K] and labels [B] to [B].

z = logits, y = label, t = target; z_(1) ≥ z_(2) ≥ … the sorted logits.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from robjax.arrays import check_array, check_classes
from robjax.checks import check_range
from robjax.numerics import kl_from_logits as kl

__all__ = [
    "Loss",
    "cross_entropy",
    "dlr",
    "kl",
    "log_odds",
    "margin",
    "misclassified",
    "smoothed_cross_entropy",
    "targeted_dlr",
]

Loss = Callable[..., jax.Array]
"""(logits [B, K], labels [B]) -> losses [B]; targeted losses take targets [B], too."""

_TINY = 1e-12


def _check(
    logits: Any, labels: Any, *, least: int = 2, name: str = "labels"
) -> tuple[Any, Any]:
    """Checks logits [B, K], K ≥ `least`, which may be NaN, and labels [B] below K."""
    kinds = (jnp.floating,)
    logits = check_array("logits", logits, "[B, K]", kinds=kinds, finite=False)
    batch_size, classes = logits.shape
    if classes < least:
        raise ValueError(f"logits must have at least {least} classes, got {classes}")
    return logits, check_classes(name, labels, batch_size, classes)


def _at(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """z_y, [B]."""
    return jnp.take_along_axis(logits, labels[:, None], axis=1)[:, 0]


def cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """The negative log-probability of the label, in nats.

    −log softmax(z)_y = softplus(m) with m of `log_odds`. The textbook form
    logsumexp z − z_y would not do: in float32 it and its gradient round to 0 where z_y
    is 17 above the other logits.

    >>> z = jnp.array([[2.0, 2.0]])
    >>> jnp.allclose(cross_entropy(z, jnp.array([0])), jnp.log(2.0)).item()
    True
    """
    return jax.nn.softplus(log_odds(logits, labels))


def smoothed_cross_entropy(
    logits: jax.Array, labels: jax.Array, *, amount: float = 0.1
) -> jax.Array:
    """The cross-entropy of labels that are smoothed, for training.

    (1 − a) CE(z, y) + a/K Σ_k CE(z, k): the label has the probability 1 − a + a/K and
    every other class a/K. Szegedy et al., "Rethinking the inception architecture for
    computer vision", CVPR 2016, section 7.

    >>> z = jnp.array([[2.0, 2.0]])
    >>> loss = smoothed_cross_entropy(z, jnp.array([0]), amount=0.5)
    >>> jnp.allclose(loss, jnp.log(2.0)).item()
    True

    Args:
      logits: [B, K].
      labels: [B].
      amount: a, from 0 to 1.
    """
    logits, labels = _check(logits, labels)
    check_range("amount", amount, 0, 1)
    every = -jnp.mean(jax.nn.log_softmax(logits), axis=1)
    return (1 - amount) * cross_entropy(logits, labels) + amount * every


def log_odds(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """The log-odds against the label: m = log Σ_{k≠y} e^{z_k} − z_y.

    It rises with the cross-entropy, and its gradient never vanishes by rounding.

    >>> log_odds(jnp.array([[5.0, 2.0]]), jnp.array([0])).tolist()
    [-3.0]
    """
    logits, labels = _check(logits, labels)
    is_label = jnp.arange(logits.shape[1])[None] == labels[:, None]
    others = jax.nn.logsumexp(jnp.where(is_label, -jnp.inf, logits), axis=1)
    return others - _at(logits, labels)


def misclassified(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Whether a class other than the label has the largest logit, bool [B].

    A sample with a logit that is NaN or +inf counts as misclassified, too.

    >>> z = jnp.array([[5.0, 2.0], [5.0, jnp.nan]])
    >>> misclassified(z, jnp.array([0, 0])).tolist()
    [False, True]
    """
    logits, labels = _check(logits, labels)
    # of logits with NaN, argmax is the first NaN, which may be at the label
    known = (logits < jnp.inf).all(axis=1)
    return ~known | (jnp.argmax(logits, axis=1) != labels)


def margin(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """By how much another class beats the label: max_{i≠y} z_i − z_y.

    It is positive exactly where the sample is misclassified.

    Carlini & Wagner, "Towards evaluating the robustness of neural networks", 2017,
    f_6 with κ = ∞ and the sign of a loss to be maximised.

    >>> margin(jnp.array([[5.0, 2.0, 1.0]]), jnp.array([0])).tolist()
    [-3.0]
    """
    logits, labels = _check(logits, labels)
    is_label = jnp.arange(logits.shape[1])[None] == labels[:, None]
    others = jnp.max(jnp.where(is_label, -jnp.inf, logits), axis=1)
    return others - _at(logits, labels)


def dlr(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Difference of logits ratio: (max_{i≠y} z_i − z_y) / (z_(1) − z_(3)), K ≥ 3.

    It is invariant to shift and scale of the logits. Croce & Hein, ICML 2020, eq. 6.

    >>> dlr(jnp.array([[5.0, 2.0, 1.0]]), jnp.array([0])).tolist()
    [-0.75]

    Raises:
      ValueError: fewer than 3 classes.
    """
    logits, labels = _check(logits, labels, least=3)
    top = jax.lax.top_k(logits, 3)[0]
    return margin(logits, labels) / (top[:, 0] - top[:, 2] + _TINY)


def targeted_dlr(logits: jax.Array, labels: jax.Array, targets: jax.Array) -> jax.Array:
    """The `dlr` loss towards a target class, for K ≥ 4.

    (z_t − z_y) / (z_(1) − ½(z_(3) + z_(4))). Croce & Hein, ICML 2020, eq. 7.

    >>> z = jnp.array([[5.0, 2.0, 1.0, 1.0]])
    >>> targeted_dlr(z, labels=jnp.array([0]), targets=jnp.array([1])).tolist()
    [-0.75]

    Raises:
      ValueError: fewer than 4 classes.
    """
    logits, labels = _check(logits, labels, least=4)
    logits, targets = _check(logits, targets, least=4, name="targets")
    top = jax.lax.top_k(logits, 4)[0]
    spread = top[:, 0] - 0.5 * (top[:, 2] + top[:, 3]) + _TINY
    return (_at(logits, targets) - _at(logits, labels)) / spread
