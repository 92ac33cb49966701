"""Does adversarial training make networks rely on backgrounds?

Claim (Moayeri et al., arXiv 2209.07592): adversarially trained classifiers rely on
backgrounds more than standard ones, so the gap between fitting and random backgrounds
(BG-Gap) is larger, accuracy on backgrounds that do not fit is lower, and so is the
relative foreground sensitivity (RFS). For L∞ attacks theory asks for spurious features
of a large scale.

    python -m experiments.background_reliance [--source mnist] [--scenery cifar10]
        [--model mlp] [--data PATH]

Four digits on striped backgrounds (experiments/scenes.py); 90 % of the training images
have the background of their class, whose brightness is the scale of the spurious
feature. Standard training, and adversarial training with L2 and L∞ attacks of three
radii. RFS is judged beside the gap because noise does not erase a smooth background,
and adversarially trained networks tolerate noise. Perceptrons are trained all at once.
A released set answers what it can: BG-Gap needs mixed images, as in ImageNet-9, RFS
masks, as in RIVAL10, the rest groups, as in Waterbirds. Numbers: docs/verdicts.md.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import tyro

from experiments import common, scenes
from experiments.common import Claim
from experiments.scenes import Measured
from robjax.reporting import figures, tables

AMPLITUDES = (0.2, 0.4, 0.7)
RADII = {"L2": (0.25, 0.5, 1.0), "Linf": (4 / 255, 8 / 255, 16 / 255)}
CORRELATION = 0.9
MEASURES = {
    "gap": ("BG-Gap is larger", common.is_above),
    "minority": ("images whose background does not fit suffer", common.is_below),
    "relative": ("RFS is lower", common.is_below),
}

Found = Mapping[tuple[str, float, float | None], Sequence[Measured]]
"""(norm, ε, amplitude) -> what was measured for each seed; norm "none": standard."""


@dataclasses.dataclass(frozen=True)
class Arguments(scenes.Arguments):
    """As for every study of scenes, and the network."""

    model: Literal["cnn", "mlp"] = "cnn"
    """CNNs one by one, or perceptrons of all radii and seeds in one program."""


def collect(arguments: Arguments) -> Found:
    """Trains and measures; all amplitudes of one training share a compiled step."""
    trainings = [("none", 0.0)] + [(n, eps) for n in RADII for eps in RADII[n]]
    amplitudes = AMPLITUDES if arguments.data is None else (None,)
    keys = [(*training, a) for training in trainings for a in amplitudes]
    if arguments.smoke:
        keys = [keys[len(amplitudes) - 1], keys[-1]]
    variants = {
        str(key): scenes.base(
            arguments,
            norm=key[0],
            eps=key[1],
            amplitude=key[2],
            correlation=CORRELATION,
            model=arguments.model,
        )
        for key in keys
    }
    found = scenes.measure_all(variants, arguments)
    return {key: found[str(key)] for key in keys}


def judge(found: Found) -> list[Claim]:
    """The strongest adversarial training against standard training, seed by seed."""
    claims = []
    amplitudes = dict.fromkeys(a for _, _, a in found)
    for norm in RADII:
        for amplitude in amplitudes:
            radii = [eps for n, eps, a in found if (n, a) == (norm, amplitude)]
            if not radii:
                continue
            robust = found[norm, max(radii), amplitude]
            standard = found["none", 0.0, amplitude]
            for name, (words, verdict) in MEASURES.items():
                if name not in standard[0]:
                    continue
                before, after = (
                    scenes.column(rows, name) for rows in (standard, robust)
                )
                claims.append(
                    Claim(
                        f"{scenes.where(norm, amplitude)}: {words}",
                        f"{tables.plus_minus(after)} (standard "
                        f"{tables.plus_minus(before)})",
                        verdict(after - before, 0),
                    )
                )
    return claims


def draw(found: Found) -> dict[str, Any]:
    """Each measure over the radii, a column for each amplitude."""
    words = {
        "gap": "BG-Gap",
        "minority": "accuracy where\nit does not fit",
        "relative": "RFS",
    }
    drawn = {}
    for norm in sorted({n for n, _, _ in found} - {"none"}):
        radii = sorted({eps for n, eps, _ in found if n == norm})
        amplitudes = dict.fromkeys(a for n, _, a in found if n == norm)
        grid = []
        for name in words:
            row = []
            for amplitude in amplitudes:
                networks = [found["none", 0.0, amplitude]]
                networks += [found[norm, eps, amplitude] for eps in radii]
                if name not in networks[0][0]:
                    continue
                curve = np.stack([scenes.column(n, name) for n in networks], axis=1)
                lines = {f"networks, {scenes.seeds_of(networks[0])}": curve}
                above = "" if grid or amplitude is None else f"brightness {amplitude}"
                row.append(figures.Panel(lines, above, words[name]))
            grid += [row] if row else []
        drawn[f"reliance_{norm}"] = figures.curves(
            grid,
            title=f"Reliance on backgrounds, {norm} training",
            x=[0.0, *radii],
            xlabel=f"{norm} radius in training",
        )
    return drawn


def table(found: Found) -> str:
    """Everything measured, a row for each training and amplitude."""
    first = next(iter(found.values()))[0]
    names = ("in_domain", "decorrelated", "reversed", "gap", "minority", "relative")
    names = [name for name in names if name in first]
    rows = [
        [
            f"{norm} {eps:.3g}" if eps else "standard",
            "" if amplitude is None else f"{amplitude}",
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
    words = {name: words for name, (words, _) in MEASURES.items()}
    unanswered = scenes.unanswered(arguments, words)
    common.announce(question, claim, minutes=15, seeds=arguments.seeds)
    found = collect(arguments)
    plain = arguments.model == "cnn"
    name = scenes.name_of(arguments) + ("" if plain else f"-{arguments.model}")
    own = f"4 classes, correlation {CORRELATION}"
    common.write_report(
        common.results_of(arguments) / "background_reliance" / name,
        question=question,
        claim=claim,
        setting=scenes.describe(arguments, own, arguments.model.upper()),
        claims=judge(found),
        drawn=draw(found),
        rest=unanswered + table(found),
    )


if __name__ == "__main__":
    run(tyro.cli(Arguments, prog="python -m experiments.background_reliance"))
