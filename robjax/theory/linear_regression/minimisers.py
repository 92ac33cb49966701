"""The exact minimisers of the adversarial risk, and the path that they lie on.

All of it is solved on the host in float64.
"""

from typing import NamedTuple

import numpy as np
from jax.typing import ArrayLike

from robjax.checks import check_number
from robjax.theory.linear_regression import curve
from robjax.theory.linear_regression.problem import (
    DUAL,
    Problem,
    check_levels,
    check_problem,
)
from robjax.theory.linear_regression.risk import C


class Path(NamedTuple):
    """The minimisers of the adversarial risk for several radii.

    Attributes:
      eps: [m] radii ε.
      w: [m, d] weights; those that are 0 are exactly 0 (attack norm inf).
      penalty: [m] λ of the penalised problem that they solve, too.
      risk: [m] their adversarial risk.
      gap: [m] the most by which another w could be better, from duality.
    """

    eps: np.ndarray
    w: np.ndarray
    penalty: np.ndarray
    risk: np.ndarray
    gap: np.ndarray

    def __repr__(self) -> str:
        """The range of the radii and the number of features."""
        return (
            f"Path({len(self.eps)} radii from {self.eps.min():.4g} to "
            f"{self.eps.max():.4g}, {self.w.shape[1]} features)"
        )


def solve(
    *,
    covariance: ArrayLike,
    w_star: ArrayLike,
    noise: float,
    eps: float,
    norm: float,
) -> np.ndarray:
    """The weights [d] of the least `adversarial_risk`, what adversarial training finds.

    Where Σ is singular there may be several. Then they have the same s and ‖w‖_q, and
    at ε = 0 the limit ε → 0 is given: of all w with Σw = Σw* one of least ‖w‖_q.

    >>> problem = {"covariance": [[1.0, 1.2], [1.2, 2.25]], "w_star": [1.0, 0.0]}
    >>> print(solve(**problem, noise=0.3, eps=0.3, norm=2).round(8))
    [0.75935483 0.12160243]

    Args:
      covariance: [d, d] Σ of the inputs.
      w_star: [d] true weights w*.
      noise: standard deviation σ of the noise on y.
      eps: radius ε of the attack.
      norm: p, that of the attack: 1, 2 or inf.

    Raises:
      ValueError: a shape does not fit, a value is not finite, noise or eps is negative,
        norm is none of the three, or covariance is not symmetric or has a negative
        eigenvalue.
      RuntimeError: rounding has spoilt the result: the duality gap is above 1e-10 of
        the risk and above what rounding leaves of sums with the entries of Σ.
    """
    radius = np.asarray(check_number("eps", eps, minimum=0), float)
    problem = check_problem(covariance, w_star, noise, norm)
    return _solved(problem, radius[None]).w[0]


def path(
    eps: ArrayLike,
    *,
    covariance: ArrayLike,
    w_star: ArrayLike,
    noise: float,
    norm: float,
) -> Path:
    """The weights of least `adversarial_risk` for many radii, from one path.

    >>> eps = [0.0, 0.5, 1.0]
    >>> line = path(eps, covariance=[[1.0]], w_star=[1.0], noise=1.0, norm=2)
    >>> line
    Path(3 radii from 0 to 1, 1 features)
    >>> line.w.round(4).tolist()  # ε = √(π/4) = 0.886 and more leave nothing
    [[1.0], [0.5174], [0.0]]

    Args:
      eps: [m] radii ε.
      covariance, w_star, noise, norm: as in `solve`.

    Raises:
      ValueError: eps is not [m] radii ≥ 0; as in `solve`.
      RuntimeError: as in `solve`.
    """
    radii = check_levels("eps", eps)
    return _solved(check_problem(covariance, w_star, noise, norm), radii)


def penalised(
    penalty: ArrayLike, *, covariance: ArrayLike, w_star: ArrayLike, norm: float
) -> np.ndarray:
    """The minimisers [m, d] of ½ (w − w*)ᵀΣ(w − w*) + λ‖w‖_q for many λ.

    They are ridge regression (p = 2, with ‖w‖₂ not squared), the lasso (p = ∞) and the
    ℓ∞-penalised regression (p = 1). At λ = 0 it is the limit λ → 0.

    >>> sigma = [[1.0, 0.0], [0.0, 1.0]]
    >>> w = penalised([0.5], covariance=sigma, w_star=[2.0, 0.3], norm=np.inf)
    >>> w.tolist()  # soft thresholding
    [[1.5, 0.0]]

    Args:
      penalty: [m] λ.
      covariance, w_star, norm: as in `solve`.

    Raises:
      ValueError: penalty is not [m] numbers ≥ 0; as in `solve`.
    """
    levels = check_levels("penalty", penalty)
    problem = check_problem(covariance, w_star, 0.0, norm)
    return curve.penalised(curve.of(problem), levels).w


def eps_of_penalty(
    penalty: ArrayLike,
    *,
    covariance: ArrayLike,
    w_star: ArrayLike,
    noise: float,
    norm: float,
) -> np.ndarray:
    """The radii [m] for which the penalised minimisers have the least adversarial risk.

        ε = [λcn − cs² + √((cs² − λcn)² + 4ns²λ)] / (2ns)

    For λ = 0 it is the largest such radius: 0, or `plateau` if there is no noise.

    >>> problem = {"covariance": [[1.0]], "w_star": [1.0], "noise": 1.0, "norm": 2}
    >>> eps = eps_of_penalty([0.25], **problem)
    >>> penalty_of_eps(eps, **problem).round(12).tolist()
    [0.25]

    Args:
      penalty: [m] λ.
      covariance, w_star, noise, norm: as in `solve`.

    Raises:
      ValueError: penalty is not [m] numbers ≥ 0; as in `solve`.
    """
    levels = check_levels("penalty", penalty)
    problem = check_problem(covariance, w_star, noise, norm)
    line = curve.of(problem)
    eps = curve.radius(curve.penalised(line, levels), problem.noise)
    return np.where(levels > 0, eps, 0 if problem.noise > 0 else line.plateau)


def penalty_of_eps(
    eps: ArrayLike,
    *,
    covariance: ArrayLike,
    w_star: ArrayLike,
    noise: float,
    norm: float,
) -> np.ndarray:
    """The λ [m] with which the minimisers solve the penalised problem as well.

        λ = ε s (cs + εn) / (s + cεn)

    >>> problem = {"covariance": [[1.0]], "w_star": [1.0], "noise": 0.0, "norm": 2}
    >>> print(penalty_of_eps([0.5, 1.0], **problem))  # w = w* up to ε = 0.798
    [0.  0.5]

    Args:
      eps: [m] radii ε.
      covariance, w_star, noise, norm: as in `solve`.

    Raises:
      ValueError: eps is not [m] radii ≥ 0; as in `solve`.
      RuntimeError: as in `solve`.
    """
    radii = check_levels("eps", eps)
    return _solved(check_problem(covariance, w_star, noise, norm), radii).penalty


def collapse_threshold(
    *, covariance: ArrayLike, w_star: ArrayLike, noise: float, norm: float
) -> float:
    """The least radius from which on the best weights are w = 0.

    ε_max = ‖Σw*‖_p / (c √(σ² + w*ᵀΣw*)), and 0 where Σw* = 0.

    >>> problem = {"covariance": [[1.0, 1.2], [1.2, 2.25]], "w_star": [1.0, 0.0]}
    >>> round(collapse_threshold(**problem, noise=0.3, norm=1), 10)
    2.6410058936

    Args:
      covariance, w_star, noise, norm: as in `solve`.

    Raises:
      ValueError: as in `solve`.
    """
    problem = check_problem(covariance, w_star, noise, norm)
    return _collapse(problem)


def plateau(*, covariance: ArrayLike, w_star: ArrayLike, norm: float) -> float:
    """The radius up to which w* is the best without noise: σ = 0.

    ε₀ = c / min ‖Σ^{−1/2} g‖₂ over g ∈ ∂‖w*‖_q. Where Σ is singular, a w of least
    ‖w‖_q with Σw = Σw* stands for w*. Where Σw* = 0, ε₀ is inf. With noise it is 0.

    >>> sigma = [[1.0, 0.5], [0.5, 1.0]]
    >>> round(plateau(covariance=sigma, w_star=[1.0, 0.0], norm=2), 4)
    0.691

    Args:
      covariance, w_star, norm: as in `solve`.

    Raises:
      ValueError: as in `solve`.
    """
    problem = check_problem(covariance, w_star, 0.0, norm)
    return float(curve.of(problem).plateau)


def _collapse(problem: Problem) -> float:
    pull = problem.covariance @ problem.w_star
    if not pull.any():
        return 0.0
    spread = np.sqrt(problem.noise**2 + pull @ problem.w_star)
    return float(np.linalg.norm(pull, ord=problem.norm) / (C * spread))


def _solved(problem: Problem, eps: np.ndarray) -> Path:
    """The minimisers, certified."""
    line = curve.of(problem)
    point = curve.minimisers(line, problem.noise, eps, np.array(_collapse(problem)))
    size = np.linalg.norm(point.w, ord=DUAL[problem.norm], axis=-1)
    risk = _risk(problem, eps, point.excess, size)
    error = point.w - problem.w_star
    direct = (error @ problem.covariance * error).sum(-1)
    gap = _gap(problem, eps, point, line) + np.abs(direct - point.excess)
    terms = np.abs(point.w) + np.abs(problem.w_star)
    rounding = 2e-14 * (terms @ np.abs(problem.covariance) * terms).sum(-1)
    allowed = 1e-10 * risk + rounding
    if (gap > allowed).any():
        worst = int((gap - allowed).argmax())
        raise RuntimeError(
            f"no exact minimiser was found for eps = {eps[worst]:g}: the risk "
            f"{risk[worst]:.6g} may be {gap[worst]:.3g} too large; the features differ "
            "too much in scale, or are too nearly dependent"
        )
    return Path(eps, point.w, point.penalty, risk, gap)


def _risk(
    problem: Problem, eps: np.ndarray, excess: np.ndarray, size: np.ndarray
) -> np.ndarray:
    square = problem.noise**2 + excess
    return square + 2 * C * eps * np.sqrt(square) * size + (eps * size) ** 2


def _gap(
    problem: Problem, eps: np.ndarray, point: curve.Point, line: curve.Curve
) -> np.ndarray:
    """The most [m] by which other weights could be better than a point.

    The risk is F(s, n), convex and increasing. Its tangents at w bound it from below at
    any w', and so does zᵀw' ≤ ‖z‖_p n'. A minimiser has n' ≤ ‖w*‖_q, since w* has the
    least s. So with a = (∂F/∂s)/s and λ = (∂F/∂n)/a no w' is better by more than

        a (λn − zᵀw + (‖z‖_p − λ)₊ ‖w*‖_q).

    On the plateau, s = 0, the same holds with the limits of aλ = ∂F/∂n and z/λ.
    """
    spread = np.sqrt(problem.noise**2 + point.excess)
    flat = spread == 0
    level = np.where(flat, 1.0, point.penalty)
    pull = np.where(flat[:, None], line.support, point.pull)
    rest = 2 * C * eps * point.size / np.where(flat, 1, spread)
    steep = np.where(flat, 2 * eps**2 * point.size, 2 + rest)
    outside = np.maximum(np.linalg.norm(pull, ord=problem.norm, axis=-1) - level, 0)
    slack = level * point.size - (pull * point.w).sum(-1)
    largest = np.linalg.norm(problem.w_star, ord=DUAL[problem.norm])
    return np.maximum(steep * (slack + outside * largest), 0)
