"""Does non-linearity help standard and robust accuracy under robust training?

Claim (Shi et al., arXiv 1906.02494): the robust component of the metric comes from the
non-linearity of the network, so under robust training both accuracies rise from a
purely linear VGG over a half linear one and a normal one to residual networks, narrow
and wide. Their CIFAR-10 numbers for VGG-13 pure linear, half linear, normal,
ResNet-20×1, ResNet-32×10: standard accuracy 35.14, 70.48, 72.36, 72.88, 79.45 %. Of the
robust component it is the network part that must be 0 for a purely linear network, and
whose share of M should rise; the softmax part (`robjax.metrics.kl`) need not be 0.

    python -m experiments.nonlinearity [--dataset mnist]
    python -m experiments.nonlinearity --dataset cifar10 --full

On digits and MNIST the networks are small, for a CPU: VGG-4 (16, 32, 64 channels) in
its three forms, ResNet-8×1 and, on digits only, ResNet-8×2. On CIFAR-10 they are the
paper's; the second line is its setting, 200 epochs, for an accelerator, and without
`--full` it is 10. (Only the ResNets have batch norm.) Judged by the rank correlation of
accuracies and share with the order of the architectures, for each seed; trained by
Madry's and by the Fisher-regularised objective. Cost: digits 13 minutes of CPU time,
MNIST 75 with `--train-images 4000 --test-images 500`; the metric another 2 on digits.

Numbers (three seeds, digits / MNIST): the rank correlation is 0.867 ± 0.033 /
1.00 ± 0.00 for standard and 0.933 ± 0.033 / 1.00 ± 0.00 for PGD-20 accuracy under
Madry's training, 0.892 ± 0.051 / 0.850 ± 0.050 and 0.967 ± 0.033 / 1.00 ± 0.00 under
Fisher regularisation: the claim held. On digits so did that of the network part, with
0.967 ± 0.033 (Madry) and 0.933 ± 0.033: at most 5e-08 nats of a pure linear VGG-4, its
share 57.6 ± 1.3 % and 57.6 ± 1.0 % of VGG-4, 95.6 ± 0.1 % and 95.5 ± 0.2 % of
ResNet-8×2. All accuracies, and MNIST: docs/verdicts.md.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from experiments import common, history, networks, study
from experiments.common import Claim
from experiments.history import History
from experiments.networks import PARTS, TITLES, Recipe
from experiments.study import Arguments, Study, Variants
from robjax.reporting import figures, tables

SMALL = {
    "VGG-4 pure linear": "vgg4_pure_linear",
    "VGG-4 half linear": "vgg4_half_linear",
    "VGG-4": "vgg4",
    "ResNet-8×1": "resnet8",
    "ResNet-8×2": "resnet8x2",
}
MNIST = {name: model for name, model in SMALL.items() if model != "resnet8x2"}
PAPER = {
    "VGG-13 pure linear": "vgg13_pure_linear",
    "VGG-13 half linear": "vgg13_half_linear",
    "VGG-13": "vgg13",
    "ResNet-20×1": "resnet20",
    "ResNet-32×10": "resnet32x10",
}
TRAININGS = ("madry", "fisher")
RATES = {"clean": "standard accuracy", "PGD-20": "PGD-20 accuracy"}
SHARES = {part: f"{part} part" for part in PARTS}
RISING = {**RATES, "network": "the network part's share of M"}
# What float32 leaves of a part that is 0: relative to M, and in nats where M is tiny.
ROUNDING = (1e-4, 1e-9)


def variants(arguments: Arguments) -> Variants:
    """Every architecture under both trainings."""
    chosen = {"digits": SMALL, "mnist": MNIST, "cifar10": PAPER}[arguments.dataset]
    return {
        f"{name}, {TITLES[objective]}": {
            "model": model,
            "objective": objective,
            "explained": False,
        }
        for objective in TRAININGS
        for name, model in chosen.items()
    }


def collect(recipes: Mapping[str, Sequence[Recipe]], results: Path) -> History:
    """The records of all networks, and the metric of the final ones."""
    recorded = history.collect(recipes, results)
    metric = {}
    for title, row in recipes.items():
        seeds = [networks.final_metric(recipe, results) for recipe in row]
        metric[title] = {name: np.array([s[name] for s in seeds]) for name in seeds[0]}
    return recorded._replace(metric=metric)


def by_training(recorded: History) -> dict[str, dict[str, dict[str, np.ndarray]]]:
    """Training -> architecture -> rate or part -> accuracy or share of M [seeds]."""
    sorted_: dict[str, dict] = {}
    for title, rates in recorded.final.items():
        name, _, training = title.partition(", ")
        metric = recorded.metric[title]
        total = np.where(metric["metric"] == 0, np.nan, metric["metric"])
        shares = {part: metric[part] / total for part in PARTS}
        sorted_.setdefault(training, {})[name] = {**rates, **shares}
    return sorted_


def judge(recorded: History) -> list[Claim]:
    """Accuracies and network part of both trainings, from linear to wide."""
    claims = []
    for training, found in by_training(recorded).items():
        claims += [
            _rises(f"{training}: {words}", [row[name] for row in found.values()], found)
            for name, words in RISING.items()
        ]
    return [*claims, *_without_network_part(recorded)]


def _rises(words: str, values: Sequence[np.ndarray], names: Iterable[str]) -> Claim:
    columns = np.stack(values, axis=1)
    order = np.broadcast_to(np.arange(columns.shape[1]), columns.shape)
    rho = common.rank_correlation(order, columns)
    means = [
        f"{name} {tables.plus_minus(row, unit='%')}"
        for name, row in zip(names, values, strict=True)
    ]
    return Claim(
        f"{words} rises with non-linearity and width",
        f"rank correlation {tables.plus_minus(rho)}; {', '.join(means)}",
        common.is_above(rho, 0),
    )


def _without_network_part(recorded: History) -> list[Claim]:
    relative, absolute = ROUNDING
    claims = []
    for title, metric in recorded.metric.items():
        if "pure linear" not in title:
            continue
        network, total = np.abs(metric["network"]), metric["metric"]
        claims.append(
            Claim(
                f"{title}: no network part (at most {relative:g} M or {absolute:g} "
                "nats, every seed)",
                f"at most {network.max():.1g} nats, M {tables.plus_minus(total)}",
                common.is_true(np.all(network <= relative * total + absolute)),
            )
        )
    return claims


def draw(recorded: History) -> Mapping[str, Figure]:
    """Both accuracies and the parts of the metric, architecture by architecture."""
    found = by_training(recorded)

    def bars(words: Mapping[str, str], scale: float) -> dict:
        return {
            training: {
                label: {name: scale * row[key] for name, row in rows.items()}
                for key, label in words.items()
            }
            for training, rows in found.items()
        }

    return {
        "nonlinearity": figures.bars(
            bars(RATES, 1),
            title="Accuracy under robust training, from linear to wide",
            ylabel="accuracy [%]",
            percent=True,
        ),
        "parts": figures.bars(  # not drawn as percent: the softmax part may be negative
            bars(SHARES, 100),
            title="What the metric M is made of, from linear to wide",
            ylabel="share of M [%]",
        ),
    }


STUDY = Study(
    name="nonlinearity",
    question="Does non-linearity help standard and robust accuracy alike?",
    claim="Under robust training standard and PGD accuracy rise with the non-linearity "
    "and the width of the network, as does the network part's share of the metric.",
    variants=variants,
    judge=judge,
    draw=draw,
    collect=collect,
)

if __name__ == "__main__":
    study.main(STUDY)
