"""When a predictor can be robust, from the features that it and an oracle look at.

Wang, Gao and Qi, "A theoretical framework for robustness of (deep) classifiers against
adversarial samples", ICLR 2017 workshop (arXiv 1612.00334), for linear features:

    predictor f₁ = c₁(A₁x), oracle f₂ = c₂(A₂x)      A_i [n_i, d], R_i its row space
    d_i(x, x') = ‖A_i(x − x')‖₂                      0 for some x ≠ x' if ker A_i ≠ 0
    strong-robust    f₁(x) = f₁(x') with probability > 1 − η where d₂(x, x') < δ₂

R₁ ⊆ R₂ says that the topology of d₂ is finer than that of d₁, and d₁ ≤ L d₂.

| case | row spaces          | strong-robust? | accurate? |
|------|---------------------|----------------|-----------|
| I    | neither in the other | no            | may not be |
| II   | R₂ ⊊ R₁             | no             | may be    |
| III  | R₁ = R₂             | yes            | may be    |
| IV   | R₁ ⊊ R₂             | yes            | may not be |

**Corrections.** The paper's theorem says "if and only if". This is true:

* yes: f₁(x') = f₁(x) where d₂ < m(x)/L, and m(x) is the d₁ from x to the boundary. If
  the boundary has probability 0, then every η has some δ₂. Not every δ₂ will do.
* no: a linear c₁ whose score uses a direction outside R₂ flips every x at d₂ = 0. But a
  c₁ that leaves the direction alone may be robust: `constant_classifier` is, and
  `ignored_direction` with the weight 0.

Everything is solved on the host in float64. **Rank decisions** are relative. Rows, then
columns (those of both maps together), are scaled to similar lengths. A column is not
scaled if it is shorter than `tolerance` times the longest. A singular value counts if
it exceeds `tolerance` times the largest one of both maps stacked. The default is
4 max(n₁ + n₂, d) times the rounding unit (`eps`) of the coarser of the two dtypes. From
1/√(n₁ + n₂) on, a map that is not 0 could count as 0. So a tolerance is below that.

    compare, case, finer, modulus       of two maps
    minimal_flip_distance               of a linear classifier, per sample
    pair_agreement, gaussian_arc        of a linear classifier, Gaussian data
    constant_classifier, ignored_direction      counter-examples to run
    norm_ratio                          how far two norms of one topology are apart
"""

from robjax.theory.feature_spaces.classifiers import (
    gaussian_arc,
    minimal_flip_distance,
    pair_agreement,
)
from robjax.theory.feature_spaces.counterexamples import (
    CounterExample,
    constant_classifier,
    ignored_direction,
)
from robjax.theory.feature_spaces.maps import (
    FeatureSpaces,
    case,
    compare,
    finer,
    modulus,
)
from robjax.theory.feature_spaces.norms import norm_ratio

__all__ = [
    "CounterExample",
    "FeatureSpaces",
    "case",
    "compare",
    "constant_classifier",
    "finer",
    "gaussian_arc",
    "ignored_direction",
    "minimal_flip_distance",
    "modulus",
    "norm_ratio",
    "pair_agreement",
]
