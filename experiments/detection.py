"""Do scattered attributions betray adversarial images?

Claim (Yang et al., arXiv 1906.03499; Ren et al., arXiv 2103.07364, section 4.3): when
one part of an image after the other is left out, the output of adversarial images
changes by amounts that scatter more. These amounts are attributions of the highest
order, which sum up interactions of all orders.

    python -m experiments.detection [--dataset mnist]

Normal images that are right against their adversarial versions (PGD-20, stopped at its
first success). The players are pixels on digits, a 14×14 grid on MNIST. What is paid
is the log-probability of the class that the network says, so the detector needs no
label; and its log-odds, which do not saturate. For a sure network the log-probability
hardly changes, so it may scatter less for that reason alone. Three measures of
dispersion, each judged by its AUROC. Cost: 1 minute of CPU time on digits
with networks that have been trained. Numbers: docs/verdicts.md.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from experiments import common, games, networks, study
from experiments.common import Claim
from experiments.games import ROBUST, STANDARD
from experiments.networks import Recipe
from experiments.study import Study
from robjax import data
from robjax.metrics import interactions
from robjax.reporting import figures, tables

GRIDS = {"digits": (8, 8), "mnist": (14, 14), "cifar10": (16, 16)}
VALUES = {"log p": interactions.log_softmax, "log-odds": interactions.log_odds}
MEASURES = {
    "deviation": "standard deviation",
    "absolute": "median absolute deviation",
    "quartiles": "distance between quartiles",
}
NAMES = [f"{value}, {words}" for value in VALUES for words in MEASURES.values()]
IMAGES = 100

Found = Mapping[str, Sequence[Mapping[str, float]]]
"""Title -> for each seed: one of NAMES -> AUROC."""


def measure(
    recipe: Recipe, logits_fn: Any, splits: networks.Splits
) -> dict[str, float]:
    """AUROC of each measure on the first images that the attack turned."""
    train, _, tracked = splits
    x, y = data.to_float(tracked.images, tracked.scale), jnp.asarray(tracked.labels)
    found = networks.tracked_attack(recipe)(logits_fn, x, y)
    right = jnp.argmax(logits_fn(x), axis=1) == y
    take = np.flatnonzero(right & found.success)[:IMAGES]
    if not len(take):
        return dict.fromkeys(NAMES, np.nan)
    baseline = games.mean_image(train)

    def scatter(images: Any, value: Any) -> interactions.Dispersion:
        game = interactions.image_game(
            logits_fn,
            images,
            jnp.argmax(logits_fn(images), axis=1),
            grid=GRIDS[recipe.dataset],
            baseline=baseline,
            value=value,
        )
        return interactions.dispersion(interactions.leave_one_out(game, game.players))

    areas = {}
    for name, value in VALUES.items():
        normal, adversarial = (scatter(i[take], value) for i in (x, found.x_adv))
        for field, words in MEASURES.items():
            scores = getattr(adversarial, field), getattr(normal, field)
            areas[f"{name}, {words}"] = interactions.auroc(*scores)
    return areas


def judge(found: Found) -> list[Claim]:
    """Better than chance, network by network and measure by measure."""
    claims = []
    for title, rows in found.items():
        for name in NAMES:
            area = np.array([row[name] for row in rows])
            claims.append(
                Claim(
                    f"{title}: attributions of adversarial images scatter more "
                    f"({name})",
                    f"AUROC {tables.plus_minus(area)}",
                    common.is_above(area, 0.5),
                )
            )
    standard, robust = (
        np.array([row[NAMES[0]] for row in found[title]])
        for title in (STANDARD, ROBUST)
    )
    claims.append(
        Claim(
            f"detection works better for the standard network ({NAMES[0]})",
            f"standard {tables.plus_minus(standard)}, robust "
            f"{tables.plus_minus(robust)}",
            common.is_above(standard - robust, 0),
        )
    )
    return claims


def draw(found: Found) -> dict[str, Any]:
    """AUROC as bars."""
    bars = {
        title: {name: [row[name] for row in rows] for name in NAMES}
        for title, rows in found.items()
    }
    title = "Adversarial against normal images"
    return {"auroc": figures.bars({"": bars}, title=title, ylabel="AUROC")}


STUDY = Study(
    name="detection",
    question="Do scattered attributions betray adversarial images?",
    claim="The attributions of adversarial images scatter more than those of normal "
    "ones.",
    variants=study.by_objective("standard", "madry"),
    judge=judge,
    draw=draw,
    collect=study.each_network(measure),
)

if __name__ == "__main__":
    study.main(STUDY)
