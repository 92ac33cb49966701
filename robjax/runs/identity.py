"""What a function, a model or an option is, in words that other processes agree on.

`identify` goes through a value and keeps three things apart:

    words   the value itself: names, numbers, what closures and objects hold
    reads   the variables of modules that its code reads, the members of its classes
    code    a hash of the bytecode of each of its functions

Bytecode differs between versions of Python, words do not. Nothing depends on memory
addresses or on the hash seed of a process.

How much counts depends on whose code it is, which `whose` tells:

* of a user's code everything;
* of robjax itself names and code, but not the variables that the code reads;
* of installed packages and the standard library names.

What code finds only when it runs is not seen: what it reads from files and from the
environment, or through ``globals()`` and ``getattr``. That is why the description of a
run holds outputs of its model, too.
"""

import dataclasses
import enum
import functools
import hashlib
import types
import weakref
import zlib
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from robjax.runs import anatomy
from robjax.runs.anatomy import Whose, whose, whose_class
from robjax.runs.bytecode import Loads, Path, digest, loads
from robjax.samples import is_concrete
from robjax.traced import TracedCallable

_NUMBERS = (bool, int, float, complex, str, bytes, bytearray)
_ATOMS = {*_NUMBERS, type(None), type(...), type(NotImplemented)}
_WRAPPERS = (functools._lru_cache_wrapper, staticmethod, classmethod)
_MOST_LETTERS = 1000  # what is longer is abridged, with a hash of the whole
_DEEPEST = 50  # values inside each other; those further inside are described later


class Identity(NamedTuple):
    """What a value is; see the module.

    Attributes:
      words: the value itself.
      reads: name of a variable or a class -> what it is, in words.
      code: name of a function -> hash of its bytecode.
    """

    words: str
    reads: dict[str, str]
    code: dict[str, str]


def identify(value: object, *, arrays: bool = True) -> Identity:
    """Tells what a function or any other value is.

    Values that differ in these differ in their identity:

    * a function: its code, its default values, its attributes, the values in its
      closure and the variables of modules that it reads;
    * what is bound to it, by `functools.partial` or as a method's object, and what is
      wrapped, by jit, vmap, `functools.cache` and the like;
    * an object: its type and its attributes, ``__slots__`` among them;
    * a class: its bases, its methods and its other members;
    * a pytree, or its structure: types of the nodes, static parts, leaves;
    * an array: dtype, shape and `checksum`; of a single number the number.

    Without `arrays`, of those that the value holds dtype and shape alone count.

    >>> def scaled(x, *, factor=2):
    ...     return factor * x
    >>> identity = identify(functools.partial(scaled, factor=3))
    >>> identity.words
    'robjax.runs.identity.scaled(factor=3)'
    >>> list(identity.code)
    ['robjax.runs.identity.scaled']
    """
    return _Walk(arrays=arrays).identify(value)


def describe(value: object) -> str:
    """Puts a function or any value into words, those of `identify`.

    >>> describe(functools.partial(max, 3, key=None))
    'max(3, key=None)'
    >>> describe({"w": np.zeros(3)}) == describe({"w": np.ones(3)})
    False
    """
    return identify(value).words


def checksum(tree: Any) -> str:
    """CRC-32 of all arrays of a tree, one after the other, PRNG keys among them.

    It covers dtypes, shapes and bytes of the arrays, not the structure of the tree. In
    place of the bytes of an array that lies elsewhere stand those of its fingerprint.

    >>> checksum({"w": np.arange(3)}) == checksum([np.arange(3)])
    True
    >>> checksum(np.arange(3)) == checksum(np.arange(3)[::-1])
    False
    """
    crc = 0
    for leaf in jax.tree.leaves(tree):
        kind = f"{getattr(leaf, 'dtype', None)}{np.shape(leaf)}"
        crc = zlib.crc32(kind.encode(), crc)
        if isinstance(leaf, jax.Array) and jnp.issubdtype(
            leaf.dtype, jax.dtypes.prng_key
        ):
            leaf = jax.random.key_data(leaf)
        leaf = getattr(leaf, "fingerprint", leaf)
        # as bytes, for bfloat16 is no type that a buffer knows
        crc = zlib.crc32(np.ascontiguousarray(leaf).view(np.uint8).data, crc)
    return f"crc32 {crc:08x}"


class _Walk:
    """One walk through a value.

    Attributes:
      reads, code: as in `Identity`.
      around: the values around the present one.
      texts: words for the values met so far, by their ids.
      kept: these values, so that no other value gets the id of one.
      later: what is described when the value has been: its name, and what describes it.
      met: the variables and classes that are no more to be put into `later`.
    """

    def __init__(self, *, arrays: bool = True) -> None:
        self.arrays = arrays
        self.reads: dict[str, str] = {}
        self.code: dict[str, str] = {}
        self.around: list[object] = []
        self.texts: dict[int, str] = {}
        self.kept: list[object] = []
        self.later: deque[tuple[str, Callable[[], str]]] = deque()
        self.met: set[tuple[object, ...]] = set()

    def identify(self, value: object) -> Identity:
        words = self.words(value)
        if not self.arrays:
            self.arrays = True
            self.texts.clear()
        while self.later:
            name, describe_it = self.later.popleft()
            text = describe_it()
            # a variable that is called as what it holds says nothing new
            if text and not f".{name}".endswith(f".{text}"):
                self.note(self.reads, name, text)
        reads = dict(sorted(self.reads.items()))
        return Identity(words, reads, dict(sorted(self.code.items())))

    def note(self, where: dict[str, str], name: str, text: str) -> None:
        """Keeps what is known under a name; several things of one name add up."""
        where[name] = _hash(f"{where[name]} {text}") if name in where else text

    # ------------------------------------------------------------- any value

    def words(self, value: Any) -> str:
        if type(value) in _ATOMS:
            return _abridged(repr(value))
        text = self.texts.get(id(value))
        if text is not None:
            if isinstance(value, types.FunctionType):
                self.note_code(value)
            return text
        for levels, outer in enumerate(reversed(self.around)):
            if outer is value:
                return f"^{levels}"
        if len(self.around) == _DEEPEST:
            name = f"value {len(self.kept)}"
            self.kept.append(value)
            self.later.append((name, functools.partial(self.words, value)))
            return name
        self.around.append(value)
        text = _abridged(self.any_value(value))
        self.around.pop()
        self.texts[id(value)] = text
        self.kept.append(value)
        return text

    def any_value(self, value: Any) -> str:
        kind = type(value)
        if isinstance(value, np.generic | jax.Array) or kind is np.ndarray:
            return self.array(value)
        if isinstance(getattr(kind, "fingerprint", None), property):
            return f"{kind.__qualname__} {checksum(value)}"
        if isinstance(value, np.dtype):
            return repr(value)
        if isinstance(value, jax.sharding.Mesh):  # it caches what it is asked for
            return f"Mesh{value.axis_names} of {value.size} devices"
        if isinstance(value, functools.partial | functools.partialmethod):
            bound = [self.words(item) for item in value.args]
            bound += self.named(value.keywords)
            return f"{self.words(value.func)}({', '.join(bound)})"
        if isinstance(value, types.MethodType):
            return f"{self.words(value.__self__)}.{self.words(value.__func__)}"
        if isinstance(value, type):
            return self.class_name(value)
        if isinstance(value, types.ModuleType):
            return value.__name__
        if isinstance(value, jax.tree_util.PyTreeDef):
            return self.structure(value)
        if isinstance(value, TracedCallable):
            return self.words(value.unwrap())
        name = anatomy.installed_name(value)
        if name is not None:
            return name
        if isinstance(value, types.FunctionType):
            return self.function(value)
        if isinstance(value, types.BuiltinMethodType | types.MethodWrapperType):
            return f"{self.words(value.__self__)}.{value.__name__}"
        if isinstance(value, _WRAPPERS):
            return self.words(value.__wrapped__)
        if isinstance(value, property):
            return self.words((value.fget, value.fset, value.fdel))
        if isinstance(value, functools.cached_property):
            return self.words(value.func)
        if isinstance(value, enum.Enum):
            return f"{self.class_name(kind)}.{value.name}"
        if kind in (dict, list, tuple, set, frozenset):
            return self.items(value)
        return self.instance(value)

    def array(self, value: Any) -> str:
        kind = f"{value.dtype}{list(value.shape)}"
        if not self.arrays:
            return kind
        if isinstance(value, jax.Array) and not is_concrete(value):
            return f"traced {kind}"
        if isinstance(value, jax.Array) and value.is_deleted():
            return f"deleted {kind}"
        if value.dtype == object:
            return f"{kind} {self.words(value.tolist())}"
        if value.size == 1 and jnp.issubdtype(value.dtype, jnp.number):
            return f"{kind} {value.item()!r}"
        return f"{kind} {_checksum_once(value)}"

    def items(self, value: Any) -> str:
        """A collection by what it contains; dictionaries and sets in a stable order."""
        if isinstance(value, Mapping):
            keys = self.ordered(value)
            pairs = [f"{self.words(key)}: {self.words(value[key])}" for key in keys]
            return f"{{{', '.join(pairs)}}}"
        if isinstance(value, set | frozenset):
            return f"{{{', '.join(map(self.words, self.ordered(value)))}}}"
        text = ", ".join(map(self.words, value))
        return f"[{text}]" if isinstance(value, list) else f"({text})"

    def ordered(self, values: Iterable[Any]) -> list[Any]:
        """Values in an order of their own, found without moving on in this walk."""

        def alone(value: Any) -> str:
            walk = _Walk()
            walk.around = list(self.around)
            return walk.words(value)

        return sorted(values, key=alone)

    def named(self, values: Mapping[str, Any]) -> list[str]:
        return [f"{name}={self.words(item)}" for name, item in sorted(values.items())]

    # ------------------------------------------------------------- functions

    def function(self, function: types.FunctionType) -> str:
        """A function as module and name, with all that it holds."""
        self.note_code(function)
        held = self.cells(function)
        owner = whose(function.__globals__)
        if owner == Whose.USER:
            self.variables(function)
            held += self.named(anatomy.defaults(function))
            held += self.named(anatomy.attributes(function))
        module = function.__module__
        if owner == Whose.INSTALLED:
            module = anatomy.package(function.__globals__)
        name = f"{module}.{function.__qualname__}"
        return f"{name}[{', '.join(held)}]" if held else name

    def note_code(self, function: types.FunctionType) -> None:
        """Keeps the code of a function, of one of robjax with its default values."""
        owner = whose(function.__globals__)
        if owner == Whose.INSTALLED:
            return
        code = digest(function.__code__)
        if owner == Whose.ROBJAX:
            code = _hash(f"{code} {self.named(anatomy.defaults(function))}")
        self.note(self.code, f"{function.__module__}.{function.__qualname__}", code)

    def cells(self, function: types.FunctionType) -> list[str]:
        """What the closure of a function holds, as far as its code takes it."""
        found = loads(function.__code__)
        installed = whose(function.__globals__) == Whose.INSTALLED
        texts = []
        names = function.__code__.co_freevars
        for name, cell in zip(names, function.__closure__ or (), strict=True):
            if name == "__class__":  # of `super()`
                continue
            try:
                value = cell.cell_contents
            except ValueError:
                texts.append(f"{name}=<empty>")
                continue
            taken = [path[1:] for path in found.cells if path[0] == name]
            if taken and anatomy.is_log(value, taken):
                continue
            ends = dict(anatomy.follow(value, path) for path in taken or [()])
            if () in ends:
                ends = {(): value}
            for path, end in sorted(ends.items(), key=lambda pair: pair[0]):
                if installed and anatomy.is_off(end):
                    continue
                self.module(end, found)
                texts.append(f"{'.'.join((name, *path))}={self.words(end)}")
        return texts

    def variables(self, function: types.FunctionType) -> None:
        """Puts off the variables of modules that a function reads."""
        found = loads(function.__code__)
        names = function.__globals__
        for path in sorted(found.variables):
            value = names.get(path[0])
            taken = [other[1:] for other in found.variables if other[0] == path[0]]
            # a number that it counts up itself says how often it ran
            counter = path[0] in found.assigned and isinstance(value, int)
            if not counter and not anatomy.is_log(value, taken):
                self.variable(names, path, found)
        for name, *path in sorted(found.imports):
            module = anatomy.imported(name, names)
            if path and module is not None:
                self.variable(vars(module), tuple(path), found)
            else:
                self.module(module, found)

    def variable(self, names: Mapping[str, Any], path: Path, found: Loads) -> None:
        if path[0] not in names:  # a builtin, or not there yet
            return
        taken, value = anatomy.follow(names[path[0]], path[1:])
        path = (path[0], *taken)
        self.module(value, found)
        if (id(names), path) not in self.met:
            self.met.add((id(names), path))
            name = f"{names.get('__name__')}.{'.'.join(path)}"
            self.later.append((name, functools.partial(self.words, value)))

    def module(self, module: object, found: Loads) -> None:
        """Puts off the variables that some code may take of a module of the user's."""
        if not isinstance(module, types.ModuleType):
            return
        names = vars(module)
        if whose(names) == Whose.USER and (id(names), found) not in self.met:
            self.met.add((id(names), found))
            for name in sorted(found.attributes & names.keys()):
                self.variable(names, (name,), found)

    # ------------------------------------------------------------- objects

    def class_name(self, kind: type) -> str:
        """A class by its name; what it is made of comes later."""
        owner = whose_class(kind)
        if owner == Whose.INSTALLED:
            return kind.__qualname__
        name = f"{kind.__module__}.{kind.__qualname__}"
        if (id(kind),) not in self.met:
            self.met.add((id(kind),))
            describe_it = functools.partial(self.members, kind)
            self.later.append((name, describe_it))
        return name if owner == Whose.USER else kind.__qualname__

    def members(self, kind: type) -> str:
        """Bases and members of a class, but for methods of which their code says all.

        Empty for a class of robjax: of its methods the code alone counts.
        """
        texts = [self.words(base) for base in kind.__bases__ if base is not object]
        for name, member in sorted(anatomy.members(kind).items()):
            text = self.words(member)
            if not text.endswith(f"{kind.__qualname__}.{name}"):
                texts.append(f"{name}={text}")
        return ", ".join(texts) if whose_class(kind) == Whose.USER else ""

    def instance(self, value: Any) -> str:
        """An object by its type and what it holds."""
        kind = type(value)
        name = self.class_name(kind)
        parts = anatomy.flax_parts(value)
        if parts is not None:
            return f"{name}({', '.join(self.named(parts))})"
        attributes = anatomy.attributes(value)
        if whose_class(kind) == Whose.USER:
            held = [*self.contents(value), *self.named(attributes)]
            held = held or map(self.words, anatomy.pickled(value))
            return f"{name}({', '.join(held)})"
        level = jax.tree_util.default_registry.flatten_one_level(value)
        if level is not None and level[1] is not value:  # static: a node around itself
            children, static = level
            return self.node(kind, static, [self.words(child) for child in children])
        if isinstance(value, Mapping):
            return f"{name}({self.items(value)})"
        if dataclasses.is_dataclass(value):
            attributes = {
                field.name: getattr(value, field.name, None)
                for field in dataclasses.fields(value)
            }
            return f"{name}({', '.join(self.named(attributes))})"
        if "__wrapped__" in attributes and len(attributes) == 1:
            return self.words(attributes["__wrapped__"])
        state = () if "__wrapped__" in attributes else anatomy.pickled(value)
        if state:
            return f"{name}({', '.join(map(self.words, state))})"
        if attributes or kind.__repr__ is object.__repr__:
            return f"{name}({', '.join(self.named(attributes))})"
        return anatomy.plain_repr(value)

    def contents(self, value: Any) -> list[str]:
        """What an object of a user's class is as a collection, number or array."""
        if isinstance(value, np.ndarray):
            return [self.array(np.asarray(value))]
        if isinstance(value, Mapping | list | tuple | set | frozenset):
            return [self.items(value)]
        kinds: list[Any] = [kind for kind in _NUMBERS if isinstance(value, kind)]
        return [kind.__repr__(value) for kind in kinds]

    def structure(self, tree: Any) -> str:
        node = tree.node_data()
        if node is None:
            return "*"
        kind, static = node
        return self.node(kind, static, [self.words(part) for part in tree.children()])

    def node(self, kind: type, static: Any, parts: list[str]) -> str:
        """A pytree node whose children are in words: Linf(0.1), (1, 2), {'w': 3}."""
        text = ", ".join(parts)
        if kind is list:
            return f"[{text}]"
        if kind is tuple:
            return f"({text})"
        if kind is dict:
            pairs = zip(static, parts, strict=True)
            return f"{{{', '.join(f'{name!r}: {part}' for name, part in pairs)}}}"
        rest = "" if static is None or static is kind else self.words(static)
        more = f"[{rest}]" if rest not in ("", "()") else ""
        return f"{self.class_name(kind)}{more}({text})"


def _checksum_once(array: Any) -> str:
    """The checksum of an array; of one that cannot change it is computed once."""
    if not isinstance(array, jax.Array):
        return checksum(array)
    key = id(array)
    if key not in _checksums:
        weakref.finalize(array, _checksums.pop, key, None)
        _checksums[key] = checksum(array)
    return _checksums[key]


_checksums: dict[int, str] = {}
"""Checksums of the jax.Arrays that are alive, by their ids."""


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _abridged(text: str) -> str:
    if len(text) <= _MOST_LETTERS:
        return text
    return f"{text[: _MOST_LETTERS // 5]}... {_hash(text)}"
