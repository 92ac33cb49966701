"""The KL metric and its parts over standard and robust training: four studies at once.

Claims: those of `metric_vs_accuracy`, `components_over_training`,
`robust_training_components` and `fisher_vs_robustness` (Shi et al., arXiv 1906.02494),
on the same nine networks: three objectives, three seeds.

    python -m experiments.kl_metric                      digits, this is `make demo`
    python -m experiments.kl_metric --dataset mnist      MNIST in earnest
    python -m experiments.kl_metric --dataset cifar10    on an accelerator

A run that is stopped goes on with the same command. Cost: digits 6 minutes of CPU time,
MNIST 45. Numbers (three seeds, digits / MNIST): M rises to 11.4 ± 0.2 / 20.3 ± 0.3 nats
in standard training, of which 0.971 ± 0.026 / 0.360 ± 0.039 are the Fisher part. All of
them: docs/verdicts.md.
"""

from experiments import (
    components_over_training,
    fisher_vs_robustness,
    metric_vs_accuracy,
    robust_training_components,
    study,
)
from experiments.study import Study

PARTS = (
    metric_vs_accuracy.STUDY,
    components_over_training.STUDY,
    robust_training_components.STUDY,
    fisher_vs_robustness.STUDY,
)
STUDY = Study(
    name="kl_metric",
    question="The KL metric and its parts, over standard and robust training.",
    claim=" ".join(part.claim for part in PARTS),
    variants=study.by_objective("standard", "madry", "fisher"),
    judge=lambda history: [c for part in PARTS for c in part.judge(history)],
    draw=lambda history: {
        name: figure for part in PARTS for name, figure in part.draw(history).items()
    },
)

if __name__ == "__main__":
    study.main(STUDY)
