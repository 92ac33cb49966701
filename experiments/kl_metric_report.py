"""Claims, figures and summary of `experiments.kl_metric`, from what a run recorded.

The claims are those of Shi et al., arXiv 1906.02494, as far as three trainings of one
model can test them. An objective is "standard", "madry" or "fisher".
"""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from experiments import common
from experiments.common import Claim
from robjax import storage
from robjax.reporting import figures, tables

CLAIM = (
    "M, the mean KL between predictions for images of different classes, rises with "
    "accuracy; standard training raises it through the non-robust Fisher part, robust "
    "training cuts that part."
)
TITLES = {
    "standard": "standard",
    "madry": "adversarial (Madry)",
    "fisher": "Fisher-regularised",
}
PARTS = ("fisher", "softmax", "network")
FOLLOWED = (
    *("test_accuracy", "robust_accuracy", "metric", *PARTS),
    *(f"{part}_share" for part in PARTS),
    "fisher_norm",
)
NORM = r"$\Vert F\Vert_F$"
# A rank correlation over the epochs beyond ± this counts as a strong relation.
STRONG = 0.5

Curves = dict[str, np.ndarray]


class History(NamedTuple):
    """What a run recorded.

    followed: objective -> quantity -> [seeds, epochs + 1], on the tracked images.
    final: objective -> attack -> robust accuracy [seeds] on all test images, and
        "clean".
    num_classes: K.
    """

    followed: dict[str, Curves]
    final: dict[str, dict[str, np.ndarray]]
    num_classes: int


def collect(
    folder: Path, objectives: Sequence[str], seeds: int, num_classes: int
) -> History:
    """Read the records of all models and write the run's metrics.jsonl."""
    records, followed, final = [], {}, {}
    for objective in objectives:
        runs = [folder / f"{objective}-{seed}" for seed in range(seeds)]
        lines = [storage.load_json_lines(run / "metrics.jsonl") for run in runs]
        arrays = [storage.load_npz(run / "robustness.npz") for run in runs]
        for seed, run_lines in enumerate(lines):
            labels = {"objective": objective, "seed": seed}
            records += [labels | line for line in run_lines]
        followed[objective] = {
            name: np.array([[line[name] for line in run] for run in lines], float)
            for name in FOLLOWED
        }
        final[objective] = _final_accuracies(arrays)
    storage.save_json_lines(folder / "metrics.jsonl", records)
    return History(followed, final, num_classes)


def _final_accuracies(arrays: Sequence[dict]) -> dict[str, np.ndarray]:
    verdicts = [name for name in arrays[0] if name.endswith("/robust")]
    clean = [np.mean(run["prediction"] == run["label"]) for run in arrays]
    robust = {
        name.removesuffix("/robust"): np.array([run[name].mean() for run in arrays])
        for name in verdicts
    }
    return {"clean": np.array(clean), **robust}


def judge(history: History) -> list[Claim]:
    """Every claim that the trained models can speak to, with its computed verdict."""
    followed = history.followed
    claims = [_metric_follows_accuracy(name, followed[name]) for name in followed]
    if "standard" in followed:
        claims += _standard_is_not_robust(followed["standard"], history.num_classes)
        for name in ("madry", "fisher"):
            if name in followed:
                claims += _robust_against_standard(
                    TITLES[name], followed[name], followed["standard"]
                )
    if "fisher" in followed:
        claims.append(_norm_against_robustness(followed["fisher"]))
    return claims


def _metric_follows_accuracy(name: str, curves: Curves) -> Claim:
    rho = common.rank_correlation(curves["test_accuracy"], curves["metric"])
    return Claim(
        f"M rises with standard accuracy: {TITLES[name]} training",
        f"rank correlation {tables.plus_minus(rho)}; {_course(curves['metric'])}",
        common.is_above(rho, 0),
    )


def _standard_is_not_robust(curves: Curves, num_classes: int) -> list[Claim]:
    claims = []
    for name, words in (("fisher", "mean Fisher part"), ("fisher_norm", "mean ‖F‖_F")):
        rho = common.rank_correlation(curves["test_accuracy"], curves[name])
        claims.append(
            Claim(
                f"Standard training raises the {words} with accuracy",
                f"rank correlation {tables.plus_minus(rho)}; {_course(curves[name])}",
                common.is_above(rho, 0),
            )
        )
    robust, chance = curves["robust_accuracy"], 1 / num_classes
    claims.append(
        Claim(
            "Meanwhile its robust accuracy stays near 0: it ends below chance "
            f"({100 * chance:.3g} %)",
            f"PGD-20 robust accuracy {tables.plus_minus(robust[:, -1], unit='%')} in "
            f"the end, {tables.plus_minus(robust.max(axis=1), unit='%')} at the most",
            common.is_below(robust[:, -1], chance),
        )
    )
    return claims


def _course(values: np.ndarray) -> str:
    """First, last and highest value of a curve [seeds, epochs + 1], nats, in words."""
    first, peak, last = values[:, 0], values.max(axis=1), values[:, -1]
    return (
        f"from {tables.plus_minus(first)} to {tables.plus_minus(last, unit='nats')}, "
        f"peak {tables.plus_minus(peak)}"
    )


def _robust_against_standard(title: str, curves: Curves, standard: Curves):
    def ends(name: str) -> tuple[np.ndarray, np.ndarray]:
        return curves[name][:, -1], standard[name][:, -1]

    def versus(name: str, unit: str) -> str:
        here, there = (tables.plus_minus(values, unit=unit) for values in ends(name))
        return f"{here}, standard {there}"

    part, share, robust = ends("fisher"), ends("fisher_share"), ends("robust_accuracy")
    norm, standard_norm = ends("fisher_norm")
    return [
        Claim(
            f"{title}: ‖F‖_F falls by orders of magnitude (at least 10 times)",
            f"{tables.plus_minus(standard_norm / norm)} times smaller",
            common.is_above(np.log10(standard_norm / norm), 1),
        ),
        Claim(
            f"{title}: the Fisher part of M is cut",
            versus("fisher", "nats"),
            common.is_above(part[1] - part[0], 0),
        ),
        Claim(
            f"{title}: so the Fisher part's share of M falls",
            versus("fisher_share", "%"),
            common.is_above(share[1] - share[0], 0),
        ),
        Claim(
            f"{title}: robust accuracy rises (PGD-20)",
            versus("robust_accuracy", "%"),
            common.is_above(robust[0] - robust[1], 0),
        ),
    ]


def _norm_against_robustness(curves: Curves) -> Claim:
    rho = common.rank_correlation(curves["fisher_norm"], curves["robust_accuracy"])
    return Claim(
        "Fisher-regularised: strong negative relation of ‖F‖_F and robust accuracy",
        f"rank correlation {tables.plus_minus(rho)}",
        common.is_below(rho, -STRONG),
    )


def draw(history: History, folder: Path) -> list[Path]:
    """Write the figures; returns the files."""
    followed = {TITLES[name]: curves for name, curves in history.followed.items()}

    def series(quantity: str) -> Curves:
        return {title: curves[quantity] for title, curves in followed.items()}

    renamed = {"total": "metric", "accuracy": "test_accuracy"}
    parts = {
        title: curves | {new: curves[old] for new, old in renamed.items()}
        for title, curves in followed.items()
    }
    panel = figures.Panel
    drawn = {
        "parts": figures.metric_parts(
            parts, title="The parts of the KL metric, and accuracy, over training"
        ),
        "metric_and_accuracy": figures.curves(
            [
                [panel(series("test_accuracy"), "", "test accuracy [%]", "percent")],
                [panel(series("metric"), "", "metric M [nats]", "log")],
            ],
            title="Accuracy and the metric M over training",
        ),
        "fisher_norm": figures.curves(
            [
                [panel(series("fisher_norm"), "", f"mean {NORM} [nats/unit²]", "log")],
                [
                    panel(
                        series("robust_accuracy"), "", "PGD-20 accuracy [%]", "percent"
                    )
                ],
            ],
            title="Local sensitivity and robust accuracy over training",
        ),
        "norm_against_robustness": figures.scatter(
            {
                title: (curves["fisher_norm"], curves["robust_accuracy"])
                for title, curves in followed.items()
            },
            title="Robust accuracy against local sensitivity, epoch by epoch",
            xlabel=f"mean {NORM} [nats / squared image unit]",
            ylabel="PGD-20 robust accuracy [%]",
        ),
    }
    folder.mkdir(exist_ok=True)
    files = [figures.save(figure, folder / name) for name, figure in drawn.items()]
    return [file for pair in files for file in pair]


def write(folder: Path, history: History, description: str) -> None:
    """Draw the figures and write summary.md."""
    files = draw(history, folder / "figures")
    claims = tables.markdown(
        ["claim", "measured, mean ± s.e. over seeds", "verdict"],
        judge(history),
    )
    attacks = list(next(iter(history.final.values())))
    final = tables.markdown(
        ["training", *attacks],
        [
            [TITLES[name], *(tables.plus_minus(rates[a], unit="%") for a in attacks)]
            for name, rates in history.final.items()
        ],
    )
    shown = [file for file in files if file.suffix == ".png"]
    pictures = "\n".join(f"![{f.stem}](figures/{f.name})\n" for f in shown)
    storage.save_text(
        folder / "summary.md",
        f"# The KL metric over training\n\n{description}\n\n## Claims\n\n{claims}\n"
        "Rank correlations are over the epochs, from epoch 0 on. A claim held if the "
        "one-sided 95 % confidence bound of the mean over seeds is beyond its "
        f"threshold: 0 for a direction, {-STRONG} for a strong negative relation.\n\n"
        f"## Accuracy of the final models on all test images\n\n{final}\n{pictures}",
    )
