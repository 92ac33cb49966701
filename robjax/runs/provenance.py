"""What decides the result of a run, in words, and whether two runs are the same.

A run that is taken up again must be the run that was begun, with the same model, data
and options. So every run keeps a description on disk, a flat JSON object. Its pieces
come from `describe` (functions and options) and `checksum` (arrays). `check_same_run`
compares it with the description of the present run. `versions` is stored beside it.
"""

import importlib.metadata
import os
import pathlib
import platform
import re
import subprocess
import warnings
import zlib
from collections.abc import Callable, Mapping
from functools import partial
from types import FunctionType, MethodType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from robjax.runs.files import PathLike, plain

_PACKAGES = ("robjax", "jax", "jaxlib", "numpy", "flax", "optax", "orbax-checkpoint")


def versions() -> dict[str, Any]:
    """What a result depends on: Python, packages, devices and the code's git state.

    >>> found = versions()
    >>> found["packages"]["jax"] == jax.__version__
    True

    Returns:
      Strings, numbers and dictionaries that JSON can hold. ``git`` is the commit of the
      checkout that robjax runs from, with "-dirty" if that was changed, or None.
    """
    device = jax.devices()[0]
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: _version(name) for name in _PACKAGES},
        "backend": jax.default_backend(),
        "device": f"{jax.device_count()} x {device.device_kind}",
        "processes": jax.process_count(),
        "x64": bool(jax.config.read("jax_enable_x64")),
        "git": _git_state(pathlib.Path(__file__).resolve().parents[2]),
    }


def describe(value: Any, *, within: tuple[object, ...] = ()) -> str:
    """Puts a function or any value into words, without memory addresses.

    **Covered.** Values that differ in these have different descriptions:

    * a function: its module and name, the values in its closure and its default values;
    * what is bound to it, by `functools.partial`, a Partial or as a method's object;
    * the function inside jit, vmap, checkpoint and other wrappers that keep it as
      ``__wrapped__`` or ``fun`` (not `functools.cache`, see below);
    * a pytree: the types of its nodes, their static parts, its leaves;
    * an object whose class has no ``__repr__``: its type and its attributes;
    * an array of more than one number: dtype, shape and `checksum`;
    * anything else: its ``repr``.

    **Not covered.** A change of these goes unnoticed:

    * the code of a function, and the functions and global variables that it refers to;
    * default values of keyword-only arguments, and attributes set on a function;
    * what an object leaves out of its own ``__repr__``;
    * ``__slots__``, class attributes, and names that start with two underscores;
    * the module of a class;
    * the function inside `functools.cache` or `functools.lru_cache`;
    * whether a sequence is a list or a tuple.

    **Unstable.** Values whose ``repr`` changes from process to process look different
    though they are the same, for example a set of strings or a NumPy generator.

    >>> describe(partial(max, 3, key=None))
    'max(3, key=None)'
    >>> describe({"w": np.zeros(3)}) == describe({"w": np.ones(3)})
    False

    Args:
      value: anything.
      within: the values around it, since a value may contain itself; callers leave
        this out.
    """
    if any(value is outer for outer in within):
        return "..."
    inner = partial(describe, within=(*within, value))
    if isinstance(value, np.ndarray | jax.Array):
        if value.size > 1:
            return f"{value.dtype}{list(value.shape)} {checksum(value)}"
        return repr(value)
    if isinstance(value, partial):
        bound = [inner(item) for item in value.args]
        keywords = sorted(value.keywords.items())
        bound += [f"{name}={inner(item)}" for name, item in keywords]
        return f"{inner(value.func)}({', '.join(bound)})"
    if isinstance(value, FunctionType | MethodType):
        return _function(value, inner)
    if isinstance(value, type):
        return value.__qualname__
    if isinstance(value, jax.tree_util.PyTreeDef):
        node = value.node_data()
        if node is None:
            return "*"
        kind, static = node
        return _node(kind, static, [inner(child) for child in value.children()], inner)
    level = jax.tree_util.default_registry.flatten_one_level(value)
    # a static value is a node around itself
    if level is not None and value is not None and level[1] is not value:
        children, static = level
        return _node(type(value), static, [inner(child) for child in children], inner)
    if type(value).__repr__ is object.__repr__:
        return f"{type(value).__qualname__}({', '.join(_attributes(value, inner))})"
    for name in ("__wrapped__", "fun"):  # where jit and a Partial of a Partial keep it
        if hasattr(value, name):
            return inner(getattr(value, name))
    name = getattr(value, "__qualname__", None) or repr(value)
    return re.sub(r" at 0x[0-9a-f]+", "", name)


def _function(value: FunctionType | MethodType, inner: Callable[[Any], str]) -> str:
    """A function as module and name, with the values of its cells and its defaults."""
    if isinstance(value, MethodType):
        return f"{inner(value.__self__)}.{inner(value.__func__)}"
    name = f"{value.__module__}.{value.__qualname__}"
    held = [cell.cell_contents for cell in value.__closure__ or ()]
    held += value.__defaults__ or ()
    return f"{name}[{', '.join(map(inner, held))}]" if held else name


def _attributes(value: object, inner: Callable[[Any], str]) -> list[str]:
    """The attributes of an object, without those copied from a function it wraps."""
    copied = getattr(getattr(value, "__wrapped__", None), "__dict__", {})
    return [
        f"{name}={inner(item)}"
        for name, item in sorted(getattr(value, "__dict__", {}).items())
        if not name.startswith("__") and copied.get(name, copied) is not item
    ]


def _node(
    kind: type, static: Any, parts: list[str], inner: Callable[[Any], str]
) -> str:
    """A pytree node whose children are in words: Linf(0.1), (1, 2), {'w': 3}."""
    if kind in (tuple, list):
        return f"({', '.join(parts)})"
    if kind is dict:
        pairs = zip(static, parts, strict=True)
        return f"{{{', '.join(f'{name!r}: {part}' for name, part in pairs)}}}"
    text = "" if static is None or static is kind else inner(static)
    more = f"[{text}]" if text not in ("", "()") else ""
    return f"{kind.__qualname__}{more}({', '.join(parts)})"


def checksum(tree: Any) -> str:
    """CRC-32 of all arrays of a tree, one after the other, PRNG keys among them.

    It covers the bytes of the arrays. It does not cover their shapes, their dtypes and
    the structure of the tree.

    >>> checksum({"w": np.arange(3)}) == checksum([np.arange(3)])
    True
    >>> checksum(np.arange(3)) == checksum(np.arange(3)[::-1])
    False
    """
    crc = 0
    for leaf in jax.tree.leaves(tree):
        if isinstance(leaf, jax.Array) and jnp.issubdtype(
            leaf.dtype, jax.dtypes.prng_key
        ):
            leaf = jax.random.key_data(leaf)
        # as bytes, for bfloat16 is no type that a buffer knows
        crc = zlib.crc32(np.ascontiguousarray(leaf).view(np.uint8).data, crc)
    return f"crc32 {crc:08x}"


def check_same_run(
    folder: PathLike,
    then: Mapping[str, Any],
    now: Mapping[str, Any],
    *,
    versions_then: Mapping[str, Any],
) -> None:
    """Compares the description of the run in a folder with that of the present run.

    Other versions than when the run was begun are a warning, not an error. The git
    state is not compared.

    >>> now = {"model": "linear", "eps": 0.1}
    >>> check_same_run("runs/a", now, now, versions_then=versions())
    >>> check_same_run("runs/a", now | {"eps": 0.2}, now, versions_then=versions())
    Traceback (most recent call last):
        ...
    ValueError: run_dir='runs/a' holds a run with another eps: 0.2 there, 0.1 here

    Args:
      folder: as the caller knows it, for the message.
      then: the description in the folder.
      now: the description of the present run.
      versions_then: `versions` when the run was begun.

    Raises:
      ValueError: the descriptions differ; the message names the first such field.
    """
    now = plain(now)
    for name in sorted(then.keys() | now.keys()):
        if then.get(name) != now.get(name):
            raise ValueError(
                f"run_dir={os.fspath(folder)!r} holds a run with another {name}: "
                f"{then.get(name)!r} there, {now.get(name)!r} here"
            )
    present = versions()
    names = ("python", "packages", "backend", "device", "processes", "x64")
    changed = [name for name in names if versions_then.get(name) != present.get(name)]
    if changed:
        warnings.warn(
            f"resuming with different {', '.join(changed)}: the run goes on, but not "
            "bit for bit as it would have",
            stacklevel=5,
        )


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _git_state(root: pathlib.Path) -> str | None:
    """Commit of the checkout that the code runs from, "-dirty" if it was changed."""
    if not (root / ".git").exists():
        return None
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        done = subprocess.run(command, cwd=root, capture_output=True, text=True)
    except OSError:
        return None
    return done.stdout.strip() or None
