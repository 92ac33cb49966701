"""Any callable as a pytree: its arrays are traced, everything else is static.

`jax.jit` compiles a function again when a static part of its arguments changes, and
runs the compiled program again when only arrays change. A model should therefore hand
over its weights as arrays and its code as the static part, and an attack its step size
as an array and its number of steps as the static part. `traced` makes that cut for
both.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np


class _Hole:
    """Stands where an array was taken out of a tree."""


_HOLE = _Hole()


@jax.tree_util.register_pytree_node_class
class TracedCallable:
    """A callable cut into arrays, which are leaves, and a hashable static rest.

    Made by `traced`. It is called like the callable that it was made of.
    """

    def __init__(self, arrays: list[Any], static: tuple[Any, Any, Any]):
        self._arrays = arrays
        self._static = static

    def __call__(self, *args: Any, **keywords: Any) -> Any:
        return self.unwrap()(*args, **keywords)

    def unwrap(self) -> Callable[..., Any]:
        """The callable that `traced` was given, with the present arrays in it."""
        treedef, rest, _ = self._static
        arrays = iter(self._arrays)
        leaves = [next(arrays) if leaf is _HOLE else leaf for leaf in rest]
        return jax.tree_util.tree_unflatten(treedef, leaves)

    def tree_flatten(self) -> tuple[list[Any], tuple[Any, Any, Any]]:
        return self._arrays, self._static

    @classmethod
    def tree_unflatten(cls, static, arrays) -> "TracedCallable":
        return cls(list(arrays), static)


def traced(fn: Callable[..., Any], *, name: str) -> TracedCallable:
    """Cuts a callable into traced arrays and a static rest.

    Arrays (NumPy's too) are traced wherever `fn` holds them as a pytree. Functions,
    Python numbers, flags and strings are static: two callables that differ in one of
    them compile apart. A `functools.partial` is cut like a `jax.tree_util.Partial`.

    >>> import jax, jax.numpy as jnp
    >>> def scaled(weight, x):
    ...     return weight * x
    >>> double = traced(jax.tree_util.Partial(scaled, jnp.array(2.0)), name="f")
    >>> float(jax.jit(lambda f, x: f(x))(double, 3.0))
    6.0

    Args:
      fn: the callable.
      name: what the caller calls `fn`, for the message.

    Raises:
      ValueError: `fn` holds a leaf that is neither an array nor hashable.
    """
    if type(fn) is functools.partial:
        fn = jax.tree_util.Partial(fn.func, *fn.args, **fn.keywords)
    leaves, treedef = jax.tree_util.tree_flatten(fn)
    arrays = [leaf for leaf in leaves if _is_array(leaf)]
    rest = tuple(_HOLE if _is_array(leaf) else leaf for leaf in leaves)
    # The types belong to the static part because 1 == True == 1.0.
    static = (treedef, rest, tuple(type(leaf) for leaf in rest))
    try:
        hash(static)
    except TypeError as error:
        raise ValueError(
            f"{name} holds a leaf that is neither an array nor hashable: {error}"
        ) from None
    return TracedCallable(arrays, static)


def _is_array(leaf: Any) -> bool:
    return isinstance(leaf, jax.Array | np.ndarray)
