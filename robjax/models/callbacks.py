"""Models that run outside JAX, as operations that JAX differentiates.

A `HostModel` computes with NumPy arrays. Its three methods become three operations,
which differentiate into each other:

    logits   z = f(x)              [B, K]
    push     dz = J(x) dx          [B, K]      the derivative of logits
    pull     dx = J(x)ᵀ dz         [B, *S]     the transpose of push

So jit, grad, jvp, vmap and shard_map work as for a model that is written in JAX. There
are no second derivatives. A gradient costs one `logits` and one `pull`, since nothing
is kept from one call to the next.

(`jax.custom_vjp` would know no jvp, and `jax.custom_jvp` no transpose.)
"""

import threading
from typing import Any, Protocol

import jax
import jax.core
import jax.numpy as jnp
import numpy as np
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

_TURNS = threading.Lock()  # several devices would call a model at the same time


class HostModel(Protocol):
    """A hashable model of NumPy arrays that computes every sample on its own.

    Attributes:
      dtype: of images, logits and their derivatives.
      classes: K.
    """

    @property
    def dtype(self) -> np.dtype: ...

    @property
    def classes(self) -> int: ...

    def logits(self, x: np.ndarray) -> np.ndarray:
        """Images [B, *S] -> logits [B, K]."""
        ...

    def push(self, x: np.ndarray, tangent: np.ndarray) -> np.ndarray:
        """Images [B, *S] and their change [B, *S] -> that of the logits [B, K]."""
        ...

    def pull(self, x: np.ndarray, cotangent: np.ndarray) -> np.ndarray:
        """Images [B, *S], weights [B, K] of logits -> gradient of their sum [B, *S]."""
        ...


def call(model: HostModel, x: jax.Array) -> jax.Array:
    """The logits of a model that runs outside JAX.

    >>> from types import SimpleNamespace
    >>> class Double(SimpleNamespace):
    ...     dtype, classes = np.dtype("float32"), 2
    ...     __hash__ = object.__hash__
    ...     def logits(self, x): return 2 * x
    ...     def push(self, x, tangent): return 2 * tangent
    ...     def pull(self, x, cotangent): return 2 * cotangent
    >>> x, double = jnp.ones((1, 2)), Double()
    >>> call(double, x).tolist()
    [[2.0, 2.0]]
    >>> jax.jit(jax.grad(lambda x: call(double, x)[0, 1]))(x).tolist()
    [[0.0, 2.0]]

    Args:
      model: compiled programs belong to it; what its methods compute may change.
      x: [B, *S] images of its dtype.

    Returns:
      [B, K].
    """
    return _logits_p.bind(x, model=model)


def _primitive(method: str, *, to_images: bool) -> Primitive:
    """An operation that calls a method; its result is like the images, or logits."""

    def shape(x: Any, model: HostModel) -> tuple[int, ...]:
        return x.shape if to_images else (x.shape[0], model.classes)

    def on_host(model: HostModel, *arrays: jax.Array) -> jax.Array:
        def run(*arrays: Any) -> np.ndarray:
            with _TURNS:
                return getattr(model, method)(*map(np.asarray, arrays))

        result = jax.ShapeDtypeStruct(shape(arrays[0], model), model.dtype)
        return jax.pure_callback(run, result, *arrays)

    def implementation(*arrays: jax.Array, model: HostModel) -> jax.Array:
        return on_host(model, *arrays)

    def abstract(x: Any, *_: Any, model: HostModel) -> jax.core.ShapedArray:
        return jax.core.ShapedArray(shape(x, model), model.dtype)

    def batched(
        arrays: tuple[Any, ...], axes: tuple[Any, ...], *, model: HostModel
    ) -> tuple[jax.Array, int]:
        """The axis that vmap adds becomes a part of the batch."""
        pairs = list(zip(arrays, axes, strict=True))
        size = next(a.shape[axis] for a, axis in pairs if axis is not None)
        moved = [
            jnp.broadcast_to(a, (size, *a.shape))
            if axis is None
            else jnp.moveaxis(a, axis, 0)
            for a, axis in pairs
        ]
        rows = [a.reshape(-1, *a.shape[2:]) for a in moved]
        out = primitive.bind(*rows, model=model)
        return out.reshape(size, -1, *out.shape[1:]), 0

    primitive = Primitive(f"host_{method}")
    primitive.def_impl(implementation)
    primitive.def_abstract_eval(abstract)
    lowering = mlir.lower_fun(implementation, multiple_results=False)
    mlir.register_lowering(primitive, lowering)
    batching.primitive_batchers[primitive] = batched
    return primitive


_logits_p = _primitive("logits", to_images=False)
_push_p = _primitive("push", to_images=False)
_pull_p = _primitive("pull", to_images=True)


def _second_derivative(*_: Any, model: HostModel) -> Any:
    raise ValueError(
        f"a model that is not written in JAX ({type(model).__name__}) has first "
        "derivatives only, and here a second one is needed"
    )


def _linear(primitive: Primitive, transpose: Primitive) -> None:
    """Says that a primitive of (x, v) is linear in v, and what its transpose is."""

    def tangent(v: Any, x: Any, _: Any, *, model: HostModel) -> jax.Array:
        return primitive.bind(x, v, model=model)

    def transposed(
        cotangent: Any, x: Any, _: Any, *, model: HostModel
    ) -> tuple[None, Any]:
        if isinstance(cotangent, ad.Zero):
            return None, None
        return None, transpose.bind(x, cotangent, model=model)

    ad.defjvp(primitive, _second_derivative, tangent)
    ad.primitive_transposes[primitive] = transposed


def _derivative(tangent: Any, x: Any, *, model: HostModel) -> jax.Array:
    return _push_p.bind(x, tangent, model=model)


ad.defjvp(_logits_p, _derivative)
_linear(_push_p, transpose=_pull_p)
_linear(_pull_p, transpose=_push_p)
