"""Checkpoints of a training run: arrays in Orbax's format, with checksums.

A checkpoint is a folder `step_<number>`. It is written beside its destination and then
renamed, so it is either whole or not there. Its manifest holds the config, the versions
and the SHA-256 of every file, its own among them.

One process writes: of several, call `save_checkpoint` in process 0 only. The
training state is replicated, so that process holds all of it.
"""

import hashlib
import os
import pathlib
import re
import shutil
import warnings
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from robjax.runs.files import (
    PathLike,
    load_json,
    save_json,
    seal,
    sync,
    temporary_beside,
    writable_folder,
)
from robjax.runs.provenance import versions

State = TypeVar("State")


def save_checkpoint(
    folder: PathLike, step: int, state: Any, *, config: object = None, keep: int = 2
) -> pathlib.Path:
    """Saves a pytree of arrays as `folder/step_<step>`.

    If it is killed, at any moment, the earlier checkpoints stay as they were.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = save_checkpoint(folder, 3, {"w": jnp.array([1.0, 2.0])})
    ...     restored = load_checkpoint(path, like={"w": jnp.zeros(2)})
    >>> path.name, restored["w"].tolist()
    ('step_0000000003', [1.0, 2.0])

    Args:
      folder: the checkpoints of one run; created if needed.
      step: number of updates behind the state, >= 0.
      state: pytree of arrays, numbers and PRNG keys.
      config: stored in the manifest; see `plain`.
      keep: how many of the latest checkpoints to leave, >= 1.

    Returns:
      The folder of the checkpoint.

    Raises:
      ValueError: `step` or `keep` is out of range, or the folder is not writable.
      OSError: the state cannot be written, as on a full disk.
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
    try:
        with _checkpointer() as checkpointer:
            checkpointer.save(temporary / "state", arrays)
    except Exception as error:  # Orbax's, of many kinds and pages
        shutil.rmtree(temporary, ignore_errors=True)
        raise OSError(
            f"checkpoint {target} could not be written ({_reason(error)}); the earlier "
            "checkpoints are as they were: mend that, then go on with resume=True"
        ) from None
    manifest = {
        "step": step,
        "config": config,
        "versions": versions(),
        "leaves": _describe(arrays),
        "files": _checksums(temporary),
    }
    manifest["sha256"] = seal(manifest)
    save_json(temporary / "manifest.json", manifest)
    if target.exists():
        os.rename(target, temporary_beside(target))
    os.rename(temporary, target)
    sync(folder)
    for old in [*folder.glob(".step_*"), *list_checkpoints(folder)[:-keep]]:
        shutil.rmtree(old)
    return target


def list_checkpoints(folder: PathLike) -> list[pathlib.Path]:
    """The checkpoints of a run, earliest first; `[]` if there is no folder.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     for step in (10, 20, 30):
    ...         _ = save_checkpoint(folder, step, {"w": 1.0}, keep=2)
    ...     [path.name for path in list_checkpoints(folder)]
    ['step_0000000020', 'step_0000000030']
    """
    return sorted(pathlib.Path(folder).glob("step_" + "[0-9]" * 10))


def latest_checkpoint(
    folder: PathLike,
) -> tuple[pathlib.Path, dict[str, Any]] | None:
    """The latest checkpoint of a run that is whole, with its manifest; None: none.

    >>> latest_checkpoint("nowhere") is None
    True

    Raises:
      ValueError: there are checkpoints, and all are damaged.

    Warns:
      UserWarning: later ones are damaged.
    """
    damaged: list[ValueError] = []
    for path in reversed(list_checkpoints(folder)):
        try:
            manifest = load_manifest(path)
        except ValueError as error:
            damaged.append(error)
            continue
        for error in damaged:
            warnings.warn(f"{error}; going on from {path.name}", stacklevel=4)
        return path, manifest
    if damaged:
        raise ValueError(
            f"{damaged[0]}, and there is no other to go on from: bring one back, or "
            "name another folder"
        )
    return None


def load_manifest(path: PathLike) -> dict[str, Any]:
    """Reads the manifest of a checkpoint and checks its files.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = save_checkpoint(folder, 3, {"w": np.ones(2)}, config={"lr": 0.1})
    ...     manifest = load_manifest(path)
    >>> manifest["step"], manifest["config"], manifest["leaves"]
    (3, {'lr': 0.1}, {"['w']": 'float64[2]'})

    Returns:
      The step, config, versions, leaves (dtype and shape by name) and files (SHA-256 by
      name).

    Raises:
      ValueError: `path` is no checkpoint, or a file is missing or altered.
    """
    path = pathlib.Path(path)
    try:
        manifest = load_json(path / "manifest.json")
        sealed = manifest.pop("sha256", None)
        expected = manifest["files"]
        found = _checksums(path)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"checkpoint {path} has no readable manifest") from error
    damaged = [name for name in expected if found.get(name) != expected[name]]
    if sealed not in (None, seal(manifest)):  # older manifests have none
        damaged.append("manifest.json")
    if damaged:
        raise ValueError(
            f"checkpoint {path} is corrupt: {', '.join(damaged)} missing or altered"
        )
    return manifest


def load_checkpoint(path: PathLike, like: State) -> State:
    """Restores a checkpoint, bit for bit.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = save_checkpoint(folder, 0, {"key": jax.random.key(7)})
    ...     restored = load_checkpoint(path, like={"key": jax.random.key(0)})
    >>> bool(restored["key"] == jax.random.key(7))
    True

    Args:
      path: one of `list_checkpoints`.
      like: state of the same structure; gives shapes, dtypes and the devices.

    Returns:
      The saved values in the structure of `like`, placed where its leaves are.

    Raises:
      ValueError: the checkpoint is corrupt, or its arrays do not fit those of `like`.
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


def load_tree(path: PathLike) -> Any:
    """Restores a checkpoint of which nothing is known, as nested dictionaries.

    A NamedTuple becomes a dictionary of its fields, a tuple a list, and what holds no
    array is left out.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = save_checkpoint(folder, 0, {"w": (jnp.ones(2), None)})
    ...     load_tree(path)["w"][0].tolist()
    [1.0, 1.0]

    Args:
      path: one of `list_checkpoints`.

    Returns:
      The tree, its leaves as NumPy arrays; of PRNG keys their data.

    Raises:
      ValueError: the checkpoint is corrupt.
    """
    path = pathlib.Path(path).absolute()
    load_manifest(path)
    with _checkpointer() as checkpointer:
        return checkpointer.restore(path / "state")


def _checkpointer() -> Any:
    """Orbax's checkpointer for this process, to be used in a `with` block."""
    # Orbax takes a third of a second to import, and most users never checkpoint.
    import orbax.checkpoint as ocp

    # Each process acts alone: process 0 saves, and all hold the same state.
    process = jax.process_index()
    options = ocp.options.MultiprocessingOptions(
        primary_host=process, active_processes={process}
    )
    return ocp.StandardCheckpointer(multiprocessing_options=options)


def _reason(error: Exception) -> str:
    """What the system says of a failed write, without the page around it."""
    code = re.search(r"os_error_code='(\d+)'", str(error))
    return os.strerror(int(code[1])) if code else str(error).split("\n")[0]


def _is_key(leaf: object) -> bool:
    dtype = getattr(leaf, "dtype", None)
    return dtype is not None and jnp.issubdtype(dtype, jax.dtypes.prng_key)


def _to_host(leaf: Any) -> np.ndarray:
    return np.asarray(jax.random.key_data(leaf) if _is_key(leaf) else leaf)


def _place_like(value: np.ndarray, like: Any) -> Any:
    """A restored leaf as the key, array or number that `like` is, on its device."""
    if _is_key(like):
        key_data = jnp.asarray(value)
        value = jax.random.wrap_key_data(key_data, impl=jax.random.key_impl(like))
    if isinstance(like, jax.Array):
        return jax.device_put(value, like.sharding if like.committed else None)
    return type(like)(value) if isinstance(like, (bool, int, float)) else value


def _describe(arrays: Any) -> dict[str, str]:
    """Dtype and shape of each leaf, by its path in the tree."""
    leaves = jax.tree_util.tree_leaves_with_path(arrays)
    return {
        jax.tree_util.keystr(path): f"{array.dtype}{list(array.shape)}"
        for path, array in leaves
    }


def _checksums(folder: pathlib.Path) -> dict[str, str]:
    """SHA-256 of every file below a folder but the manifest; flushes all to disk."""
    sums = {}
    for path in sorted(folder.rglob("*")):
        sync(path)
        if path.is_file() and path != folder / "manifest.json":
            digest = hashlib.sha256(path.read_bytes()).hexdigest()
            sums[path.relative_to(folder).as_posix()] = digest
    return sums
