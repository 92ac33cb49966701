"""A model and its weights, as an objective sees them inside one training step."""

import dataclasses
import inspect
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from robjax.checks import check_images, check_labels, check_number
from robjax.samples import is_concrete
from robjax.training.trainable import Trainable, trainable

AttackMode = Literal["eval", "train"]
"""Batch norm inside an attack, see `Network.logits_fn`."""


class Network(NamedTuple):
    """A model and its weights, as an objective sees them inside one step.

    Attributes:
      model: what `trainable` takes or gives: a module of flax.
      variables: {"params": ...} and, with batch norm, {"batch_stats": ...}; for an
        objective that takes groups, {"groups": {"weights": [G]}}, too.
      axis: name of the axis over the devices that share the batch; None: no such axis.
      key: of what the model draws in train mode, as dropout does; None for a model
        that draws nothing.
    """

    model: Any
    variables: Mapping[str, Any]
    axis: str | None = None
    key: jax.Array | None = None

    def mean(self, tree: Any) -> Any:
        """The mean of arrays over the devices, for what depends on the whole batch."""
        return tree if self.axis is None else jax.lax.pmean(tree, self.axis)

    def train(self, images: jax.Array) -> tuple[jax.Array, "Network"]:
        """Logits [B, K] in train mode, and the network with new running statistics.

        Batch norm uses the statistics of `images` over all devices. The network that
        comes back draws anew.
        """
        logits, _, network = self._pass(images, None)
        return logits, network

    def train_tapped(
        self, images: jax.Array, layer: str
    ) -> tuple[jax.Array, jax.Array, "Network"]:
        """As `train`, with the activation `layer` [B, ...] of the same pass second.

        Raises:
          ValueError: the model has no activation of that name; lists all.
        """
        return self._pass(images, layer)

    def _pass(self, images: jax.Array, layer: str | None) -> Any:
        key = self.key
        logits, features, updated = trainable(self.model).train(
            self.variables, images, key, layer
        )
        changed = self._replace(
            variables={**self.variables, **updated},
            key=None if key is None else jax.random.fold_in(key, 0),
        )
        return logits, features, changed

    def inference(self) -> Partial:
        """The function images -> logits in inference mode; its weights are variable."""
        return Partial(trainable(self.model), self.variables)

    def logits_fn(self, mode: AttackMode) -> Partial:
        """The function images -> logits to be attacked; its weights are constants.

        Batch norm uses

        * the running statistics in mode "eval",
        * the statistics of the images that it is given in mode "train", where dropout
          keeps the same mask throughout.

        Neither changes the running statistics.

        Raises:
          ValueError: `mode` is none of the two.
        """
        variables = jax.lax.stop_gradient(self.variables)
        if mode == "eval":
            return Partial(trainable(self.model), variables)
        if mode == "train":
            return Partial(_TrainMode(trainable(self.model)), variables, self.key)
        raise ValueError(f"attack_mode must be 'eval' or 'train', got {mode!r}")

    def __repr__(self) -> str:
        """What the model is and how large; not the arrays."""
        weights = count_weights(self.variables)
        kind = type(getattr(self.model, "module", self.model)).__name__
        return f"Network({kind}, {weights:,} weights)"


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
    model: Trainable

    def __call__(
        self, variables: Mapping[str, Any], key: jax.Array | None, images: jax.Array
    ) -> jax.Array:
        return self.model.train(variables, images, key)[0]


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


def check_call(
    network: Network,
    images: jax.Array,
    labels: jax.Array,
    *,
    keys: jax.Array,
    strength: jax.Array | float,
) -> None:
    """Checks what every objective takes.

    >>> network, images, labels, keys = tiny_problem()
    >>> check_call(network, images, labels, keys=keys, strength=0.5)

    Args:
      network: a `Network`.
      images: [B, *S].
      labels: [B], below the outputs of the model; that is looked up where they are
        concrete.
      keys: [B].
      strength: 0 or more.

    Raises:
      ValueError: one of them is something else; the message names it.
    """
    if not isinstance(network, Network):
        raise ValueError(f"network must be a Network, got {network!r}")
    images = check_images(images, name="images")
    count = len(images)
    classes = None
    if is_concrete(labels):
        classes = jax.eval_shape(network.inference(), images).shape[1]
    check_labels(labels, count, num_classes=classes, name="labels")
    if not (isinstance(keys, jax.Array) and keys.shape[:1] == (count,)):
        found = getattr(keys, "shape", keys)
        raise ValueError(
            f"keys must be [B], one for each of {count} images, got {found}"
        )
    check_number("strength", strength, minimum=0)


def scaled(ball: Any, strength: jax.Array | float, batch_size: int) -> Any:
    """The ball with its radius multiplied by the strength.

    >>> from robjax.balls import Linf
    >>> scaled(Linf(0.5), 0.5, batch_size=1)
    Linf(eps=0.25)

    Raises:
      ValueError: the ball has no radius of at least 0, a number or [B].
    """
    eps: Any = getattr(ball, "eps", None)
    check_number("ball.eps", eps, minimum=0, batch_size=batch_size)
    return dataclasses.replace(ball, eps=eps * strength)


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
