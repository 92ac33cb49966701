"""Checkpoints of a training run: arrays in Orbax's format, and what vouches for them.

A checkpoint is a folder `step_<number>`. It is written beside its destination and
renamed, so it is whole or not there. Its manifest holds the config, the versions and
the SHA-256 of every file.

One process writes: with several hosts call `save_checkpoint` in process 0 only. The
training state is replicated, so that process holds all of it.
"""

import hashlib
import os
import pathlib
import shutil
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from robjax.runs.files import (
    PathLike,
    load_json,
    save_json,
    sync,
    temporary_beside,
    writable_folder,
)
from robjax.runs.provenance import versions


def save_checkpoint(
    folder: PathLike, step: int, state: Any, *, config: Any = None, keep: int = 2
) -> pathlib.Path:
    """Saves a pytree of arrays as `folder/step_<step>`.

    Killed at any moment it leaves the earlier checkpoints as they were.

    Args:
        folder: the checkpoints of one run; created if needed.
        step: number of updates behind the state, >= 0.
        state: pytree of arrays, numbers and PRNG keys.
        config: stored in the manifest; see `plain`.
        keep: how many of the latest checkpoints to leave, >= 1.

    Raises:
        ValueError: `step` or `keep` is out of range, or the folder is not writable.
    """
    if step < 0 or keep < 1:
        raise ValueError(f"step={step} must be >= 0 and keep={keep} must be >= 1")
    folder = writable_folder(folder, "folder").absolute()
    for leftover in folder.glob(".step_*"):
        shutil.rmtree(leftover)
    target = folder / f"step_{step:010d}"
    temporary = temporary_beside(target)
    arrays = jax.tree.map(_to_host, state)
    temporary.mkdir()
    with _checkpointer() as checkpointer:
        checkpointer.save(temporary / "state", arrays)
    manifest = {
        "step": step,
        "config": config,
        "versions": versions(),
        "leaves": _describe(arrays),
        "files": _checksums(temporary),
    }
    save_json(temporary / "manifest.json", manifest)
    if target.exists():
        os.rename(target, temporary_beside(target))
    os.rename(temporary, target)
    sync(folder)
    for old in [*folder.glob(".step_*"), *list_checkpoints(folder)[:-keep]]:
        shutil.rmtree(old)
    return target


def list_checkpoints(folder: PathLike) -> list[pathlib.Path]:
    """The checkpoints of a run, earliest first; `[]` if there is no folder."""
    return sorted(pathlib.Path(folder).glob("step_" + "[0-9]" * 10))


def load_manifest(path: PathLike) -> dict[str, Any]:
    """The manifest of a checkpoint: step, config, versions, leaves and files.

    Raises:
        ValueError: `path` is no checkpoint, or a file is missing or altered.
    """
    path = pathlib.Path(path)
    try:
        manifest = load_json(path / "manifest.json")
        expected, found = manifest["files"], _checksums(path)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"checkpoint {path} has no readable manifest") from error
    damaged = [name for name in expected if found.get(name) != expected[name]]
    if damaged:
        raise ValueError(
            f"checkpoint {path} is corrupt: {', '.join(damaged)} missing or altered; "
            "delete that folder to go on from an earlier checkpoint"
        )
    return manifest


def load_checkpoint(path: PathLike, like: Any) -> Any:
    """Restores a checkpoint, bit for bit.

    Args:
        path: one of `list_checkpoints`.
        like: state of the same structure; gives shapes, dtypes and the devices.

    Returns:
        The saved values in the structure of `like`, placed where its leaves are.

    Raises:
        ValueError: the checkpoint is corrupt, or its arrays are not those of `like`.
    """
    path = pathlib.Path(path).absolute()
    saved = load_manifest(path)["leaves"]
    target = jax.tree.map(_to_host, like)
    wanted = _describe(target)
    if saved != wanted:
        names = sorted(saved.keys() | wanted.keys())
        name = next(n for n in names if saved.get(n) != wanted.get(n))
        raise ValueError(
            f"checkpoint {path} does not fit the state: {name} is "
            f"{saved.get(name, 'missing')} there and {wanted.get(name, 'missing')} here"
        )
    with _checkpointer() as checkpointer:
        arrays = checkpointer.restore(path / "state", target)
    return jax.tree.map(_place_like, arrays, like)


def _checkpointer() -> Any:
    # Orbax takes a third of a second to import, and most users never checkpoint.
    import orbax.checkpoint as ocp

    # Each process acts alone: saving is process 0's, and all hold the same state.
    process = jax.process_index()
    options = ocp.options.MultiprocessingOptions(
        primary_host=process, active_processes={process}
    )
    return ocp.StandardCheckpointer(multiprocessing_options=options)


def _is_key(leaf: Any) -> bool:
    dtype = getattr(leaf, "dtype", None)
    return dtype is not None and jnp.issubdtype(dtype, jax.dtypes.prng_key)


def _to_host(leaf: Any) -> np.ndarray:
    return np.asarray(jax.random.key_data(leaf) if _is_key(leaf) else leaf)


def _place_like(value: Any, like: Any) -> Any:
    if _is_key(like):
        key_data = jnp.asarray(value)
        value = jax.random.wrap_key_data(key_data, impl=jax.random.key_impl(like))
    if isinstance(like, jax.Array):
        return jax.device_put(value, like.sharding if like.committed else None)
    return type(like)(value) if isinstance(like, (bool, int, float)) else value


def _describe(arrays: Any) -> dict[str, str]:
    leaves = jax.tree_util.tree_leaves_with_path(arrays)
    return {jax.tree_util.keystr(p): f"{a.dtype}{list(a.shape)}" for p, a in leaves}


def _checksums(folder: pathlib.Path) -> dict[str, str]:
    """SHA-256 of every file below `folder` but the manifest, flushed to disk."""
    sums = {}
    for path in sorted(folder.rglob("*")):
        sync(path)
        if path.is_file() and path != folder / "manifest.json":
            digest = hashlib.sha256(path.read_bytes()).hexdigest()
            sums[path.relative_to(folder).as_posix()] = digest
    return sums
