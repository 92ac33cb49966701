"""Does the Fisher information of the input tell how robust a network is?

Claims (Shi et al., arXiv 1906.02494): over Fisher-regularised training ‖F‖_F and robust
accuracy are in a strong negative relation. And since λ_max(F) is the worst local growth
of the KL divergence, an image with a large λ_max should be near the boundary: λ_max
should predict the minimal adversarial distance, image by image.

    python -m experiments.fisher_vs_robustness [--dataset mnist]

The relation over epochs is judged by a rank correlation below −0.5, the prediction by
the rank correlation of −λ_max and the distance (DDN in L2, FMN in L∞) over the images
that a network gets right. Beside it, without a claim of the paper: the correlation for
the linearised margin |m| / ‖∇m‖₂. Cost: 6 minutes of CPU time on digits, 45 on MNIST,
for the nine networks of `kl_metric`.

Numbers (three seeds, digits / MNIST): the relation over epochs is -0.311 ± 0.029 /
0.600 ± 0.111 and did not hold. The prediction of the DDN distance did: 0.965 ± 0.005 /
0.917 ± 0.005 for standard, 0.891 ± 0.014 / 0.752 ± 0.015 for Madry-trained and
0.588 ± 0.040 / 0.650 ± 0.024 for Fisher-regularised networks. All of them:
docs/verdicts.md.
"""

from collections.abc import Mapping

import numpy as np
from matplotlib.figure import Figure

from experiments import common, study
from experiments.common import Claim
from experiments.history import History
from experiments.networks import TITLES
from experiments.study import Study
from robjax.reporting import figures, tables

REGULARISED = TITLES["fisher"]
NORM = r"$\Vert F\Vert_F$"
# A rank correlation over the epochs below this counts as a strong negative relation.
STRONG = -0.5


def judge(history: History) -> list[Claim]:
    """The relation over epochs, then the prediction image by image."""
    claims = []
    if REGULARISED in history.followed:
        curves = history.followed[REGULARISED]
        rho = common.rank_correlation(curves["fisher_norm"], curves["robust_accuracy"])
        claims.append(
            Claim(
                f"{REGULARISED}: strong negative relation of ‖F‖_F and robust accuracy "
                f"over the epochs (below {STRONG})",
                f"rank correlation {tables.plus_minus(rho)}",
                common.is_below(rho, STRONG),
            )
        )
    for title, seeds in history.samples.items():
        for attack, norm in (("ddn", "L2"), ("fmn", "L∞")):
            rho = [predicted(table, -table["spectral"], attack) for table in seeds]
            beside = ""
            if norm == "L2":
                linear = [predicted(t, t["linear_distance"], attack) for t in seeds]
                beside = (
                    "; the linearised margin reaches "
                    f"{tables.plus_minus(np.array(linear))}"
                )
            claims.append(
                Claim(
                    f"{title}: small λ_max(F) predicts a large {norm} distance "
                    f"({attack.upper()})",
                    f"rank correlation {tables.plus_minus(np.array(rho))}{beside}",
                    common.is_above(rho, 0),
                )
            )
    return claims


def predicted(table: Mapping[str, np.ndarray], values: np.ndarray, attack: str):
    """Rank correlation of values and distances over the images classified correctly."""
    used = table["correct"] & np.isfinite(table[attack]) & np.isfinite(values)
    return common.rank_correlation(values[None, used], table[attack][None, used])[0]


def draw(history: History) -> Mapping[str, Figure]:
    """Sensitivity and robust accuracy by epoch, sensitivity and distance by image."""

    def series(quantity: str) -> dict:
        return {title: curves[quantity] for title, curves in history.followed.items()}

    panel = figures.Panel
    rows = [
        [panel(series("fisher_norm"), "", f"mean {NORM} [nats/unit²]", "log")],
        [panel(series("effective_rank"), "", "effective rank of F")],
        [panel(series("robust_accuracy"), "", "PGD-20 accuracy [%]", "percent")],
    ]
    distances = {}
    for title, seeds in history.samples.items():
        table = seeds[0]
        used = table["correct"] & np.isfinite(table["ddn"]) & (table["spectral"] > 0)
        distances[title] = table["spectral"][used], table["ddn"][used]
    return {
        "fisher_norm": figures.curves(
            rows, title="Local sensitivity and robust accuracy over training"
        ),
        "norm_against_robustness": figures.scatter(
            {
                title: (curves["fisher_norm"], curves["robust_accuracy"])
                for title, curves in history.followed.items()
            },
            title="Robust accuracy against local sensitivity, epoch by epoch",
            xlabel=f"mean {NORM} [nats / squared image unit]",
            ylabel="PGD-20 robust accuracy [%]",
        ),
        "distance": figures.points(
            distances,
            title="Minimal adversarial distance against local sensitivity, seed 0",
            xlabel=r"$\lambda_{\max}(F)$ [nats / squared image unit]",
            ylabel="DDN distance, L2 [image units]",
        ),
    }


STUDY = Study(
    name="fisher_vs_robustness",
    question="Does the Fisher information of the input tell how robust a network is?",
    claim="‖F‖_F and robust accuracy are in a strong negative relation over "
    "Fisher-regularised training; λ_max(F) predicts the minimal adversarial distance.",
    variants=study.by_objective("standard", "madry", "fisher"),
    judge=judge,
    draw=draw,
)

if __name__ == "__main__":
    study.main(STUDY)
