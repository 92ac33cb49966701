"""What the bytecode of a function does, and which names it loads.

Both are asked of code objects and answered for the code nested in them, too: inner
functions, lambdas, comprehensions.
"""

import dis
import functools
import hashlib
from types import CodeType
from typing import Any, NamedTuple

Path = tuple[str, ...]
"""A name, and the attributes that are taken of it at once: ("weights", "first")."""

_VARIABLE = ("LOAD_GLOBAL", "LOAD_NAME", "LOAD_FROM_DICT_OR_GLOBALS")
_CELL = ("LOAD_DEREF", "LOAD_CLASSDEREF", "LOAD_FROM_DICT_OR_DEREF")
_ATTRIBUTE = ("LOAD_ATTR", "LOAD_METHOD")
# How a function is called: *args, **kwargs, generators and coroutines. Other flags of
# code objects tell of docstrings and of nesting.
_CALLED = 0x04 | 0x08 | 0x20 | 0x80 | 0x200


class Loads(NamedTuple):
    """The names that a function loads.

    Attributes:
      variables: of its module (or builtins).
      cells: of the functions around it.
      imports: (module, name) of ``from module import name``, (module,) of ``import
        module``.
      attributes: all attributes, of whatever object.
      assigned: variables of its module that it assigns itself.
    """

    variables: frozenset[Path]
    cells: frozenset[Path]
    imports: frozenset[Path]
    attributes: frozenset[str]
    assigned: frozenset[str]


@functools.lru_cache(maxsize=4096)
def loads(code: CodeType) -> Loads:
    """The names that some code loads, with the attributes taken of them.

    >>> found = loads((lambda x: dis.hasconst + [x.sum(), Path]).__code__)
    >>> sorted(found.variables), sorted(found.attributes)
    ([('Path',), ('dis', 'hasconst')], ['hasconst', 'sum'])
    """
    found: dict[str, set[Path]] = {"variables": set(), "cells": set(), "imports": set()}
    attributes: set[str] = set()
    assigned: set[str] = set()
    kind = ""
    path: Path = ()
    module = ""
    # one more step, so that the last name counts
    for step in (*dis.get_instructions(code), None):
        name = step.opname if step else ""
        if name == "EXTENDED_ARG":
            continue
        if step and name in _ATTRIBUTE:
            attributes.add(step.argval)
            path += (step.argval,) if path else ()
            continue
        if path:
            found[kind].add(path)
            path = ()
        if step is None:
            break
        if name in _VARIABLE:
            kind = "variables"
            path = (step.argval,)
        elif name in _CELL and step.argval in code.co_freevars:
            kind = "cells"
            path = (step.argval,)
        elif name == "IMPORT_NAME":
            module = step.argval
            found["imports"].add((module,))
        elif name == "IMPORT_FROM":
            found["imports"].add((module, step.argval))
        elif name == "STORE_GLOBAL":
            assigned.add(step.argval)
    for inner in map(loads, _nested(code)):
        own = {path for path in inner.cells if path[0] not in code.co_cellvars}
        found["variables"] |= inner.variables
        found["cells"] |= own
        found["imports"] |= inner.imports
        attributes |= inner.attributes
        assigned |= inner.assigned
    sets = {name: frozenset(paths) for name, paths in found.items()}
    return Loads(**sets, attributes=frozenset(attributes), assigned=frozenset(assigned))


@functools.lru_cache(maxsize=4096)
def digest(code: CodeType) -> str:
    """A hash of what some code does.

    Comments, docstrings, line numbers, file names and the names of local variables do
    not count.

    >>> one, other = (lambda x: 2 * x), (lambda y: 2 * y)
    >>> digest(one.__code__) == digest((lambda x: 2 * x).__code__)
    True
    >>> digest(one.__code__) == digest((lambda x: 3 * x).__code__)
    False
    """
    arguments = code.co_argcount + code.co_kwonlyargcount
    flags = code.co_flags & _CALLED
    arguments += bool(flags & 0x04) + bool(flags & 0x08)
    parts = [
        (code.co_argcount, code.co_posonlyargcount, code.co_kwonlyargcount, flags),
        code.co_varnames[:arguments],
        code.co_exceptiontable,
    ]
    for step in dis.get_instructions(code):
        if step.opcode in dis.hasconst:
            parts.append((step.opname, _constant(step.argval)))
        elif step.opcode in dis.hasname or step.opcode in dis.hasfree:
            parts.append((step.opname, step.argval))
        else:
            parts.append((step.opname, step.arg))
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]


def _nested(code: CodeType) -> list[CodeType]:
    return [inner for inner in code.co_consts if isinstance(inner, CodeType)]


def _constant(value: Any) -> str:
    """A constant of a function, the same in every process."""
    if isinstance(value, CodeType):
        return digest(value)
    if isinstance(value, tuple):
        return f"({', '.join(map(_constant, value))})"
    if isinstance(value, frozenset):
        return f"{{{', '.join(sorted(map(_constant, value)))}}}"
    return repr(value)
