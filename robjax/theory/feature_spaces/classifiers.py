"""Linear classifiers as an oracle sees them: distances to a flip, agreement, ARC."""

import numpy as np
from jax.typing import ArrayLike
from scipy import linalg, special

from robjax.arrays import check_array
from robjax.checks import check_number, check_range
from robjax.theory.feature_spaces import maps
from robjax.theory.feature_spaces.arguments import (
    check_points,
    check_positive_or_inf,
    normalised,
    rounding,
)


def minimal_flip_distance(
    a: ArrayLike,
    b: ArrayLike,
    x: ArrayLike,
    a2: ArrayLike,
    *,
    tolerance: float | None = None,
) -> np.ndarray:
    """How far the oracle sees x move, at least, before a linear classifier flips.

    inf ‖A₂(x − x')‖₂ over the x' that ⟨a, x⟩ + b puts on the other side. It is

    * inf for a = 0: the classifier is constant;
    * 0 for a ∉ R₂: the classifier uses a direction that the oracle ignores;
    * |⟨a, x⟩ + b| / ‖(A₂⁺)ᵀa‖₂ otherwise, where the norm is `modulus(a[None], a2)`.

    Derived; it corrects the necessity in the paper's theorem. A classifier c₁ = sign of
    ⟨w, A₁x⟩ + b has a = A₁ᵀw.

    >>> x = np.array([[3.0, 5.0]])
    >>> minimal_flip_distance([2.0, 0.0], 0.0, x, [[1.0, 0.0]])
    array([3.])
    >>> minimal_flip_distance([2.0, 0.1], 0.0, x, [[1.0, 0.0]])
    array([0.])

    Args:
      a: [d] weights.
      b: the bias, a number.
      x: [B, d] points.
      a2: [n2, d] map A₂ of the oracle.
      tolerance: as in `compare`.

    Returns:
      [B] distances.

    Raises:
      ValueError: a shape does not fit, a value is not a finite real number, or the
        tolerance is out of range.
    """
    weights = np.asarray(check_array("a", a, "[d]"))
    points = check_points(x, len(weights))
    check_number("b", b)
    a2 = check_array("a2", a2, "[n2, d]")
    if np.shape(a2)[1:] != weights.shape:
        raise ValueError(
            f"a2 must have shape [n2, {len(weights)}], as a has, got {np.shape(a2)}"
        )
    _, slope, (exponent, shrink) = maps.solve(weights[None], a2, tolerance)
    if slope in (0, np.inf):
        return np.full(len(points), np.inf if slope == 0 else 0.0)
    with np.errstate(over="ignore"):
        offset = np.ldexp(float(np.asarray(b)), -exponent)
        score = np.abs(points @ normalised(weights)[0] + offset)
        return np.ldexp(score / slope, shrink)


def pair_agreement(
    a: ArrayLike, *, covariance: ArrayLike, noise_covariance: ArrayLike
) -> float:
    """How often a linear classifier says the same about x and about x with noise.

    P[sign⟨a, x⟩ = sign⟨a, x + r⟩] = 1 − arccos(ρ)/π for independent x ~ N(0, S) and
    r ~ N(0, R), with ρ = √(aᵀSa / (aᵀSa + aᵀRa)). The definition of strong-robust needs
    such a law of pairs: two independent samples are hardly ever close. Derived.

    >>> round(pair_agreement([1.0], covariance=[[1.0]], noise_covariance=[[1.0]]), 12)
    0.75

    Args:
      a: [d] weights; the bias is 0.
      covariance: [d, d] S, symmetric without negative eigenvalues.
      noise_covariance: [d, d] R, likewise.

    Returns:
      The probability; 1 if ⟨a, x⟩ and ⟨a, r⟩ are always 0.

    Raises:
      ValueError: a shape does not fit, a value is not a finite real number, or a
        covariance is not symmetric or has a negative eigenvalue.
    """
    weights, _ = normalised(np.asarray(check_array("a", a, "[d]")))
    kept = _spread(weights, "covariance", covariance)
    added = _spread(weights, "noise_covariance", noise_covariance)
    return float(1 - np.arctan2(added, kept) / np.pi)  # arccos ρ, accurate near ρ = 1


def gaussian_arc(
    mean: ArrayLike, std: ArrayLike, *, modulus: ArrayLike, delta: ArrayLike = np.inf
) -> np.ndarray:
    """The mean flip distance (ARC) of a linear classifier whose scores are Gaussian.

    E min(|s|/L, δ₂) for s ~ N(μ, σ²). With m = μ/L and τ = σ/L, uncapped it is

        E|s|/L = τ√(2/π) exp(−m²/2τ²) + m (1 − 2Φ(−m/τ))

    and capped δ₂ − E max(δ₂ − |s|/L, 0). The closed form of the paper's ARC is derived.

    >>> gaussian_arc(0.0, 1.0, modulus=2.0, delta=[0.1, np.inf]).round(4)
    array([0.092 , 0.3989])

    Args:
      mean: [...] μ.
      std: [...] σ, 0 or more.
      modulus: [...] L, for a classifier `modulus(a[None], a2)`: the dual norm of a. It
        may be 0 or inf: then all distances are inf or 0, as for a classifier that is
        constant or uses what the oracle ignores.
      delta: [...] cap δ₂, positive; inf: none.

    Returns:
      [...] in the units of the oracle's distance.

    Raises:
      ValueError: a value is out of its range, or the shapes do not broadcast.
    """
    check_range("mean", mean)
    check_range("std", std, 0)
    check_positive_or_inf("modulus", modulus, zero=True)
    check_positive_or_inf("delta", delta)
    given = [np.asarray(v, float) for v in (mean, std, modulus, delta)]
    try:
        mu, sigma, slope, cap = np.broadcast_arrays(*given)
    except ValueError:
        shapes = [v.shape for v in given]
        raise ValueError(
            f"mean, std, modulus and delta must broadcast, got shapes {shapes}"
        ) from None
    usual = (slope > 0) & (slope < np.inf)
    safe = np.where(usual, slope, 1)
    with np.errstate(over="ignore"):
        # all in units of the score, which do not overflow where L is tiny
        m, reach = np.abs(mu), cap * safe
        full = _positive_part(m, sigma) + _positive_part(-m, sigma)
        bound = np.where(np.isfinite(reach), reach, 0)
        # each form where it does not cancel
        near = _positive_part(bound - m, sigma) + _positive_part(-bound - m, sigma)
        below = near - 2 * _positive_part(-m, sigma)
        above = _positive_part(m - bound, sigma) + _positive_part(-m - bound, sigma)
        capped = np.where(bound < full, bound - below, full - above)
        value = np.where(np.isfinite(reach), np.clip(capped, 0, bound), full) / safe
    value = np.minimum(value, cap)
    return np.where(usual, value, np.where(slope > 0, 0, cap))[()]


def _positive_part(mean: np.ndarray, std: np.ndarray) -> np.ndarray:
    """E max(z, 0) for z ~ N(mean, std²)."""
    u = mean / np.where(std > 0, std, 1)
    density = np.exp(-np.minimum(u**2, 1400) / 2) / np.sqrt(2 * np.pi)
    return np.where(
        std > 0, mean * special.ndtr(u) + std * density, np.maximum(mean, 0)
    )


def _spread(a: np.ndarray, name: str, covariance: ArrayLike) -> float:
    """√(aᵀCa) for a as `normalised`, C checked."""
    given = np.asarray(check_array(name, covariance, "[d, d]"))
    matrix, exponent = normalised(given)
    if matrix.shape != (len(a), len(a)):
        wanted = (len(a), len(a))
        raise ValueError(f"{name} must have shape {wanted}, got {matrix.shape}")
    slack = 100 * len(a) * rounding(given) * np.abs(matrix).max()
    if np.abs(matrix - matrix.T).max() > slack or linalg.eigvalsh(matrix)[0] < -slack:
        raise ValueError(
            f"{name} must be symmetric with no negative eigenvalue, got {given}"
        )
    return float(np.sqrt(max(a @ matrix @ a, 0)) * 2 ** (exponent / 2))
