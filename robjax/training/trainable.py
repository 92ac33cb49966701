"""What a model is for the trainer: modules of flax, linen and NNX, used alike.

    model = trainable(MLP(10))
    variables = model.init(key, images)                 {"params": …, "batch_stats": …}
    logits = model(variables, images)                                  in inference mode
    logits, _, updates = model.train(variables, images, key)               in train mode

Train mode is set in every way that a flax module may have for it:

* a flag of its ``__call__``, whatever its default: `train`, `training` or `is_training`
  is true then; `deterministic`, `inference` or `use_running_average` is false;
* a field of one of these names, where ``__call__`` has no such flag;
* ``.train()`` and ``.eval()`` of an NNX module.

A module without any of these is the same in both modes.

`rounded` makes of a model one that computes in bfloat16 from weights of float32.
"""

import dataclasses
import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import nnx
from jax.tree_util import Partial

from robjax.models import taps

Model: TypeAlias = nn.Module | nnx.Module
"""A flax.linen module without weights, or a module of flax.nnx with its own."""

Variables: TypeAlias = Mapping[str, Any]
"""{"params": nested dictionary of weights, and other collections, as "batch_stats"}."""

_IN_TRAINING = {
    "train": True,
    "training": True,
    "is_training": True,
    "deterministic": False,
    "inference": False,
    "use_running_average": False,
}
_NOT_OF_THE_MODEL = ("params", "groups")  # collections that a pass does not update


@dataclasses.dataclass(frozen=True)
class Linen:
    """A flax.linen module without weights; see the file.

    Attributes:
      module: called as module(images), with flags.
    """

    module: nn.Module

    def init(self, key: jax.Array, images: jax.Array) -> Variables:
        """Draws the weights, for images [B, *S]."""
        return _init(self, key, images)

    def __call__(self, variables: Variables, images: jax.Array) -> jax.Array:
        module, flags = self._in_mode(training=False)
        return module.apply(variables, images, **flags)

    def train(
        self,
        variables: Variables,
        images: jax.Array,
        key: jax.Array | None,
        layer: str | None = None,
    ) -> tuple[jax.Array, jax.Array | None, Variables]:
        """Logits [B, K] in train mode, the activation `layer`, updated collections.

        All that the module draws comes from `key`; None for one that draws nothing.
        """
        module, flags = self._in_mode(training=True)
        mutable = [name for name in variables if name not in _NOT_OF_THE_MODEL]
        if key is not None:
            # streams of any other name fall back on that of "params"
            flags["rngs"] = {"dropout": key, "params": jax.random.fold_in(key, 1)}
        if layer is not None:
            return taps.forward(
                module, variables, images, layer, mutable=tuple(mutable), **flags
            )
        logits, updated = module.apply(variables, images, mutable=mutable, **flags)
        return logits, None, updated

    def bind(self, variables: Variables) -> Callable[[jax.Array], jax.Array]:
        """The function images -> logits in inference mode; its weights are traced."""
        module, flags = self._in_mode(training=False)
        if module is self.module and not flags:
            return Partial(module.apply, variables)
        return Partial(self, variables)

    def across(self, axis: str) -> "Linen":
        """The model whose batch norm takes the statistics of all devices of an axis."""
        if not self.joins_devices:
            return self
        return Linen(self.module.clone(axis_name=axis))

    @property
    def joins_devices(self) -> bool:
        return hasattr(self.module, "axis_name")

    def _in_mode(self, *, training: bool) -> tuple[Any, dict[str, Any]]:
        """The module with its fields set, and the flags to call it with."""
        module: Any = self.module
        parameters = inspect.signature(type(module).__call__).parameters
        names = {field.name for field in dataclasses.fields(module)} - {*parameters}
        fields = {
            name: mode
            for name in names & {*_IN_TRAINING}
            if getattr(module, name) is not (mode := _IN_TRAINING[name] is training)
        }
        flags = _flags(module, training=training)
        return module.clone(**fields) if fields else module, flags


@functools.partial(jax.jit, static_argnums=0)
def _init(model: Linen, key: jax.Array, images: jax.Array) -> Variables:
    module, flags = model._in_mode(training=False)
    return module.init(key, images, **flags)


@dataclasses.dataclass(frozen=True)
class Nnx:
    """A module of flax.nnx, cut into its graph and its weights; see the file.

    Its variables are dictionaries, with the names along the path of each: "params" for
    `nnx.Param`, "batch_stats" for `nnx.BatchStat`, "others". Random keys are none of
    them: each stream of the module draws from the key that `train` is given.

    Attributes:
      graph: of the module.
      paths: for each array of the module its collection and its path.
      streams: paths and shapes of the keys and counts of its random streams.
      start: the weights that the module had.
      norms: dtype of what batch norm returns where the module sets none; None: that of
        its running statistics, float32, or of its images if that is wider.
    """

    graph: nnx.GraphDef
    paths: tuple[tuple[str, tuple[Any, ...]], ...]
    streams: tuple[tuple[tuple[Any, ...], type, tuple[int, ...]], ...]
    start: Any = dataclasses.field(compare=False, repr=False, default=None)
    norms: str | None = None

    @classmethod
    def of(cls, module: nnx.Module) -> "Nnx":
        graph, state = nnx.split(module)
        paths, streams, start = [], [], {}
        for path, variable in nnx.to_flat_state(state):
            value = _value(variable)
            if isinstance(variable, nnx.RngState):
                streams.append((path, type(variable), value.shape))
                continue
            collection = "others"
            if isinstance(variable, nnx.Param):
                collection = "params"
            elif isinstance(variable, nnx.BatchStat):
                collection = "batch_stats"
            paths.append((collection, path))
            _put(start.setdefault(collection, {}), path, value)
        return cls(graph, tuple(paths), tuple(streams), start)

    def init(self, key: jax.Array, images: jax.Array) -> Variables:
        """The weights that the module had."""
        del key, images
        return self.start

    def __call__(self, variables: Variables, images: jax.Array) -> jax.Array:
        module = self._module(variables, None)
        module.eval()
        return module(images, **_flags(module, training=False))

    def train(
        self,
        variables: Variables,
        images: jax.Array,
        key: jax.Array | None,
        layer: str | None = None,
    ) -> tuple[jax.Array, jax.Array | None, Variables]:
        """Logits [B, K] in train mode, the activation `layer`, updated collections."""
        module = self._module(variables, key)
        module.train()
        flags = _flags(module, training=True)
        state: Any
        if layer is None:
            logits, features = module(images, **flags), None
            state = nnx.state(module)
        else:
            graph, state = nnx.split(module)
            logits, features, state = taps.forward(graph, state, images, layer, **flags)
        after = dict(nnx.to_flat_state(state))
        updates: dict[str, Any] = {}
        for collection, path in self.paths:
            if collection not in _NOT_OF_THE_MODEL:
                _put(updates.setdefault(collection, {}), path, _value(after[path]))
        return logits, features, updates

    def bind(self, variables: Variables) -> Callable[[jax.Array], jax.Array]:
        """The module itself with these weights, in inference mode.

        Where its ``__call__`` has a flag, a function images -> logits.
        """
        module = self._module(variables, None)
        module.eval()
        if _flags(module, training=False):
            return Partial(self, variables)
        return module

    def across(self, axis: str) -> "Nnx":
        """The model whose batch norm takes the statistics of all devices of an axis.

        It has no weights to start from.
        """
        module = nnx.merge(self.graph, self._state(self.start, None))
        module.set_attributes(nnx.BatchNorm, raise_if_not_found=False, axis_name=axis)
        return dataclasses.replace(Nnx.of(module), start=None)

    @property
    def joins_devices(self) -> bool:
        module = nnx.merge(self.graph, self._state(self.start, None))
        return any(isinstance(m, nnx.BatchNorm) for _, m in nnx.iter_modules(module))

    def _module(self, variables: Variables, key: jax.Array | None) -> Any:
        module = nnx.merge(self.graph, self._state(variables, key))
        if self.norms is not None:
            for _, inner in nnx.iter_modules(module):
                if isinstance(inner, nnx.BatchNorm) and inner.dtype is None:
                    inner.dtype = jnp.dtype(self.norms)
        return module

    def _state(self, variables: Variables, key: jax.Array | None) -> Any:
        """All arrays of the module, its random streams begun anew."""
        state: dict[Any, Any] = {}
        for collection, path in self.paths:
            found = variables[collection]
            for name in path:
                found = found[str(name)]
            _put(state, path, found, names=lambda name: name)
        key = jax.random.key(0) if key is None else key
        for number, (path, kind, shape) in enumerate(self.streams):
            if issubclass(kind, nnx.RngCount):
                value = jax.numpy.zeros(shape, "uint32")
            else:
                value = jax.random.split(jax.random.fold_in(key, number), shape)
            _put(state, path, value, names=lambda name: name)
        return nnx.State(state)


@dataclasses.dataclass(frozen=True)
class Rounded:
    """A model that computes in another precision than its weights; see `rounded`.

    Attributes:
      model: the same in the precision of its weights.
      dtype: what weights and images are rounded to on their way in.
    """

    model: Linen | Nnx
    dtype: str

    def init(self, key: jax.Array, images: jax.Array) -> Variables:
        """Those of the model, not rounded."""
        return self.model.init(key, images)

    def __call__(self, variables: Variables, images: jax.Array) -> jax.Array:
        rounded = self._inputs(variables, images)
        return self.model(*rounded).astype(images.dtype)

    def train(
        self,
        variables: Variables,
        images: jax.Array,
        key: jax.Array | None,
        layer: str | None = None,
    ) -> tuple[jax.Array, jax.Array | None, Variables]:
        """Logits [B, K] in train mode, the activation `layer`, updated collections."""
        rounded = self._inputs(variables, images)
        logits, features, updates = self.model.train(*rounded, key, layer)
        if features is not None:
            features = features.astype(images.dtype)
        return logits.astype(images.dtype), features, updates

    def bind(self, variables: Variables) -> Callable[[jax.Array], jax.Array]:
        """The function images -> logits in inference mode; its weights are traced."""
        return Partial(self, variables)

    def across(self, axis: str) -> "Rounded":
        """The model whose batch norm takes the statistics of all devices of an axis."""
        return dataclasses.replace(self, model=self.model.across(axis))

    @property
    def joins_devices(self) -> bool:
        return self.model.joins_devices

    def _inputs(
        self, variables: Variables, images: jax.Array
    ) -> tuple[Variables, jax.Array]:
        """Weights and images rounded; running statistics stay as they are."""

        def cast(leaf: jax.Array) -> jax.Array:
            floating = jnp.issubdtype(leaf.dtype, jnp.floating)
            return leaf.astype(self.dtype) if floating else leaf

        params = jax.tree.map(cast, variables["params"])
        return {**variables, "params": params}, cast(images)


Trainable: TypeAlias = Linen | Nnx | Rounded
"""What a model is for the trainer."""


def rounded(model: Trainable, dtype: str | None) -> Trainable:
    """The model with its weights and images rounded on their way in.

    Logits and the gradients for weights and images are of the dtype that weights and
    images had. So whatever is not the model itself stays in float32: the attack, the
    losses, the optimizer and the running statistics of batch norm. bfloat16 has the
    range of float32, so gradients neither overflow nor vanish, and no loss is scaled.

    >>> variables = {"params": {"kernel": jnp.array([[1.001]]), "bias": jnp.zeros(1)}}
    >>> half = rounded(trainable(nn.Dense(1)), "bfloat16")
    >>> half(variables, jnp.array([[1.0]])).tolist()
    [[1.0]]

    Args:
      model: what `trainable` gives.
      dtype: "bfloat16"; None: the model stays as it is.
    """
    if dtype is None or isinstance(model, Rounded):
        return model
    if isinstance(model, Nnx):
        # linen's batch norm returns the dtype of its images, that of NNX the widest of
        # images and statistics, and all layers after it would compute in that
        model = dataclasses.replace(model, norms=dtype)
    return Rounded(model, dtype)


def trainable(model: Any) -> Trainable:
    """Makes of a flax module what the trainer works with.

    >>> model = trainable(nnx.Linear(4, 3, rngs=nnx.Rngs(0)))
    >>> variables = model.start
    >>> {name: leaf.shape for name, leaf in variables["params"].items()}
    {'bias': (3,), 'kernel': (4, 3)}
    >>> jax.eval_shape(model, variables, jax.ShapeDtypeStruct((2, 4), "float32")).shape
    (2, 3)

    Args:
      model: a flax.linen module without weights, or an NNX module, which stays as it
        is. It must take images alone beside the flags for train mode.

    Raises:
      ValueError: `model` is something else; the message names the convention.
    """
    if isinstance(model, Linen | Nnx | Rounded):
        return model
    if not isinstance(model, nn.Module | nnx.Module):
        kind = type(model).__name__
        found = f"the class {model.__name__}" if isinstance(model, type) else kind
        raise ValueError(
            "model must be a flax module: of flax.linen without weights, as "
            f"robjax.models.MLP(10), or of flax.nnx, got {found}"
        )
    if isinstance(model, nn.Module) and model.scope is not None:
        raise ValueError(
            f"model must have no weights, got a bound {type(model).__name__}: give "
            "model, variables = model.unbind() and variables=variables"
        )
    _check_call(model)
    return Linen(model) if isinstance(model, nn.Module) else Nnx.of(model)


def _check_call(model: Any) -> None:
    """Raises ValueError unless a module can be called with images and flags alone."""
    parameters = list(inspect.signature(type(model).__call__).parameters.values())[1:]
    needed = [
        p.name
        for p in parameters
        if p.default is p.empty and p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)
    ]
    unknown = [name for name in needed[1:] if name not in _IN_TRAINING]
    if not parameters or unknown or (needed and needed[0] in _IN_TRAINING):
        found = ", ".join(["self", *map(str, parameters)])
        raise ValueError(
            "model must be called as model(images), with a flag for train mode or "
            f"none: {', '.join(_IN_TRAINING)} are known; write __call__(self, x, "
            f"train: bool = False), got __call__({found})"
        )


def _flags(module: Any, *, training: bool) -> dict[str, Any]:
    """The flags of train mode that a call needs, where their defaults do not do."""
    parameters = inspect.signature(type(module).__call__).parameters
    flags = {
        name: value is training
        for name, value in _IN_TRAINING.items()
        if name in parameters
    }
    anything = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    if anything and training and not flags:
        return {"train": True}
    return {n: mode for n, mode in flags.items() if parameters[n].default is not mode}


def _value(variable: Any) -> Any:
    """The array of a variable of NNX; it may be an array itself."""
    return variable.get_value() if isinstance(variable, nnx.Variable) else variable


def _put(
    tree: dict[Any, Any],
    path: tuple[Any, ...],
    value: Any,
    names: Callable[[Any], Any] = str,
) -> None:
    """Puts a value into nested dictionaries, under the names along a path."""
    *outer, last = map(names, path)
    for name in outer:
        tree = tree.setdefault(name, {})
    tree[last] = value
