"""What was recorded of a study's networks, as plain arrays."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from experiments import networks
from experiments.networks import Recipe
from robjax.runs import files


class History(NamedTuple):
    """What was recorded of some networks, by their titles.

    followed: title -> quantity -> [seeds, epochs + 1], on the tracked images.
    final: title -> attack or "clean" -> accuracy [seeds], on the test images.
    samples: title -> one table {column: [tracked images]} for each seed.
    pairs: title -> one table as in pairs.npz for each seed.
    num_classes: K.
    metric: title -> "metric" or a part of it -> [seeds], of the final networks, where a
        study measures it.
    """

    followed: dict[str, dict[str, np.ndarray]]
    final: dict[str, dict[str, np.ndarray]]
    samples: dict[str, list[dict[str, np.ndarray]]]
    pairs: dict[str, list[dict[str, np.ndarray]]]
    num_classes: int
    metric: Mapping[str, Mapping[str, np.ndarray]] = {}


def collect(recipes: Mapping[str, Sequence[Recipe]], results: Path) -> History:
    """Trains what is missing, and reads the records of all."""
    for seed in range(max(map(len, recipes.values()))):
        for row in recipes.values():
            networks.obtain(row[seed], results)
    history = History({}, {}, {}, {}, 0)
    for title, row in recipes.items():
        folders = [recipe.folder(results) for recipe in row]
        arrays = [files.load_npz(folder / "robustness.npz") for folder in folders]
        history.final[title] = _final_accuracies(arrays)
        if not row[0].explained:
            continue
        lines = [files.load_json_lines(f / "metrics.jsonl") for f in folders]
        history.followed[title] = {
            name: np.array([[line[name] for line in run] for run in lines], float)
            for name in networks.FOLLOWED
        }
        history.samples[title] = [files.load_npz(f / "samples.npz") for f in folders]
        history.pairs[title] = [files.load_npz(f / "pairs.npz") for f in folders]
    train, _, _ = networks.load_splits(next(iter(recipes.values()))[0])
    return history._replace(num_classes=train.num_classes)


def _final_accuracies(arrays: Sequence[dict]) -> dict[str, np.ndarray]:
    verdicts = [name for name in arrays[0] if name.endswith("/robust")]
    clean = [np.mean(run["prediction"] == run["label"]) for run in arrays]
    robust = {
        name.removesuffix("/robust"): np.array([run[name].mean() for run in arrays])
        for name in verdicts
    }
    return {"clean": np.array(clean), **robust}
