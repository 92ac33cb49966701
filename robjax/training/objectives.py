"""What training minimises: one function for each objective.

    objective(network, images, labels, *, keys, strength) -> losses, metrics, network

takes floating images [B, *S], labels [B] and one PRNG key for each sample [B]; gives
losses [B] (nats, averaged by the trainer), metrics {name: [B]} to be logged, and the
network with its new running statistics. Hyper-parameters are further keywords, bound
with `functools.partial`:

    functools.partial(objectives.trades, ball=Linf(8 / 255), beta=6.0)

A new objective is a new function of this form in any file; nothing registers it.

The attacks run on the network's current weights, held constant. `strength` in [0, 1]
is the traced warm-up of the threat model: it multiplies ε and the step size, without
which adversarial training at a large ε can stay at the constant classifier. Defaults
are the constants of Shi et al., arXiv 1906.02494 (code): CIFAR-10, ℓ∞, ε = 8/255,
10 steps of 2/255.

θ = weights, x = images, x̃ = attacked images (constant in θ), y = labels.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.tree_util import Partial

from robjax import attacks, losses
from robjax.balls import Ball, Linf

AttackMode = Literal["eval", "train"]
AUTHORS_BALL = Linf(8 / 255)
Objective = Callable[..., tuple[jax.Array, Mapping[str, jax.Array], "Network"]]


class Network(NamedTuple):
    """A model and its weights, as an objective sees them inside one step.

    Attributes:
      model: flax.linen module called as model(images, train=...).
      variables: {"params": ...} and, with batch norm, {"batch_stats": ...}.
    """

    model: nn.Module
    variables: Mapping[str, Any]

    def train(self, images: jax.Array) -> tuple[jax.Array, "Network"]:
        """Logits [B, K] in train mode, and the network with new running statistics.

        Batch norm uses the statistics of `images` over all devices.
        """
        logits, updated = self.model.apply(
            self.variables, images, train=True, mutable=["batch_stats"]
        )
        return logits, self._replace(variables={**self.variables, **updated})

    def logits_fn(self, mode: AttackMode) -> Partial:
        """The function images -> logits to be attacked; its weights are constants.

        Batch norm uses the running statistics in mode "eval" and those of the images
        it is given in mode "train"; neither changes the running statistics.
        """
        variables = jax.lax.stop_gradient(self.variables)
        if mode == "eval":
            return Partial(self.model.apply, variables)
        if mode == "train":
            return Partial(_TrainMode(self.model), variables)
        raise ValueError(f"attack_mode must be 'eval' or 'train', got {mode!r}")


@dataclasses.dataclass(frozen=True)
class _TrainMode:
    model: nn.Module

    def __call__(self, variables, images):
        return Network(self.model, variables).train(images)[0]


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
    metrics = {"accuracy": _correct(logits, labels)}
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
    attacked = attacks.pgd(
        network.logits_fn(attack_mode),
        images,
        labels,
        key=keys,
        ball=_scaled(ball, strength),
        steps=steps,
        step_size=step_size * strength,
        keep_best=False,
    ).x_adv
    logits, network = network.train(attacked)
    metrics = {"adversarial_accuracy": _correct(logits, labels)}
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
        "accuracy": _correct(natural, labels),
        "adversarial_accuracy": _correct(moved, labels),
        "divergence": divergence,
    }
    return losses.cross_entropy(natural, labels) + beta * divergence, metrics, network


def _scaled(ball: Ball, strength: jax.Array | float) -> Ball:
    return dataclasses.replace(ball, eps=ball.eps * strength)  # type: ignore


def _correct(logits: jax.Array, labels: jax.Array) -> jax.Array:
    return (jnp.argmax(logits, axis=-1) == labels).astype(logits.dtype)
