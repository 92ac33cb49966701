"""Files that survive a crash.

Everything is written beside its destination, flushed to disk and renamed. A reader
therefore sees the old content or the new one, never half of it.

One process writes: of several, call the saving functions in process 0 only.
"""

import contextlib
import dataclasses
import hashlib
import json
import math
import os
import pathlib
import uuid
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, BinaryIO

import jax
import numpy as np
from numpy.typing import ArrayLike

PathLike = str | os.PathLike[str]


@contextlib.contextmanager
def atomic_write(path: PathLike) -> Iterator[BinaryIO]:
    """Opens a binary file that takes the name `path` only if the block succeeds.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     with atomic_write(f"{folder}/a.txt") as file:
    ...         _ = file.write(b"whole")
    ...     pathlib.Path(folder, "a.txt").read_text()
    'whole'

    Raises:
      OSError: the folder does not exist or cannot be written.
    """
    path = pathlib.Path(path)
    temporary = temporary_beside(path)
    try:
        with open(temporary, "xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync(path.parent)


def save_text(path: PathLike, text: str) -> None:
    """Writes a text as UTF-8.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save_text(f"{folder}/a.txt", "ε")
    ...     pathlib.Path(folder, "a.txt").read_text("utf-8")
    'ε'
    """
    with atomic_write(path) as file:
        file.write(text.encode())


def save_json(path: PathLike, value: object) -> None:
    """Writes JSON that any reader accepts; see `plain` for what `value` may hold.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save_json(f"{folder}/a.json", {"eps": (0.5, math.inf)})
    ...     load_json(f"{folder}/a.json")
    {'eps': [0.5, None]}
    """
    save_text(path, json.dumps(plain(value), indent=2, allow_nan=False) + "\n")


def load_json(path: PathLike) -> Any:
    """Reads a JSON file.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save_json(f"{folder}/a.json", [1, 2])
    ...     load_json(f"{folder}/a.json")
    [1, 2]

    Raises:
      ValueError: the file is damaged; the message names it.
    """
    try:
        return json.loads(pathlib.Path(path).read_text("utf-8"))
    except ValueError as error:
        raise ValueError(f"{os.fspath(path)} is not valid JSON: {error}") from error


def save_npz(path: PathLike, arrays: Mapping[str, ArrayLike]) -> None:
    """Writes named arrays to a compressed `.npz` file; bfloat16 becomes float32.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save_npz(f"{folder}/a.npz", {"x": [1, 2], "y": 3})
    ...     load_npz(f"{folder}/a.npz")["x"].tolist()
    [1, 2]
    """
    with atomic_write(path) as file:
        on_host = {name: _of_numpy(array) for name, array in arrays.items()}
        np.savez_compressed(file, allow_pickle=False, **on_host)


def _of_numpy(array: ArrayLike) -> np.ndarray:
    """An array of a type that files of NumPy know; of others they keep raw bytes."""
    found = np.asarray(array)
    foreign = found.dtype.kind == "V" and not found.dtype.names
    return found.astype(np.float32) if foreign else found


def load_npz(path: PathLike) -> dict[str, np.ndarray]:
    """Reads every array of an `.npz` file.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save_npz(f"{folder}/a.npz", {"x": np.ones(3)})
    ...     load_npz(f"{folder}/a.npz")["x"].shape
    (3,)

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: the file is damaged; the message names it.
    """
    try:
        with open(path, "rb") as raw, np.load(raw, allow_pickle=False) as file:
            # NumPy stops where an array ends, before zip compares its checksum
            if file.zip.testzip() is not None:  # pyright: ignore
                raise ValueError("checksum")
            return {name: file[name] for name in file.files}
    except FileNotFoundError:
        raise
    except Exception as error:
        raise ValueError(f"{os.fspath(path)} is not a readable .npz file") from error


def load_part(path: PathLike, names: Iterable[str]) -> dict[str, np.ndarray] | None:
    """Reads a finished part of a run, as `save_npz` wrote it; None: it is to be done.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save_npz(f"{folder}/000000.npz", {"means": np.ones(3)})
    ...     done = load_part(f"{folder}/000000.npz", ["means"])
    ...     missing = load_part(f"{folder}/000001.npz", ["means"])
    >>> done["means"].shape, missing
    ((3,), None)

    Args:
      path: of the file; there may be none yet.
      names: arrays that it has to hold.

    Warns:
      UserWarning: the file is damaged, and its part will be done again.
    """
    try:
        found = load_npz(path)
        if lacking := sorted(set(names) - found.keys()):
            raise ValueError(f"{os.fspath(path)} lacks {', '.join(lacking)}")
        return found
    except FileNotFoundError:
        return None
    except ValueError as error:
        warnings.warn(f"{error}: this part of the run is done again", stacklevel=3)
        return None


def append_json_line(path: PathLike, record: Mapping[str, Any]) -> None:
    """Appends one record to a JSON-lines file, and flushes it to disk.

    If a crash left half a line at the end, that is dropped.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     append_json_line(f"{folder}/a.jsonl", {"step": 1})
    ...     append_json_line(f"{folder}/a.jsonl", {"step": 2})
    ...     load_json_lines(f"{folder}/a.jsonl")
    [{'step': 1}, {'step': 2}]
    """
    with open(path, "ab+") as file:
        size = file.tell()
        file.seek(max(size - 1, 0))
        if size and file.read() != b"\n":
            file.seek(0)
            file.truncate(file.read().rfind(b"\n") + 1)
        file.write(json_line(record).encode())
        file.flush()
        os.fsync(file.fileno())


def json_line(record: Mapping[str, Any]) -> str:
    """A record as one line of a JSON-lines file, with its end.

    >>> print(json_line({"step": 1}), end="")
    {"step": 1}
    """
    return json.dumps(plain(record), allow_nan=False) + "\n"


def load_json_lines(path: PathLike) -> list[dict[str, Any]]:
    """Reads the complete lines of a JSON-lines file; `[]` if there is no file.

    >>> load_json_lines("nowhere.jsonl")
    []

    Raises:
      ValueError: a line is not JSON; the message names the file and the line.
    """
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
    """Replaces a JSON-lines file, say by its records up to the step resumed from.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save_json_lines(f"{folder}/a.jsonl", [{"step": 1}, {"step": 2}])
    ...     pathlib.Path(folder, "a.jsonl").read_text().splitlines()
    ['{"step": 1}', '{"step": 2}']
    """
    save_text(path, "".join(map(json_line, records)))


def seal(value: Mapping[str, Any]) -> str:
    """SHA-256 of a JSON object, the same whether it is to be written or was read.

    >>> seal({"eps": (0.5, math.inf)}) == seal({"eps": [0.5, None]})
    True
    """
    text = json.dumps(plain(value), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def plain(value: object) -> Any:
    """Converts a value to what strict JSON can hold.

    * Dataclasses and NamedTuples become objects.
    * Arrays, tuples and sets become lists.
    * NaN and infinities become null.
    * Paths and other objects become strings.

    >>> plain({"eps": np.array([0.5, np.nan]), "folder": pathlib.Path("runs")})
    {'eps': [0.5, None], 'folder': 'runs'}
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


def as_path(folder: PathLike, name: str) -> pathlib.Path:
    """The path of a folder; a ValueError names the argument if it is none.

    >>> as_path("runs", "run_dir").name
    'runs'
    """
    if not isinstance(folder, str | os.PathLike):
        raise ValueError(f"{name} must be the path of a folder, got {folder!r}")
    path = pathlib.Path(folder)
    if path.is_file():
        raise ValueError(f"{name} must be a folder, got the file {str(folder)!r}")
    return path


def writable_folder(folder: PathLike, name: str = "results") -> pathlib.Path:
    """Creates a folder if needed and proves that files can be made in it.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     writable_folder(f"{folder}/runs").name
    'runs'

    Args:
      folder: the folder that results will go to.
      name: what the caller calls `folder`, for the message.

    Returns:
      The folder as a path.

    Raises:
      ValueError: `folder` is no path, or cannot be created or written.
    """
    path = as_path(folder, name)
    try:
        path.mkdir(parents=True, exist_ok=True)
        probe = temporary_beside(path / "probe")
        probe.touch(exist_ok=False)
        probe.unlink()
    except OSError as error:
        message = f"{name}={str(folder)!r} must be a folder that can be written"
        raise ValueError(f"{message}: {error}") from error
    return path


def temporary_beside(path: pathlib.Path) -> pathlib.Path:
    """A new hidden name in the same folder, to be renamed to `path` when it is done.

    >>> temporary_beside(pathlib.Path("runs/table.npz")).name.startswith(".table.npz.")
    True
    """
    return path.with_name(f".{path.name}.{uuid.uuid4().hex}")


def sync(path: pathlib.Path) -> None:
    """Flushes a file or the entries of a folder to disk.

    >>> sync(pathlib.Path("."))
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
