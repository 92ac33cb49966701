"""Diagnoses models from the command line.

    python -m robjax.diagnose my_models.py:logits_fn --data digits --eps 0.1

Also installed as ``robjax``. With several models the report compares them.
"""

import dataclasses
import importlib
import importlib.util
import pathlib
import sys
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
    eps: float
    """Radius of the threat model, in the unit of the pixels."""
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
        models = {place: load_model(place) for place in arguments.models}
        images, masks = load_data(arguments.data)
        report = diagnose(
            models,
            images,
            ball=getattr(balls, arguments.norm)(arguments.eps),
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


def load_model(place: str) -> Any:
    """The callable at "module:name" or "file.py:name".

    >>> load_model("jax.nn:softmax").__name__
    'softmax'

    Raises:
      ValueError: there is no such module, file or name, or it is not callable.
    """
    where, colon, name = place.rpartition(":")
    if not colon or not where or not name:
        raise ValueError(f"models must be module:name or file.py:name, got {place!r}")
    if where.endswith(".py"):
        spec = importlib.util.spec_from_file_location(pathlib.Path(where).stem, where)
        if spec is None or spec.loader is None or not pathlib.Path(where).exists():
            raise ValueError(f"models: there is no file {where!r}")
        module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = module
        spec.loader.exec_module(module)
    else:
        sys.path.insert(0, "")
        try:
            module = importlib.import_module(where)
        except ModuleNotFoundError as error:
            raise ValueError(f"models: {error}, asked for by {place!r}") from error
    found = getattr(module, name, None)
    if not callable(found):
        raise ValueError(f"models: {where!r} has no callable {name!r}, got {found!r}")
    return found


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
