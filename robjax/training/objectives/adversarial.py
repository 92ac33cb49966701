"""The objectives that train on attacked images, and the standard one.

    θ = weights      x = images      x̃ = attacked images, constant in θ      y = labels
    p = softmax of the logits      CE = cross-entropy

Defaults are the constants of Shi et al., arXiv 1906.02494 (code): CIFAR-10, ℓ∞,
ε = 8/255, 10 steps of 2/255.
"""

from typing import Any, Literal

import jax
import jax.numpy as jnp

from robjax import attacks, losses
from robjax.attacks.problem import check_loss
from robjax.balls import Ball, Linf
from robjax.checks import check_number
from robjax.numerics import finite_or_zero
from robjax.training.objectives.network import (
    AttackMode,
    Network,
    Outcome,
    check_call,
    correct,
    scaled,
)

AUTHORS_BALL = Linf(8 / 255)
_TINY = 1e-20


def standard(
    network: Network,
    images: jax.Array,
    labels: jax.Array,
    *,
    keys: jax.Array,
    strength: jax.Array | float,
    loss: losses.Loss = losses.cross_entropy,
) -> Outcome:
    """CE(x, y), the cross-entropy of the images as they are. Logs "accuracy".

    >>> from robjax.training.objectives.network import tiny_problem
    >>> network, images, labels, keys = tiny_problem()
    >>> _, metrics, _ = standard(network, images, labels, keys=keys, strength=1.0)
    >>> metrics["accuracy"].tolist()
    [1.0]

    Args:
      network, images, labels, keys, strength: as in every objective.
      loss: of logits [B, K] and labels [B], in place of the cross-entropy CE.
    """
    check_call(network, images, labels, keys=keys, strength=strength)
    check_loss(loss)
    del keys, strength
    logits, network = network.train(images)
    metrics = {"accuracy": correct(logits, labels)}
    return loss(logits, labels), metrics, network


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
    loss: losses.Loss = losses.cross_entropy,
) -> Outcome:
    """CE(x̃, y) with x̃ from projected gradient ascent on CE(·, y), random start.

    Madry et al., "Towards deep learning models resistant to adversarial attacks",
    ICLR 2018, eq. 2.1. Logs "adversarial_accuracy", on x̃ in train mode.

    >>> from robjax.training.objectives.network import tiny_problem
    >>> network, images, labels, keys = tiny_problem()  # logits (0.6, 0.4)
    >>> options = {"keys": keys, "strength": 1.0, "ball": Linf(0.1), "step_size": 0.1}
    >>> values, _, _ = adversarial(network, images, labels, **options)
    >>> print(round(float(values[0]), 3))  # log 2: the attack makes the logits equal
    0.693

    Args:
      network, images, labels, keys: as in every objective.
      strength: scales the radius and `step_size`.
      ball: the threat model at full strength.
      steps: gradients of the attack.
      step_size: length of a step at full strength, in units of the image.
      attack_mode: batch norm inside the attack, see `Network.logits_fn`.
      loss: of logits [B, K] and labels [B] in training, in place of the cross-entropy
        CE; the attack stays as it is.
    """
    check_call(network, images, labels, keys=keys, strength=strength)
    check_number("step_size", step_size, minimum=0)
    check_loss(loss)
    attacked = _climb(
        network,
        images,
        labels,
        keys=keys,
        strength=strength,
        ball=ball,
        steps=steps,
        step_size=step_size,
        attack_mode=attack_mode,
    )
    logits, network = network.train(attacked)
    metrics = {"adversarial_accuracy": correct(logits, labels)}
    return loss(logits, labels), metrics, network


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
    loss: losses.Loss = losses.cross_entropy,
) -> Outcome:
    """CE(x, y) + β KL(p(x) ‖ p(x̃)) with x̃ from ascent of KL(p(x_ref) ‖ p(·)).

    The Fisher regularisation of Shi et al., arXiv 1906.02494, whose form is that of
    TRADES, Zhang et al., ICML 2019, eq. 3. Gradients flow through p(x) and p(x̃). The
    running statistics take up x, then x̃. Logs "accuracy", "adversarial_accuracy" and
    "divergence" (the KL term, before β).

    >>> from robjax.training.objectives.network import tiny_problem
    >>> network, images, labels, keys = tiny_problem()
    >>> options = {"keys": keys, "ball": Linf(0.1), "step_size": 0.1}
    >>> _, still, _ = trades(network, images, labels, strength=0.0, **options)
    >>> _, moved, _ = trades(network, images, labels, strength=1.0, **options)
    >>> bool(moved["divergence"][0] > 0.001), bool(still["divergence"][0] > 0.001)
    (True, False)

    Args:
      network, images, labels, keys: as in every objective.
      strength, ball, steps, step_size, attack_mode, loss: as in `adversarial`.
      beta: β, weight of the divergence.
      reference: x_ref: "natural" for x, "start" for the perturbed start
        (`attacks.kl_pgd`).
    """
    check_call(network, images, labels, keys=keys, strength=strength)
    check_number("beta", beta, minimum=0)
    check_number("step_size", step_size, minimum=0)
    check_loss(loss)
    attacked = attacks.kl_pgd(
        network.logits_fn(attack_mode),
        images,
        key=keys,
        ball=scaled(ball, strength, len(images)),
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
    return loss(natural, labels) + beta * divergence, metrics, network


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
) -> Outcome:
    """BCE(x̃, y) + β KL(p(x) ‖ p(x̃)) (1 − p_y(x)) with x̃ as in `adversarial`.

    BCE(x̃, y) = −log p_y(x̃) − log(1 − max_{k≠y} p_k(x̃)). Wang et al., "Improving
    adversarial robustness requires revisiting misclassified examples", ICLR 2020, eq.
    11, without the constants that their code adds inside the logarithms. Logs
    "accuracy", "adversarial_accuracy" and "divergence".

    >>> from robjax.training.objectives.network import tiny_problem
    >>> network, images, labels, keys = tiny_problem()
    >>> options = {"keys": keys, "strength": 1.0, "ball": Linf(0.1), "step_size": 0.1}
    >>> loss, _, _ = mart(network, images, labels, beta=0.0, **options)
    >>> print(round(float(loss[0]), 3))  # 2 log 2: the attack makes the logits equal
    1.386

    Args:
      network, images, labels, keys: as in every objective.
      strength, ball, steps, step_size, attack_mode: as in `adversarial`.
      beta: β, weight of the divergence.
    """
    check_call(network, images, labels, keys=keys, strength=strength)
    check_number("beta", beta, minimum=0)
    check_number("step_size", step_size, minimum=0)
    attacked = _climb(
        network,
        images,
        labels,
        keys=keys,
        strength=strength,
        ball=ball,
        steps=steps,
        step_size=step_size,
        attack_mode=attack_mode,
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
    loss: losses.Loss = losses.cross_entropy,
) -> Outcome:
    """CE(x̃, y) with x̃ one step of signs away from a noisy image.

    x̃ = x + η + step · ε sign ∇CE(x + η) with η uniform within noise · ε. De Jorge et
    al., "Make some noise: reliable and efficient single-step adversarial training",
    NeurIPS 2022, eq. 3. x̃ stays where it is, outside the ball, but x + η and x̃ are
    clipped to [0, 1]. It takes one input gradient, whose components that are not finite
    count as 0. Logs "adversarial_accuracy".

    >>> from robjax.training.objectives.network import tiny_problem
    >>> network, images, labels, keys = tiny_problem()
    >>> options = {"keys": keys, "strength": 1.0, "ball": Linf(0.1), "noise": 0.0}
    >>> values, _, _ = n_fgsm(network, images, labels, **options)
    >>> print(round(float(values[0]), 3))  # log 2: the step makes the logits equal
    0.693

    Args:
      network, images, labels, keys: as in every objective.
      strength: scales ε.
      ball: Linf(ε) at full strength.
      noise: range of η in units of ε.
      step: length of the step in units of ε.
      attack_mode, loss: as in `adversarial`.

    Raises:
      ValueError: ball is not Linf.
    """
    check_call(network, images, labels, keys=keys, strength=strength)
    check_number("noise", noise, minimum=0)
    check_number("step", step, minimum=0)
    check_loss(loss)
    if not isinstance(ball, Linf):
        raise ValueError(f"ball must be Linf, got {ball!r}")
    eps = scaled(ball, strength, len(images)).eps

    def uniform(key: jax.Array) -> jax.Array:
        return jax.random.uniform(key, images.shape[1:], images.dtype, -1, 1)

    start = jnp.clip(images + noise * eps * jax.vmap(uniform)(keys), 0, 1)
    logits_fn = network.logits_fn(attack_mode)
    # they rise with the cross-entropy, but their gradient never rounds to 0
    slope = jax.grad(lambda v: losses.log_odds(logits_fn(v), labels).sum())(start)
    direction = jnp.sign(finite_or_zero(slope))
    attacked = jnp.clip(start + step * eps * direction, 0, 1)
    logits, network = network.train(attacked)
    metrics = {"adversarial_accuracy": correct(logits, labels)}
    return loss(logits, labels), metrics, network


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
    loss: losses.Loss = losses.cross_entropy,
) -> Outcome:
    """CE(x̃, y) at the weights θ + v, with v the adversarial weight perturbation.

    v_l = γ ‖θ_l‖ g_l / ‖g_l‖ for every array of two or more axes. g is the gradient of
    the mean loss at x̃, with 0 for components that are not finite, and v is held
    constant in θ. Wu, Xia & Wang, "Adversarial weight perturbation helps robust
    generalization", NeurIPS 2020, eq. 8 and 10, one step. γ is scaled by the strength,
    too. Logs "adversarial_accuracy", which is measured at θ + v, as are the running
    statistics.

    >>> from robjax.training.objectives.network import tiny_problem
    >>> network, images, labels, keys = tiny_problem()
    >>> options = {"keys": keys, "strength": 1.0, "ball": Linf(0.1), "step_size": 0.1}
    >>> values, _, _ = awp(network, images, labels, **options)
    >>> bool(values[0] > jnp.log(2))  # the loss without a weight perturbation
    True

    Args:
      network, images, labels, keys: as in every objective.
      strength: scales the radius, `step_size` and γ.
      gamma: γ, length of v_l relative to that of θ_l.
      ball, steps, step_size, attack_mode, loss: as in `adversarial`.
    """
    check_call(network, images, labels, keys=keys, strength=strength)
    check_number("gamma", gamma, minimum=0)
    check_number("step_size", step_size, minimum=0)
    check_loss(loss)
    attacked = _climb(
        network,
        images,
        labels,
        keys=keys,
        strength=strength,
        ball=ball,
        steps=steps,
        step_size=step_size,
        attack_mode=attack_mode,
    )

    def at(params: Any) -> tuple[jax.Array, tuple[jax.Array, Network]]:
        variables = {**network.variables, "params": params}
        logits, moved = network._replace(variables=variables).train(attacked)
        return loss(logits, labels), (logits, moved)

    def risk(params: Any) -> jax.Array:
        return jnp.mean(at(params)[0])

    params = network.variables["params"]
    gradient = network.mean(jax.grad(risk)(jax.lax.stop_gradient(params)))

    def perturbed(weights: jax.Array, slope: jax.Array) -> jax.Array:
        if weights.ndim < 2:
            return weights
        length = jnp.linalg.norm(jax.lax.stop_gradient(weights))
        slope = finite_or_zero(slope)
        unit = slope / jnp.maximum(jnp.linalg.norm(slope), _TINY)
        return weights + gamma * strength * length * unit

    values, (logits, moved) = at(jax.tree.map(perturbed, params, gradient))
    variables = {**moved.variables, "params": params}
    metrics = {"adversarial_accuracy": correct(logits, labels)}
    return values, metrics, network._replace(variables=variables)


def _climb(
    network: Network,
    images: jax.Array,
    labels: jax.Array,
    *,
    keys: jax.Array,
    strength: jax.Array | float,
    ball: Ball,
    steps: int,
    step_size: float,
    attack_mode: AttackMode,
) -> jax.Array:
    """x̃ of `adversarial`: projected gradient ascent on the cross-entropy."""
    return attacks.pgd(
        network.logits_fn(attack_mode),
        images,
        labels,
        key=keys,
        ball=scaled(ball, strength, len(images)),
        steps=steps,
        step_size=step_size * strength,
        keep_best=False,
    ).x_adv
