"""Objectives that hold the predictions of an image and of a perturbed copy together.

    p = softmax of the logits      CE = cross-entropy      n = standard normal noise

The hardening methods of the table in arXiv 1612.00334 that act on the output, and noise
augmentation, the baseline of every method whose perturbation is random.
"""

import jax
import jax.numpy as jnp
from jax.tree_util import Partial

from robjax import losses
from robjax.checks import check_count, check_number
from robjax.metrics import fisher
from robjax.numerics import centre, safe_norm
from robjax.samples import flatten_samples, mask_samples
from robjax.training.objectives.features import noisy
from robjax.training.objectives.network import (
    AttackMode,
    Network,
    Outcome,
    check_call,
    correct,
)

_TINY = 1e-30


def noise_augmentation(
    network: Network,
    images: jax.Array,
    labels: jax.Array,
    *,
    keys: jax.Array,
    strength: jax.Array | float,
    sigma: float = 0.2,
) -> Outcome:
    """CE(x + σn, y), the cross-entropy of noisy images, which are not clipped.

    It takes one forward and one backward pass. Logs "noisy_accuracy".

    >>> from robjax.training.objectives.network import tiny_problem
    >>> network, images, labels, keys = tiny_problem()
    >>> still = {"keys": keys, "strength": 0.0}
    >>> loss, _, _ = noise_augmentation(network, images, labels, **still)
    >>> bool(loss[0] == losses.cross_entropy(images, labels)[0])  # logits = images
    True

    Args:
      network, images, labels, keys: as in every objective.
      strength: scales σ.
      sigma: σ at full strength, in units of the image.

    Raises:
      ValueError: σ is negative.
    """
    check_call(network, images, labels, keys=keys, strength=strength)
    logits, network = network.train(noisy(images, keys, strength, sigma))
    metrics = {"noisy_accuracy": correct(logits, labels)}
    return losses.cross_entropy(logits, labels), metrics, network


def stability(
    network: Network,
    images: jax.Array,
    labels: jax.Array,
    *,
    keys: jax.Array,
    strength: jax.Array | float,
    sigma: float = 0.2,
    alpha: float = 1.0,
) -> Outcome:
    """CE(x, y) + α KL(p(x) ‖ p(x + σn)), stability training.

    Zheng et al., "Improving the robustness of deep neural networks via stability
    training", CVPR 2016 (arXiv 1604.04326). Gradients flow through p(x) and p(x + σn),
    the noisy images are not clipped. It takes two forward and two backward passes; the
    running statistics take up x, then x + σn. Logs "accuracy" and "divergence".

    >>> from robjax.training.objectives.network import tiny_problem
    >>> network, images, labels, keys = tiny_problem()
    >>> metrics = stability(network, images, labels, keys=keys, strength=1.0)[1]
    >>> bool(metrics["divergence"][0] > 0)
    True

    Args:
      network, images, labels, keys: as in every objective.
      strength: scales σ.
      sigma: σ at full strength, in units of the image.
      alpha: α, weight of the divergence.

    Raises:
      ValueError: σ or α is negative.
    """
    check_call(network, images, labels, keys=keys, strength=strength)
    check_number("alpha", alpha, minimum=0)
    moved = noisy(images, keys, strength, sigma)
    natural, network = network.train(images)
    there, network = network.train(moved)
    divergence = losses.kl(natural, there)
    metrics = {"accuracy": correct(natural, labels), "divergence": divergence}
    return losses.cross_entropy(natural, labels) + alpha * divergence, metrics, network


def vat(
    network: Network,
    images: jax.Array,
    labels: jax.Array,
    *,
    keys: jax.Array,
    strength: jax.Array | float,
    eps: float = 1.0,
    alpha: float = 1.0,
    power_steps: int = 1,
    attack_mode: AttackMode = "eval",
) -> Outcome:
    """CE(x, y) + α KL(p(x) ‖ p(x + r)), r the direction that raises the KL most.

    r = ε d with the unit vector d of the largest eigenvalue of the Fisher information
    F(x), the second derivative of the divergence at r = 0: virtual adversarial
    training, Miyato et al., "Distributional smoothing with virtual adversarial
    training", ICLR 2016 (arXiv 1507.00677), eq. 3 to 10. d comes from `power_steps`
    steps d ← F d / ‖F d‖₂ from a random start; F d = Jᵀ(diag p − ppᵀ) J d is exact,
    where the paper takes a finite difference. The sign of d is that of the start. p(x)
    and r are constant in the divergence, no label enters, and x + r is not clipped.

    Beside the two forward and two backward passes of both terms it takes one forward
    pass for J, and a forward-mode and a backward pass for each step. The running
    statistics take up x, then x + r. Logs "accuracy" and "divergence".

    >>> from robjax.training.objectives.network import tiny_problem
    >>> network, images, labels, keys = tiny_problem()  # logits = images: F ∝ (1, −1)
    >>> options = {"keys": keys, "strength": 1.0, "eps": 0.1}
    >>> divergence = vat(network, images, labels, **options)[1]["divergence"][0]
    >>> r = 0.1 * jnp.array([[1.0, -1.0]]) / jnp.sqrt(2.0)
    >>> ends = [losses.kl(images, images + sign * r)[0] for sign in (1, -1)]
    >>> any(bool(jnp.allclose(divergence, end, rtol=1e-4)) for end in ends)
    True

    Args:
      network, images, labels, keys: as in every objective.
      strength: scales ε.
      eps: ε at full strength, the L2 norm of r in units of the image.
      alpha: α, weight of the divergence.
      power_steps: of the power iteration, at least 1, static.
      attack_mode: batch norm while d is looked for, see `Network.logits_fn`.

    Raises:
      ValueError: ε or α is negative, or power_steps is not a whole number from 1.
    """
    check_call(network, images, labels, keys=keys, strength=strength)
    check_number("eps", eps, minimum=0)
    check_number("alpha", alpha, minimum=0)
    check_count("power_steps", power_steps)
    direction = _steepest(network.logits_fn(attack_mode), images, keys, power_steps)
    moved = images + eps * strength * direction
    natural, network = network.train(images)
    there, network = network.train(moved)
    divergence = losses.kl(jax.lax.stop_gradient(natural), there)
    metrics = {"accuracy": correct(natural, labels), "divergence": divergence}
    return losses.cross_entropy(natural, labels) + alpha * divergence, metrics, network


def _steepest(
    logits_fn: Partial, images: jax.Array, keys: jax.Array, steps: int
) -> jax.Array:
    """d [B, *S] after that many steps; 0 where F is."""
    logits, push = jax.linearize(logits_fn, images)
    pull = jax.linear_transpose(push, images)
    p, _ = fisher.probabilities(logits)

    def step(_: jax.Array | int, d: jax.Array) -> jax.Array:
        (there,) = pull(p * centre(push(d), p))
        return _unit(there)

    def draw(key: jax.Array) -> jax.Array:
        return jax.random.normal(key, images.shape[1:], images.dtype)

    d = jax.lax.fori_loop(0, steps, step, _unit(jax.vmap(draw)(keys)))
    return jax.lax.stop_gradient(d)


def _unit(d: jax.Array) -> jax.Array:
    """Each sample divided by its L2 norm; first by its maximum, lest squares vanish."""
    rows = flatten_samples(d)
    most = jnp.max(jnp.abs(rows), axis=1)
    d = d / mask_samples(jnp.where(most > _TINY, most, 1), d)
    length = safe_norm(flatten_samples(d), 1)
    return d / mask_samples(jnp.where(length > 0, length, 1), d)
