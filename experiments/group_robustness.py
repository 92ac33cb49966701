"""Does adversarial training cost the worst group, and does Group-DRO help it?

Claim (Moayeri et al., arXiv 2209.07592): adversarial training lowers the accuracy of
groups whose background does not fit. Group-DRO (Sagawa et al., arXiv 1911.08731) trains
for the worst group, and raises its accuracy.

    python -m experiments.group_robustness [--source mnist] [--data PATH]

Laid out as Waterbirds: two classes on two backgrounds, 95 % of the training images on
the background of their class, so that the minority groups are twenty times smaller; as
many of each group in the test images. Standard training, adversarial training, and
Group-DRO on groups that are drawn equally often. A released set must have groups, as
Waterbirds itself. Numbers: docs/verdicts.md.
"""

from collections.abc import Mapping, Sequence
from typing import Any

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


def draw(found: Found) -> Any:
    """Accuracy in domain and of the worst group, for each training."""
    names = {"in_domain": "all images, in domain", "worst_group": "worst group"}
    bars = {
        title: {words: scenes.column(rows, n) for n, words in names.items()}
        for title, rows in found.items()
    }
    seeds = scenes.seeds_of(found[STANDARD])
    return figures.bars(
        {"": bars},
        title=f"All images and the worst group, {seeds}",
        ylabel="accuracy [%]",
        percent=True,
    )


def run(arguments: Arguments) -> None:
    """Prints the claim and the cost, measures, judges and writes the report."""
    question = "Does adversarial training cost the worst group?"
    claim = (
        "Adversarial training lowers the worst group's accuracy, Group-DRO raises it."
    )
    unanswered = scenes.unanswered(arguments, {"worst_group": claim})
    common.announce(question, claim, minutes=3, seeds=arguments.seeds)
    found = collect(arguments)
    common.write_report(
        common.results_of(arguments) / "group_robustness" / scenes.name_of(arguments),
        question=question,
        claim=claim,
        setting=scenes.describe(
            arguments,
            f"2 classes, correlation {CORRELATION}, brightness {AMPLITUDE}",
        ),
        claims=judge(found),
        drawn={"groups": draw(found)},
        rest=unanswered,
    )


if __name__ == "__main__":
    run(tyro.cli(Arguments, prog="python -m experiments.group_robustness"))
