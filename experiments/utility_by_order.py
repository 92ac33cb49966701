"""Which orders of interactions does an attack take its utility from?

Claim (Ren et al., arXiv 2103.07364, figure 4): what an attack takes away is, exactly,

    v(N|x) − v(N|x_adv) = Δv(∅) + Σ_i Δφ^(0)(i) + Σ_m (n − 1 − m) (mean of ΔI_ij^(m))

and the last part is dominated by high orders for standard networks, while lower ones
take more for robust networks; the second part "can usually be ignored".

    python -m experiments.utility_by_order [--dataset mnist]

The games of `interaction_orders`, which are played only once. Numbers:
docs/verdicts.md.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from experiments import common, games, study
from experiments.common import Claim
from experiments.games import MEAN_IMAGE, ROBUST, STANDARD, Table
from experiments.study import Study
from robjax.reporting import figures, tables

Found = Mapping[str, Sequence[Table]]
# The first-order term counts as negligible below this share of the utility.
SMALL = 0.1


def part(row: Table, name: str) -> np.ndarray:
    """A part of the utility in the mean over the images."""
    return row[f"{MEAN_IMAGE}/{name}"].mean(0)


def judge(found: Found) -> list[Claim]:
    """That the parts add up, which orders dominate, and the first-order term."""
    error = max(_error(row) for rows in found.values() for row in rows)
    claims = [
        Claim(
            "the parts add up to what was lost (every image, to 1e-4 of it)",
            f"largest difference {error:.1g}",
            common.is_true(error < 1e-4),
        )
    ]
    high = {
        title: np.array([_high(part(row, "orders")) for row in rows])
        for title, rows in found.items()
    }
    claims.append(
        Claim(
            "high orders take a larger part of Σ_m |ΔJ| from the standard network",
            ", ".join(
                f"{title} {tables.plus_minus(values, unit='%')}"
                for title, values in high.items()
            ),
            common.is_above(high[STANDARD] - high[ROBUST], 0),
        )
    )
    for title, rows in found.items():
        value, single = (
            np.array([part(row, name) for row in rows]) for name in ("value", "single")
        )
        together = [part(row, "orders").sum() for row in rows]
        claims.append(
            Claim(
                f"{title}: the first-order term Σ Δφ^(0) can be ignored (below "
                f"{SMALL:.0%} of the utility)",
                f"{tables.plus_minus(single)} of {tables.plus_minus(value)} nats, "
                f"interactions {tables.plus_minus(together)}",
                common.is_below(abs(single) / abs(value), SMALL),
            )
        )
    return claims


def _error(row: Table) -> float:
    value, empty, single, orders = (
        row[f"{MEAN_IMAGE}/{name}"] for name in ("value", "empty", "single", "orders")
    )
    total = empty + single + orders.sum(-1)
    return float(np.max(np.abs(total - value) / np.abs(value)))


def _high(orders: np.ndarray) -> float:
    return float(games.shares(orders)[games.high_orders(len(orders))].sum())


def draw(found: Found) -> dict[str, Any]:
    """ΔJ over the orders, and the parts of the utility."""
    lost = {t: games.curve(rows, MEAN_IMAGE, "orders") for t, rows in found.items()}
    panel = figures.Panel(lost, "", "utility of the order [nats]")
    parts = {
        title: {
            "utility": [part(row, "value") for row in rows],
            "single players": [part(row, "single") for row in rows],
            "interactions": [part(row, "orders").sum() for row in rows],
        }
        for title, rows in found.items()
    }
    return {
        "orders": figures.curves(
            [[panel]], title="What attacks take away, by order", xlabel="order m"
        ),
        "parts": figures.bars(
            {"": parts}, title="What attacks take away", ylabel="log p(y) [nats]"
        ),
    }


STUDY = Study(
    name="utility_by_order",
    question="Which orders of interactions does an attack take its utility from?",
    claim="Of standard networks from high orders, of robust ones from lower ones, too; "
    "single players hardly matter.",
    variants=study.by_objective("standard", "madry"),
    judge=judge,
    draw=draw,
    collect=games.collect,
    describe=games.described,
)

if __name__ == "__main__":
    study.main(STUDY)
