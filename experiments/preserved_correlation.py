"""Does a spurious correlation help robustness, as long as it is preserved?

Claim (Moayeri et al., arXiv 2209.07592): spurious correlations in training data can
improve adversarial robustness if the test domain preserves them. Where it does not,
networks that were trained with the correlation should be less robust.

    python -m experiments.preserved_correlation [--source mnist] [--data PATH]

Adversarial training on four digits on striped backgrounds (experiments/scenes.py), with
90 % of the backgrounds fitting and with none fitting more often than by chance. Robust
accuracy is that under PGD-40 at the radius of training. A network that sees only the
background is right, and stays so under attack, on 90 % of the images that preserve the
correlation, so a gain is reliance on it. Of a released set with groups (Waterbirds),
training without the correlation repeats the images of small groups until all groups are
equally large; robust accuracy is that of the test groups in the shares of the training
images (preserved), or with all backgrounds equally often (lost). Numbers:
docs/verdicts.md.
"""

from collections.abc import Mapping, Sequence
from typing import Any

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
BOTH = (True, False)  # with the correlation, and without

CLAIMS = {
    "robust_in_domain": "preserved, the correlation raises robust accuracy",
    "robust_decorrelated": "lost, the correlation lowers robust accuracy",
}

Found = Mapping[tuple[str, float | None, bool], Sequence[Measured]]
"""(norm, amplitude, with the correlation) -> what was measured for each seed."""


def collect(arguments: Arguments) -> Found:
    """Trains and measures networks with and without the correlation."""
    amplitudes = AMPLITUDES if arguments.data is None else (None,)
    keys = [
        (n, a, correlated) for n in RADII for a in amplitudes for correlated in BOTH
    ]
    if arguments.smoke:
        keys = keys[-2:]
    variants = {
        str(key): scenes.base(
            arguments,
            norm=key[0],
            eps=RADII[key[0]],
            amplitude=key[1],
            correlation=CORRELATION if key[2] else CHANCE,
            balanced=arguments.data is not None and not key[2],
        )
        for key in keys
    }
    found = scenes.measure_all(variants, arguments)
    return {key: found[str(key)] for key in keys}


def judge(found: Found) -> list[Claim]:
    """With the correlation against without, seed by seed."""
    claims = []
    for norm, amplitude in dict.fromkeys(key[:2] for key in found):
        rows = [found[norm, amplitude, correlated] for correlated in BOTH]
        # tested where training was: with the correlation, and without one
        for (name, words), verdict in zip(
            CLAIMS.items(), (common.is_above, common.is_below), strict=True
        ):
            rates = [scenes.column(row, name) for row in rows]
            claims.append(
                Claim(
                    f"{scenes.where(norm, amplitude)}: {words}",
                    _both(rates),
                    verdict(rates[0] - rates[1], 0),
                )
            )
    return claims


def _both(rates: Sequence[np.ndarray]) -> str:
    with_it, without = (tables.plus_minus(rate, unit="%") for rate in rates)
    return f"{with_it} against {without}"


def draw(found: Found) -> Any:
    """Robust accuracy where the correlation is preserved, and where it is lost."""
    seeds = scenes.seeds_of(next(iter(found.values())))
    panels = {
        tested: {
            f"trained {words} it": {
                scenes.where(n, a): scenes.column(row, name)
                for (n, a, c), row in found.items()
                if c == correlated
            }
            for correlated, words in zip(BOTH, ("with", "without"), strict=True)
        }
        for name, tested in (
            ("robust_in_domain", "correlation preserved"),
            ("robust_decorrelated", "correlation lost"),
        )
    }
    return figures.bars(
        panels,
        title=f"Robust accuracy with and without the correlation, {seeds}",
        ylabel="robust accuracy [%]",
        percent=True,
    )


def run(arguments: Arguments) -> None:
    """Prints the claim and the cost, measures, judges and writes the report."""
    question = "Does a spurious correlation help robustness, if it is preserved?"
    claim = (
        "Spurious correlations improve adversarial robustness where they are "
        "preserved, and only there."
    )
    unanswered = scenes.unanswered(arguments, CLAIMS)
    common.announce(question, claim, minutes=8, seeds=arguments.seeds)
    found = collect(arguments)
    common.write_report(
        common.results_of(arguments)
        / "preserved_correlation"
        / scenes.name_of(arguments),
        question=question,
        claim=claim,
        setting=scenes.describe(
            arguments, f"4 classes, correlation {CORRELATION} and {CHANCE}"
        ),
        claims=judge(found),
        drawn={"robust": draw(found)},
        rest=unanswered,
    )


if __name__ == "__main__":
    run(tyro.cli(Arguments, prog="python -m experiments.preserved_correlation"))
