"""Whose code something is, and what functions, classes and objects are made of."""

import copyreg
import dataclasses
import enum
import functools
import importlib.util
import re
import sys
import sysconfig
import types
import warnings
from collections import deque
from collections.abc import Collection, Iterator, Mapping
from pathlib import PurePath
from typing import Any

from robjax.runs.bytecode import Path

# What Python makes of the fields of a dataclass or a NamedTuple, in its own way in each
# version.
_GENERATED = {
    "__init__", "__new__", "__repr__", "__eq__", "__hash__", "__lt__", "__le__",
    "__gt__", "__ge__", "__setattr__", "__delattr__", "__replace__", "__getstate__",
    "__setstate__", "__getnewargs__", "_make", "_replace", "_asdict",
}  # fmt: skip
_LAZY = {"__annotate__", "__annotate_func__"}  # how Python 3.14 keeps annotations
# What libraries, in their own way in each version, add to the classes of their users.
_ADDED = {
    "_abc_impl", "_compact_name_scope_methods", "_parent_ref", "_pytree__is_pytree",
    "_pytree__nodes", "_state", "name", "parent", "scope",
}  # fmt: skip


_EMPTY = (tuple, list, dict, set, frozenset)


class Whose(enum.Enum):
    """Whose code it is."""

    USER = "user"
    ROBJAX = "robjax"
    INSTALLED = "installed"


def whose(names: Mapping[str, Any]) -> Whose:
    """Whose code a module is; of installed packages the standard library is one.

    >>> import json
    >>> whose(vars(json)), whose({"__name__": "__main__", "__file__": "attack.py"})
    (<Whose.INSTALLED: 'installed'>, <Whose.USER: 'user'>)

    Args:
      names: the variables of the module.
    """
    if package(names) == "robjax":
        return Whose.ROBJAX
    file = names.get("__file__")
    if file is None:  # typed in, made by `exec`, or built into Python
        installed = package(names) in sys.stdlib_module_names
    else:
        installed = _is_installed(file)
    return Whose.INSTALLED if installed else Whose.USER


def whose_class(kind: type) -> Whose:
    """Whose class it is.

    >>> whose_class(dict), whose_class(Whose)
    (<Whose.INSTALLED: 'installed'>, <Whose.ROBJAX: 'robjax'>)
    """
    module = kind.__module__
    written = any(isinstance(item, types.FunctionType) for item in vars(kind).values())
    # `exec` without a name of the module makes classes of "builtins"
    if module == "__main__" or (module == "builtins" and written):
        return Whose.USER
    return whose(vars(sys.modules[module]) if module in sys.modules else {})


def package(names: Mapping[str, Any]) -> str:
    """The package that a module belongs to, by the variables of the module.

    >>> package(globals())
    'robjax'
    """
    return str(names.get("__name__")).partition(".")[0]


@functools.cache
def _is_installed(file: str) -> bool:
    path = PurePath(file)
    if "site-packages" in path.parts or "dist-packages" in path.parts:
        return True
    folders = [sysconfig.get_path(name) for name in ("stdlib", "platstdlib")]
    return any(path.is_relative_to(folder) for folder in folders)


def installed_name(value: object) -> str | None:
    """The name by which an installed package offers something; None if none does.

    The module in the package is left out, since packages move what they have.

    >>> installed_name(max), installed_name(re.compile), installed_name(package)
    ('max', 're.compile', None)
    """
    module = getattr(value, "__module__", None)
    name = getattr(value, "__qualname__", None) or getattr(value, "__name__", None)
    if not (isinstance(module, str) and isinstance(name, str)):
        return None
    found: Any = sys.modules.get(module)
    if found is None or whose(vars(found)) != Whose.INSTALLED:
        return None
    own = package(vars(found))
    for part in name.split("."):
        found = getattr(found, part, None)
    if found is not value:
        return None
    return name if own == "builtins" else f"{own}.{name}"


def imported(name: str, names: Mapping[str, Any]) -> types.ModuleType | None:
    """A module of the user's that a function imports when it runs; else None.

    >>> imported("json", globals()) is None
    True

    Args:
      name: as the function names it.
      names: the variables of the module that the function is in.
    """
    for full in (name, f"{names.get('__package__')}.{name}"):
        try:
            module = sys.modules.get(full)
            if module is None:
                spec = importlib.util.find_spec(full)
                origin = {"__name__": full, "__file__": spec and spec.origin}
                if spec is None or whose(origin) != Whose.USER:
                    continue
                module = importlib.import_module(full)
        except Exception:  # whatever the function would have met
            continue
        return module if whose(vars(module)) == Whose.USER else None
    return None


def follow(value: Any, attributes: Path) -> tuple[Path, Any]:
    """Takes attributes as long as modules and objects hold them themselves.

    >>> namespace = types.SimpleNamespace(rate=0.5, epochs=3)
    >>> follow(namespace, ("rate", "real"))
    (('rate',), 0.5)

    Returns:
      The attributes taken, and what they lead to.
    """
    for number, name in enumerate(attributes):
        own = getattr(value, "__dict__", {})
        if isinstance(value, types.ModuleType):
            is_own = name in own and whose(own) != Whose.INSTALLED
        else:
            is_class = isinstance(value, type)
            is_own = name in own and not is_class and not hasattr(type(value), name)
        if not is_own:
            return attributes[:number], value
        value = own[name]
    return attributes, value


def defaults(function: types.FunctionType) -> dict[str, Any]:
    """The default values of a function, by the names of its arguments.

    >>> defaults(lambda x, y=1, *, z=2: x)
    {'y': 1, 'z': 2}
    """
    count = function.__code__.co_argcount
    values = function.__defaults__ or ()
    names = function.__code__.co_varnames[count - len(values) : count]
    return {**dict(zip(names, values, strict=True)), **(function.__kwdefaults__ or {})}


def attributes(value: object) -> dict[str, Any]:
    """What an object or a function holds under names, ``__slots__`` among them.

    Not the names that Python gives a meaning to, but for what is wrapped; not what was
    copied from there. Of an installed class not its private names, nor what `is_off`.

    >>> attributes(types.SimpleNamespace(rate=0.5, __doc__="of mine"))
    {'rate': 0.5}
    """
    found = dict(getattr(value, "__dict__", {}))
    for base in type(value).__mro__:
        slots = vars(base) if "__slots__" in vars(base) else {}
        for name, member in slots.items():
            if isinstance(member, types.MemberDescriptorType):
                try:
                    found[name] = member.__get__(value)
                except AttributeError:  # nothing is in the slot
                    continue
    own_function = isinstance(value, types.FunctionType)
    owner = Whose.USER if own_function else whose_class(type(value))
    wrapped = found.get("__wrapped__")
    if owner != Whose.USER and wrapped is None:
        wrapped = getattr(value, "__wrapped__", None)
    copied = getattr(wrapped, "__dict__", {})
    hidden = "_" if owner == Whose.INSTALLED else "__"
    kept = {
        name: item
        for name, item in found.items()
        if not (name.startswith(hidden) and (hidden == "_" or name.endswith("__")))
        and copied.get(name, copied) is not item
        and not (owner == Whose.INSTALLED and is_off(item))
    }
    held = own_function or any(item is wrapped for item in kept.values())
    return kept if wrapped is None or held else {**kept, "__wrapped__": wrapped}


def is_log(value: object, paths: Collection[Path]) -> bool:
    """Whether code only adds to a collection, so that it may hold anything.

    >>> is_log([1, 2], [("append",)]), is_log([1, 2], [("append",), ("index",)])
    (True, False)

    Args:
      value: what may be a collection.
      paths: all that the code takes of it.
    """
    added = {("append",), ("extend",), ("add",), ("update",), ("appendleft",)}
    return isinstance(value, list | set | dict | deque) and added.issuperset(paths)


def is_off(value: object) -> bool:
    """Whether a value says that an option is not used.

    New versions of packages add such options.

    >>> [is_off(value) for value in (None, False, (), 0, "")]
    [True, True, True, False, False]
    """
    return value is None or value is False or (type(value) in _EMPTY and not value)


def members(kind: type) -> dict[str, Any]:
    """The members of a class that its author wrote.

    >>> class Scaled:
    ...     factor = 2
    ...     def __call__(self, x):
    ...         return self.factor * x
    >>> sorted(members(Scaled))
    ['__call__', 'factor']
    """
    options: dict[str, Any] = {}
    if issubclass(kind, enum.Enum):
        options = {name: option.value for name, option in kind.__members__.items()}
    fields = dataclasses.is_dataclass(kind) or hasattr(kind, "_fields")
    skipped = set(_ADDED) if _flax_module(kind) else {"_abc_impl"}
    written = {
        name: member
        for name, member in vars(kind).items()
        if _is_written(name, member)
        and name not in skipped
        and not (fields and name in _GENERATED and _is_generated(member))
        and not (options and re.fullmatch("_[^_].*_", name))  # of `enum` itself
    }
    return {**written, **options}


def _is_written(name: str, member: object) -> bool:
    if isinstance(member, types.GetSetDescriptorType | types.MemberDescriptorType):
        return False
    if not (name.startswith("__") and name.endswith("__")):
        return True
    method = hasattr(type(member), "__get__") and not isinstance(member, type)
    return method and name not in _LAZY


def _is_generated(member: object) -> bool:
    code = getattr(getattr(member, "__func__", member), "__code__", None)
    return code is not None and (
        code.co_filename.startswith("<") or _is_installed(code.co_filename)
    )


def _flax_module(kind: type) -> str | None:
    """Which of the two kinds of flax modules a class is of, if it is one."""
    for name in ("flax.linen", "flax.nnx"):
        if name in sys.modules and issubclass(kind, sys.modules[name].Module):
            return name
    return None


def flax_parts(value: Any) -> dict[str, Any] | None:
    """What makes up a module of flax, by names; None for any other object.

    >>> import flax.linen as nn
    >>> parts = flax_parts(nn.Dense(3))
    >>> parts["features"], parts["use_bias"]
    (3, True)
    """
    framework = _flax_module(type(value))
    if framework is None:
        return None
    if framework == "flax.nnx":
        graph, state = sys.modules[framework].split(value)
        return {"graph": graph, "state": state}
    if value.scope is not None:
        module, variables = value.unbind()
        return {"module": module, "variables": variables}
    names = {field.name for field in dataclasses.fields(value)} - {"parent"}
    return {name: getattr(value, name, None) for name in names}


def pickled(value: Any) -> tuple[Any, ...]:
    """What an object hands to `pickle`, if its class has its own way of doing that.

    >>> pickled(re.compile("a+")), pickled(object())
    ((('a+', 32),), ())
    """
    kind = type(value)
    reduce = copyreg.dispatch_table.get(kind)
    usual = (object.__reduce__, object.__reduce_ex__)
    if reduce is None and (kind.__reduce__, kind.__reduce_ex__) == usual:
        return ()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            state = value.__reduce_ex__(2) if reduce is None else reduce(value)
    except Exception:  # not all that has a way goes it
        return ()
    if isinstance(state, str):
        return (state,)
    parts = [list(part) if isinstance(part, Iterator) else part for part in state]
    return tuple(part for part in parts[1:] if part is not None)


def plain_repr(value: object) -> str:
    """The ``repr`` of an object without its address.

    >>> plain_repr(object())
    '<object object>'
    """
    try:
        text = repr(value)
    except Exception:
        return f"<{type(value).__qualname__}>"
    text = text.replace(str(id(value)), "")
    return re.sub(r"( at)? ?\b0[xX][0-9a-fA-F]{8,}", "", text)
