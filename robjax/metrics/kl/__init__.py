"""The KL performance metric, split into a non-robust and a robust component.

components.py   of a pair of images, along a path, to class means
pairwise.py     of a data set: means over pairs of images, and over class pairs
pair_sums.py    the sums over all pairs that those means are made of
"""

from robjax.metrics.kl.components import (
    KLComponents,
    kl_components,
    kl_path,
    kl_to_class_means,
    split_kl,
)
from robjax.metrics.kl.pairwise import (
    ClassPairKL,
    PairwiseKL,
    class_pair_kl,
    pairwise_kl,
)

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
