"""How far is a changed prediction, and what does the search of the paper make of it?

Claim (Wang, Gao and Qi, arXiv 1612.00334): ARC, the average distance to a changed
prediction with a cap of δ₂, and ARCA, the accuracy times ARC/δ₂, rank trainings as
accuracy under attack does: all hardening methods above the base, Siamese training best
or comparable.

    python -m experiments.arc_table [--dataset mnist]

The networks and the test images are those of `experiments.hardening`. What flips is the
prediction, right or wrong. The oracle's distance is the L∞ norm of the image, δ₂ = 0.2.
The search is `attacks.minimal_distance`: DeepFool, FMN and FAB with refinements. Beside
it stands the search of the paper, FGSM at ten strengths up to δ₂, whose distances are
larger: both are upper bounds, and the smaller one is nearer to the truth. Numbers:
docs/verdicts.md.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from jax.tree_util import Partial

from experiments import common, hardened
from experiments.common import Claim
from experiments.hardened import NOISE, SIAMESE, STANDARD, Arguments
from robjax import attacks
from robjax.balls import Linf
from robjax.metrics import strong_robustness
from robjax.reporting import figures, tables

DELTA = 0.2
STRENGTHS = DELTA * np.arange(1, 11) / 10
SEARCH, GRID = "search", "FGSM grid"
BOTH = (SEARCH, GRID)
COST = {"digits": 2, "mnist": 6}

Found = Mapping[str, Any]
"""Training -> for each seed the arrays of `measure`."""


def measure(
    recipe: hardened.Recipe, network: Partial, x: jax.Array, y: jax.Array
) -> dict[str, Any]:
    """Distances to a changed prediction by both searches, and what was right; [N]."""
    predicted = jnp.argmax(network(x), axis=1)
    key = jax.random.key(recipe.seed)
    options = {"key": key, "ball": Linf(1.0), "starts": 2}
    found = attacks.minimal_distance(network, x, predicted, **options)
    grid = jnp.full(len(x), jnp.inf)
    for strength in STRENGTHS[::-1]:
        ball = Linf(jnp.float32(strength))
        flipped = attacks.fgsm(network, x, predicted, ball=ball).success
        grid = jnp.where(flipped, strength, grid)
    return {SEARCH: found.distance, GRID: grid, "correct": predicted == y}


def arcs(rows: Any, by: str) -> np.ndarray:
    """[seeds] ARC/δ₂."""
    found = (strong_robustness.arc(row[by], DELTA) for row in rows)
    return np.array([float(estimate.value) / DELTA for estimate in found])


def arcas(rows: Any, by: str) -> np.ndarray:
    """[seeds] ARCA."""
    found = (strong_robustness.arca(row[by], row["correct"], DELTA) for row in rows)
    return np.array([float(estimate.value) for estimate in found])


def judge(found: Found) -> list[Claim]:
    """Every hardening against standard training, and both searches side by side."""
    arc = {(n, by): arcs(rows, by) for n, rows in found.items() for by in BOTH}
    claims = [
        hardened.above(
            f"{name} raises ARC/δ₂", arc[name, SEARCH], arc[STANDARD, SEARCH]
        )
        for name in found
        if name != STANDARD
    ]
    claims += [
        hardened.above(
            f"Siamese training raises ARC/δ₂ more than {name}",
            arc[SIAMESE, SEARCH],
            arc[name, SEARCH],
        )
        for name in (NOISE, *(n for n in found if n not in (STANDARD, NOISE, SIAMESE)))
    ]
    never = all((arc[name, GRID] >= arc[name, SEARCH]).all() for name in found)
    gaps = [(arc[name, GRID] - arc[name, SEARCH]).mean() for name in found]
    claims.append(
        Claim(
            "The FGSM grid never gives a lower ARC than the search",
            f"ARC/δ₂ higher by {min(gaps):.3f} to {max(gaps):.3f}",
            common.is_true(never),
        )
    )
    claims += [
        hardened.above(
            f"{name}: the FGSM grid overstates", arc[name, GRID], arc[name, SEARCH]
        )
        for name in found
    ]
    ranks = common.rank_correlation(
        *(np.stack([arc[name, by] for name in found], axis=1) for by in (GRID, SEARCH))
    )
    measured = f"rank correlation {tables.plus_minus(ranks)}"
    words = "The FGSM grid orders the trainings as the search does (above 0.9)"
    return [*claims, Claim(words, measured, common.is_above(ranks, 0.9))]


def table(found: Found) -> str:
    """ARC and ARCA by both searches, the largest ARC first."""
    order = sorted(found, key=lambda name: -arcs(found[name], SEARCH).mean())
    rows = []
    for name in order:
        accuracy = hardened.column(found[name], "correct").mean(axis=1)
        measured = (of(found[name], by) for by in BOTH for of in (arcs, arcas))
        shown = map(tables.plus_minus, measured)
        rows.append([name, tables.plus_minus(accuracy, unit="%"), *shown])
    kinds = [f"{kind}, {by}" for by in BOTH for kind in ("ARC/δ₂", "ARCA")]
    return tables.markdown(["training", "accuracy", *kinds], rows)


def draw(found: Found) -> dict[str, Any]:
    """ARC/δ₂ of every training by both searches."""
    series = {by: {n: arcs(rows, by) for n, rows in found.items()} for by in BOTH}
    title = f"Average distance to a changed prediction, L∞, δ₂ = {DELTA:g}"
    return {"arc_table": figures.bars({"": series}, title=title, ylabel="ARC/δ₂")}


def run(arguments: Arguments) -> None:
    """Prints the claim and the cost, measures, judges and writes the report."""
    question = "How far is a changed prediction, by a strong search and by FGSM?"
    claim = "ARC and ARCA rank all hardening methods above the base, Siamese on top."
    cost = COST[arguments.dataset]
    common.announce(question, claim, minutes=cost, seeds=arguments.seeds)
    found = hardened.measure_all(arguments, "distances", measure)
    common.write_report(
        common.results_of(arguments) / "arc_table" / arguments.dataset,
        question=question,
        claim=claim,
        setting=arguments.smoke * common.SMOKE + hardened.describe(arguments),
        claims=judge(found),
        drawn=draw(found),
        rest=table(found),
    )


if __name__ == "__main__":
    run(tyro.cli(Arguments, prog="python -m experiments.arc_table"))
