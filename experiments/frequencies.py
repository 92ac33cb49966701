"""Do interactions tell adversarial images from normal ones better than frequencies do?

Claim (Ren et al., arXiv 2103.07364, figure 6, left): the Fisher ratio between normal
and adversarial images, (μ − μ')² / (σ² + σ'²), is larger for the interactions I^(m) of
some order than for the Fourier magnitudes F^(r) of any frequency: attacks are better
understood by interactions than by frequencies.

    python -m experiments.frequencies [--dataset mnist]

The games and images of `interaction_orders`, which are played only once. I^(m) is the
mean over all pairs of an image, F^(r) that of the image itself. Numbers:
docs/verdicts.md.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from experiments import common, games, study
from experiments.common import Claim
from experiments.games import MEAN_IMAGE, Table
from experiments.study import Study
from robjax.metrics import interactions
from robjax.reporting import figures, tables

Found = Mapping[str, Sequence[Table]]


def by_order(rows: Sequence[Table]) -> np.ndarray:
    """[seeds, n − 1] Fisher ratio of the interactions of each order."""
    return np.stack([_ratio(*row[f"{MEAN_IMAGE}/mean"]) for row in rows])


def by_frequency(rows: Sequence[Table]) -> np.ndarray:
    """[seeds, R] Fisher ratio of the strength of each frequency."""
    images = [jnp.asarray(row["images"]) for row in rows]
    return np.stack(
        [_ratio(*map(interactions.fourier_magnitudes, both)) for both in images]
    )


def _ratio(normal: Any, adversarial: Any) -> np.ndarray:
    """Fisher ratio of groups [B, ...]; NaN where nothing varies, as in one image."""
    ratio = interactions.fisher_ratio(normal, adversarial)
    return np.where(np.isfinite(ratio), ratio, np.nan)


def judge(found: Found) -> list[Claim]:
    """The best order against the best frequency, and the typical ones."""
    claims = []
    for title, rows in found.items():
        for words, pick in (("highest", np.max), ("mean", np.mean)):
            order, frequency = (
                pick(ratio(rows), axis=1) for ratio in (by_order, by_frequency)
            )
            claims.append(
                Claim(
                    f"{title}: the {words} Fisher ratio of interactions is above that "
                    "of frequencies",
                    f"orders {tables.plus_minus(order)}, frequencies "
                    f"{tables.plus_minus(frequency)}",
                    common.is_above(order - frequency, 0),
                )
            )
    return claims


def draw(found: Found) -> dict[str, Any]:
    """Fisher ratios over orders, and over frequencies."""
    drawn = {}
    for name, ratio, xlabel in (
        ("orders", by_order, "order m"),
        ("frequencies", by_frequency, "frequency r"),
    ):
        series = {title: ratio(rows) for title, rows in found.items()}
        panel = figures.Panel(series, "", "Fisher ratio")
        title = "How far apart normal and adversarial images are"
        drawn[name] = figures.curves([[panel]], title=title, xlabel=xlabel)
    return drawn


STUDY = Study(
    name="frequencies",
    question="Do interactions tell adversarial images better than frequencies do?",
    claim="The Fisher ratio between normal and adversarial images is larger for "
    "interactions than for Fourier magnitudes.",
    variants=study.by_objective("standard", "madry"),
    judge=judge,
    draw=draw,
    collect=games.collect,
    describe=games.described,
)

if __name__ == "__main__":
    study.main(STUDY)
