"""Do the interactions of robust networks agree more from context to context?

Claim (Ren et al., arXiv 2103.07364, figure 5): the disentanglement D^(m), |E Δv| in
relation to E |Δv| over the contexts of a pair, is larger for robust networks, above all
at low orders: they learn features of their own category.

    python -m experiments.disentanglement [--dataset mnist]

The games of `interaction_orders`, those of the normal images. Low orders are 1 to 4,
since D^(0) = 1 always. In both forms, the mean of ratios (paper) and the ratio of means
(published code). Beside them 1/√(number of contexts), what random numbers would have.
Numbers: docs/verdicts.md.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from experiments import common, games, study
from experiments.common import Claim
from experiments.games import MEAN_IMAGE, ROBUST, STANDARD, Table
from experiments.study import Study
from robjax.reporting import figures, tables

Found = Mapping[str, Sequence[Table]]
FORMS = {"ratios": "mean of ratios", "means": "ratio of means"}


def judge(found: Found) -> list[Claim]:
    """Robust against standard networks, at low orders and at all."""
    claims = []
    for form, words in FORMS.items():
        curves = {t: games.curve(rows, MEAN_IMAGE, form) for t, rows in found.items()}
        orders = curves[STANDARD].shape[1]
        low = games.low_orders(orders) & (np.arange(orders) > 0)
        inner = (np.arange(orders) > 0) & (np.arange(orders) < orders - 1)
        for name, chosen in (("low orders", low), ("all orders", inner)):
            before, after = (
                curves[title][:, chosen].mean(1) for title in (STANDARD, ROBUST)
            )
            claims.append(
                Claim(
                    f"D is larger for the robust network: {name}, {words}",
                    f"standard {tables.plus_minus(before)}, robust "
                    f"{tables.plus_minus(after)}",
                    common.is_above(after - before, 0),
                )
            )
    return claims


def draw(found: Found) -> dict[str, Any]:
    """D over the orders in both forms."""
    orders = next(iter(found.values()))[0][f"{MEAN_IMAGE}/ratios"].shape[-1]
    floor = [math.comb(orders - 1, m) ** -0.5 for m in range(orders)]
    panels = [
        figures.Panel(
            {t: games.curve(rows, MEAN_IMAGE, form) for t, rows in found.items()}
            | {"random game": [floor]},
            words,
            "disentanglement D",
        )
        for form, words in FORMS.items()
    ]
    title = "Do interactions agree from context to context?"
    return {"disentanglement": figures.curves([panels], title=title, xlabel="order m")}


STUDY = Study(
    name="disentanglement",
    question="Do the interactions of robust networks agree more across contexts?",
    claim="D is larger for robust networks, above all at low orders.",
    variants=study.by_objective("standard", "madry"),
    judge=judge,
    draw=draw,
    collect=games.collect,
    describe=games.described,
)

if __name__ == "__main__":
    study.main(STUDY)
