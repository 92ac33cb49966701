"""Whether a prediction stays where an oracle sees no change.

Wang, Gao and Qi, "A theoretical framework for robustness of (deep) classifiers against
adversarial samples", ICLR 2017 workshop (arXiv 1612.00334). A classifier f₁ = c₁(g₁(x))
should say the same of x and x' where an oracle with features g₂ sees next to no change:

    d₂'(x, x') = ‖g₂(x) − g₂(x')‖_p ≤ δ₂

    oracles.py      maps g₂ and their distance: identity, linear, PCA, any function
    agreement.py    how often f₁(x) = f₁(x') over random pairs
    worst_case.py   whether any x' flips f₁, by an attack where the oracle does not look
    modulus.py      how far features of f₁ move for a given move of those of the oracle
    directions.py   what f₁ uses and the oracle ignores, as images
    distances.py    distances to a changed prediction by attacks; ARC and ARCA

Average and worst case are two numbers with two names. The paper's definition, with
probabilities, is about the average; its theorem, about every x', is about the worst.

**What is true** (`robjax.theory.feature_spaces` has it for linear maps). A classifier
that uses a direction that the oracle ignores flips at d₂' = 0. One that does not use it
need not flip, though its features contain it: the theorem's "if and only if" is wrong.

**The oracle is a proxy**, such as a norm or principal components. Say which.
"""

from robjax.metrics.strong_robustness.agreement import PairAgreement, pair_agreement
from robjax.metrics.strong_robustness.directions import (
    UnnecessaryDirections,
    unnecessary_directions,
)
from robjax.metrics.strong_robustness.distances import arc, arca, minimal_distances
from robjax.metrics.strong_robustness.modulus import Modulus, Quantile, modulus
from robjax.metrics.strong_robustness.oracles import (
    Features,
    Identity,
    Linear,
    Oracle,
    features,
    identity,
    linear,
    oracle_distance,
    pca,
)
from robjax.metrics.strong_robustness.worst_case import WorstCase, worst_case_agreement

__all__ = [
    "Features",
    "Identity",
    "Linear",
    "Modulus",
    "Oracle",
    "PairAgreement",
    "Quantile",
    "UnnecessaryDirections",
    "WorstCase",
    "arc",
    "arca",
    "features",
    "identity",
    "linear",
    "minimal_distances",
    "modulus",
    "oracle_distance",
    "pair_agreement",
    "pca",
    "unnecessary_directions",
    "worst_case_agreement",
]
