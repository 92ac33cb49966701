"""Does the KL metric M rise with accuracy while a network learns?

Claim (Shi et al., arXiv 1906.02494): the mean divergence M between the predictions for
images of different classes measures how well a network performs, so over training it
rises with standard accuracy, whatever is minimised.

    python -m experiments.metric_vs_accuracy [--dataset mnist]

Judged by the rank correlation of M and test accuracy over the epochs, epoch 0 included,
for each seed. Cost: 6 minutes of CPU time on digits, 45 on MNIST, for the nine networks
of `kl_metric`.

Numbers (three seeds, digits / MNIST): the rank correlation is 0.955 ± 0.013 /
0.921 ± 0.040 in standard training, 0.736 ± 0.119 / 0.659 ± 0.038 in Madry's and
0.472 ± 0.054 / 0.823 ± 0.031 in Fisher-regularised training: the claim held. All of
them: docs/verdicts.md.
"""

from collections.abc import Mapping

from matplotlib.figure import Figure

from experiments import common, study
from experiments.common import Claim
from experiments.history import History
from experiments.study import Study
from robjax.reporting import figures, tables


def judge(history: History) -> list[Claim]:
    """M against accuracy, training by training."""
    claims = []
    for title, curves in history.followed.items():
        rho = common.rank_correlation(curves["test_accuracy"], curves["metric"])
        claims.append(
            Claim(
                f"M rises with standard accuracy: {title} training",
                f"rank correlation {tables.plus_minus(rho)}; "
                + common.course(curves["metric"]),
                common.is_above(rho, 0),
            )
        )
    return claims


def draw(history: History) -> Mapping[str, Figure]:
    """Accuracy above M, over training."""

    def series(quantity: str) -> dict:
        return {title: curves[quantity] for title, curves in history.followed.items()}

    panel = figures.Panel
    rows = [
        [panel(series("test_accuracy"), "", "test accuracy [%]", "percent")],
        [panel(series("metric"), "", "metric M [nats]", "log")],
    ]
    title = "Accuracy and the metric M over training"
    return {"metric_and_accuracy": figures.curves(rows, title=title)}


STUDY = Study(
    name="metric_vs_accuracy",
    question="Does the KL metric rise with accuracy while a network learns?",
    claim="M, the mean KL between predictions for images of different classes, rises "
    "with standard accuracy.",
    variants=study.by_objective("standard", "madry", "fisher"),
    judge=judge,
    draw=draw,
)

if __name__ == "__main__":
    study.main(STUDY)
