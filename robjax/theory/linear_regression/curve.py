"""A regularisation path as a curve, and the places on it.

A place is a number u. From u = `low` to u = `high` the penalty λ grows, and so does the
radius ε that belongs to it. So the place of any λ or ε is found by bisection, for all
problems and radii at once.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from scipy import linalg

from robjax.theory.linear_regression.homotopy import Nodes, trace
from robjax.theory.linear_regression.problem import Problem
from robjax.theory.linear_regression.risk import C

_LAPACK: Any = linalg.lapack  # without types
_HALVINGS = 100
# Share of the variance of a feature below which others explain all of it.
_RANK = 1e-13


class Point(NamedTuple):
    """Points of a path.

    Attributes:
      w: [..., d] weights.
      pull: [..., d] Σ(w* − w).
      penalty: [...] λ.
      excess: [...] (w − w*)ᵀΣ(w − w*) = s² − σ².
      size: [...] n = ‖w‖_q.
    """

    w: np.ndarray
    pull: np.ndarray
    penalty: np.ndarray
    excess: np.ndarray
    size: np.ndarray


class Curve(NamedTuple):
    """A path, or one for each of [...] problems.

    Attributes:
      at: places [...] to points.
      low, high: the first and the last place.
      end: the point of λ = 0, the least ‖w‖_q with Σw = Σw*.
      start: the point w = 0, with the least λ that it has.
      plateau: [...] c λ/√excess next to the end, the radius ε₀ up to which the end is
        the minimiser if σ = 0.
      support: [..., d] the limit of Σ(w* − w)/λ at the end.
    """

    at: Callable[[np.ndarray], Point]
    low: float
    high: float
    end: Point
    start: Point
    plateau: np.ndarray
    support: np.ndarray


def radius(point: Point, noise: np.ndarray | float) -> np.ndarray:
    """ε [...] for which the points of a path are the minimisers; 0 where λ = 0.

    The positive root of n ε² + c(s − ρn) ε − ρs = 0 with ρ = λ/s, without cancellation.

    >>> from robjax.theory.linear_regression.problem import check_problem
    >>> line = of(check_problem([[1.0]], [1.0], 1.0, 2))
    >>> radius(line.end, 1.0).tolist()  # λ = 0
    0.0
    """
    spread = np.sqrt(noise**2 + point.excess)
    some = (point.penalty > 0) & (spread > 0)
    ratio = np.where(some, point.penalty, 0) / np.where(some, spread, 1)
    half = C / 2 * (spread - ratio * point.size)
    root = np.sqrt(half**2 + point.size * ratio * spread)
    up = np.where(half >= 0, ratio * spread, root - half)
    down = np.where(half >= 0, root + half, point.size)
    return up / np.where(some, down, 1)


def penalty(point: Point, noise: np.ndarray | float, eps: np.ndarray) -> np.ndarray:
    """λ [...] with which minimisers for radius ε solve the penalised problem.

    >>> from robjax.theory.linear_regression.problem import check_problem
    >>> line = of(check_problem([[1.0]], [1.0], 1.0, 2))
    >>> penalty(line.end, 1.0, np.array(0.0)).tolist()
    0.0
    """
    spread = np.sqrt(noise**2 + point.excess)
    down = spread + C * eps * point.size
    up = eps * spread * (C * spread + eps * point.size)
    return up / np.where(down > 0, down, 1)


def minimisers(
    curve: Curve, noise: np.ndarray | float, eps: np.ndarray, collapse: np.ndarray
) -> Point:
    """The minimisers of the adversarial risk for radii [...]; 0 from `collapse` on.

    >>> from robjax.theory.linear_regression.problem import check_problem
    >>> line = of(check_problem([[1.0]], [1.0], 1.0, 2))
    >>> found = minimisers(line, 1.0, np.array([0.5]), np.array([0.886]))
    >>> found.w.round(4).tolist()
    [[0.5174]]
    """
    place = _bisect(curve, lambda point: radius(point, noise), eps)
    point = curve.at(place)
    kept = eps <= np.where(np.asarray(noise) > 0, 0, curve.plateau)
    point = _choose(kept, curve.end, point)
    point = _choose(eps >= collapse, curve.start, point)
    return point._replace(penalty=penalty(point, noise, eps))


def penalised(curve: Curve, level: np.ndarray) -> Point:
    """The minimisers of the penalised problem for λ [...].

    >>> from robjax.theory.linear_regression.problem import check_problem
    >>> line = of(check_problem([[1.0]], [1.0], 1.0, 2))
    >>> penalised(line, np.array([0.25])).w.round(6).tolist()  # 1 − λ
    [[0.75]]
    """
    point = curve.at(_bisect(curve, lambda point: point.penalty, level))
    point = _choose(level <= 0, curve.end, point)
    point = _choose(level >= curve.start.penalty, curve.start, point)
    return point._replace(penalty=level)


def _bisect(
    curve: Curve, value: Callable[[Point], np.ndarray], wanted: np.ndarray
) -> np.ndarray:
    low = np.full(wanted.shape, curve.low)
    high = np.full(wanted.shape, curve.high)
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        above = value(curve.at(middle)) > wanted
        low = np.where(above, low, middle)
        high = np.where(above, middle, high)
    return (low + high) / 2


def _choose(where: np.ndarray, one: Point, other: Point) -> Point:
    rows = where[..., None]
    return Point(
        *(np.where(rows, a, b) for a, b in zip(one[:2], other[:2], strict=True)),
        *(np.where(where, a, b) for a, b in zip(one[2:], other[2:], strict=True)),
    )


def of(problem: Problem) -> Curve:
    """The path of a problem.

    >>> from robjax.theory.linear_regression.problem import check_problem
    >>> line = of(check_problem([[1.0]], [1.0], 1.0, 2))
    >>> line.end.w.tolist(), line.start.w.tolist()
    ([1.0], [0.0])
    """
    covariance, w_star, _, norm = problem
    if norm == 2:
        return ridge(*spectrum(covariance), w_star)
    return polyline(trace(covariance, w_star, norm), norm)


def spectrum(covariance: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The eigenvalues [r] that are not 0, and their vectors [d, r].

    From a pivoted Cholesky factor of the correlations and a Jacobi SVD, which finds
    small eigenvalues of badly scaled features to their own digits.

    >>> spectrum(np.diag([4.0, 0.0]))[0].tolist()
    [4.0]
    """
    variance = np.diag(covariance)
    scale = np.sqrt(np.where(variance > 0, variance, 1))
    correlation = covariance / scale / scale[:, None]
    factor, pivots, rank, _ = _LAPACK.dpstrf(correlation, lower=1, tol=_RANK)
    lower = np.tril(factor)[:, :rank]
    rows = np.empty_like(lower)
    rows[pivots - 1] = lower
    if rank == 0 or not variance.any():
        return np.ones(1), np.zeros((len(scale), 1))
    singular, vectors, _, work, _, _ = _LAPACK.dgejsv(
        scale[:, None] * rows, joba=1, jobu=0, jobv=3
    )
    return (singular * work[0] / work[1]) ** 2, vectors[:, :rank]


def ridge(values: np.ndarray, vectors: np.ndarray, w_star: np.ndarray) -> Curve:
    """q = 2: w = (Σ + μI)⁻¹Σw* with μ = λ/‖w‖₂; a place is log(μ/largest eigenvalue).

    >>> line = ridge(np.ones(1), np.eye(1), np.ones(1))
    >>> line.start.penalty.tolist()  # from λ = ‖Σw*‖₂ on w = 0
    1.0

    Args:
      values: [..., r] the eigenvalues of Σ that are not 0.
      vectors: [..., d, r] their eigenvectors.
      w_star: [..., d].
    """
    top = values.max(-1)
    rotated = (np.swapaxes(vectors, -1, -2) @ w_star[..., None])[..., 0]

    def point(mu: np.ndarray, kept: np.ndarray, lost: np.ndarray) -> Point:
        """From the shares of the rotated weights that are kept and lost."""
        parts = kept * rotated
        excess = (values * (lost * rotated) ** 2).sum(-1)
        size = np.sqrt((parts**2).sum(-1))
        w, pull = (
            (vectors @ turned[..., None])[..., 0]
            for turned in (parts, values * lost * rotated)
        )
        return Point(w, pull, mu * size, excess, size)

    def at(place: np.ndarray) -> Point:
        mu = np.exp(place) * top
        total = values + mu[..., None]
        return point(mu, values / total, mu[..., None] / total)

    ones = np.ones_like(values)
    end = point(0 * top, ones, 0 * ones)
    start = point(0 * top, 0 * ones, ones)
    pull = np.sqrt(((values * rotated) ** 2).sum(-1))
    steep = np.sqrt((rotated**2 / values).sum(-1))
    plateau = np.where(steep > 0, C * end.size / np.where(steep > 0, steep, 1), np.inf)
    start = start._replace(penalty=pull)
    support = end.w / np.where(end.size > 0, end.size, 1)[..., None]
    return Curve(at, -120.0, 60.0, end, start, plateau, support)


def polyline(nodes: Nodes, norm: float) -> Curve:
    """q = 1 or ∞: a place is the number of a node, and in between a fraction.

    >>> from robjax.theory.linear_regression.homotopy import trace
    >>> line = polyline(trace(np.eye(2), np.array([2.0, 0.5]), np.inf), np.inf)
    >>> penalised(line, np.array([1.0])).w.round(6).tolist()  # soft thresholding
    [[1.0, 0.0]]
    """
    w, error, pull = nodes
    count = w.shape[-2]
    if norm == np.inf:
        level = np.abs(pull).max(-1)
        size = np.abs(w).sum(-1)
    else:
        level = np.abs(pull).sum(-1)
        size = np.abs(w).max(-1)
    excess = -(error * pull).sum(-1)
    mixed = -(error[..., 1:, :] * pull[..., :-1, :]).sum(-1)

    def at(place: np.ndarray) -> Point:
        left = np.minimum(place.astype(int), count - 2)
        b = place - left
        a = 1 - b

        def pick(values: np.ndarray, index: np.ndarray) -> np.ndarray:
            if values.ndim == w.ndim - 1:
                values = np.broadcast_to(values, (*index.shape, values.shape[-1]))
                return np.take_along_axis(values, index[..., None], -1)[..., 0]
            values = np.broadcast_to(values, (*index.shape, *values.shape[-2:]))
            return np.take_along_axis(values, index[..., None, None], -2)[..., 0, :]

        def between(values: np.ndarray) -> np.ndarray:
            wide = values.ndim == w.ndim
            low, high = (a[..., None], b[..., None]) if wide else (a, b)
            return low * pick(values, left) + high * pick(values, left + 1)

        quadratic = (
            a * a * pick(excess, left)
            + 2 * a * b * pick(mixed, left)
            + b * b * pick(excess, left + 1)
        )
        return Point(
            between(w),
            between(pull),
            between(level),
            np.maximum(quadratic, 0),
            between(size),
        )

    def node(index: int) -> Point:
        return Point(
            *(values[..., index, :] for values in (w, pull)),
            *(values[..., index] for values in (level, excess, size)),
        )

    # the first node with λ > 0: before it the path stands still
    first = np.where(level > 0, np.arange(count), count - 1).min(-1, keepdims=True)
    slack = np.take_along_axis(excess, first, -1)[..., 0]
    near = np.take_along_axis(level, first, -1)[..., 0]
    some = slack > 0
    plateau = np.where(some, C * near / np.sqrt(np.where(some, slack, 1)), np.inf)
    support = np.take_along_axis(pull, first[..., None], -2)[..., 0, :]
    support = support / np.where(near > 0, near, 1)[..., None]
    return Curve(at, 0.0, count - 1.0, node(0), node(-1), plateau, support)
