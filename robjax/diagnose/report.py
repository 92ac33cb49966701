"""The report of `diagnose`: what was found for each model, as text and as JSON."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from robjax.diagnose.results import Lens, Number
from robjax.diagnose.verdicts import Verdict
from robjax.runs import files


class ModelReport(NamedTuple):
    """What was found for one model.

    Attributes:
      verdict: the four answers.
      lenses: lens -> what it found, in the order of the run.
    """

    verdict: Verdict
    lenses: Mapping[str, Lens]

    def __repr__(self) -> str:
        return f"ModelReport({self.verdict.kind}: {self.verdict.sentence})"


class Report(NamedTuple):
    """What `diagnose` found; print it.

    Attributes:
      models: name -> report.
      settings: everything that decides the numbers, for JSON: data, threat model,
        budget, key.
      versions: of Python, packages, devices and code.
    """

    models: Mapping[str, ModelReport]
    settings: Mapping[str, Any]
    versions: Mapping[str, Any]

    def __str__(self) -> str:
        blocks = []
        for name, model in self.models.items():
            lines = [f"{name}: {model.verdict}"]
            for lens, found in model.lenses.items():
                lines += [f"  {lens}"]
                lines += [f"    {number}" for number in found.numbers.values()]
                if not found.numbers:
                    lines += [f"    {note}" for note in found.notes]
            blocks.append("\n".join(lines))
        return "\n\n".join(blocks)

    def __repr__(self) -> str:
        """The verdicts."""
        verdicts = {name: model.verdict.kind for name, model in self.models.items()}
        return f"Report({verdicts})"

    def as_json(self) -> dict[str, Any]:
        """Every number, note and setting, as `runs.files.save_json` takes it."""
        return {
            "settings": self.settings,
            "versions": self.versions,
            "models": {
                name: {
                    "verdict": model.verdict._asdict(),
                    "lenses": {
                        lens: {
                            "numbers": {
                                key: number._asdict()
                                for key, number in found.numbers.items()
                            },
                            "notes": found.notes,
                        }
                        for lens, found in model.lenses.items()
                    },
                }
                for name, model in self.models.items()
            },
        }

    def save(self, folder: files.PathLike) -> None:
        """Writes report.json and report.html into a folder.

        Raises:
          ValueError: the folder cannot be written.
        """
        from robjax.diagnose.page import render  # matplotlib and jinja2 take a second

        path = files.writable_folder(folder, "folder")
        files.save_text(path / "report.html", render(self))
        files.save_json(path / "report.json", self.as_json())


def save_lens(path: files.PathLike, found: Lens) -> None:
    """Writes a lens as one file, all or nothing."""
    arrays = {f"array/{name}": value for name, value in found.arrays.items()}
    numbers = found.numbers
    columns = {
        "names": np.asarray(list(numbers), dtype=str),
        "labels": np.asarray([n.label for n in numbers.values()], dtype=str),
        "units": np.asarray([n.unit for n in numbers.values()], dtype=str),
        "values": np.asarray([n.value for n in numbers.values()], float),
        "stderrs": np.asarray([n.stderr for n in numbers.values()], float),
        "counts": np.asarray([n.images for n in numbers.values()], int),
        "notes": np.asarray(found.notes, dtype=str),
    }
    files.save_npz(path, columns | arrays)


def load_lens(path: files.PathLike) -> Lens | None:
    """Reads what `save_lens` wrote, to the last bit; None: there is none yet.

    Warns:
      UserWarning: the file is damaged, and will be made again.
    """
    fields = ("names", "labels", "values", "stderrs", "counts", "units")
    columns = files.load_part(path, (*fields, "notes"))
    if columns is None:
        return None
    rows = zip(*(columns[name].tolist() for name in fields), strict=True)
    numbers = {name: Number(*rest) for name, *rest in rows}
    arrays = {
        name.removeprefix("array/"): value
        for name, value in columns.items()
        if name.startswith("array/")
    }
    return Lens(numbers, tuple(columns["notes"].tolist()), arrays)
