"""Does a spurious correlation help robustness, as long as it is preserved?

Claim (Moayeri et al., arXiv 2209.07592): spurious correlations in training data can
improve adversarial robustness if the test domain preserves them. Where it does not,
networks that were trained with the correlation should be less robust.

    python -m experiments.preserved_correlation [--source mnist]

Adversarial training on four digits on striped backgrounds (experiments/scenes.py), with
90 % of the backgrounds fitting and with none fitting more often than by chance. Robust
accuracy is that under PGD-40 at the radius of training. A network that sees only the
background is right, and stays so under attack, on 90 % of the images that preserve the
correlation, so a gain is reliance on it. Numbers: experiments/README.md.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import tyro

from experiments import common, scenes
from experiments.background_reliance import CORRELATION
from experiments.common import Claim
from experiments.scenes import Arguments, Measured
from robjax.reporting import figures, tables

AMPLITUDES = (0.2, 0.4, 0.7)
RADII = {"L2": 0.5, "Linf": 8 / 255}
CHANCE = 0.25  # of four classes

Found = Mapping[tuple[str, float, float], Sequence[Measured]]
"""(norm, amplitude, correlation) -> what was measured for each seed."""


def collect(arguments: Arguments) -> Found:
    """Trains and measures networks with and without the correlation."""
    keys = [
        (norm, amplitude, correlation)
        for norm in RADII
        for amplitude in AMPLITUDES
        for correlation in (CORRELATION, CHANCE)
    ]
    if arguments.smoke:
        keys = keys[-2:]
    variants = {
        str(key): scenes.base(
            arguments,
            norm=key[0],
            eps=RADII[key[0]],
            amplitude=key[1],
            correlation=key[2],
        )
        for key in keys
    }
    found = scenes.measure_all(variants, arguments)
    return {key: found[str(key)] for key in keys}


def judge(found: Found) -> list[Claim]:
    """With the correlation against without, seed by seed."""
    claims = []
    for norm, amplitude, correlation in found:
        if correlation == CHANCE:
            continue
        rows = [found[norm, amplitude, c] for c in (correlation, CHANCE)]
        where = f"{norm}, brightness {amplitude}"
        # tested where training was: with the correlation, and without one
        preserved = [scenes.column(row, "robust_in_domain") for row in rows]
        lost = [scenes.column(row, "robust_decorrelated") for row in rows]
        claims += [
            Claim(
                f"{where}: preserved, the correlation raises robust accuracy",
                _both(preserved),
                common.is_above(preserved[0] - preserved[1], 0),
            ),
            Claim(
                f"{where}: lost, the correlation lowers robust accuracy",
                _both(lost),
                common.is_below(lost[0] - lost[1], 0),
            ),
        ]
    return claims


def _both(rates: Sequence[np.ndarray]) -> str:
    with_it, without = (tables.plus_minus(rate, unit="%") for rate in rates)
    return f"{with_it} against {without}"


def run(arguments: Arguments) -> None:
    """Prints the claim and the cost, measures, judges and writes the report."""
    question = "Does a spurious correlation help robustness, if it is preserved?"
    claim = (
        "Spurious correlations improve adversarial robustness where they are "
        "preserved, and only there."
    )
    common.announce(question, claim, minutes=8, seeds=arguments.seeds)
    found = collect(arguments)
    bars = {
        f"{words} {correlation:.0%}": {
            f"{n} {a}": scenes.column(row, f"robust_{split}").tolist()
            for (n, a, c), row in found.items()
            if c == correlation
        }
        for split, words in (("in_domain", "preserved,"), ("decorrelated", "lost,"))
        for correlation in (CORRELATION, CHANCE)
    }
    common.write_report(
        common.results_of(arguments) / "preserved_correlation" / arguments.source,
        question=question,
        claim=claim,
        setting=arguments.smoke
        * common.SMOKE
        + f"CNN on {arguments.source}, 4 classes, correlation {CORRELATION} and "
        f"{CHANCE}, {scenes.EPOCHS} epochs, {arguments.seeds} seeds.",
        claims=judge(found),
        drawn={
            "robust": figures.bars(
                {"": bars},
                title="Robust accuracy by training correlation",
                ylabel="robust accuracy",
            )
        },
    )


if __name__ == "__main__":
    run(tyro.cli(Arguments, prog="python -m experiments.preserved_correlation"))
