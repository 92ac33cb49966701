"""Objectives that penalise the Fisher information F of the input itself.

F = AᵀA as in `robjax.metrics.fisher`. The rows of A (K×d) are √p_k ∇_x log p_k, p the
softmax of the logits. Inside F batch norm uses its running statistics, as when the
network is attacked, so that each image has its own F.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax.tree_util import Partial

from robjax import losses
from robjax.checks import check_count, check_number
from robjax.metrics import fisher
from robjax.numerics import centre, safe_norm
from robjax.training.objectives.network import Network, Outcome, check_call, correct


def fisher_trace(
    network: Network,
    images: jax.Array,
    labels: jax.Array,
    *,
    keys: jax.Array,
    strength: jax.Array | float,
    weight: float = 0.1,
) -> Outcome:
    """Cross-entropy plus the trace of the Fisher information.

    CE(x, y) + weight · trace F(x) with trace F = Σ_k p_k ‖∇_x log p_k‖². Shen et al.,
    "Defending against adversarial attacks by suppressing the largest eigenvalue of
    Fisher information matrix", arXiv 1909.06137. It takes K backward passes and their
    gradient. Logs "accuracy" and "trace" (nats per squared unit).

    >>> from robjax.training.objectives.network import tiny_problem
    >>> network, images, labels, keys = tiny_problem()  # two logits, the pixels
    >>> metrics = fisher_trace(network, images, labels, keys=keys, strength=1.0)[1]
    >>> p = jax.nn.softmax(images)[0]
    >>> bool(jnp.allclose(metrics["trace"], 2 * p[0] * p[1]))
    True

    Args:
      network, images, labels, keys: as in every objective.
      strength: scales the penalty.
      weight: of the penalty, in squared units of the image.
    """
    check_call(network, images, labels, keys=keys, strength=strength)
    check_number("weight", weight, minimum=0)
    del keys
    rows = fisher.gram_rows(network.inference(), images)
    logits, network = network.train(images)
    trace = jnp.sum(rows * rows, axis=(1, 2))
    metrics = {"accuracy": correct(logits, labels), "trace": trace}
    penalty = weight * strength * trace
    return losses.cross_entropy(logits, labels) + penalty, metrics, network


def fisher_spectral(
    network: Network,
    images: jax.Array,
    labels: jax.Array,
    *,
    keys: jax.Array,
    strength: jax.Array | float,
    eps: float = 0.5,
    weight: float = 1.0,
    power_steps: int | None = None,
) -> Outcome:
    """Cross-entropy plus the worst KL divergence within ‖δ‖₂ ≤ ε.

    CE(x, y) + weight · ½ε² λ_max(F(x)), which is that divergence to second order in ε
    (`robjax.metrics.fisher`). λ_max = ‖Aᵀu‖² for the leading unit eigenvector u of AAᵀ.
    u is held constant; the gradient of a simple λ_max is exact all the same. Logs
    "accuracy" and "spectral" (λ_max, nats per squared unit).

    >>> from robjax.training.objectives.network import tiny_problem
    >>> network, images, labels, keys = tiny_problem()  # F has rank 1: its trace
    >>> metrics = fisher_spectral(network, images, labels, keys=keys, strength=1.0)[1]
    >>> p = jax.nn.softmax(images)[0]
    >>> bool(jnp.allclose(metrics["spectral"], 2 * p[0] * p[1]))
    True

    Args:
      network, images, labels, keys: as in every objective.
      strength: scales `eps`.
      eps: radius ε in the units of the image, at full strength.
      weight: of the penalty.
      power_steps: None finds u from the K×K matrix AAᵀ, by K backward passes. A number
        takes that many steps u ← A(Aᵀu) / ‖·‖ from a random start, each of one backward
        and one forward-mode pass; λ_max is then approached from below.
    """
    check_call(network, images, labels, keys=keys, strength=strength)
    check_number("eps", eps, minimum=0)
    check_number("weight", weight, minimum=0)
    if power_steps is not None:
        check_count("power_steps", power_steps)
    logits_fn = network.inference()
    if power_steps is None:
        spectral = _by_eigenvectors(logits_fn, images)
    else:
        spectral = _by_power_iteration(logits_fn, images, keys, power_steps)
    logits, network = network.train(images)
    metrics = {"accuracy": correct(logits, labels), "spectral": spectral}
    penalty = weight * (eps * strength) ** 2 / 2 * spectral
    return losses.cross_entropy(logits, labels) + penalty, metrics, network


def _by_eigenvectors(logits_fn: Partial, images: jax.Array) -> jax.Array:
    """λ_max [B] from all rows of A."""
    rows = fisher.gram_rows(logits_fn, images)
    fixed = jax.lax.stop_gradient(rows)
    gram = jnp.einsum("bkd,bld->bkl", fixed, fixed, precision="highest")
    u = jnp.linalg.eigh(gram)[1][:, :, -1]
    direction = jnp.einsum("bkd,bk->bd", rows, u, precision="highest")
    return jnp.sum(direction * direction, axis=1)


def _by_power_iteration(
    logits_fn: Partial, images: jax.Array, keys: jax.Array, steps: int
) -> jax.Array:
    """λ_max [B] from products with A and Aᵀ."""
    constant = jax.lax.stop_gradient(logits_fn)
    logits, push = jax.linearize(constant, images)
    pull = jax.linear_transpose(push, images)
    p, root = fisher.probabilities(logits)

    def to_logits(u: jax.Array, root: jax.Array) -> jax.Array:
        """The cotangent of the logits whose pull-back is Aᵀu."""
        return root * (u - root * jnp.sum(root * u, axis=1, keepdims=True))

    def unit(u: jax.Array) -> jax.Array:
        length = safe_norm(u, 1)[:, None]
        return u / jnp.where(length > 0, length, 1)

    def step(_: Any, u: jax.Array) -> jax.Array:
        (gradient,) = pull(to_logits(u, root))
        return unit(root * centre(push(gradient), p))

    def draw(key: jax.Array) -> jax.Array:
        return jax.random.normal(key, logits.shape[1:], logits.dtype)

    u = jax.lax.fori_loop(0, steps, step, unit(jax.vmap(draw)(keys)))
    logits, pull = jax.vjp(logits_fn, images)
    (direction,) = pull(to_logits(u, fisher.probabilities(logits)[1]))
    return jnp.sum(direction**2, axis=tuple(range(1, images.ndim)))
