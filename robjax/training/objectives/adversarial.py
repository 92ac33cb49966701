"""The objectives that train on attacked images, and the standard one.

θ = weights, x = images, x̃ = attacked images (constant in θ), y = labels, p = softmax of
the logits. Defaults are the constants of Shi et al., arXiv 1906.02494 (code): CIFAR-10,
ℓ∞, ε = 8/255, 10 steps of 2/255.
"""

import dataclasses
from typing import Any, Literal

import jax
import jax.numpy as jnp

from robjax import attacks, losses
from robjax.balls import Ball, Linf
from robjax.training.objectives.network import AttackMode, Network, correct

AUTHORS_BALL = Linf(8 / 255)
_TINY = 1e-20


def standard(
    network: Network,
    images: jax.Array,
    labels: jax.Array,
    *,
    keys: jax.Array,
    strength: jax.Array | float,
):
    """CE(x, y). Logs "accuracy"."""
    del keys, strength
    logits, network = network.train(images)
    metrics = {"accuracy": correct(logits, labels)}
    return losses.cross_entropy(logits, labels), metrics, network


def adversarial(
    network: Network,
    images: jax.Array,
    labels: jax.Array,
    *,
    keys: jax.Array,
    strength: jax.Array | float,
    ball: Ball = AUTHORS_BALL,
    steps: int = 10,
    step_size: float = 2 / 255,
    attack_mode: AttackMode = "eval",
):
    """CE(x̃, y) with x̃ from projected gradient ascent on CE(·, y), random start.

    Madry et al., "Towards deep learning models resistant to adversarial attacks",
    ICLR 2018, eq. 2.1. Logs "adversarial_accuracy", on x̃ in train mode.

    `ball` is the threat model and `step_size` the length of a step, in units of the
    image, both at full strength; `steps` counts the gradients of the attack, and
    `attack_mode` is the batch norm inside it, see `Network.logits_fn`.
    """
    attacked = _climb(
        network, images, labels, keys, strength, ball, steps, step_size, attack_mode
    )
    logits, network = network.train(attacked)
    metrics = {"adversarial_accuracy": correct(logits, labels)}
    return losses.cross_entropy(logits, labels), metrics, network


def trades(
    network: Network,
    images: jax.Array,
    labels: jax.Array,
    *,
    keys: jax.Array,
    strength: jax.Array | float,
    ball: Ball = AUTHORS_BALL,
    beta: float = 5.0,
    steps: int = 10,
    step_size: float = 2 / 255,
    reference: Literal["natural", "start"] = "natural",
    attack_mode: AttackMode = "eval",
):
    """CE(x, y) + β KL(p(x) ‖ p(x̃)) with x̃ from ascent of KL(p(x_ref) ‖ p(·)).

    The Fisher regularisation of Shi et al., arXiv 1906.02494, whose form is that of
    TRADES, Zhang et al., ICML 2019, eq. 3. Gradients flow through p(x) and p(x̃). The
    running statistics take up x, then x̃. Logs "accuracy", "adversarial_accuracy" and
    "divergence" (the KL term, before β).

    `ball`, `steps`, `step_size` and `attack_mode` are as in `adversarial`; `reference`
    is x_ref: "natural" for x, "start" for the perturbed start (`attacks.kl_pgd`).
    """
    attacked = attacks.kl_pgd(
        network.logits_fn(attack_mode),
        images,
        key=keys,
        ball=_scaled(ball, strength),
        steps=steps,
        step_size=step_size * strength,
        reference=reference,
        keep_best=False,
    ).x_adv
    natural, network = network.train(images)
    moved, network = network.train(attacked)
    divergence = losses.kl(natural, moved)
    metrics = {
        "accuracy": correct(natural, labels),
        "adversarial_accuracy": correct(moved, labels),
        "divergence": divergence,
    }
    return losses.cross_entropy(natural, labels) + beta * divergence, metrics, network


def mart(
    network: Network,
    images: jax.Array,
    labels: jax.Array,
    *,
    keys: jax.Array,
    strength: jax.Array | float,
    ball: Ball = AUTHORS_BALL,
    beta: float = 5.0,
    steps: int = 10,
    step_size: float = 2 / 255,
    attack_mode: AttackMode = "eval",
):
    """BCE(x̃, y) + β KL(p(x) ‖ p(x̃)) (1 − p_y(x)) with x̃ as in `adversarial`.

    BCE(x̃, y) = −log p_y(x̃) − log(1 − max_{k≠y} p_k(x̃)). Wang et al., "Improving
    adversarial robustness requires revisiting misclassified examples", ICLR 2020, eq.
    11, without the constants that their code adds inside the logarithms. Logs
    "accuracy", "adversarial_accuracy" and "divergence".
    """
    attacked = _climb(
        network, images, labels, keys, strength, ball, steps, step_size, attack_mode
    )
    natural, network = network.train(images)
    moved, network = network.train(attacked)
    classes = jnp.arange(moved.shape[1])[None]
    wrong = jnp.where(classes == labels[:, None], -jnp.inf, moved)
    runner_up = jnp.argmax(wrong, axis=1)
    # −log(1 − p_k) is the softplus of the log-odds for k against all others
    boosted = losses.cross_entropy(moved, labels)
    boosted += jax.nn.softplus(-losses.log_odds(moved, runner_up))
    divergence = losses.kl(natural, moved)
    doubt = jax.nn.sigmoid(losses.log_odds(natural, labels))
    metrics = {
        "accuracy": correct(natural, labels),
        "adversarial_accuracy": correct(moved, labels),
        "divergence": divergence,
    }
    return boosted + beta * divergence * doubt, metrics, network


def n_fgsm(
    network: Network,
    images: jax.Array,
    labels: jax.Array,
    *,
    keys: jax.Array,
    strength: jax.Array | float,
    ball: Linf = AUTHORS_BALL,
    noise: float = 2.0,
    step: float = 1.0,
    attack_mode: AttackMode = "eval",
):
    """CE(x̃, y) with x̃ = x + η + step · ε sign ∇CE(x + η), η uniform within noise · ε.

    De Jorge et al., "Make some noise: reliable and efficient single-step adversarial
    training", NeurIPS 2022, eq. 3: x̃ stays where it is, outside the ball, but x + η and
    x̃ are clipped to [0, 1]. One input gradient. Logs "adversarial_accuracy".

    Raises:
      ValueError: ball is not Linf.
    """
    if not isinstance(ball, Linf):
        raise ValueError(f"ball must be Linf, got {ball!r}")
    eps = _scaled(ball, strength).eps

    def uniform(key):
        return jax.random.uniform(key, images.shape[1:], images.dtype, -1, 1)

    start = jnp.clip(images + noise * eps * jax.vmap(uniform)(keys), 0, 1)
    logits_fn = network.logits_fn(attack_mode)
    slope = jax.grad(lambda v: losses.log_odds(logits_fn(v), labels).sum())(start)
    attacked = jnp.clip(start + step * eps * jnp.sign(slope), 0, 1)
    logits, network = network.train(attacked)
    metrics = {"adversarial_accuracy": correct(logits, labels)}
    return losses.cross_entropy(logits, labels), metrics, network


def awp(
    network: Network,
    images: jax.Array,
    labels: jax.Array,
    *,
    keys: jax.Array,
    strength: jax.Array | float,
    gamma: float = 0.01,
    ball: Ball = AUTHORS_BALL,
    steps: int = 10,
    step_size: float = 2 / 255,
    attack_mode: AttackMode = "eval",
):
    """CE(x̃, y) at the weights θ + v, v the adversarial weight perturbation.

    v_l = γ ‖θ_l‖ g_l / ‖g_l‖ for every array of two or more axes, g the gradient of the
    mean loss at x̃, constant in θ. Wu, Xia & Wang, "Adversarial weight perturbation
    helps robust generalization", NeurIPS 2020, eq. 8 and 10, one step. γ is scaled by
    the strength, too. Logs "adversarial_accuracy", at θ + v as are the running
    statistics.
    """
    attacked = _climb(
        network, images, labels, keys, strength, ball, steps, step_size, attack_mode
    )

    def at(params):
        variables = {**network.variables, "params": params}
        logits, moved = network._replace(variables=variables).train(attacked)
        return losses.cross_entropy(logits, labels), (logits, moved)

    def risk(params):
        return jnp.mean(at(params)[0])

    params = network.variables["params"]
    slope = network.mean(jax.grad(risk)(jax.lax.stop_gradient(params)))

    def shifted(weights, slope):
        if weights.ndim < 2:
            return weights
        length = jnp.linalg.norm(jax.lax.stop_gradient(weights))
        unit = slope / jnp.maximum(jnp.linalg.norm(slope), _TINY)
        return weights + gamma * strength * length * unit

    values, (logits, moved) = at(jax.tree.map(shifted, params, slope))
    variables = {**moved.variables, "params": params}
    metrics = {"adversarial_accuracy": correct(logits, labels)}
    return values, metrics, network._replace(variables=variables)


def _climb(
    network, images, labels, keys, strength, ball, steps, step_size, attack_mode
) -> jax.Array:
    """x̃ of `adversarial`: projected gradient ascent on the cross-entropy."""
    return attacks.pgd(
        network.logits_fn(attack_mode),
        images,
        labels,
        key=keys,
        ball=_scaled(ball, strength),
        steps=steps,
        step_size=step_size * strength,
        keep_best=False,
    ).x_adv


def _scaled(ball: Any, strength: jax.Array | float) -> Any:
    return dataclasses.replace(ball, eps=ball.eps * strength)
