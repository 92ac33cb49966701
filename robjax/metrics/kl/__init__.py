"""The KL performance metric, split into a non-robust and a robust component.

split.py        the parts, from logits, and how far rounding moves them
components.py   of a pair of images, along a path, to class means
pairwise.py     of a data set: means over pairs of images, and over class pairs
pair_sums.py    the sums over all pairs that those means are made of
"""

from robjax.metrics.kl.components import (
    kl_components,
    kl_path,
    kl_to_class_means,
)
from robjax.metrics.kl.pairwise import (
    ClassPairKL,
    PairwiseKL,
    class_pair_kl,
    pairwise_kl,
)
from robjax.metrics.kl.split import KLComponents, split_kl

__all__ = [
    "ClassPairKL",
    "KLComponents",
    "PairwiseKL",
    "class_pair_kl",
    "kl_components",
    "kl_path",
    "kl_to_class_means",
    "pairwise_kl",
    "split_kl",
]
