"""Does rank reduction give back the high-order interactions that attacks destroy?

Claim (Ren et al., arXiv 2103.07364, figure 6, right): when an image is cut from rank k
to k/4 and k/16, the interactions of high orders of adversarial images rise strongly,
more than those of normal images; at low orders both change alike.

    python -m experiments.rank_reduction [--dataset mnist]

The networks of `kl_metric`; exact, 4×4 players, mean training image as baseline; the
attack of experiments/games.py, on images that it is accepted for. High and low orders
as there. On digits k/16 is less than 1, so rank 1 stands for it. Numbers:
docs/verdicts.md.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from experiments import common, games, networks, study
from experiments.common import Claim
from experiments.networks import Recipe
from experiments.study import Study
from robjax.metrics import interactions
from robjax.reporting import figures, tables

SHARES = {"full rank": 1, "k/4": 1 / 4, "k/16": 1 / 16}

Found = Mapping[str, Sequence[np.ndarray]]
"""Title -> for each seed I^(m) [normal or adversarial, rank, n − 1], in nats."""


def measure(recipe: Recipe, logits_fn: Any, splits: networks.Splits) -> np.ndarray:
    """I^(m) of normal and adversarial images of each rank."""
    train = splits[0]
    setting = games.setting_of(recipe)
    x, x_adv, y, _ = games.attacked(recipe, logits_fn, splits)
    most = min(x.shape[1:3])
    ranks = [max(1, round(share * most)) for share in SHARES.values()]
    stack = [
        jnp.clip(interactions.reduce_rank(images, rank), 0, 1)
        for images in (x, x_adv)
        for rank in ranks
    ]
    game = interactions.image_game(
        logits_fn,
        jnp.concatenate(stack),
        jnp.tile(y, len(stack)),
        grid=setting.grid,
        baseline=games.mean_image(train),
        batch_size=512,
    )
    mean = interactions.exact(game, game.players).mean
    return mean.reshape(2, len(ranks), len(x), -1).mean(2)


def judge(found: Found) -> list[Claim]:
    """What rank reduction adds, at high and at low orders."""
    claims = []
    for title, rows in found.items():
        rise = np.stack(rows)
        rise = rise[:, :, 1:] - rise[:, :, :1]  # [seeds, 2, ranks, n − 1]
        orders = rise.shape[-1]
        high, low = (
            rise[..., pick(orders)].mean(-1)
            for pick in (games.high_orders, games.low_orders)
        )
        for i, name in enumerate(list(SHARES)[1:]):
            normal, adversarial = high[:, 0, i], high[:, 1, i]
            apart = np.abs(low[:, 1, i] - low[:, 0, i])
            claims += [
                Claim(
                    f"{title}: rank {name} raises I of adversarial images at high "
                    "orders",
                    f"by {tables.plus_minus(adversarial)} nats",
                    common.is_above(adversarial, 0),
                ),
                Claim(
                    f"{title}: rank {name} raises it more than that of normal images",
                    f"theirs by {tables.plus_minus(normal)} nats",
                    common.is_above(adversarial - normal, 0),
                ),
                Claim(
                    f"{title}: rank {name} changes both more alike at low orders",
                    f"apart by {tables.plus_minus(apart)} at low, "
                    f"{tables.plus_minus(abs(adversarial - normal))} at high orders",
                    common.is_above(abs(adversarial - normal) - apart, 0),
                ),
            ]
    return claims


def draw(found: Found) -> dict[str, Any]:
    """I over the orders, for each rank."""
    grid = [
        [
            figures.Panel(
                {
                    name: np.stack([row[side, i] for row in rows])
                    for i, name in enumerate(SHARES)
                },
                f"{title}, {words}",
                "mean interaction [nats]",
            )
            for side, words in enumerate(("normal", "adversarial"))
        ]
        for title, rows in found.items()
    ]
    title = "Interactions of images of reduced rank"
    return {"ranks": figures.curves(grid, title=title, xlabel="order m")}


STUDY = Study(
    name="rank_reduction",
    question="Does rank reduction give back the interactions that attacks destroy?",
    claim="Rank reduction raises interactions of high orders of adversarial images, "
    "more than those of normal ones.",
    variants=study.by_objective("standard", "madry"),
    judge=judge,
    draw=draw,
    collect=study.each_network(measure),
)

if __name__ == "__main__":
    study.main(STUDY)
