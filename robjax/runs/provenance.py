"""What decides the result of a run, in words, and whether two runs are the same.

A run that is taken up again must be the run that was begun: same model, data, options.
Each keeps a description, a flat JSON object made of the pieces below.
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

from robjax.runs.files import plain

_PACKAGES = ("robjax", "jax", "jaxlib", "numpy", "flax", "optax", "orbax-checkpoint")


def versions() -> dict[str, Any]:
    """What a result depends on: Python, packages, devices and the code's git state."""
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


def describe(value: Any, *, within: tuple = ()) -> str:
    """A function with what is bound to it or held by it, or any value; no addresses.

    Functions are followed through jit, vmap and other wrappers, methods and objects
    without a text of their own into what they hold, pytrees into their leaves. Arrays
    of more than one number are given as shape and checksum. `within` holds what is
    being described, which may refer to itself.
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
        parts = [inner(child) for child in value.children()]
        return _node(node[0], node[1], parts, inner)
    node = jax.tree_util.default_registry.flatten_one_level(value)
    # a static value is a node around itself
    if node is not None and value is not None and node[1] is not value:
        return _node(type(value), node[1], [inner(child) for child in node[0]], inner)
    if type(value).__repr__ is object.__repr__:
        return f"{type(value).__qualname__}({', '.join(_attributes(value, inner))})"
    for name in ("__wrapped__", "fun"):  # where jit and a Partial of a Partial keep it
        if hasattr(value, name):
            return inner(getattr(value, name))
    name = getattr(value, "__qualname__", None) or repr(value)
    return re.sub(r" at 0x[0-9a-f]+", "", name)


def _function(value: FunctionType | MethodType, inner: Callable[[Any], str]) -> str:
    """Module and name of a function, with its cells and default values."""
    if isinstance(value, MethodType):
        return f"{inner(value.__self__)}.{inner(value.__func__)}"
    name = f"{value.__module__}.{value.__qualname__}"
    held = [cell.cell_contents for cell in value.__closure__ or ()]
    held += value.__defaults__ or ()
    return f"{name}[{', '.join(map(inner, held))}]" if held else name


def _attributes(value: Any, inner: Callable[[Any], str]) -> list[str]:
    """What an object holds, less what it copied from the function that it wraps."""
    copied = getattr(getattr(value, "__wrapped__", None), "__dict__", {})
    return [
        f"{name}={inner(item)}"
        for name, item in sorted(getattr(value, "__dict__", {}).items())
        if not name.startswith("__") and copied.get(name, copied) is not item
    ]


def _node(kind: Any, static: Any, parts: list[str], inner: Callable[[Any], str]) -> str:
    """A pytree node, its children in words: Linf(0.1), (1, 2), {'w': 3}."""
    if kind in (tuple, list):
        return f"({', '.join(parts)})"
    if kind is dict:
        pairs = zip(static, parts, strict=True)
        return f"{{{', '.join(f'{name!r}: {part}' for name, part in pairs)}}}"
    text = "" if static is None or static is kind else inner(static)
    more = f"[{text}]" if text not in ("", "()") else ""
    return f"{kind.__qualname__}{more}({', '.join(parts)})"


def checksum(tree: Any) -> str:
    """CRC-32 of all arrays of a tree, PRNG keys among them."""
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
    folder: str | os.PathLike[str],
    then: Mapping[str, Any],
    now: Mapping[str, Any],
    *,
    versions_then: Mapping[str, Any],
) -> None:
    """Compares the description of the run in `folder` with that of the present one.

    Args:
      folder: as the caller knows it, for the message.
      then: the description in the folder.
      now: the present one.
      versions_then: `versions` when the run was begun; others now are a warning.

    Raises:
      ValueError: they differ; the message names the first field that does.
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
