"""Objectives that hold the features of an image and of its perturbed copy together.

    g₁ = features, an activation of the network by name (`robjax.models.taps`)
    CE = cross-entropy

The hardening methods of Wang, Gao and Qi, "A theoretical framework for robustness of
(deep) classifiers against adversarial samples", arXiv 1612.00334, that act on g₁. What
they lower is ‖g₁(x) − g₁(x')‖₂, not squared. The network can also lower it by smaller
features and a larger last layer, which changes no prediction: compare networks by the
distance relative to ‖g₁(x)‖₂.
"""

import jax

from robjax import attacks, losses
from robjax.balls import Ball
from robjax.checks import check_number, check_text
from robjax.numerics import safe_norm
from robjax.samples import flatten_samples
from robjax.training.objectives.adversarial import AUTHORS_BALL
from robjax.training.objectives.network import (
    AttackMode,
    Network,
    Outcome,
    check_call,
    correct,
    scaled,
)


def siamese(
    network: Network,
    images: jax.Array,
    labels: jax.Array,
    *,
    keys: jax.Array,
    strength: jax.Array | float,
    sigma: float = 0.2,
    weight: float = 0.5,
    layer: str = "features",
) -> Outcome:
    """CE(x, y) + weight · ‖g₁(x) − g₁(x')‖₂ with x' = x + σn, n standard normal.

    The training that the paper proposes: two branches with the same weights, and
    gradients through both. x' is not clipped. Where both features are equal, the
    gradient of the distance is 0. It takes two forward and two backward passes; the
    running statistics take up x, then x'. Logs "accuracy" and "distance".

    >>> from robjax.models import MLP
    >>> from robjax.training.objectives.network import tiny_problem
    >>> network, images, labels, keys = tiny_problem()
    >>> model = MLP(2, widths=(3,))
    >>> network = Network(model, model.init(keys[0], images))
    >>> loss, _, _ = siamese(network, images, labels, keys=keys, strength=0.0)
    >>> logits = network.train(images)[0]
    >>> bool(loss[0] == losses.cross_entropy(logits, labels)[0])  # x' = x
    True

    Args:
      network, images, labels, keys: as in every objective.
      strength: scales σ.
      sigma: σ at full strength, in units of the image.
      weight: of the distance.
      layer: name of the features, one of `taps.names`. "features" is what robjax's deep
        models give to their last layer.

    Raises:
      ValueError: the model has no such layer, σ or the weight is negative.
    """
    check_call(network, images, labels, keys=keys, strength=strength)
    check_number("weight", weight, minimum=0)
    check_text("layer", layer)
    first = network.train_tapped(images, layer)
    moved = noisy(images, keys, strength, sigma)
    return _held_together(first, moved, labels, weight, layer)


def feature_matching(
    network: Network,
    images: jax.Array,
    labels: jax.Array,
    *,
    keys: jax.Array,
    strength: jax.Array | float,
    ball: Ball = AUTHORS_BALL,
    weight: float = 0.1,
    steps: int = 1,
    step_size: float = 16 / 255,
    attack_mode: AttackMode = "eval",
    layer: str = "features",
) -> Outcome:
    """CE(x, y) + weight · ‖g₁(x) − g₁(x̃)‖₂ with an adversarial image x̃.

    As in Lee et al., "Manifold regularized deep neural networks using adversarial
    examples", 2015 (arXiv 1511.06381). x̃ comes from the attack of `adversarial` and is
    constant in the weights. By default that is one step from a random start, long
    enough to reach a corner of the ball. Beside `steps` gradients of the attack it
    takes two forward and two backward passes; the running statistics take up x, then
    x̃. Logs "accuracy" and "distance".

    >>> from robjax.balls import Linf
    >>> from robjax.models import MLP
    >>> from robjax.training.objectives.network import tiny_problem
    >>> network, images, labels, keys = tiny_problem()
    >>> model = MLP(2, widths=(3,))
    >>> network = Network(model, model.init(keys[0], images))
    >>> options = {"ball": Linf(0.1), "step_size": 0.2, "keys": keys}
    >>> one = feature_matching(network, images, labels, strength=1.0, **options)[1]
    >>> two = feature_matching(network, images, labels, strength=0.5, **options)[1]
    >>> bool(one["distance"] >= two["distance"])
    True

    Args:
      network, images, labels, keys: as in every objective.
      strength, ball, steps, step_size, attack_mode: as in `adversarial`.
      weight: of the distance.
      layer: as in `siamese`.

    Raises:
      ValueError: the model has no such layer, or the weight is negative.
    """
    check_call(network, images, labels, keys=keys, strength=strength)
    check_number("step_size", step_size, minimum=0)
    check_number("weight", weight, minimum=0)
    check_text("layer", layer)
    first = network.train_tapped(images, layer)
    moved = attacks.pgd(
        network.logits_fn(attack_mode),
        images,
        labels,
        key=keys,
        ball=scaled(ball, strength, len(images)),
        steps=steps,
        step_size=step_size * strength,
        keep_best=False,
    ).x_adv
    return _held_together(first, moved, labels, weight, layer)


def noisy(
    images: jax.Array, keys: jax.Array, strength: jax.Array | float, sigma: float
) -> jax.Array:
    """The images plus normal noise of standard deviation strength · σ, not clipped.

    >>> import jax.numpy as jnp
    >>> keys = jax.random.split(jax.random.key(0), 1)
    >>> noisy(jnp.ones((1, 2)), keys, strength=0.0, sigma=0.2).tolist()
    [[1.0, 1.0]]

    Args:
      images: [B, *S].
      keys: [B].
      strength: of the noise, as in every objective.
      sigma: standard deviation at full strength.

    Raises:
      ValueError: σ is negative.
    """
    check_number("sigma", sigma, minimum=0)

    def draw(key: jax.Array) -> jax.Array:
        return jax.random.normal(key, images.shape[1:], images.dtype)

    return images + strength * sigma * jax.vmap(draw)(keys)


def _held_together(
    first: tuple[jax.Array, jax.Array, Network],
    moved: jax.Array,
    labels: jax.Array,
    weight: float,
    layer: str,
) -> Outcome:
    """CE(x, y) + weight · ‖g₁(x) − g₁(x')‖₂; each pass gives logits and features."""
    logits, here, network = first
    _, there, network = network.train_tapped(moved, layer)
    distance = safe_norm(flatten_samples(here - there), 1)
    metrics = {"accuracy": correct(logits, labels), "distance": distance}
    return losses.cross_entropy(logits, labels) + weight * distance, metrics, network
