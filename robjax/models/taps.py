"""Named activations inside a flax model, linen or NNX, as functions of the images.

    features = features_fn(Partial(model.apply, variables), "conv1_1")       linen
    features = features_fn(module, "layers/0")            NNX, after module.eval()
    features(images)                                                     # [B, ...]

The weights of such a function are traced and it is differentiable in the images. Equal
ones share compiled programs. Behind it stands a `Tap`, used like ``model.apply``:

    tap = Tap(model, "conv1_1")
    maps = tap(variables, images)                                     # [B, H, W, C]

A name is

* the path of a submodule ("group1_block1/conv2" in linen, as in the parameters;
  "layers/0" in NNX, as in `nnx.iter_modules`), for its output;
* or what the model itself sows, below the path of the module that sows it. In robjax's
  deep models "features" is the input [B, F] of the last layer.

A model of another framework needs no tap. A function does, whose weights are arrays in
a `jax.tree_util.Partial`; here the first layers of an Equinox network:

    features = Partial(lambda layers, x: jax.vmap(layers[0])(x), network.layers)
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
from flax import nnx
from jax.tree_util import Partial

from robjax.traced import traced

_PREFIX = "robjax_tap_"
_OUTPUT = "()"  # is no name that a module can sow


def names(
    model: nn.Module | nnx.GraphDef, variables: Any, x: jax.Array
) -> tuple[str, ...]:
    """The names of all activations of a model; traces it and computes nothing.

    >>> from robjax import models
    >>> model = models.MLP(3, widths=(4,))
    >>> x = jax.numpy.ones((1, 2, 2, 1))
    >>> names(model, model.init(jax.random.key(0), x), x)
    ('dense1', 'features', 'logits')
    >>> layer = nnx.Sequential(nnx.Linear(2, 3, rngs=nnx.Rngs(0)), nnx.relu)
    >>> names(*nnx.split(layer), jax.numpy.ones((1, 2)))
    ('layers/0',)

    Args:
      model: any linen module that maps images to logits, or the graph of an NNX module.
      variables: its weights, as ``model.init`` returns them; the state of the graph.
      x: [B, *S] images.
    """
    return tuple(
        jax.eval_shape(
            lambda variables, x: _forward(model, variables, x, True)[1], variables, x
        )
    )


@dataclasses.dataclass(frozen=True)
class Tap:
    """One activation of a model in inference mode, as a function of weights and images.

    Equal taps share traces.

    >>> from robjax import models
    >>> model = models.MLP(3, widths=(4,))
    >>> x = jax.numpy.ones((1, 2, 2, 1))
    >>> variables = model.init(jax.random.key(0), x)
    >>> Tap(model, "dense1")(variables, x).shape
    (1, 4)

    Attributes:
      model: any linen module that maps images to logits, or the graph of an NNX module
        in eval mode, as `nnx.split` gives it.
      name: one of `names`. Of a module that is called more than once the last output
        is given.
    """

    model: nn.Module | nnx.GraphDef
    name: str

    def __call__(self, variables: Any, x: jax.Array) -> jax.Array:
        """Weights and images [B, *S] -> the activation [B, ...].

        Raises:
          ValueError: the model has no activation of that name.
        """
        return forward(self.model, variables, x, self.name)[1]


def features_fn(model: Callable[..., jax.Array], name: str) -> Partial:
    """One activation of a model in inference mode, as a function of the images.

    The model is left as it is; an NNX module is copied, with its weights of now.

    >>> layers = nnx.Linear(2, 3, rngs=nnx.Rngs(0)), nnx.relu
    >>> features = features_fn(nnx.Sequential(*layers), "layers/0")
    >>> features(jax.numpy.ones((5, 2))).shape
    (5, 3)

    Args:
      model: ``Partial(model.apply, variables)`` of a linen module, a bound linen module
        or an NNX module after ``.eval()``.
      name: of the activation, one of `names`.

    Returns:
      Images [B, *S] -> the activation [B, ...]. It raises ValueError, with all names,
      if the model has no activation of that name.

    Raises:
      ValueError: `model` is none of these.
    """
    if isinstance(model, nnx.Module):
        traced(model, name="model")  # refuses train mode
        graph, state = nnx.split(model)
        return Partial(Tap(graph, name), state)
    if isinstance(model, nn.Module) and model.scope is not None:
        module, variables = model.unbind()
        return Partial(Tap(module, name), variables)
    if isinstance(model, functools.partial) and not model.keywords:
        module = getattr(model.func, "__self__", None)
        applied = getattr(model.func, "__name__", None) == "apply"
        if isinstance(module, nn.Module) and applied and len(model.args) == 1:
            return Partial(Tap(module, name), *model.args)
    raise ValueError(
        "model must be Partial(model.apply, variables) or a bound module of linen, or "
        f"an NNX module after .eval(), got {type(model).__name__}; of any other model "
        "write the function images -> features itself"
    )


def forward(
    model: nn.Module | nnx.GraphDef,
    variables: Any,
    x: jax.Array,
    name: str,
    *,
    mutable: tuple[str, ...] = (),
    **options: Any,
) -> tuple[jax.Array, jax.Array, Mapping[str, Any]]:
    """Logits and one activation of the same forward pass, in any mode.

    >>> from robjax import models
    >>> model = models.MLP(3, widths=(4,))
    >>> x = jax.numpy.ones((1, 2, 2, 1))
    >>> variables = model.init(jax.random.key(0), x)
    >>> logits, features, _ = forward(model, variables, x, "features", train=True)
    >>> logits.shape, features.shape
    ((1, 3), (1, 4))

    Args:
      model, variables, x, name: as for a `Tap`.
      mutable: collections of a linen model that the pass may change.
      options: further keywords of the model, such as ``train=True``.

    Returns:
      Logits, the activation, and the collections `mutable` after the pass; of an NNX
      module its whole state.

    Raises:
      ValueError: the model has no activation of that name.
    """
    logits, found, updates = _forward(
        model, variables, x, name, mutable=mutable, **options
    )
    if name not in found:
        known = ", ".join(names(model, variables, x))
        raise ValueError(
            f"name must be one of {known}, got {name!r}: there is no such layer"
        )
    return logits, found[name], updates


def _forward(
    model: nn.Module | nnx.GraphDef,
    variables: Any,
    x: jax.Array,
    name: str | bool,
    *,
    mutable: tuple[str, ...] = (),
    **options: Any,
) -> tuple[jax.Array, dict[str, Any], Mapping[str, Any]]:
    """Logits, activations by name (the wanted one among them; True: all), updates."""
    if isinstance(model, nnx.GraphDef):
        return _forward_nnx(model, variables, x, **options)

    def capture(module: nn.Module, method: str) -> bool:
        return method == "__call__" and name in (True, "/".join(module.path))

    logits, state = model.apply(
        variables,
        x,
        capture_intermediates=capture,
        mutable=["intermediates", *mutable],
        **options,
    )
    updates = dict(state)
    flat, _ = jax.tree_util.tree_flatten_with_path(
        updates.pop("intermediates", {}), is_leaf=lambda node: isinstance(node, tuple)
    )
    found = {}
    for path, outputs in flat:
        keys = [entry.key for entry in path if entry.key != "__call__"]
        found["/".join(keys)] = outputs[-1]
    found.pop("", None)
    return logits, found, updates


def _forward_nnx(
    graph: nnx.GraphDef, state: Any, x: jax.Array, **options: Any
) -> tuple[jax.Array, dict[str, Any], Any]:
    """Runs a copy of the module whose parts note down what they give and sow."""
    module: Any = nnx.merge(graph, state)
    for _, part in nnx.iter_graph(module):
        if isinstance(part, nnx.Module):
            object.__setattr__(part, "__class__", _recording(type(part)))
    logits = module(x, **options)
    found = {}
    for path, part in nnx.iter_graph(module):
        kept = vars(part) if isinstance(part, nnx.Module) else {}
        for attribute, value in kept.items():
            if attribute.startswith(_PREFIX):
                name = attribute.removeprefix(_PREFIX)
                keys = path if name == _OUTPUT else (*path, name)
                found["/".join(map(str, keys))] = value.get_value()
    found.pop("", None)
    return logits, dict(sorted(found.items())), nnx.state(module)


@functools.cache
def _recording(kind: type[nnx.Module]) -> type[nnx.Module]:
    """The same module, which keeps its last output and what it sows.

    Both are variables of the module, so that they come out of `nnx.jit`, too.
    """

    def note(self: Any, name: str, value: Any) -> None:
        setattr(self, _PREFIX + name, nnx.Intermediate(value))

    def call(self: Any, *args: Any, **options: Any) -> Any:
        output = kind.__call__(self, *args, **options)
        note(self, _OUTPUT, output)
        return output

    def sow(self: Any, variable_type: Any, name: str, value: Any, *_: Any, **__: Any):
        del variable_type
        note(self, name, value)
        return True

    body = {"__call__": call, "sow": sow, "__module__": kind.__module__}
    is_tree = getattr(kind, "_pytree__is_pytree", True)
    make: Any = type(kind)
    return make(kind.__name__, (kind,), body, pytree=is_tree)
