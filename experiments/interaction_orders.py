"""Do attacks work through interactions of high orders, and does robustness end that?

Claim (Ren et al., arXiv 2103.07364, figure 3 and supplement, table 1): an attack
changes the interactions between parts of an image, I^(m), most at high orders m, those
that need most of the image; of the change of a robust network a larger part is at low
and middle orders. The shares |ΔI^(m)| / Σ |ΔI^(m)| of the paper at the highest order,
0.95 n, are .383 for a standard ResNet-18 and .160 for a robust one.

    python -m experiments.interaction_orders [--dataset mnist]

On the networks of `kl_metric`, standard and adversarially trained, on the same images
for both, attacked up to the same utility; exact, 4×4 players (experiments/games.py).
High orders are m ≥ 0.7 (n − 2), 10 to 14. Judged for three baselines, since what stands
in for absent parts matters at this size, and for a targeted attack. Cost on digits: 5
minutes of CPU time with networks that have been trained. Numbers:
docs/verdicts.md.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from experiments import common, games, study
from experiments.common import Claim
from experiments.games import GAMES, MEAN_IMAGE, ROBUST, STANDARD, Table
from experiments.study import Study
from robjax.reporting import figures, pairs, tables

Found = Mapping[str, Sequence[Table]]


def high_share(rows: Sequence[Table], game: str) -> np.ndarray:
    """[seeds] the share of |ΔI^(m)| at high orders."""
    share = games.shares(games.change(rows, game))
    return share[:, games.high_orders(share.shape[1])].sum(1)


def judge(found: Found) -> list[Claim]:
    """Shares of the change, then its sign."""
    claims = []
    for game in GAMES:
        standard, robust = (high_share(found[t], game) for t in (STANDARD, ROBUST))
        claims.append(
            Claim(
                f"{game}: the share of |ΔI| at high orders is larger for the standard "
                "network",
                f"standard {tables.plus_minus(standard, unit='%')}, robust "
                f"{tables.plus_minus(robust, unit='%')}",
                common.is_above(standard - robust, 0),
            )
        )
    for title, rows in found.items():
        change = games.change(rows, MEAN_IMAGE)
        high, low = (
            change[:, pick(change.shape[1])].mean(1)
            for pick in (games.high_orders, games.low_orders)
        )
        claims += [
            Claim(
                f"{title}: attacks lower I at high orders",
                f"by {tables.plus_minus(high)} nats",
                common.is_above(high, 0),
            ),
            Claim(
                f"{title}: |ΔI| is larger at high orders than at low ones",
                f"{tables.plus_minus(abs(high))} against {tables.plus_minus(abs(low))}",
                common.is_above(abs(high) - abs(low), 0),
            ),
        ]
    return claims


def draw(found: Found) -> dict[str, Any]:
    """I of normal and adversarial images, its change, and pairs over an image."""
    levels = [
        figures.Panel(
            {
                name: games.curve(rows, MEAN_IMAGE, "mean")[:, side]
                for side, name in enumerate(("normal", "adversarial"))
            },
            title,
            "mean interaction [nats]",
        )
        for title, rows in found.items()
    ]
    drawn = {
        "interactions": figures.curves(
            [levels], title="Interactions by order", xlabel="order m"
        ),
        "changes": _by_game(found, lambda change: change, "ΔI [nats]"),
        "shares": _by_game(
            found, lambda change: 100 * games.shares(change), "share of |ΔI| [%]"
        ),
    }
    for name, title in (("standard", STANDARD), ("robust", ROBUST)):
        first = found[title][0]
        rows, columns = map(int, first["grid"])
        drawn[f"pairs_{name}"] = pairs.strongest_pairs(
            dict(zip(("normal", "adversarial"), first["images"][:, 0], strict=True)),
            first["pairs"],
            grid=(rows, columns),
            title=f"Strongest pairs, {title} network",
        )
    return drawn


def _by_game(found: Found, pick: Any, ylabel: str) -> Figure:
    """Something made of ΔI, a panel for each game."""
    panels = [
        figures.Panel(
            {title: pick(games.change(rows, game)) for title, rows in found.items()},
            game,
            ylabel,
        )
        for game in GAMES
    ]
    rows = [panels[:2], panels[2:]]
    return figures.curves(rows, title="What attacks change, by order", xlabel="order m")


STUDY = Study(
    name="interaction_orders",
    question="Do attacks work through interactions of high orders?",
    claim="Attacks change interactions of high orders most; those of robust networks "
    "less so.",
    variants=study.by_objective("standard", "madry"),
    judge=judge,
    draw=draw,
    collect=games.collect,
    describe=games.described,
)

if __name__ == "__main__":
    study.main(STUDY)
