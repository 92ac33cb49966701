"""Two linear feature maps: whose row space contains whose, and the modulus L."""

from typing import Any, NamedTuple

import numpy as np
from jax.typing import ArrayLike
from scipy import linalg

from robjax.arrays import check_array
from robjax.checks import check_number
from robjax.theory.feature_spaces.arguments import normalised, rounding

_CASES = {
    (False, False): "I",
    (False, True): "II",
    (True, True): "III",
    (True, False): "IV",
}


class FeatureSpaces(NamedTuple):
    """How the row spaces of two maps lie, R₁ of the predictor and R₂ of the oracle.

    Attributes:
      case: "I", "II", "III" or "IV".
      finer: whether R₁ ⊆ R₂: the oracle's topology is finer than the predictor's.
      accurate: whether R₂ ⊆ R₁. Then every oracle on R₂ has a c₁ with f₁ = f₂.
      ranks: of A₁, of A₂ and of both stacked.
    """

    case: str
    finer: bool
    accurate: bool
    ranks: tuple[int, int, int]

    @property
    def strong_robust(self) -> bool:
        """The verdict of the table: it is `finer`.

        False means that some c₁ is not robust, not that none is.
        """
        return self.finer


def compare(
    a1: ArrayLike, a2: ArrayLike, *, tolerance: float | None = None
) -> FeatureSpaces:
    """Says which of two linear feature maps sees more, by their ranks.

    R₁ ⊆ R₂ ⇔ rank [A₁; A₂] = rank A₂, and the same with 1 and 2 swapped. Table of the
    paper; the test is derived.

    >>> compare([[1.0, 0.0], [0.0, 1.0]], [[1.0, 0.0]])
    FeatureSpaces(case='II', finer=False, accurate=True, ranks=(2, 1, 2))

    Args:
      a1: [n1, d] map A₁ of the predictor.
      a2: [n2, d] map A₂ of the oracle.
      tolerance: for rank decisions, positive and below 1/√(n1 + n2); the default is the
        module's.

    Raises:
      ValueError: a map is not a matrix of finite real numbers, the numbers of columns
        differ, the tolerance is out of range, or the dtype is too coarse for the
        default.
    """
    return solve(a1, a2, tolerance).spaces


def case(a1: ArrayLike, a2: ArrayLike, *, tolerance: float | None = None) -> str:
    """Names the case of the paper's table: "I", "II", "III" or "IV".

    >>> case([[1.0, 2.0]], [[1.0, 0.0], [1.0, 1.0]])
    'IV'

    Args:
      a1, a2, tolerance: as in `compare`, which gives the verdicts, too.

    Raises:
      ValueError: as in `compare`.
    """
    return compare(a1, a2, tolerance=tolerance).case


def finer(a1: ArrayLike, a2: ArrayLike, *, tolerance: float | None = None) -> bool:
    """Whether the predictor sees nothing that the oracle ignores: R₁ ⊆ R₂.

    Then the topology of the oracle's distance is finer than that of the predictor's. It
    is the same to say ker A₂ ⊆ ker A₁, or that A₁ = HA₂ for some H.

    >>> finer([[1.0, 1.0]], [[2.0, 2.0]]), finer([[1.0, 1.0]], [[1.0, 0.0]])
    (True, False)

    Args:
      a1, a2, tolerance: as in `compare`.

    Raises:
      ValueError: as in `compare`.
    """
    return compare(a1, a2, tolerance=tolerance).finer


def modulus(a1: ArrayLike, a2: ArrayLike, *, tolerance: float | None = None) -> float:
    """How far the predictor's features move when those of the oracle move by 1.

    L = ‖A₁A₂⁺‖₂ = sup ‖A₁v‖₂/‖A₂v‖₂ over A₂v ≠ 0 if R₁ ⊆ R₂, and inf if not, or if
    float64 does not reach so far. Derived.

    >>> modulus([[3.0, 0.0]], [[2.0, 0.0]]), modulus([[3.0, 1e-9]], [[2.0, 0.0]])
    (1.5, inf)

    Args:
      a1, a2, tolerance: as in `compare`.

    Raises:
      ValueError: as in `compare`.
    """
    found = solve(a1, a2, tolerance)
    first, second = found.exponents
    with np.errstate(over="ignore"):
        return float(np.ldexp(found.slope, first - second))


class Solved(NamedTuple):
    """How the row spaces lie, and L = slope · 2^(exponents[0] − exponents[1]).

    The exponents are those of `robjax.theory.feature_spaces.arguments.normalised`.
    """

    spaces: FeatureSpaces
    slope: float
    exponents: tuple[int, int]


def solve(a1: Any, a2: Any, tolerance: float | None) -> Solved:
    """How the row spaces lie, and L, also where L itself would overflow.

    >>> solve([[4.0]], [[2.0]], None).slope, solve([[4.0]], [[2.0]], None).exponents
    (1.0, (3, 2))
    """
    maps = [
        np.asarray(check_array(name, value, shape))
        for name, value, shape in (("a1", a1, "[n1, d]"), ("a2", a2, "[n2, d]"))
    ]
    n1, d = maps[0].shape
    if maps[1].shape[1] != d:
        raise ValueError(
            f"a2 must have as many columns as a1, {d}, got shape {maps[1].shape}"
        )
    share = _checked_tolerance(tolerance, maps)
    (first, e1), (second, e2) = map(normalised, maps)
    both, lengths = _equilibrated(np.concatenate([first, second]), share)
    values = np.linalg.svd(both, compute_uv=False)
    _, values2, right = np.linalg.svd(both[n1:], full_matrices=False)
    values1 = np.linalg.svd(both[:n1], compute_uv=False)
    least = share * values[0]
    rank1, rank2, rank = (int((v > least).sum()) for v in (values1, values2, values))
    within, around = rank == rank2, rank == rank1
    spaces = FeatureSpaces(_CASES[within, around], within, around, (rank1, rank2, rank))
    if not within:
        return Solved(spaces, np.inf, (e1, e2))
    if rank1 == 0:
        return Solved(spaces, 0.0, (e1, e2))
    # A_i = M_i W with the same W onto, so that L = sup ‖M₁w‖/‖M₂w‖ = ‖M₁R⁻¹‖, M₂ = QR.
    # With long rows first and pivoting, QR is accurate for rows of any lengths.
    moved = lengths[:, None] * (both @ right[:rank2].T)
    order = n1 + np.argsort(-lengths[n1:])
    _, triangle, columns = linalg.qr(moved[order], mode="economic", pivoting=True)  # pyright: ignore
    ratio = linalg.solve_triangular(triangle.T, moved[:n1, columns].T, lower=True)
    return Solved(spaces, float(np.linalg.norm(ratio, 2)), (e1, e2))


def _checked_tolerance(given: float | None, maps: list[np.ndarray]) -> float:
    """The tolerance or its default, small enough that only 0 has rank 0."""
    rows = sum(len(a) for a in maps)
    # a row has length 1, and the largest singular value is at most √rows
    limit = rows**-0.5
    if given is not None:
        number = float(check_number("tolerance", given))
        if not 0 < number < limit:
            raise ValueError(
                f"tolerance must be above 0 and below {limit:.3g} for {rows} rows, got "
                f"{given}"
            )
        return number
    usual = 4 * max(rows, maps[0].shape[1]) * max(rounding(a) for a in maps)
    if usual >= limit:
        coarse = max(maps, key=rounding).dtype
        raise ValueError(
            f"a1 and a2 must be of a finer dtype than {coarse} for maps of this size, "
            "or a tolerance be given"
        )
    return usual


def _equilibrated(a: np.ndarray, tolerance: float) -> tuple[np.ndarray, np.ndarray]:
    """Rows and columns scaled to similar lengths, and what the rows were divided by."""
    lengths = np.abs(a).max(axis=1)  # first, so that no square overflows
    lengths[lengths == 0] = 1
    a = a / lengths[:, None]
    for _ in range(3):
        columns = np.linalg.norm(a, axis=0)
        columns[columns <= tolerance * columns.max()] = 1
        a = a / columns
        rows = np.linalg.norm(a, axis=1)
        rows[rows == 0] = 1
        a = a / rows[:, None]
        lengths = lengths * rows
    return a, lengths
