"""Does non-linearity help standard and robust accuracy under robust training?

Claim (Shi et al., arXiv 1906.02494): the robust component of the metric comes from the
non-linearity of the network, so under robust training both accuracies rise from a
purely linear VGG over a half linear one and a normal one to residual networks, narrow
and wide. Their CIFAR-10 numbers for VGG-13 pure linear, half linear, normal,
ResNet-20×1, ResNet-32×10: standard accuracy 35.14, 70.48, 72.36, 72.88, 79.45 %.

    python -m experiments.nonlinearity [--dataset mnist]
    python -m experiments.nonlinearity --dataset cifar10 --full

On digits and MNIST the networks are what a CPU allows: VGG-4 (16, 32, 64 channels) in
its three forms, ResNet-8×1 and, on digits only, ResNet-8×2. On CIFAR-10 they are the
paper's; the second line is its setting, 200 epochs, for an accelerator, and without
`--full` it is 10. (Only the ResNets have batch norm.) Judged by the rank correlation of
accuracy and the order of the architectures, for each seed; trained by Madry's and by
the Fisher-regularised objective. Cost: digits 13 minutes of CPU time; MNIST 75 with
`--train-images 4000 --test-images 500`.

Numbers (three seeds, digits / MNIST): the rank correlation is 0.867 ± 0.033 /
1.00 ± 0.00 for standard and 0.933 ± 0.033 / 1.00 ± 0.00 for PGD-20 accuracy under
Madry's training, 0.892 ± 0.051 / 0.850 ± 0.050 and 0.967 ± 0.033 / 1.00 ± 0.00 under
Fisher regularisation: the claim held. All of them: experiments/README.md.
"""

from collections.abc import Mapping

import numpy as np
from matplotlib.figure import Figure

from experiments import common, study
from experiments.common import Claim
from experiments.history import History
from experiments.networks import TITLES
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


def by_training(history: History) -> dict[str, dict[str, dict[str, np.ndarray]]]:
    """Training -> architecture -> rate -> accuracy [seeds]."""
    sorted_: dict[str, dict] = {}
    for title, rates in history.final.items():
        name, _, training = title.partition(", ")
        sorted_.setdefault(training, {})[name] = rates
    return sorted_


def judge(history: History) -> list[Claim]:
    """Both accuracies of both trainings against the order of the architectures."""
    claims = []
    for training, networks in by_training(history).items():
        for rate, words in RATES.items():
            accuracy = np.stack([rates[rate] for rates in networks.values()], axis=1)
            order = np.broadcast_to(np.arange(accuracy.shape[1]), accuracy.shape)
            rho = common.rank_correlation(order, accuracy)
            means = [
                f"{name} {tables.plus_minus(rates[rate], unit='%')}"
                for name, rates in networks.items()
            ]
            claims.append(
                Claim(
                    f"{training}: {words} rises with non-linearity and width",
                    f"rank correlation {tables.plus_minus(rho)}; {', '.join(means)}",
                    common.is_above(rho, 0),
                )
            )
    return claims


def draw(history: History) -> Mapping[str, Figure]:
    """Both accuracies, architecture by architecture."""
    bars = {
        training: {
            words: {name: rates[rate] for name, rates in networks.items()}
            for rate, words in RATES.items()
        }
        for training, networks in by_training(history).items()
    }
    title = "Accuracy under robust training, from linear to wide"
    figure = figures.bars(bars, title=title, ylabel="accuracy [%]", percent=True)
    return {"nonlinearity": figure}


STUDY = Study(
    name="nonlinearity",
    question="Does non-linearity help standard and robust accuracy alike?",
    claim="Under robust training standard and PGD accuracy rise with the non-linearity "
    "and the width of the network.",
    variants=variants,
    judge=judge,
    draw=draw,
)

if __name__ == "__main__":
    study.main(STUDY)
