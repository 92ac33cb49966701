"""What does standard training raise: the robust or the non-robust part of the metric?

Claim (Shi et al., arXiv 1906.02494): standard training optimises the non-robust
component. The mean Fisher part ½ΔᵀFΔ and ‖F‖_F rise with accuracy, while the robust
accuracy stays near 0.

    python -m experiments.components_over_training [--dataset mnist]

Judged by rank correlations over the epochs, and by the final robust accuracy (PGD-20)
against chance. Numbers: experiments/README.md.
"""

from collections.abc import Mapping

from matplotlib.figure import Figure

from experiments import common, study
from experiments.common import Claim
from experiments.networks import TITLES, History
from experiments.study import Study
from robjax.reporting import tables

STANDARD = TITLES["standard"]


def judge(history: History) -> list[Claim]:
    """Fisher part, Fisher norm and robust accuracy of standard training."""
    curves, claims = history.followed[STANDARD], []
    for name, words in (("fisher", "mean Fisher part"), ("fisher_norm", "mean ‖F‖_F")):
        rho = common.rank_correlation(curves["test_accuracy"], curves[name])
        claims.append(
            Claim(
                f"Standard training raises the {words} with accuracy",
                f"rank correlation {tables.plus_minus(rho)}; "
                + common.course(curves[name]),
                common.is_above(rho, 0),
            )
        )
    robust, chance = curves["robust_accuracy"], 1 / history.num_classes
    claims.append(
        Claim(
            "Meanwhile its robust accuracy stays near 0: it ends below chance "
            f"({100 * chance:.3g} %)",
            f"PGD-20 robust accuracy {tables.plus_minus(robust[:, -1], unit='%')} in "
            f"the end, {tables.plus_minus(robust.max(axis=1), unit='%')} at the most",
            common.is_below(robust[:, -1], chance),
        )
    )
    return claims


def draw(history: History) -> Mapping[str, Figure]:
    """The parts above the accuracies."""
    parts = {STANDARD: history.followed[STANDARD]}
    title = "The parts of the KL metric over standard training"
    return {"standard_parts": common.parts_figure(parts, title)}


STUDY = Study(
    name="components_over_training",
    question="Which part of the KL metric does standard training raise?",
    claim="Standard training raises the metric through its non-robust Fisher part and "
    "stays vulnerable.",
    variants=study.by_objective("standard"),
    judge=judge,
    draw=draw,
)

if __name__ == "__main__":
    study.main(STUDY)
