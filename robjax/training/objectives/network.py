"""A model and its weights, as an objective sees them inside one training step."""

import dataclasses
import inspect
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from robjax.models import taps

AttackMode = Literal["eval", "train"]
"""Batch norm inside an attack, see `Network.logits_fn`."""


class Network(NamedTuple):
    """A model and its weights, as an objective sees them inside one step.

    Attributes:
      model: flax.linen module called as model(images, train=...).
      variables: {"params": ...} and, with batch norm, {"batch_stats": ...}; for an
        objective that takes groups, {"groups": {"weights": [G]}}, too.
      axis: name of the axis over the devices that share the batch; None: no such axis.
    """

    model: nn.Module
    variables: Mapping[str, Any]
    axis: str | None = None

    def mean(self, tree: Any) -> Any:
        """The mean of arrays over the devices, for what depends on the whole batch."""
        return tree if self.axis is None else jax.lax.pmean(tree, self.axis)

    def train(self, images: jax.Array) -> tuple[jax.Array, "Network"]:
        """Logits [B, K] in train mode, and the network with new running statistics.

        Batch norm uses the statistics of `images` over all devices.
        """
        logits, updated = self.model.apply(
            self.variables, images, train=True, mutable=["batch_stats"]
        )
        return logits, self._replace(variables={**self.variables, **updated})

    def train_tapped(
        self, images: jax.Array, layer: str
    ) -> tuple[jax.Array, jax.Array, "Network"]:
        """As `train`, with the activation `layer` [B, ...] of the same pass second.

        Raises:
          ValueError: the model has no activation of that name; lists all.
        """
        logits, features, updated = taps.forward(
            self.model,
            self.variables,
            images,
            layer,
            mutable=("batch_stats",),
            train=True,
        )
        changed = self._replace(variables={**self.variables, **updated})
        return logits, features, changed

    def logits_fn(self, mode: AttackMode) -> Partial:
        """The function images -> logits to be attacked; its weights are constants.

        Batch norm uses

        * the running statistics in mode "eval",
        * the statistics of the images that it is given in mode "train".

        Neither changes the running statistics.

        Raises:
          ValueError: `mode` is none of the two.
        """
        variables = jax.lax.stop_gradient(self.variables)
        if mode == "eval":
            return Partial(self.model.apply, variables)
        if mode == "train":
            return Partial(_TrainMode(self.model), variables)
        raise ValueError(f"attack_mode must be 'eval' or 'train', got {mode!r}")

    def __repr__(self) -> str:
        """What the model is and how large; not the arrays."""
        weights = count_weights(self.variables)
        return f"Network({type(self.model).__name__}, {weights:,} weights)"


Outcome = tuple[jax.Array, Mapping[str, jax.Array], Network]
"""Losses [B], metrics {name: [B]} and the network with new running statistics."""

Objective = Callable[..., Outcome]
"""(network, images, labels, *, keys, strength) -> losses, metrics, network.

One with a keyword `groups` is given the groups [B] of the data set as well.
"""


def takes_groups(objective: object) -> bool:
    """Whether an objective has a keyword `groups`.

    >>> takes_groups(lambda network, images, labels, *, keys, strength, groups: None)
    True
    """
    if not callable(objective):
        return False
    try:
        return "groups" in inspect.signature(objective).parameters
    except ValueError:  # some built-in functions have no signature
        return False


@dataclasses.dataclass(frozen=True)
class _TrainMode:
    model: nn.Module

    def __call__(self, variables: Mapping[str, Any], images: jax.Array) -> jax.Array:
        return Network(self.model, variables).train(images)[0]


def correct(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Gives 1 where the most likely class is the label, else 0; [B].

    >>> correct(jnp.array([[2.0, 1.0], [2.0, 1.0]]), jnp.array([0, 1])).tolist()
    [1.0, 0.0]
    """
    return (jnp.argmax(logits, axis=-1) == labels).astype(logits.dtype)


def count_weights(variables: object) -> int:
    """The number of weights that training changes: entries of `variables["params"]`.

    >>> count_weights({"params": {"kernel": np.ones((2, 3)), "bias": np.ones(3)}})
    9
    """
    params = variables.get("params") if isinstance(variables, Mapping) else None
    return sum(np.size(leaf) for leaf in jax.tree.leaves(params))


def tiny_problem() -> tuple[Network, jax.Array, jax.Array, jax.Array]:
    """What an objective takes, small enough to work it out by hand.

    The logits of the network are the pixels of the image.

    >>> network, images, labels, keys = tiny_problem()
    >>> print(network.train(images)[0], labels)
    [[0.6 0.4]] [0]

    Returns:
      Network, images [1, 2], labels [1] and keys [1].
    """
    from robjax.models import Linear

    layer = {"kernel": jnp.eye(2), "bias": jnp.zeros(2)}
    network = Network(Linear(2), {"params": {"logits": layer}})
    keys = jax.random.split(jax.random.key(0), 1)
    return network, jnp.array([[0.6, 0.4]]), jnp.array([0]), keys
