"""Per-sample and per-pair measurements that explain why a model is (not) robust."""

from robjax.metrics.fisher import FisherSpectrum, fisher_spectrum
from robjax.metrics.kl import KLComponents, kl_components
from robjax.metrics.pairwise import PairwiseKL, pairwise_kl

__all__ = [
    "FisherSpectrum",
    "KLComponents",
    "PairwiseKL",
    "fisher_spectrum",
    "kl_components",
    "pairwise_kl",
]
