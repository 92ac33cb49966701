"""Per-sample and per-pair measurements that explain why a model is (not) robust."""

from robjax.metrics import (
    deepcloak,
    interactions,
    saliency,
    spurious,
    strong_robustness,
)
from robjax.metrics.fisher import FisherSpectrum, fisher_spectrum
from robjax.metrics.kl import KLComponents, kl_components, kl_path, kl_to_class_means
from robjax.metrics.kl.pairwise import (
    ClassPairKL,
    PairwiseKL,
    class_pair_kl,
    pairwise_kl,
)

__all__ = [
    "ClassPairKL",
    "FisherSpectrum",
    "KLComponents",
    "PairwiseKL",
    "class_pair_kl",
    "deepcloak",
    "fisher_spectrum",
    "interactions",
    "kl_components",
    "kl_path",
    "kl_to_class_means",
    "pairwise_kl",
    "saliency",
    "spurious",
    "strong_robustness",
]
