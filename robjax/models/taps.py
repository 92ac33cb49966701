"""Named activations inside a flax.linen model, as functions of the images.

A tap is used like ``model.apply``:

    tap = taps.Tap(model, "conv1_1")
    maps = tap(variables, images)                              # [B, H, W, C]
    features_fn = jax.tree_util.Partial(tap, variables)        # differentiable in x

Names are paths of submodules, as in the parameters ("group1_block1/conv2"), and
"features" for what the last layer of robjax's deep models sees [B, F].
"""

import dataclasses
from typing import Any

import flax.linen as nn
import jax


def names(model: nn.Module, variables: Any, x: jax.Array) -> tuple[str, ...]:
    """Names of all activations of `model` on images `x` [B, *S]; computes nothing."""
    return tuple(jax.eval_shape(lambda: _activations(model, variables, x, True)))


@dataclasses.dataclass(frozen=True)
class Tap:
    """The activation `name` of `model` in inference mode; equal taps share traces.

    Attributes:
      model: any linen module that maps images to logits.
      name: one of `names`; a module that is called more than once gives its last
        output.
    """

    model: nn.Module
    name: str

    def __call__(self, variables: Any, x: jax.Array) -> jax.Array:
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


def _activations(model, variables, x, capture) -> dict[str, jax.Array]:
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
