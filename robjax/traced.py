"""Any callable as a pytree: its arrays are traced, everything else is static.

`jax.jit` compiles a function again when a static part of its arguments changes. When
only arrays change, it runs the compiled program again. So the arguments of a compiled
function should be cut in two:

    callable     arrays (traced)     static
    a model      weights             code
    an attack    step size           code, number of steps

`traced` makes that cut.
"""

import sys
import weakref
from collections.abc import Callable, Hashable, Iterable
from typing import Any

import jax
import numpy as np

from robjax.closures import Held, TrainModeError, opened, surroundings

# A program of a small network and PGD takes 5 MiB, one of a large suite 20 MiB.
_MOST_PROGRAMS = 64
# XLA maps a program of an attack into memory in 60 to 450 pieces. Linux allows a
# process 65,530, and XLA ends the process where it gets no more. What is left after
# programs were dropped, such as the mappings of a GPU's driver, does not count, lest
# each call drop what the one before it compiled.
_MOST_MAPPINGS = 30_000


class _Hole:
    """Stands where an array was taken out of a tree."""


_HOLE = _Hole()

_Static = tuple[
    jax.tree_util.PyTreeDef,
    tuple[Hashable, ...],
    tuple[type, ...],
    tuple[Hashable, ...],
]
"""Tree structure; leaves with holes for the arrays; the types of these leaves; what the
code finds in modules and classes."""


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

    def __init__(
        self,
        arrays: list[Any],
        static: _Static,
        original: Callable[..., Any] | None = None,
    ):
        self._arrays = arrays
        self._static = static
        self._original = original
        self._around: weakref.WeakSet[TracedCallable] = weakref.WeakSet()
        self._closed = False

    def __call__(self, *args: Any, **keywords: Any) -> Any:
        return self.unwrap()(*args, **keywords)

    def unwrap(self) -> Callable[..., Any]:
        """The callable that `traced` was given, with the present arrays in it."""
        treedef, rest, *_ = self._static
        arrays = iter(self._arrays)
        leaves = [next(arrays) if leaf is _HOLE else leaf for leaf in rest]
        values = [leaf.value if isinstance(leaf, Held) else leaf for leaf in leaves]
        return jax.tree_util.tree_unflatten(treedef, values)

    def original(self) -> Callable[..., Any]:
        """The callable that the user gave, without what robjax put around it."""
        if self._original is None:
            return self.unwrap()
        inner = [leaf for leaf in _leaves(self._original) if _is_traced(leaf)]
        return inner[0].original() if inner else self._original

    def close(self) -> bool:
        """Makes the arrays in closures static, for a function that reads their values.

        So it does inside and around this callable. Only what `traced` returned can do
        that, before it goes through a transformation of JAX.

        Returns:
          Whether that changed anything.
        """
        if self._original is None or self._closed:
            return False
        self._closed = True
        for inner in filter(_is_traced, _leaves(self._original)):
            inner.close()
        arrays, static = _cut(self._original, constants=True)
        changed = static != self._static
        self._arrays = arrays
        self._static = static
        for outer in self._around:
            outer.close()
        return changed

    def tree_flatten(self) -> tuple[list[Any], _Static]:
        return self._arrays, self._static

    @classmethod
    def tree_unflatten(cls, static: _Static, arrays: Iterable[Any]) -> "TracedCallable":
        return cls(list(arrays), static)


def traced(fn: Callable[..., Any], *, name: str) -> TracedCallable:
    """Cuts a callable into traced arrays and a static rest.

    * Arrays (NumPy's, too) are traced wherever `fn` holds them as a pytree.
    * In the closure of a function, and among its default values, floating-point arrays
      of at least one axis are traced. So the same function written with other weights
      is the same program.
    * Functions, Python numbers, flags and strings are static. Two callables that
      differ in one of them are compiled separately.
    * A function that reads other values of its module than before is another function,
      and an object that holds other arrays is another object (`robjax.closures`).
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
      ValueError: `fn` holds a leaf that is neither an array nor hashable, or an NNX
        module in train mode.
    """
    try:
        arrays, static = _cut(fn, constants=False)
        key = hash((static, tuple(array.shape for array in arrays)))
    except TrainModeError as error:
        raise ValueError(
            f"{name} must not be or hold an NNX module in train mode, which draws or "
            f"mixes the images of a batch: call .eval() on it first (at {error})"
        ) from None
    except TypeError as error:
        raise ValueError(
            f"{name} holds a leaf that is neither an array nor hashable: {error}"
        ) from None
    _bound_programs(key)
    found = TracedCallable(arrays, static, fn)
    for inner in filter(_is_traced, _leaves(fn)):
        inner._around.add(found)
    return found


def _cut(fn: Callable[..., Any], *, constants: bool) -> tuple[list[Any], _Static]:
    leaves, treedef = jax.tree.flatten(opened(fn, constants=constants))
    arrays = [leaf for leaf in leaves if _is_array(leaf)]
    rest = tuple(_HOLE if _is_array(leaf) else leaf for leaf in leaves)
    # The types belong to the static part because 1 == True == 1.0.
    types = tuple(type(leaf) for leaf in rest)
    return arrays, (treedef, rest, types, surroundings(fn))


def _is_array(leaf: object) -> bool:
    return isinstance(leaf, jax.Array | np.ndarray)


def _is_traced(value: object) -> bool:
    return isinstance(value, TracedCallable)


def _leaves(value: Any) -> list[Any]:
    """The leaves of a tree, one of which may be a `TracedCallable`."""
    return jax.tree.leaves(value, is_leaf=_is_traced)


_known: set[int] = set()
"""Hashes of what programs depend on, met since the programs were last dropped."""

_left = [0]
"""How many mappings there were after that."""


def _bound_programs(key: int) -> None:
    """Drops all compiled programs of robjax, once too many callables were met.

    JAX keeps thousands of programs. It cannot drop those of one callable alone.
    """
    if key in _known:
        return
    if len(_known) >= _MOST_PROGRAMS or _mappings() - _left[0] > _MOST_MAPPINGS:
        _known.clear()
        modules = [m for name, m in sys.modules.items() if name.startswith("robjax.")]
        for value in [value for module in modules for value in vars(module).values()]:
            # of a function under jax.jit, and of one that keeps such functions
            for drop in ("clear_cache", "cache_clear"):
                getattr(value, drop, lambda: None)()
        _left[0] = min(_mappings(), _MOST_MAPPINGS)
    _known.add(key)


def _mappings() -> int:
    """How many pieces of memory the process has mapped; 0 where nothing tells."""
    try:
        with open("/proc/self/maps", "rb") as lines:
            return sum(1 for _ in lines)
    except OSError:
        return 0
