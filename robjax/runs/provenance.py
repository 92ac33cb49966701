"""What decides the result of a run, and whether two runs are the same.

A run that is taken up again must be the run that was begun, with the same model, data
and options. So every run keeps a description on disk, a flat JSON object. Its pieces
come from `identify` (functions and options), from `checksum` (arrays) and from the
model itself (its outputs on a few images). `check_same_run` compares it with the
description of the present run. `versions` is stored beside it. `open_run` keeps both in
run.json, for runs that leave a file for each part of their work.
"""

import importlib.metadata
import os
import pathlib
import platform
import subprocess
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from robjax.checks import check_flags
from robjax.runs.files import (
    PathLike,
    as_path,
    load_json,
    plain,
    save_json,
    seal,
    writable_folder,
)
from robjax.runs.identity import Identity, checksum, describe, identify
from robjax.runs.processes import Group

__all__ = [
    "Identity",
    "check_same_run",
    "checksum",
    "describe",
    "identify",
    "open_run",
    "versions",
]

_PACKAGES = ("robjax", "jax", "jaxlib", "numpy", "flax", "optax", "orbax-checkpoint")
_TOLERANCE = 1e-3  # of outputs, of their spread


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


def open_run(
    folder: PathLike | None,
    description: Callable[[], Mapping[str, Any]],
    *,
    parts: str,
    resume: bool,
    name: str = "run_dir",
    group: Group | None = None,
) -> pathlib.Path | None:
    """Begins a run in a folder, or goes on with the one that is there.

    Of several processes the first begins it, and the others go on with it.

    >>> open_run(None, dict, parts="*.npz", resume=False) is None
    True

    Args:
      folder: made if there is none; None: the run keeps nothing.
      description: returns what decides the result; called once, with a folder only.
      parts: the files that the run leaves, as a pattern below the folder.
      resume: a folder that holds a run already is taken up, not refused.
      name: what the caller calls `folder`, for messages.
      group: the processes whose run it is; None: this one's.

    Returns:
      The folder as a path, or None.

    Raises:
      ValueError: `folder` holds a run and `resume` is False; it holds another run, or
        parts without a description; there is no folder to resume from; or the
        processes do not share it.
    """
    check_flags(resume=resume)
    if not callable(description):
        raise ValueError(f"description must be a function, got {description!r}")
    group = group or Group()
    if folder is None:
        if resume:
            raise ValueError(f"{name} must be given with resume=True, got None")
        return None
    path = writable_folder(folder, name)
    file = path / "run.json"
    if group.index > 0:
        group.exchange(None)  # by now process 0 has begun it
        if not file.exists():
            raise ValueError(
                f"{name}={str(folder)!r} must be a folder that all processes share, "
                f"but process {group.index} does not find the run.json of process 0"
            )
        resume = True
    if not file.exists():
        if any(path.glob(parts)):
            raise ValueError(
                f"{name}={str(folder)!r} holds parts of a run, but no run.json that "
                "says of which: name another folder, or bring run.json back"
            )
        begun = {"run": description(), "versions": versions()}
        save_json(file, begun | {"sha256": seal(begun)})
        group.exchange(None)  # now the others go on with it
        return path
    if not resume:
        raise ValueError(
            f"{name}={str(folder)!r} already holds a run: pass resume=True to go on "
            "with it, or name another folder"
        )
    then = _load_run(file)
    check_same_run(
        folder,
        then["run"],
        description(),
        versions_then=then["versions"],
        name=name,
    )
    if group.index == 0:
        group.exchange(None)
    return path


def _load_run(file: pathlib.Path) -> dict[str, Any]:
    """The description of a run and its versions; raises ValueError if damaged."""
    advice = "bring it back as it was, or name another folder"
    try:
        then = load_json(file)
    except ValueError as error:
        raise ValueError(f"{error}: {advice}") from error
    known = isinstance(then, dict) and {"run", "versions"} <= then.keys()
    sealed = then.pop("sha256", None) if known else None
    if not (known and all(isinstance(part, dict) for part in then.values())):
        raise ValueError(f"{file} does not describe a run: {advice}")
    if sealed not in (None, seal(then)):  # older ones have none
        raise ValueError(f"{file} was altered after it was written: {advice}")
    return then


def check_same_run(
    folder: PathLike,
    then: Mapping[str, Any],
    now: Mapping[str, Any],
    *,
    versions_then: Mapping[str, Any],
    name: str = "run_dir",
) -> None:
    """Compares the description of the run in a folder with that of the present run.

    * An `Identity` must be the same, its code only if Python is the same (3.11, 3.12).
    * Arrays are outputs of the model, which devices and versions round in their own
      way. They must be equal up to 1e-3 of their spread.
    * Anything else must be equal.

    Other versions or devices than when the run was begun are a warning, not an error:
    what is done stays, and what is left may be rounded in another way. The git state is
    not compared.

    >>> now = {"model": "linear", "eps": 0.1}
    >>> check_same_run("runs/a", now, now, versions_then=versions())
    >>> check_same_run("runs/a", now | {"eps": 0.2}, now, versions_then=versions())
    Traceback (most recent call last):
        ...
    ValueError: run_dir='runs/a' holds a run with another eps: 0.2 there, 0.1 here

    Args:
      folder: as the caller knows it, for the message.
      then: the description in the folder, as `plain` wrote it.
      now: the description of the present run.
      versions_then: `versions` when the run was begun.
      name: what the caller calls `folder`, for messages.

    Raises:
      ValueError: the descriptions differ; the message names the first such field.
    """
    as_path(folder, name)
    given = {"then": then, "now": now, "versions_then": versions_then}
    for argument, value in given.items():
        if not isinstance(value, Mapping):
            raise ValueError(f"{argument} must be a mapping, got {value!r}")
    present = versions()
    same_python = _minor(versions_then) == _minor(present)

    def order(field: str) -> tuple[bool, bool, str]:
        # outputs follow from what is chosen, and so does which fields there are
        one_sided = field not in then or field not in now
        return one_sided, isinstance(now.get(field), np.ndarray), field

    changed = []
    if then.get("devices", now.get("devices")) != now.get("devices"):
        changed.append(f"devices ({then['devices']} then, {now['devices']} now)")
    for field in sorted((then.keys() | now.keys()) - {"devices"}, key=order):
        difference = _difference(then.get(field), now.get(field), code=same_python)
        if difference is not None:
            raise ValueError(
                f"{name}={os.fspath(folder)!r} holds a run with another {field}: "
                f"{difference}"
            )
    fields = ("python", "packages", "backend", "device", "processes", "x64")
    changed += [one for one in fields if versions_then.get(one) != present.get(one)]
    if changed:
        unseen = "" if same_python else "; whether code was changed is not known"
        warnings.warn(
            f"resuming with different {', '.join(changed)}: the run goes on, but not "
            f"bit for bit as it would have{unseen}",
            stacklevel=5,
        )


def _difference(then: Any, now: Any, *, code: bool) -> str | None:
    """How two values of one field differ, in words; None if they do not.

    code: compare the code of an `Identity`, too.
    """
    if isinstance(now, np.ndarray):
        return _output_difference(then, now)
    if not isinstance(now, Identity):
        now = plain(now)
        return None if then == now else f"{then!r} there, {now!r} here"
    if not isinstance(then, Mapping) or then.keys() != now._asdict().keys():
        return f"{then!r} there, which says less than {now.words!r} here"
    if then["words"] != now.words:
        return f"{then['words']!r} there, {now.words!r} here"
    for name in sorted(then["reads"].keys() | now.reads.keys()):
        pair = [reads.get(name) for reads in (then["reads"], now.reads)]
        if pair[0] != pair[1]:
            return f"its {name} was {pair[0]!r} there and is {pair[1]!r} here"
    for name in sorted(then["code"].keys() | now.code.keys()):
        if code and then["code"].get(name) != now.code.get(name):
            return f"the code of {name} was changed since"
    return None


def _output_difference(then: Any, now: np.ndarray) -> str | None:
    """How outputs of a model differ from those of a description; None: not."""
    before = np.array(then, float)  # null, for NaN and infinities, becomes NaN
    after = np.where(np.isfinite(now), now, np.nan).astype(float)
    if before.shape != after.shape:
        return f"outputs of shape {before.shape} there, {after.shape} here"
    finite = after[np.isfinite(after)]
    spread = np.ptp(finite) if finite.size else 0.0
    rounding = 1e-6 * np.max(np.abs(finite), initial=0.0)
    allowed = max(_TOLERANCE, 4 * float(jnp.finfo(now.dtype).eps)) * spread + rounding
    apart = np.abs(before - after)
    if np.all((apart <= allowed) | (np.isnan(before) & np.isnan(after))):
        return None
    return (
        f"up to {np.max(np.nan_to_num(apart)):.3g} apart on {len(after)} images, of a "
        f"spread of {spread:.3g}; so this is not the model that the run was begun with"
    )


def _minor(found: Mapping[str, Any]) -> list[str]:
    """The version of Python without its last part, which leaves bytecode as it is."""
    return str(found.get("python")).split(".")[:2]


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
