"""Diagnoses models from the command line.

    python -m robjax.diagnose my_models.py:logits_fn --data digits --eps 0.1

Also installed as ``robjax``. With several models the report compares them.
"""

import dataclasses
import fractions
import importlib
import importlib.util
import pathlib
import sys
import traceback
import types
from collections.abc import Sequence
from typing import Annotated, Any, Literal

import numpy as np
import tyro

from robjax import balls, data
from robjax.diagnose.run import diagnose
from robjax.runs import files

_NAMES = ("digits", "mnist", "cifar10")


@dataclasses.dataclass(frozen=True)
class Arguments:
    """Is a model robust, how sure is that, why (not), and what to do next?"""

    models: Annotated[tuple[str, ...], tyro.conf.Positional]
    """Where each logits_fn is: module:name or file.py:name."""
    eps: str
    """Radius of the threat model, in the unit of the pixels: 0.03 or 8/255."""
    data: str = "digits"
    """digits, mnist, cifar10 (their test split), or a file.npz with arrays x [N, …]
    floating, y [N] and, if known, masks [N, H, W] of the foregrounds."""
    norm: Literal["Linf", "L2", "L1"] = "Linf"
    """Of the threat model."""
    bounds: tuple[float, float] = (0.0, 1.0)
    """Lowest and highest pixel value."""
    budget: Literal["quick", "standard", "full"] = "standard"
    """How many images, how closely; quick takes minutes."""
    folder: pathlib.Path = pathlib.Path("results/diagnosis")
    """Where report.html, report.json and the parts of the run go."""
    resume: bool = False
    """Go on with the run in that folder."""


def main() -> None:
    """Reads the command line, diagnoses, prints the report and where it is.

    A mistake in an argument is one line on standard error, and the exit status 2.
    """
    arguments = tyro.cli(Arguments, prog="robjax", description=Arguments.__doc__)
    try:
        eps = _radius(arguments.eps)
        _check_folder(arguments.folder, resume=arguments.resume)
        if not arguments.models:
            raise ValueError("models: name one at least, as my_models.py:logits_fn")
        models = load_models(arguments.models)
        images, masks = load_data(arguments.data)
        report = diagnose(
            models,
            images,
            ball=getattr(balls, arguments.norm)(eps),
            bounds=arguments.bounds,
            masks=masks,
            budget=arguments.budget,
            folder=arguments.folder,
            resume=arguments.resume,
            progress=True,
        )
    except ValueError as error:
        print(f"robjax: {error}", file=sys.stderr)
        sys.exit(2)
    print(report)
    print(f"\n{arguments.folder / 'report.html'}")


def load_models(places: Sequence[str]) -> dict[str, Any]:
    """The callables at places "module:name" or "file.py:name"; each file runs once.

    >>> [model.__name__ for model in load_models(["jax.nn:softmax"]).values()]
    ['softmax']

    Raises:
      ValueError: there is no such module, file or name, it is not callable, or the file
        fails.
    """
    modules: dict[str, types.ModuleType] = {}
    models = {}
    for place in places:
        where, _, name = place.rpartition(":")
        if not where or not name:
            raise ValueError(
                f"models must be module:name or file.py:name, got {place!r}"
            )
        if where not in modules:
            modules[where] = _import(where)
        if not hasattr(modules[where], name):
            raise ValueError(f"models: {where!r} has no {name!r}")
        models[place] = getattr(modules[where], name)
        if not callable(models[place]):
            kind = type(models[place]).__name__
            raise ValueError(f"models: {place!r} must be callable, got {kind}")
    return models


def _import(where: str) -> types.ModuleType:
    """Runs a module or a file, which may import what lies beside it."""
    path = pathlib.Path(where)
    is_file = path.suffix == ".py"
    if is_file and not path.is_file():
        raise ValueError(f"models: there is no file {where!r}")
    sys.path.insert(0, str(path.resolve().parent) if is_file else "")
    try:
        if not is_file:
            return importlib.import_module(where)
        spec = importlib.util.spec_from_file_location(path.stem, path)
        assert spec is not None and spec.loader is not None  # it ends in .py
        module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = module
        spec.loader.exec_module(module)
        return module
    except Exception as error:  # whatever the user's own code raises
        kind = type(error).__name__
        line = _line_of(error, path) if is_file else ""
        raise ValueError(
            f"models: {where!r} cannot be imported{line}: {kind}: {error}"
        ) from error


def _line_of(error: Exception, path: pathlib.Path) -> str:
    """Where in a file an error was raised, if there."""
    frames = traceback.extract_tb(error.__traceback__)
    lines = [f.lineno for f in frames if pathlib.Path(f.filename) == path.resolve()]
    return f" (line {lines[-1]})" if lines else ""


def _radius(text: str) -> float:
    """A number or a fraction such as 8/255."""
    try:
        return float(fractions.Fraction(text))
    except (ValueError, ZeroDivisionError) as error:
        raise ValueError(f"eps must be a number, as 0.03 or 8/255, got {text!r}") from (
            error
        )


def _check_folder(folder: pathlib.Path, *, resume: bool) -> None:
    """Before anything is loaded; `diagnose` says it in the words of Python."""
    if (folder / "run.json").exists() and not resume:
        raise ValueError(
            f"folder '{folder}' already holds a run: go on with it by --resume, or "
            "name another --folder"
        )


def load_data(name: str) -> tuple[Any, np.ndarray | None]:
    """The test split of a data set of that name, or the arrays of a file; and masks.

    >>> len(load_data("digits")[0].labels)
    360

    Raises:
      ValueError: it is neither, or the file lacks an array.
    """
    if name in _NAMES:
        return data.load(name, "test"), None
    if not name.endswith(".npz"):
        raise ValueError(
            f"data must be {', '.join(_NAMES)} or a .npz file, got {name!r}"
        )
    try:
        arrays = files.load_npz(name)
    except FileNotFoundError as error:
        raise ValueError(f"data: there is no file {name!r}") from error
    if not {"x", "y"} <= arrays.keys():
        raise ValueError(
            f"data: {name!r} must hold arrays x and y, got {', '.join(arrays)}"
        )
    return (arrays["x"], arrays["y"]), arrays.get("masks")


if __name__ == "__main__":
    main()
