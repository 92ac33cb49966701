"""Can an attack be undone by another attack?

Claim (Ren et al., arXiv 2103.07364, supplement, table 3): after an untargeted attack on
x, a targeted one of the same strength leads from x_adv back to the label, to x̂. For
robust networks x̂ is nearer to x than x_adv, for standard networks it is farther: for
ResNet-18 ‖x − x_adv‖₂ and ‖x − x̂‖₂ are 18.7 and 11.5, and 9.7 and 13.6.

    python -m experiments.recoverability [--dataset mnist]

Ten steps of ε/8 each way, with the ε of training, as in the paper; on the images that
are right before and wrong after the first attack. Cost: less than a minute of CPU time
with networks that have been trained. Numbers: docs/verdicts.md.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from experiments import common, networks, study
from experiments.common import Claim
from experiments.games import ROBUST, STANDARD
from experiments.networks import Recipe
from experiments.study import Study
from robjax import data
from robjax.balls import Linf
from robjax.metrics import interactions
from robjax.reporting import figures, tables

Found = Mapping[str, Sequence[Mapping[str, float]]]
"""Title -> for each seed: "attacked" and "led back", mean distances; "returned"."""


def measure(
    recipe: Recipe, logits_fn: Any, splits: networks.Splits
) -> dict[str, float]:
    """Mean L2 distances of the attacked images, and of where they are led back to."""
    tracked = splits[2]
    x, y = data.to_float(tracked.images, tracked.scale), jnp.asarray(tracked.labels)
    found = interactions.recoverability(logits_fn, x, y, ball=Linf(recipe.eps))
    right = jnp.argmax(logits_fn(x), axis=1) == y
    which = np.asarray(right & found.fooled)
    fields = {
        "attacked": found.attacked_distance,
        "led back": found.returned_distance,
        "returned": found.returned,
    }
    return {
        name: float(np.asarray(values)[which].mean()) if which.any() else np.nan
        for name, values in fields.items()
    }


def judge(found: Found) -> list[Claim]:
    """The way back against the way there."""
    claims = []
    for title, words, verdict in (
        (STANDARD, "farther from x than x_adv", common.is_above),
        (ROBUST, "nearer to x than x_adv", common.is_below),
    ):
        there, back, returned = (
            np.array([row[name] for row in found[title]])
            for name in ("attacked", "led back", "returned")
        )
        claims.append(
            Claim(
                f"{title}: what is led back is {words}",
                f"x_adv {tables.plus_minus(there)}, x̂ {tables.plus_minus(back)} in L2; "
                f"{tables.plus_minus(returned, unit='%')} have the label again",
                verdict(back / there, 1),
            )
        )
    ratio = {
        title: np.array([row["led back"] / row["attacked"] for row in rows])
        for title, rows in found.items()
    }
    claims.append(
        Claim(
            "robust networks lead back better: ‖x − x̂‖ / ‖x − x_adv‖ is smaller",
            f"standard {tables.plus_minus(ratio[STANDARD])}, robust "
            f"{tables.plus_minus(ratio[ROBUST])}",
            common.is_below(ratio[ROBUST] - ratio[STANDARD], 0),
        )
    )
    return claims


def draw(found: Found) -> dict[str, Any]:
    """Distances as bars."""
    bars = {
        title: {name: [row[name] for row in rows] for name in ("attacked", "led back")}
        for title, rows in found.items()
    }
    title = "Attacked and led back"
    return {
        "distances": figures.bars({"": bars}, title=title, ylabel="L2 distance from x")
    }


STUDY = Study(
    name="recoverability",
    question="Can an attack be undone by another attack?",
    claim="An attack back to the label ends nearer to the image than the adversarial "
    "example for robust networks, and farther away for standard ones.",
    variants=study.by_objective("standard", "madry"),
    judge=judge,
    draw=draw,
    collect=study.each_network(measure),
)

if __name__ == "__main__":
    study.main(STUDY)
