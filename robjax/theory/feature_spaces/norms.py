"""How far two norms are apart: one topology, other radii."""

import numbers
from typing import Any

from robjax.checks import check_count

_NORMS = (1, 2, float("inf"))


def norm_ratio(p: float, q: float, dimension: int) -> float:
    """How large the norm q of a vector of norm p = 1 can be.

    sup ‖v‖_q/‖v‖_p = n^max(0, 1/q − 1/p) in n dimensions. All together,

        ‖v‖_∞ ≤ ‖v‖₂ ≤ ‖v‖₁ ≤ √n ‖v‖₂ ≤ n ‖v‖_∞

    So the p-ball of radius ε lies in the q-ball of radius ε · norm_ratio(p, q, n), and
    the q-ball of radius ε / norm_ratio(q, p, n) lies in it. No smaller and no larger
    radius will do.

    The two norms have the same topology. By the paper's theorem a classifier is
    strong-robust for both or for neither. That holds for "some δ₂", and says nothing
    about a given ε. On images of 32×32×3 pixels the L∞ ball of radius 8/255 reaches
    out to 1.74 in L2, and the L2 ball inside it has the radius 0.031. Derived.

    >>> inf = float("inf")
    >>> norm_ratio(inf, 2, 4), norm_ratio(2, inf, 4)
    (2.0, 1.0)
    >>> round(8 / 255 * norm_ratio(inf, 2, 32 * 32 * 3), 2)
    1.74

    Args:
      p: 1, 2 or inf.
      q: 1, 2 or inf.
      dimension: n, coordinates of a vector; of images, H · W · C.

    Raises:
      ValueError: p or q is another norm, or the dimension is not a positive integer.
    """
    n = check_count("dimension", dimension)
    exponent = 1 / _checked("q", q) - 1 / _checked("p", p)
    return n ** max(0.0, exponent)


def _checked(name: str, norm: Any) -> float:
    number = isinstance(norm, numbers.Real) and not isinstance(norm, bool)
    if not number or norm not in _NORMS:
        raise ValueError(f"{name} must be 1, 2 or inf, got {norm!r}")
    return float(norm)
