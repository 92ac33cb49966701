"""Does adversarial training make networks rely on backgrounds?

Claim (Moayeri et al., arXiv 2209.07592): adversarially trained classifiers rely on
backgrounds more than standard ones, so the gap between fitting and random backgrounds
(BG-Gap) is larger, accuracy on backgrounds that do not fit is lower, and so is the
relative foreground sensitivity (RFS). For L∞ attacks theory asks for spurious features
of a large scale.

    python -m experiments.background_reliance [--source mnist]

Four digits on striped backgrounds (experiments/scenes.py); 90 % of the training images
have the background of their class, whose brightness is the scale of the spurious
feature. Standard training, and adversarial training with L2 and L∞ attacks of three
radii. RFS is judged beside the gap because noise does not erase a smooth background,
and adversarially trained networks tolerate noise. Numbers: experiments/README.md.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import tyro

from experiments import common, scenes
from experiments.common import Claim
from experiments.scenes import Arguments, Measured
from robjax.reporting import figures, tables

AMPLITUDES = (0.2, 0.4, 0.7)
RADII = {"L2": (0.25, 0.5, 1.0), "Linf": (4 / 255, 8 / 255, 16 / 255)}
CORRELATION = 0.9
MEASURES = {
    "gap": ("BG-Gap is larger", common.is_above),
    "minority": ("images whose background does not fit suffer", common.is_below),
    "relative": ("RFS is lower", common.is_below),
}

Found = Mapping[tuple[str, float, float], Sequence[Measured]]
"""(norm, ε, amplitude) -> what was measured for each seed; norm "none": standard."""


def collect(arguments: Arguments) -> Found:
    """Trains and measures; all amplitudes of one training share a compiled step."""
    trainings = [("none", 0.0)] + [(n, eps) for n in RADII for eps in RADII[n]]
    keys = [(*training, a) for training in trainings for a in AMPLITUDES]
    if arguments.smoke:
        keys = [("none", 0.0, 0.7), ("Linf", 16 / 255, 0.7)]
    variants = {
        str(key): scenes.base(
            arguments,
            norm=key[0],
            eps=key[1],
            amplitude=key[2],
            correlation=CORRELATION,
        )
        for key in keys
    }
    found = scenes.measure_all(variants, arguments)
    return {key: found[str(key)] for key in keys}


def judge(found: Found) -> list[Claim]:
    """The strongest adversarial training against standard training, seed by seed."""
    claims = []
    for norm in RADII:
        for amplitude in AMPLITUDES:
            radii = [eps for n, eps, a in found if (n, a) == (norm, amplitude)]
            if not radii:
                continue
            robust = found[norm, max(radii), amplitude]
            standard = found["none", 0.0, amplitude]
            for name, (words, verdict) in MEASURES.items():
                before, after = (
                    scenes.column(rows, name) for rows in (standard, robust)
                )
                claims.append(
                    Claim(
                        f"{norm}, brightness {amplitude}: {words}",
                        f"{tables.plus_minus(after)} (standard "
                        f"{tables.plus_minus(before)})",
                        verdict(after - before, 0),
                    )
                )
    return claims


def draw(found: Found) -> dict[str, Any]:
    """Each measure over the radii, a column for each amplitude."""
    drawn = {}
    for norm in sorted({n for n, _, _ in found} - {"none"}):
        amplitudes = sorted({a for n, _, a in found if n == norm})
        radii = sorted({eps for n, eps, _ in found if n == norm})
        grid = [
            [
                figures.Panel(
                    {
                        "seeds": np.stack(
                            [scenes.column(found["none", 0.0, a], name)]
                            + [scenes.column(found[norm, e, a], name) for e in radii],
                            axis=1,
                        )
                    },
                    f"brightness {a}",
                    words,
                )
                for a in amplitudes
            ]
            for name, words in (
                ("gap", "BG-Gap"),
                ("minority", "accuracy, no fit"),
                ("relative", "RFS"),
            )
        ]
        drawn[f"reliance_{norm}"] = figures.curves(
            grid,
            title=f"Reliance on backgrounds, {norm} training",
            x=[0.0, *radii],
            xlabel="ε",
        )
    return drawn


def table(found: Found) -> str:
    """Everything measured, a row for each training and amplitude."""
    names = ("in_domain", "decorrelated", "reversed", "gap", "minority", "relative")
    rows = [
        [
            f"{norm} {eps:.3g}" if eps else "standard",
            f"{amplitude}",
            *(tables.plus_minus(scenes.column(row, name)) for name in names),
        ]
        for (norm, eps, amplitude), row in found.items()
    ]
    return tables.markdown(["training", "brightness", *names], rows)


def run(arguments: Arguments) -> None:
    """Prints the claim and the cost, measures, judges and writes the report."""
    question = "Does adversarial training make networks rely on backgrounds?"
    claim = (
        "Adversarially trained networks rely on backgrounds more than standard ones."
    )
    common.announce(question, claim, minutes=15, seeds=arguments.seeds)
    found = collect(arguments)
    common.write_report(
        common.results_of(arguments) / "background_reliance" / arguments.source,
        question=question,
        claim=claim,
        setting=arguments.smoke
        * common.SMOKE
        + f"CNN on {arguments.source}, 4 classes, correlation {CORRELATION}, "
        f"{scenes.EPOCHS} epochs, {arguments.seeds} seeds.",
        claims=judge(found),
        drawn=draw(found),
        rest=table(found),
    )


if __name__ == "__main__":
    run(tyro.cli(Arguments, prog="python -m experiments.background_reliance"))
