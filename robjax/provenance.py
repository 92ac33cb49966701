"""What decides the result of a run, in words, and whether two runs are the same.

A run that is taken up again must be the run that was begun: same model, data, options.
Each keeps a description, a flat JSON object made of the pieces below.
"""

import os
import re
import warnings
import zlib
from collections.abc import Mapping
from functools import partial
from types import FunctionType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from robjax import storage


def describe(value: Any, *, within: tuple = ()) -> str:
    """A function with what is bound to it or held by it, or any value; no addresses.

    Arrays of more than one number are given as shape and checksum. `within` holds the
    functions that are being described, which may refer to themselves.
    """
    above = (*within, value)
    inner = partial(describe, within=above)
    if isinstance(value, np.ndarray | jax.Array) and value.size > 1:
        return f"{value.dtype}{list(value.shape)} {checksum(value)}"
    if isinstance(value, partial):
        bound = [inner(item) for item in value.args]
        keywords = sorted(value.keywords.items())
        bound += [f"{name}={inner(item)}" for name, item in keywords]
        return f"{inner(value.func)}({', '.join(bound)})"
    if not isinstance(value, FunctionType):
        name = getattr(value, "__qualname__", None) or repr(value)
        return re.sub(r" at 0x[0-9a-f]+", "", name)
    name = f"{value.__module__}.{value.__qualname__}"
    held = [cell.cell_contents for cell in value.__closure__ or ()]
    held = [inner(item) for item in held if not any(item is f for f in above)]
    return f"{name}[{', '.join(held)}]" if held else name


def checksum(tree: Any) -> str:
    """CRC-32 of all arrays of a tree, PRNG keys among them."""
    crc = 0
    for leaf in jax.tree.leaves(tree):
        if isinstance(leaf, jax.Array) and jnp.issubdtype(
            leaf.dtype, jax.dtypes.prng_key
        ):
            leaf = jax.random.key_data(leaf)
        crc = zlib.crc32(np.ascontiguousarray(leaf).data, crc)
    return f"crc32 {crc:08x}"


def check_same_run(
    folder: str | os.PathLike[str],
    then: Mapping[str, Any],
    now: Mapping[str, Any],
    *,
    versions: Mapping[str, Any],
) -> None:
    """Compares the description of the run in `folder` with that of the present one.

    Args:
      folder: as the caller knows it, for the message.
      then: the description in the folder.
      now: the present one.
      versions: `storage.versions` when the run was begun; others now are a warning.

    Raises:
      ValueError: they differ; the message names the first field that does.
    """
    now = storage.plain(now)
    for name in sorted(then.keys() | now.keys()):
        if then.get(name) != now.get(name):
            raise ValueError(
                f"run_dir={os.fspath(folder)!r} holds a run with another {name}: "
                f"{then.get(name)!r} there, {now.get(name)!r} here"
            )
    present = storage.versions()
    names = ("python", "packages", "backend", "device", "processes", "x64")
    changed = [name for name in names if versions.get(name) != present.get(name)]
    if changed:
        warnings.warn(
            f"resuming with different {', '.join(changed)}: the run goes on, but not "
            "bit for bit as it would have",
            stacklevel=5,
        )
