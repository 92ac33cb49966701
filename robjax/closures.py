"""What a callable holds besides its arguments, as a tree.

Python compares functions by identity. But a function that is written anew in a loop
does the same, with other weights in its closure. And the same function does something
else, once a variable that it reads is bound to something else. So `opened` takes a
callable apart, and what it holds becomes the leaves of a tree:

    floating-point arrays [n, …] of a closure  themselves: they may be weights
    other arrays of a closure                  `Held`, compared by content
    code                                       `Held`, compared by value
    objects that are no pytrees, lists, dicts  `Held`, compared by identity and by what
                                               `robjax.runs.identity` says they are

`jax.tree_util.tree_unflatten` puts the callable together again. What its code reads of
modules and classes is not in the tree: `surroundings` tells it.

**Not seen.** What a function assigns itself to a variable of its closure may change
unseen, and what it finds only when it runs (through `getattr`, or in a file).
"""

import dis
import functools
import hashlib
import sys
from collections.abc import Callable, Hashable, Iterator
from types import CellType, CodeType, FunctionType, MethodType, ModuleType
from typing import Any, NamedTuple

import jax
import jax.core
import jax.numpy as jnp
import numpy as np

_ASSIGNMENTS = {
    "STORE_DEREF",
    "DELETE_DEREF",
    "STORE_GLOBAL",
    "DELETE_GLOBAL",
    "STORE_ATTR",
}

# What `Partial` puts around a `functools.partial` that is its function.
_Shim: Any = type(jax.tree_util.Partial(functools.partial(len)).func)

_Array = jax.Array | np.ndarray
_Plain = bool | int | float | complex | str | bytes | type | ModuleType | None


class Held:
    """Stands for a value, and is compared by a key in its place.

    >>> Held([1], "a") == Held([2], "a"), Held([1]) == Held([1])
    (True, False)

    Args:
      value: what it stands for.
      *key: hashable; by default the identity of the value.
    """

    __slots__ = ("key", "value")

    def __init__(self, value: Any, *key: Hashable):
        self.value = value
        self.key = key

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Held) or self.key != other.key:
            return False
        return bool(self.key) or self.value is other.value

    def __hash__(self) -> int:
        return hash(self.key) if self.key else id(self.value)


class _Node:
    """A node of the tree; what `build` makes of its parts once it is unflattened."""

    def __init__(self, build: Callable[..., Any], *parts: Any):
        self.build = build
        self.parts = parts


jax.tree_util.register_pytree_node(
    _Node,
    lambda node: (node.parts, node.build),
    lambda build, parts: build(*parts),
)


def opened(value: Any, *, constants: bool = False) -> Any:
    """Takes a callable apart; see the module's docstring.

    >>> def scaled(weights):
    ...     return lambda x: weights * x
    >>> trees = [opened(scaled(np.full(2, factor))) for factor in (1.0, 2.0)]
    >>> (code, weights), (same_code, other) = map(jax.tree.leaves, trees)
    >>> code == same_code, weights.tolist(), other.tolist()
    (True, [1.0, 1.0], [2.0, 2.0])

    Args:
      value: a callable, or a pytree with callables in it.
      constants: compare all arrays of closures by content. Needed where a function
        makes NumPy arrays or Python numbers of them.

    Returns:
      A pytree. Its leaves are arrays, `Held` and other values that were leaves before.
      To unflatten it, `Held` leaves have to be replaced by their values.

    Raises:
      TrainModeError: it holds an NNX module in train mode; says where.
    """
    return _Opening(constants).open(value)


class _HoldsItselfError(Exception):
    """A function is found among what it holds."""


class _Opening(NamedTuple):
    """How far a callable has been opened.

    Attributes:
      constants: as in `opened`.
      within: the functions that hold what is opened, the outermost first.
    """

    constants: bool
    within: tuple[FunctionType, ...] = ()

    def open(self, value: Any) -> Any:
        """Opens a tree."""
        leaves = jax.tree.leaves(value, is_leaf=_is_opened)
        closed = not any(isinstance(v, _Array) or _is_opened(v) for v in leaves)
        if self.within and closed and not _is_hashable(value):
            # a list that the function appends to has to stay the same list
            return _kept(value)
        return jax.tree.map(self.open_leaf, value, is_leaf=_is_opened)

    def open_leaf(self, value: Any) -> Any:
        if isinstance(value, _Shim):
            return self.open_leaf(value.fun)
        if isinstance(value, FunctionType):
            return self.open_function(value)
        if isinstance(value, functools.partial):
            parts = self.open((value.func, value.args, value.keywords))
            return _node_or_leaf(value, _build_partial, *parts)
        if isinstance(value, MethodType):
            parts = (Held(value.__func__), self.open(value.__self__))
            return _node_or_leaf(value, MethodType, *parts)
        if _is_nnx(value):
            return _open_nnx(value)
        if isinstance(value, _Array):
            return self.open_array(value) if self.within else value
        own_equality = type(value).__eq__ is not object.__eq__
        if isinstance(value, _Plain) or own_equality:
            return value
        if isinstance(value, CellType):
            return Held(value)
        return _kept(value)

    def open_array(self, array: _Array) -> Any:
        weight = array.ndim > 0 and jnp.issubdtype(array.dtype, jnp.floating)
        if isinstance(array, jax.core.Tracer) or (weight and not self.constants):
            return array
        return Held(array, *_content(array))

    def open_function(self, fn: FunctionType) -> Any:
        if any(fn is outer for outer in self.within):
            raise _HoldsItselfError
        inner = self._replace(within=(*self.within, fn))
        try:
            parts = [
                tuple(map(inner.open, _variables(fn))),
                tuple(map(inner.open, fn.__defaults__ or ())),
                {k: inner.open(v) for k, v in (fn.__kwdefaults__ or {}).items()},
            ]
        except _HoldsItselfError:
            if self.within:
                raise
            return _kept(fn)
        # without its weights, which the key of a program would keep in memory
        empty = tuple(CellType() for _ in fn.__code__.co_freevars)
        hollow = _build_function(fn, empty, None, None)
        names = (fn.__qualname__, fn.__module__)
        key = (fn.__code__, Held(fn.__globals__), *names)
        return _node_or_leaf(fn, _build_function, Held(hollow, *key), *parts)


def _is_opened(value: object) -> bool:
    """Whether a value is opened, and not only what it holds as a pytree."""
    kinds = FunctionType | MethodType | functools.partial
    return isinstance(value, kinds) or _is_nnx(value)


def _is_nnx(value: object) -> bool:
    nnx = sys.modules.get("flax.nnx")
    return nnx is not None and isinstance(value, nnx.Module)


def _is_hashable(value: object) -> bool:
    try:
        hash(value)
    except TypeError:
        return False
    return True


def _node_or_leaf(value: Any, build: Callable[..., Any], *parts: Any) -> Any:
    """A callable as a node of its parts; as a leaf, if there is no array in them.

    A leaf stays the object that it was, for those who compare by identity.
    """
    leaves, treedef = jax.tree.flatten(parts)
    if any(isinstance(leaf, _Array) for leaf in leaves):
        return _Node(build, *parts)
    return Held(value, treedef, *leaves, *map(type, leaves))


def _build_function(
    hollow: FunctionType, variables: tuple[Any, ...], defaults: Any, keywords: Any
) -> FunctionType:
    cells = [v if isinstance(v, CellType) else CellType(v) for v in variables]
    fn = FunctionType(hollow.__code__, hollow.__globals__, None, defaults, tuple(cells))
    fn.__kwdefaults__ = keywords
    fn.__qualname__ = hollow.__qualname__
    fn.__module__ = hollow.__module__
    return fn


def _build_partial(func: Any, args: Any, keywords: Any) -> jax.tree_util.Partial:
    return jax.tree_util.Partial(func, *args, **keywords)


class TrainModeError(Exception):
    """An NNX module is in train mode, where its outputs draw or depend on the batch."""


class _NnxModule(NamedTuple):
    """The code of an NNX module; builds the module of its state."""

    graphdef: Any

    def __call__(self, state: Any) -> Any:
        return sys.modules["flax.nnx"].merge(self.graphdef, state)


def _open_nnx(module: Any) -> _Node:
    nnx = sys.modules["flax.nnx"]
    for path, part in nnx.iter_graph(module):
        drops = getattr(part, "deterministic", None) is False
        if drops or getattr(part, "use_running_average", None) is False:
            raise TrainModeError("/".join(map(str, path)))
    graphdef, state = nnx.split(module)
    return _Node(_NnxModule(graphdef), state)


def _variables(fn: FunctionType) -> Iterator[Any]:
    """The values of a closure; the cell itself where it is not the value that counts.

    That is a variable without a value, a collection to which the function only adds,
    and a variable that it assigns to. If that is None, it waits for its first value,
    and any cell will do.
    """
    # late, since what describes runs describes these trees
    from robjax.runs.anatomy import is_log
    from robjax.runs.bytecode import loads

    assigned = _assigned(fn.__code__)
    cells = fn.__closure__ or ()
    for name, cell in zip(fn.__code__.co_freevars, cells, strict=True):
        try:
            value = cell.cell_contents
        except ValueError:
            value = cell
        taken = [path[1:] for path in loads(fn.__code__).cells if path[0] == name]
        counted = name in assigned and value is not None
        yield cell if counted or (taken and is_log(value, taken)) else value


def _content(array: _Array) -> tuple[Hashable, ...]:
    """Equal for arrays of one kind with equal contents."""
    values = array
    if jnp.issubdtype(array.dtype, jax.dtypes.prng_key):
        values = jax.random.key_data(array)
    elsewhere = isinstance(array, jax.Array) and not array.is_fully_addressable
    if elsewhere or array.dtype == object:
        return (Held(array),)
    data = np.ascontiguousarray(values).view(np.uint8).data
    digest = hashlib.blake2b(data, digest_size=16).digest()
    return type(array), str(array.dtype), array.shape, digest


def _kept(value: Any) -> Held:
    """Stands for a value as long as it is the same object and has not changed."""
    # late, since what describes runs describes these trees
    from robjax.runs.identity import identify

    words, reads, code = identify(value)
    return Held(value, Held(value), words, *reads.items(), *code.items())


def surroundings(value: Any) -> tuple[Hashable, ...]:
    """What the code of a callable finds in modules and classes; not what it holds.

    >>> names = {"__name__": "__main__", "factor": 2}
    >>> surroundings(eval("lambda x: factor * x", names))[0]
    ('__main__.factor', '2')
    """
    from robjax.runs.identity import identify

    _, reads, code = identify(value, arrays=False)
    return (*reads.items(), *code.items())


@functools.lru_cache(maxsize=4096)
def _assigned(code: CodeType) -> frozenset[str]:
    """The variables and attributes that code and the functions in it assign to."""
    own = [s.argval for s in dis.get_instructions(code) if s.opname in _ASSIGNMENTS]
    inner = [part for part in code.co_consts if isinstance(part, CodeType)]
    return frozenset(own).union(*map(_assigned, inner))
