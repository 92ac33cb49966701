"""Does adversarial training cost the worst group, and does Group-DRO help it?

Claim (Moayeri et al., arXiv 2209.07592): adversarial training lowers the accuracy of
groups whose background does not fit. Group-DRO (Sagawa et al., arXiv 1911.08731) trains
for the worst group, and raises its accuracy.

    python -m experiments.group_robustness [--source mnist]

Laid out as Waterbirds: two classes on two backgrounds, 95 % of the training images on
the background of their class, so that the minority groups are twenty times smaller; as
many of each group in the test images. Standard training, adversarial training, and
Group-DRO on groups that are drawn equally often. Numbers: experiments/README.md.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import tyro

from experiments import common, scenes
from experiments.common import Claim
from experiments.scenes import Arguments, Measured
from robjax.reporting import figures, tables

AMPLITUDE, CORRELATION = 0.7, 0.95
STANDARD, DRO = "standard", "Group-DRO"
TRAININGS = {
    STANDARD: {},
    "adversarial, L2 0.5": {"norm": "L2", "eps": 0.5},
    "adversarial, L∞ 8/255": {"norm": "Linf", "eps": 8 / 255},
    DRO: {"dro": True},
}

Found = Mapping[str, Sequence[Measured]]
"""Training -> what was measured for each seed."""


def collect(arguments: Arguments) -> Found:
    """Trains and measures."""
    variants = {
        title: scenes.base(
            arguments,
            amplitude=AMPLITUDE,
            correlation=CORRELATION,
            classes=2,
            **changes,
        )
        for title, changes in TRAININGS.items()
    }
    return scenes.measure_all(variants, arguments)


def judge(found: Found) -> list[Claim]:
    """The worst group against that of standard training, seed by seed."""
    standard = scenes.column(found[STANDARD], "worst_group")
    claims = []
    for title, rows in found.items():
        if title == STANDARD:
            continue
        worst = scenes.column(rows, "worst_group")
        words, verdict = (
            ("raises", common.is_above) if title == DRO else ("lowers", common.is_below)
        )
        claims.append(
            Claim(
                f"{title} {words} the accuracy of the worst group",
                f"{tables.plus_minus(worst, unit='%')}, standard "
                f"{tables.plus_minus(standard, unit='%')}",
                verdict(worst - standard, 0),
            )
        )
    return claims


def run(arguments: Arguments) -> None:
    """Prints the claim and the cost, measures, judges and writes the report."""
    question = "Does adversarial training cost the worst group?"
    claim = (
        "Adversarial training lowers the worst group's accuracy, Group-DRO raises it."
    )
    common.announce(question, claim, minutes=3, seeds=arguments.seeds)
    found = collect(arguments)
    names = {"in_domain": "in domain", "worst_group": "worst group"}
    bars = {
        title: {
            words: np.ravel(scenes.column(rows, n)).tolist()
            for n, words in names.items()
        }
        for title, rows in found.items()
    }
    common.write_report(
        common.results_of(arguments) / "group_robustness" / arguments.source,
        question=question,
        claim=claim,
        setting=arguments.smoke
        * common.SMOKE
        + f"CNN on {arguments.source}, 2 classes, correlation {CORRELATION}, "
        f"brightness {AMPLITUDE}, {scenes.EPOCHS} epochs, {arguments.seeds} seeds.",
        claims=judge(found),
        drawn={
            "groups": figures.bars({"": bars}, title="Worst group", ylabel="accuracy")
        },
    )


if __name__ == "__main__":
    run(tyro.cli(Arguments, prog="python -m experiments.group_robustness"))
