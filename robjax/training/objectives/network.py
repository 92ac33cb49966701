"""A model and its weights, as an objective sees them inside one training step."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.tree_util import Partial

AttackMode = Literal["eval", "train"]
Objective = Callable[..., tuple[jax.Array, Mapping[str, jax.Array], "Network"]]


class Network(NamedTuple):
    """A model and its weights, as an objective sees them inside one step.

    Attributes:
      model: flax.linen module called as model(images, train=...).
      variables: {"params": ...} and, with batch norm, {"batch_stats": ...}.
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


def correct(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """[B], 1 where the most likely class is the label, else 0."""
    return (jnp.argmax(logits, axis=-1) == labels).astype(logits.dtype)
