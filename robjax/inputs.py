"""What comes in: a model as a function, images, labels, numbers and keys.

Every public function of robjax passes its arguments through this file, so that
a mistake is a ``ValueError`` that names the argument before anything compiles.
Shapes and dtypes are checked always, inside a trace too; values whenever they are
concrete: with NumPy for arrays on the CPU, elsewhere with one small reduction and
one fetch. Tracers are never fetched.
"""

import functools
import math
import sys
from typing import Any, NamedTuple

import jax
import jax.core
import jax.numpy as jnp
import numpy as np

Bounds = tuple[float, float]


class _Hole:
    """Stands where an array was taken out of a tree."""


_HOLE = _Hole()


@jax.tree_util.register_pytree_node_class
class LogitsFn:
    """A model as a callable pytree: images [B, *S] (and keys [B]) -> logits [B, K].

    Array leaves of the wrapped callable are traced; every other leaf (functions,
    Python numbers, flags, strings) is static. New weights therefore never
    recompile, and a Python flag never becomes a tracer. Made by `as_logits_fn`.
    """

    def __init__(self, arrays: list[Any], static: tuple[Any, Any, Any]):
        self._arrays, self._static = arrays, static

    def __call__(self, *inputs: jax.Array) -> jax.Array:
        treedef, rest, _ = self._static
        arrays = iter(self._arrays)
        leaves = [next(arrays) if leaf is _HOLE else leaf for leaf in rest]
        return jax.tree_util.tree_unflatten(treedef, leaves)(*inputs)

    def tree_flatten(self):
        return self._arrays, self._static

    @classmethod
    def tree_unflatten(cls, static, arrays):
        return cls(list(arrays), static)


class _Apply:
    """``module.apply`` whose equality is the module's, not the method object's."""

    def __init__(self, module: Any):
        self.module = module

    def __call__(self, variables, *inputs):
        return self.module.apply(variables, *inputs)

    def __eq__(self, other):
        return isinstance(other, _Apply) and self.module == other.module

    def __hash__(self):
        return hash(self.module)


def as_logits_fn(fn: Any) -> LogitsFn:
    """Wraps any callable from images [B, *S] to logits [B, K]; idempotent.

    Takes ``jax.tree_util.Partial(model.apply, variables)`` (or `functools.partial`,
    treated alike), an Equinox module, an NNX module in eval mode, a bound linen
    module, a Haiku ``apply`` with its parameters bound, or a plain function. A new
    closure object compiles anew; a new set of weights in the same structure does not.

    Raises:
      ValueError: `fn` is not callable, is an NNX module in train mode, is an unbound
        linen module, or holds an unhashable leaf that is not an array.
    """
    if isinstance(fn, LogitsFn):
        return fn
    if not callable(fn):
        raise ValueError(
            f"logits_fn must be a callable from images to logits, got {type(fn)}"
        )
    nnx, linen = sys.modules.get("flax.nnx"), sys.modules.get("flax.linen")
    if nnx is not None and isinstance(fn, nnx.Module):
        fn = _from_nnx(nnx, fn)
    elif linen is not None and isinstance(fn, linen.Module):
        if fn.scope is None:
            raise ValueError(
                "logits_fn is a flax.linen module without weights: pass "
                "jax.tree_util.Partial(model.apply, variables) or model.bind(variables)"
            )
        module, variables = fn.unbind()
        fn = jax.tree_util.Partial(_Apply(module), variables)
    elif type(fn) is functools.partial:
        fn = jax.tree_util.Partial(fn.func, *fn.args, **fn.keywords)
    leaves, treedef = jax.tree_util.tree_flatten(fn)
    is_array = [isinstance(leaf, jax.Array | np.ndarray) for leaf in leaves]
    rest = tuple(
        _HOLE if array else leaf for array, leaf in zip(is_array, leaves, strict=True)
    )
    static = (treedef, rest, tuple(map(type, rest)))  # since 1 == True == 1.0
    try:
        hash(static)
    except TypeError as error:
        raise ValueError(
            f"logits_fn holds a leaf that is neither an array nor hashable: {error}"
        ) from None
    arrays = [leaf for array, leaf in zip(is_array, leaves, strict=True) if array]
    return LogitsFn(arrays, static)


def _from_nnx(nnx, module):
    for path, node in nnx.iter_graph(module):
        train_flags = (
            getattr(node, "deterministic", None) is False,
            getattr(node, "use_running_average", None) is False,
        )
        if any(train_flags):
            raise ValueError(
                "logits_fn is an NNX module in train mode: call .eval() on it first "
                f"(at {'/'.join(map(str, path))})"
            )
    graphdef, state = nnx.split(module)
    return jax.tree_util.Partial(_NnxCall(graphdef), state)


class _NnxCall(NamedTuple):
    graphdef: Any

    def __call__(self, state, *inputs):
        return sys.modules["flax.nnx"].merge(self.graphdef, state)(*inputs)


class _Rounded(NamedTuple):
    dtype: Any

    def __call__(self, model, images, *keys):
        return model(images.astype(self.dtype), *keys).astype(images.dtype)


def rounded_to(dtype: Any, logits_fn: Any) -> LogitsFn:
    """The model with its weights and images rounded to `dtype`, say `jnp.bfloat16`.

    It computes in that precision, unless it asks for another one itself; its logits
    come back in the dtype of the images, and so do gradients.

    Raises:
      ValueError: `dtype` is not a floating-point type.
    """
    if not jnp.issubdtype(dtype, jnp.floating):
        raise ValueError(f"dtype must be a floating-point type, got {dtype!r}")

    def cast(leaf):
        floating = jnp.issubdtype(leaf.dtype, jnp.floating)
        return leaf.astype(dtype) if floating else leaf

    model = jax.tree.map(cast, as_logits_fn(logits_fn))
    return as_logits_fn(jax.tree_util.Partial(_Rounded(jnp.dtype(dtype)), model))


def _concrete(value: Any) -> bool:
    return not isinstance(value, jax.core.Tracer)


def _on_host(x: Any) -> bool:
    if isinstance(x, np.ndarray):
        return True
    return all(d.platform == "cpu" for d in x.devices()) and x.is_fully_addressable


@jax.jit
def _range(x: jax.Array) -> jax.Array:
    finite = jnp.isfinite(x).all().astype(x.dtype)
    return jnp.stack([finite, x.min(), x.max()])


def check_bounds(bounds: Any) -> Bounds:
    """Returns (lowest, highest) pixel value as floats; ValueError unless lo < hi."""
    try:
        low, high = (float(bound) for bound in bounds)
    except (TypeError, ValueError):
        raise ValueError(f"bounds must be two numbers, got {bounds!r}") from None
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise ValueError(f"bounds must be finite with low < high, got {bounds!r}")
    return low, high


def check_images(x: Any, *, bounds: Bounds | None = None, name: str = "x") -> jax.Array:
    """Returns images as a floating jax.Array [B, *S], B ≥ 1.

    Raises:
      ValueError: `x` is not an array, is empty, has no batch axis or no feature axis,
        is not floating (integer images must be scaled first), has NaN or infinite
        values, or leaves `bounds` (checked exactly; tolerance 0).
    """
    if not isinstance(x, jax.Array | np.ndarray):
        raise ValueError(f"{name} must be an array [B, *S], got {type(x).__name__}")
    if x.ndim < 2 or x.size == 0:
        raise ValueError(
            f"{name} must be a non-empty batch of images [B, *S], got shape {x.shape}"
        )
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise ValueError(
            f"{name} must be floating point, got {x.dtype}; scale integer images to "
            "the bounds first (for 8-bit images: x / 255)"
        )
    if _concrete(x):
        x = jnp.asarray(x)
        if _on_host(x):
            values = np.asarray(x)
            finite, low, high = np.isfinite(values).all(), values.min(), values.max()
        else:
            finite, low, high = jax.device_get(_range(x))
        if not finite:
            raise ValueError(f"{name} must be finite, got NaN or infinite values")
        if bounds is not None and (low < bounds[0] or high > bounds[1]):
            raise ValueError(
                f"{name} must lie inside bounds {bounds}, got values from {low:.6g} to "
                f"{high:.6g}"
            )
    return jnp.asarray(x)


def check_labels(
    y: Any, batch_size: int, *, num_classes: int | None = None, name: str = "y"
) -> jax.Array:
    """Returns labels as an integer jax.Array [B].

    Raises:
      ValueError: `y` is no integer array of shape [batch_size], or a label is
        negative or not below `num_classes`.
    """
    if not isinstance(y, jax.Array | np.ndarray | list | tuple):
        raise ValueError(f"{name} must be an integer array [B], got {type(y).__name__}")
    if isinstance(y, list | tuple):
        y = np.asarray(y)
    if y.shape != (batch_size,):
        raise ValueError(
            f"{name} must have shape ({batch_size},), one label for each image, got "
            f"{y.shape}"
        )
    if not jnp.issubdtype(y.dtype, jnp.integer):
        raise ValueError(f"{name} must be integer class labels, got dtype {y.dtype}")
    if _concrete(y):
        low, high = int(np.min(np.asarray(y))), int(np.max(np.asarray(y)))
        if low < 0 or (num_classes is not None and high >= num_classes):
            allowed = "0 or more" if num_classes is None else f"0 to {num_classes - 1}"
            raise ValueError(
                f"{name} must hold labels {allowed}, got values from {low} to {high}"
            )
    return jnp.asarray(y, jnp.int32)


def check_number(
    name: str,
    value: Any,
    *,
    minimum: float = -math.inf,
    batch_size: int | None = None,
) -> Any:
    """Returns a finite real number, or one for each sample, of at least `minimum`.

    Raises:
      ValueError: not real, not scalar (nor [batch_size], where that is given), or
        concrete and NaN, infinite or below `minimum`.
    """
    real = (int, float, np.number, np.ndarray, jax.Array)
    dtype = jnp.result_type(value) if isinstance(value, real) else None
    if dtype is None or not (
        jnp.issubdtype(dtype, jnp.floating) or jnp.issubdtype(dtype, jnp.integer)
    ):
        raise ValueError(f"{name} must be a real number, got {value!r}")
    shape = jnp.shape(value)
    allowed = [()] if batch_size is None else [(), (batch_size,)]
    if shape not in allowed:
        raise ValueError(f"{name} must have shape {allowed}, got {shape}")
    if _concrete(value):
        numbers = np.asarray(value)
        if not np.isfinite(numbers).all() or (numbers < minimum).any():
            raise ValueError(
                f"{name} must be finite and at least {minimum:g}, got {value}"
            )
    return value


def check_count(name: str, value: Any, *, minimum: int = 1) -> int:
    """Returns a static whole number of at least `minimum`, else ValueError."""
    whole = isinstance(value, int | np.integer) and not isinstance(value, bool)
    if not whole or value < minimum:
        raise ValueError(
            f"{name} must be a whole number of at least {minimum}, got {value!r}"
        )
    return int(value)


def check_logits(logits: jax.Array, batch_size: int) -> jax.Array:
    """Returns `logits` unless they are not floating [batch_size, K], K ≥ 2."""
    shape, dtype = jnp.shape(logits), jnp.result_type(logits)
    if len(shape) != 2 or shape[0] != batch_size or shape[1] < 2:
        raise ValueError(
            f"logits_fn must return logits [{batch_size}, K], K >= 2, for a batch of "
            f"{batch_size}, got shape {shape}"
        )
    if not jnp.issubdtype(dtype, jnp.floating):
        raise ValueError(f"logits_fn must return floating-point logits, got {dtype}")
    return logits


@jax.jit
def _checked_logits(logits_fn: LogitsFn, x: jax.Array, *keys: jax.Array) -> jax.Array:
    return check_logits(logits_fn(x, *keys), x.shape[0])


def count_classes(
    logits_fn: LogitsFn, x: jax.Array | jax.ShapeDtypeStruct, *keys: jax.Array
) -> int:
    """K of the logits [B, K]: traces the model once per shape and compiles nothing."""
    return _checked_logits.eval_shape(logits_fn, x, *keys).shape[1]


def sample_keys(key: Any, batch_size: int) -> jax.Array:
    """One PRNG key for each sample [B].

    Sample i of a batch draws from ``fold_in(key, i)``; an array of B keys is taken
    as it is, so that a sample keeps its draws in any batch.

    Raises:
      ValueError: `key` is neither one key nor `batch_size` keys, as made by
        `jax.random.key` (or the older `jax.random.PRNGKey`).
    """
    expected = f"one key from jax.random.key(seed) or an array of {batch_size} keys"
    if not isinstance(key, jax.Array | np.ndarray):
        raise ValueError(f"key must be {expected}, got {key!r}")
    if not jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
        if key.dtype != jnp.uint32 or key.ndim not in (1, 2) or key.shape[-1] != 2:
            raise ValueError(f"key must be {expected}, got {key.dtype}{key.shape}")
        key = jax.random.wrap_key_data(jnp.asarray(key))
    if key.shape == ():
        indices = jnp.arange(batch_size, dtype=jnp.uint32)
        return jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, indices)
    if key.shape != (batch_size,):
        raise ValueError(f"key must be {expected}, got an array of keys {key.shape}")
    return jnp.asarray(key)
