"""Any callable as a pytree: its arrays are traced, everything else is static.

`jax.jit` compiles a function again when a static part of its arguments changes. When
only arrays change, it runs the compiled program again. So the arguments of a compiled
function should be cut in two:

    callable     arrays (traced)     static
    a model      weights             code
    an attack    step size           code, number of steps

`traced` makes that cut.
"""

import functools
from collections.abc import Callable, Hashable, Iterable
from typing import Any

import jax
import numpy as np


class _Hole:
    """Stands where an array was taken out of a tree."""


_HOLE = _Hole()

_Static = tuple[jax.tree_util.PyTreeDef, tuple[Hashable, ...], tuple[type, ...]]
"""Tree structure, leaves with holes for the arrays, and the types of these leaves."""


@jax.tree_util.register_pytree_node_class
class TracedCallable:
    """A callable cut into arrays, which are leaves, and a hashable static rest.

    `traced` makes it. It is called like the callable that it was made of.

    >>> import jax.numpy as jnp
    >>> add = traced(jax.tree_util.Partial(jnp.add, jnp.array(2.0)), name="f")
    >>> float(add(1.0))
    3.0
    >>> [float(leaf) for leaf in jax.tree.leaves(add)]
    [2.0]
    """

    def __init__(self, arrays: list[Any], static: _Static):
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

    def tree_flatten(self) -> tuple[list[Any], _Static]:
        return self._arrays, self._static

    @classmethod
    def tree_unflatten(cls, static: _Static, arrays: Iterable[Any]) -> "TracedCallable":
        return cls(list(arrays), static)


def traced(fn: Callable[..., Any], *, name: str) -> TracedCallable:
    """Cuts a callable into traced arrays and a static rest.

    * Arrays (NumPy's, too) are traced wherever `fn` holds them as a pytree.
    * Functions, Python numbers, flags and strings are static. Two callables that
      differ in one of them are compiled separately.
    * A `functools.partial` is cut like a `jax.tree_util.Partial`.

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
    # `Partial`, a subclass, is a pytree already
    if isinstance(fn, functools.partial) and type(fn) is functools.partial:
        fn = jax.tree_util.Partial(fn.func, *fn.args, **fn.keywords)
    leaves, treedef = jax.tree_util.tree_flatten(fn)
    arrays = [leaf for leaf in leaves if _is_array(leaf)]
    rest = tuple(_HOLE if _is_array(leaf) else leaf for leaf in leaves)
    # The types belong to the static part because 1 == True == 1.0.
    static: _Static = (treedef, rest, tuple(type(leaf) for leaf in rest))
    try:
        hash(static)
    except TypeError as error:
        raise ValueError(
            f"{name} holds a leaf that is neither an array nor hashable: {error}"
        ) from None
    return TracedCallable(arrays, static)


def _is_array(leaf: object) -> bool:
    return isinstance(leaf, jax.Array | np.ndarray)
