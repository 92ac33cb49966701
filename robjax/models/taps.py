"""Named activations inside a flax.linen model, as functions of the images.

A tap is used like ``model.apply``:

    tap = taps.Tap(model, "conv1_1")
    maps = tap(variables, images)                              # [B, H, W, C]
    features_fn = jax.tree_util.Partial(tap, variables)        # differentiable in x

A name is the path of a submodule, as in the parameters ("group1_block1/conv2"). In
robjax's deep models "features" is the input [B, F] of the last layer.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax


def names(
    model: nn.Module, variables: Mapping[str, Any], x: jax.Array
) -> tuple[str, ...]:
    """The names of all activations of a model; traces it and computes nothing.

    >>> from robjax import models
    >>> model = models.MLP(3, widths=(4,))
    >>> x = jax.numpy.ones((1, 2, 2, 1))
    >>> names(model, model.init(jax.random.key(0), x), x)
    ('dense1', 'features', 'logits')

    Args:
      model: any linen module that maps images to logits.
      variables: its weights, as ``model.init`` returns them.
      x: [B, *S] images.
    """
    return tuple(jax.eval_shape(lambda: _activations(model, variables, x, True)))


@dataclasses.dataclass(frozen=True)
class Tap:
    """One activation of a model in inference mode, as a function of the images.

    Equal taps share traces.

    >>> from robjax import models
    >>> model = models.MLP(3, widths=(4,))
    >>> x = jax.numpy.ones((1, 2, 2, 1))
    >>> variables = model.init(jax.random.key(0), x)
    >>> Tap(model, "dense1")(variables, x).shape
    (1, 4)

    Attributes:
      model: any linen module that maps images to logits.
      name: one of `names`. Of a module that is called more than once the last output
        is given.
    """

    model: nn.Module
    name: str

    def __call__(self, variables: Mapping[str, Any], x: jax.Array) -> jax.Array:
        """Weights and images [B, *S] -> the activation [B, ...].

        Raises:
          ValueError: the model has no activation of that name.
        """
        wanted = _activations(
            self.model,
            variables,
            x,
            lambda module, method: (
                method == "__call__" and "/".join(module.path) == self.name
            ),
        )
        if self.name not in wanted:
            raise ValueError(
                f"name must be one of {', '.join(names(self.model, variables, x))}, "
                f"got {self.name!r}"
            )
        return wanted[self.name]


def _activations(
    model: nn.Module,
    variables: Mapping[str, Any],
    x: jax.Array,
    capture: bool | Callable[[nn.Module, str], bool],
) -> dict[str, jax.Array]:
    """The last output of every module that `capture` chooses, and what was sown."""
    _, state = model.apply(
        variables, x, capture_intermediates=capture, mutable=["intermediates"]
    )
    found = {}
    flat, _ = jax.tree_util.tree_flatten_with_path(
        state.get("intermediates", {}), is_leaf=lambda node: isinstance(node, tuple)
    )
    for path, outputs in flat:
        keys = [entry.key for entry in path if entry.key != "__call__"]
        found["/".join(keys)] = outputs[-1]
    found.pop("", None)
    return found
