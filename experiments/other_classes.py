"""What do attacks do to the interactions for the classes that are not the label?

Claim (Ren et al., arXiv 2103.07364, supplement, figure 1): an attack lowers the
interactions of high orders that speak for the label. It raises those that speak for the
class which the network then says, and usually those for all other classes together.

    python -m experiments.other_classes [--dataset mnist]

The networks of `kl_metric`; exact, 4×4 players, mean training image as baseline; the
untargeted attack of experiments/games.py, on images that it is accepted for. What is
paid is log p of the label, log p of the class found, and log Σ exp of the logits of all
classes but the label. Numbers: docs/verdicts.md.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from experiments import common, games, networks, study
from experiments.common import Claim
from experiments.networks import Recipe
from experiments.study import Study
from robjax.metrics import interactions
from robjax.reporting import figures, tables

LABEL, FOUND, OTHERS = "the label", "the class found", "all other classes"

Found = Mapping[str, Sequence[Mapping[str, np.ndarray]]]
"""Title -> for each seed: class -> I^(m)(x_adv) − I^(m)(x) [n − 1], in nats."""


def measure(
    recipe: Recipe, logits_fn: Any, splits: networks.Splits
) -> dict[str, np.ndarray]:
    """What the attack adds to the interactions for each kind of class."""
    train = splits[0]
    setting = games.setting_of(recipe)
    x, x_adv, y, found = games.attacked(recipe, logits_fn, splits)
    added = {}
    for name, labels, value in (
        (LABEL, y, interactions.log_softmax),
        (FOUND, found, interactions.log_softmax),
        (OTHERS, y, interactions.other_categories),
    ):
        game = interactions.image_game(
            logits_fn,
            (x, x_adv),
            labels,
            grid=setting.grid,
            baseline=games.mean_image(train),
            value=value,
            batch_size=512,
        )
        normal, adversarial = interactions.exact(game, game.players).mean
        added[name] = (adversarial - normal).mean(0)
    return added


def judge(found: Found) -> list[Claim]:
    """The sign of the change at high orders."""
    claims = []
    for title, rows in found.items():
        for name in (LABEL, FOUND, OTHERS):
            curves = np.stack([row[name] for row in rows])
            high = curves[:, games.high_orders(curves.shape[1])].mean(1)
            verb, verdict = (
                ("lower", common.is_below)
                if name == LABEL
                else ("raise", common.is_above)
            )
            claims.append(
                Claim(
                    f"{title}: attacks {verb} I at high orders for {name}",
                    f"{tables.plus_minus(high)} nats",
                    verdict(high, 0),
                )
            )
    return claims


def draw(found: Found) -> dict[str, Any]:
    """What is added over the orders."""
    panels = [
        figures.Panel(
            {name: np.stack([row[name] for row in rows]) for name in rows[0]},
            title,
            "added by the attack [nats]",
        )
        for title, rows in found.items()
    ]
    title = "Interactions for the label and for other classes"
    return {"classes": figures.curves([panels], title=title, xlabel="order m")}


STUDY = Study(
    name="other_classes",
    question="What do attacks do to the interactions for classes that are not the "
    "label?",
    claim="Attacks lower interactions of high orders for the label, and raise those "
    "for the class found and usually for all others.",
    variants=study.by_objective("standard", "madry"),
    judge=judge,
    draw=draw,
    collect=study.each_network(measure),
)

if __name__ == "__main__":
    study.main(STUDY)
