"""One core and one spurious feature: all problems of a phase diagram in one call."""

import functools
from typing import NamedTuple

import numpy as np
from jax.typing import ArrayLike

from robjax.checks import check_range
from robjax.theory.linear_regression import curve
from robjax.theory.linear_regression.homotopy import Nodes
from robjax.theory.linear_regression.problem import check_norm
from robjax.theory.linear_regression.risk import C


class PhaseDiagram(NamedTuple):
    """The best weights of many problems with two features; arrays of one shape.

    Attributes:
      core: weight of the core feature.
      spurious: weight of the spurious one, exactly 0 where it is not used.
      risk: the adversarial risk.
    """

    core: np.ndarray
    spurious: np.ndarray
    risk: np.ndarray

    def __repr__(self) -> str:
        """The number of problems, and how many use the spurious feature."""
        used = float((self.spurious != 0).mean())
        return f"PhaseDiagram({self.risk.size} problems, {used:.0%} spurious)"


def phase_diagram(
    *,
    rho: ArrayLike,
    kappa: ArrayLike,
    eps: ArrayLike,
    noise: ArrayLike,
    norm: float,
) -> PhaseDiagram:
    """The minimisers for Σ = [[1, ρκ], [ρκ, κ²]] and w* = (1, 0), all in one call.

    That is every problem with one core and one spurious feature, in units of the
    standard deviation of the core feature and of its weight. The paths have closed
    forms (nodes that `trace` finds, too); the place of ε on them is found by bisection.
    Solved on the host in float64. Without noise and with ρ = ±1 it is as in `solve`.

    >>> kappa = np.array([1.2, 1.3])  # an L∞ attack: from |ρ|κ = 1 on
    >>> phase_diagram(rho=0.8, kappa=kappa, eps=0.3, noise=0.3, norm=np.inf)
    PhaseDiagram(2 problems, 50% spurious)

    Args:
      rho: correlation ρ of the two features.
      kappa: κ, the standard deviation of the spurious feature.
      eps: radius ε of the attack.
      noise: standard deviation σ of the noise on y.
      norm: p, that of the attack: 1, 2 or inf.

    Returns:
      Arrays of the shape that the arguments broadcast to.

    Raises:
      ValueError: rho is outside [−1, 1], kappa is not positive, eps or noise is
        negative, a value is not finite, norm is none of the three, or the shapes do
        not broadcast.
    """
    check_norm(norm)
    checked = (
        check_range("rho", rho, -1, 1),
        check_range("kappa", kappa, 1e-100),
        check_range("eps", eps, 0),
        check_range("noise", noise, 0),
    )
    shapes = [np.shape(value) for value in checked]
    try:
        shape = np.broadcast_shapes(*shapes)
    except ValueError:
        raise ValueError(
            f"rho, kappa, eps and noise must broadcast, got shapes {shapes}"
        ) from None
    r, k, radius, sigma = (
        np.broadcast_to(np.asarray(value, float), shape).ravel() for value in checked
    )
    line = _curve(np.abs(r), k, norm)
    pull = line.start.penalty  # ‖Σw*‖_p, and w*ᵀΣw* = 1
    collapse = pull / (C * np.sqrt(sigma**2 + 1))
    point = curve.minimisers(line, sigma, radius, collapse)
    square = sigma**2 + point.excess
    reach = radius * point.size
    risk = square + 2 * C * np.sqrt(square) * reach + reach**2
    spurious = point.w[:, 1] * np.where(r < 0, -1, 1)
    return PhaseDiagram(
        *(values.reshape(shape) for values in (point.w[:, 0], spurious, risk))
    )


def _curve(rho: np.ndarray, kappa: np.ndarray, norm: float) -> curve.Curve:
    """The paths of problems [N] with ρ ≥ 0."""
    stack = functools.partial(np.stack, axis=-1)
    cross = rho * kappa
    variance = kappa**2
    w_star = np.broadcast_to([1.0, 0.0], (len(rho), 2))
    if norm == 2:
        return _ridge(rho, kappa, w_star)
    single = (1 - rho) * (1 + rho) == 0  # both features are one
    if norm == np.inf:
        # λ from which on one weight is 0: the spurious one, or if ρκ > 1 the core one
        late = cross > 1
        gap = np.where(late, kappa * (kappa - rho), 1)
        level = np.where(late, variance * (1 - rho) * (1 + rho) / gap, 1)
        core = np.where(late, 0, 1 - level)
        spurious = np.where(late, (cross - level) / variance, 0)
    else:
        # both weights are t until the pull of the spurious feature is 0
        core = spurious = rho / (rho + kappa)
    middle = stack([core, spurious])
    # where both are one feature, the path ends there
    end = np.where((single & (middle[:, 1] > 0))[:, None], middle, w_star)
    nodes = np.stack([end, middle, 0 * w_star], axis=1)
    error = nodes - w_star[:, None]
    pull = -stack(
        [
            error[..., 0] + cross[:, None] * error[..., 1],
            cross[:, None] * error[..., 0] + variance[:, None] * error[..., 1],
        ]
    )
    pull[:, 0] = 0
    pull[:, 1] = np.where((single & (middle[:, 1] > 0))[:, None], 0, pull[:, 1])
    return curve.polyline(Nodes(nodes, error, pull), norm)


def _ridge(rho: np.ndarray, kappa: np.ndarray, w_star: np.ndarray) -> curve.Curve:
    """From the eigenvalues of 2 × 2 matrices, without cancellation."""
    half = (1 - kappa) * (1 + kappa) / 2
    root = np.hypot(half, rho * kappa)
    high = (1 + kappa**2) / 2 + root
    low = (kappa**2 * (1 - rho) * (1 + rho)) / high
    # the angle of the first eigenvector
    angle = np.arctan2(rho * kappa, half) / 2
    cosine = np.cos(angle)
    sine = np.sin(angle)
    rows = [np.stack([cosine, -sine], -1), np.stack([sine, cosine], -1)]
    vectors = np.stack(rows, axis=-2)
    # an eigenvalue of 0 leaves no weight
    vectors = np.where((low == 0)[:, None, None] * [False, True], 0, vectors)
    values = np.stack([high, np.where(low > 0, low, high)], -1)
    return curve.ridge(values, vectors, w_star)
