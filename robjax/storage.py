"""Files that survive a crash: atomic writes, run folders, checkpoints.

Everything is written beside its destination, flushed to disk and renamed, so that a
reader sees the old content or the new one, never half of it. A checkpoint is a folder
`step_<number>` made the same way: the arrays in Orbax's format, and a manifest with
the config, the versions and the SHA-256 of every file.

One process writes: with several hosts call the saving functions in process 0 only.
The training state is replicated, so that process holds all of it.
"""

import contextlib
import dataclasses
import datetime
import hashlib
import importlib.metadata
import json
import math
import os
import pathlib
import platform
import shutil
import subprocess
import uuid
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, BinaryIO

import jax
import jax.numpy as jnp
import numpy as np

PathLike = str | os.PathLike[str]

_PACKAGES = ("robjax", "jax", "jaxlib", "numpy", "flax", "optax", "orbax-checkpoint")


@contextlib.contextmanager
def atomic_write(path: PathLike) -> Iterator[BinaryIO]:
    """Opens a binary file that takes the name `path` only if the block succeeds.

    Raises:
        OSError: the folder does not exist or cannot be written.
    """
    path = pathlib.Path(path)
    temporary = _temporary_beside(path)
    try:
        with open(temporary, "xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _sync(path.parent)


def save_text(path: PathLike, text: str) -> None:
    """Writes `text` as UTF-8."""
    with atomic_write(path) as file:
        file.write(text.encode())


def save_json(path: PathLike, value: Any) -> None:
    """Writes JSON that any reader accepts; see `plain` for what `value` may hold."""
    save_text(path, json.dumps(plain(value), indent=2, allow_nan=False) + "\n")


def load_json(path: PathLike) -> Any:
    """Reads a JSON file; a damaged one is a ValueError that names it."""
    try:
        return json.loads(pathlib.Path(path).read_text("utf-8"))
    except ValueError as error:
        raise ValueError(f"{os.fspath(path)} is not valid JSON: {error}") from error


def save_npz(path: PathLike, arrays: Mapping[str, Any]) -> None:
    """Writes named arrays to a compressed `.npz` file."""
    with atomic_write(path) as file:
        arrays = {name: np.asarray(array) for name, array in arrays.items()}
        np.savez_compressed(file, allow_pickle=False, **arrays)


def load_npz(path: PathLike) -> dict[str, np.ndarray]:
    """Reads every array of an `.npz` file; a damaged one is a ValueError."""
    try:
        with open(path, "rb") as raw, np.load(raw, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except FileNotFoundError:
        raise
    except Exception as error:
        raise ValueError(f"{os.fspath(path)} is not a readable .npz file") from error


def append_json_line(path: PathLike, record: Mapping[str, Any]) -> None:
    """Appends one record to a JSON-lines file, dropping a line torn by a crash."""
    line = json.dumps(plain(record), allow_nan=False) + "\n"
    with open(path, "ab+") as file:
        size = file.tell()
        file.seek(max(size - 1, 0))
        if size and file.read() != b"\n":
            file.seek(0)
            file.truncate(file.read().rfind(b"\n") + 1)
        file.write(line.encode())


def load_json_lines(path: PathLike) -> list[dict[str, Any]]:
    """Reads the complete lines of a JSON-lines file; `[]` if there is no file."""
    path = pathlib.Path(path)
    lines = path.read_bytes().split(b"\n")[:-1] if path.exists() else []
    records = []
    for number, line in enumerate(lines, start=1):
        try:
            records.append(json.loads(line))
        except ValueError as error:
            raise ValueError(f"{path}, line {number}, is not JSON: {error}") from error
    return records


def save_json_lines(path: PathLike, records: Sequence[Mapping[str, Any]]) -> None:
    """Replaces a JSON-lines file, say by its records up to the step resumed from."""
    lines = [json.dumps(plain(record), allow_nan=False) + "\n" for record in records]
    save_text(path, "".join(lines))


def plain(value: Any) -> Any:
    """Converts to what strict JSON can hold.

    Dataclasses and NamedTuples become objects; arrays, tuples and sets lists; paths
    and other objects strings; NaN and infinities null.
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        names = [field.name for field in dataclasses.fields(value)]
        return {name: plain(getattr(value, name)) for name in names}
    if isinstance(value, tuple) and hasattr(value, "_asdict"):
        return plain(value._asdict())  # pyright: ignore[reportAttributeAccessIssue]
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (set, frozenset)):
        return [plain(item) for item in sorted(value)]
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, (np.ndarray, np.generic, jax.Array)):
        return plain(np.asarray(value).tolist())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, (bool, int, str)):
        return value
    return str(value)


def check_writable(folder: PathLike, name: str = "results") -> pathlib.Path:
    """Creates `folder` if needed and proves that files can be made in it.

    Args:
        folder: the folder that results will go to.
        name: the caller's argument, for the message.

    Raises:
        ValueError: the folder cannot be created or written.
    """
    path = pathlib.Path(folder)
    try:
        path.mkdir(parents=True, exist_ok=True)
        probe = _temporary_beside(path / "probe")
        probe.touch(exist_ok=False)
        probe.unlink()
    except OSError as error:
        message = f"{name}={str(folder)!r} must be a folder that can be written"
        raise ValueError(f"{message}: {error}") from error
    return path


def open_run(
    results: PathLike, experiment: str, config: Any, *, run: str | None = None
) -> pathlib.Path:
    """Creates `results/<experiment>/<run>/` with config.json, or reopens it.

    Args:
        results: the folder of all results.
        experiment: name of the experiment.
        config: everything that decides the outcome; JSON, see `plain`.
        run: name of the run; by default the time in UTC.

    Returns:
        The run's folder. Its config.json holds `config` and `versions`.

    Raises:
        ValueError: the folder cannot be written, or `run` exists with another config.
    """
    parent = check_writable(pathlib.Path(results) / experiment)
    if run is None:
        now = datetime.datetime.now(datetime.UTC)
        run = f"{now:%Y%m%d-%H%M%S}-{uuid.uuid4().hex[:4]}"
    folder = check_writable(parent / run)
    file = folder / "config.json"
    if not file.exists():
        save_json(file, {"config": config, "versions": versions()})
    elif (found := load_json(file)["config"]) != plain(config):
        raise ValueError(
            f"run={run!r} exists in {parent} with another config: {found}; "
            "resume with that config or choose another name"
        )
    return folder


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
        "git": _git_state(pathlib.Path(__file__).resolve().parents[1]),
    }


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
    folder = check_writable(folder, "folder").absolute()
    for leftover in folder.glob(".step_*"):
        shutil.rmtree(leftover)
    target = folder / f"step_{step:010d}"
    temporary = _temporary_beside(target)
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
        os.rename(target, _temporary_beside(target))
    os.rename(temporary, target)
    _sync(folder)
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
        _sync(path)
        if path.is_file() and path != folder / "manifest.json":
            digest = hashlib.sha256(path.read_bytes()).hexdigest()
            sums[path.relative_to(folder).as_posix()] = digest
    return sums


def _temporary_beside(path: pathlib.Path) -> pathlib.Path:
    return path.with_name(f".{path.name}.{uuid.uuid4().hex}")


def _sync(path: pathlib.Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


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
