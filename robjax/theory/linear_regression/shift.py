"""Spurious features: when they are used, what they gain, and what a shift then costs.

A mask `core` [d] names the features that y depends on: w* is 0 on the others, S.
"""

import numpy as np
from jax.typing import ArrayLike

from robjax.checks import check_number
from robjax.theory.linear_regression.minimisers import solve
from robjax.theory.linear_regression.problem import (
    Problem,
    check_core,
    check_problem,
    check_vector,
)


def core_only(
    *,
    covariance: ArrayLike,
    w_star: ArrayLike,
    noise: float,
    eps: float,
    norm: float,
    core: ArrayLike,
) -> np.ndarray:
    """The weights [d] of the least `adversarial_risk` that use core features only.

    Its risk is never below that of `solve`, and above it where `solve` uses spurious
    features: what is correlated helps robustness, as long as it stays so.

    >>> problem = {"covariance": [[1.0, 1.2], [1.2, 2.25]], "w_star": [1.0, 0.0]}
    >>> w = core_only(**problem, noise=0.3, eps=0.75, norm=2, core=[True, False])
    >>> print(w.round(4))
    [0.6538 0.    ]

    Args:
      covariance, w_star, noise, eps, norm: as in `solve`.
      core: [d] booleans, True for core features.

    Raises:
      ValueError: core is no such mask, or w_star is not 0 where it is False; as in
        `solve`.
      RuntimeError: as in `solve`.
    """
    problem = check_problem(covariance, w_star, noise, norm)
    mask = _core(problem, core)
    w = np.zeros(len(mask))
    w[mask] = solve(
        covariance=problem.covariance[np.ix_(mask, mask)],
        w_star=problem.w_star[mask],
        noise=noise,
        eps=eps,
        norm=norm,
    )
    return w


def ignores_spurious_condition(
    w: ArrayLike, *, covariance: ArrayLike, core: ArrayLike
) -> float:
    """What must be at most 1 for an L∞ attack to leave spurious features unused.

    ‖Σ_SC Σ_CC⁻¹ sign(w_C)‖_∞, the irrepresentable condition of the lasso. Where w is
    `core_only` for norm = inf and none of its core weights is 0, w is also what `solve`
    finds, if and only if this is at most 1. With one core and one spurious feature it
    is |ρ|κ: the correlation times the ratio of their standard deviations.

    >>> sigma = [[1.0, 1.2], [1.2, 2.25]]
    >>> ignores_spurious_condition([0.9, 0.0], covariance=sigma, core=[True, False])
    1.2

    Args:
      w: [d] weights, not 0 on core features.
      covariance: [d, d] Σ, not singular on core features.
      core: [d] booleans, True for core features.

    Raises:
      ValueError: a shape does not fit, a value is not finite, a core weight is 0, or
        the covariance is malformed or singular on core features.
    """
    weights = np.asarray(check_vector("w", w), float)
    sigma = check_problem(covariance, weights, 0.0, 2).covariance
    mask = check_core(core, len(weights))
    if (weights[mask] == 0).any():
        raise ValueError(f"w must not be 0 on core features, got {weights[mask]}")
    block = sigma[np.ix_(mask, mask)]
    if np.linalg.matrix_rank(block, hermitian=True) < len(block):
        raise ValueError(
            f"covariance must not be singular on core features, got {block}"
        )
    pull = sigma[np.ix_(~mask, mask)] @ np.linalg.solve(block, np.sign(weights[mask]))
    return float(np.abs(pull).max())


def shift_price(
    w: ArrayLike,
    *,
    covariance: ArrayLike,
    w_star: ArrayLike,
    core: ArrayLike,
    kept: float = 0.0,
) -> float:
    """How much the squared error grows when core and spurious features part.

    At the test every covariance between a core and a spurious feature is `kept` times
    what it was: 0 has them independent, −1 flips the correlation. The price is

        −2 (1 − kept) (w_C − w*_C)ᵀ Σ_CS w_S.

    For the minimisers of `solve`, λ = `penalty_of_eps` and g ∈ ∂‖w‖_q it is equal to
    2 (1 − kept) (w_Sᵀ Σ_SS w_S + λ g_Sᵀ w_S): positive wherever w_S ≠ 0 counts.

    >>> problem = {"covariance": [[1.0, 0.5], [0.5, 1.0]], "w_star": [1.0, 0.0]}
    >>> shift_price([0.5, 0.5], **problem, core=[True, False])
    0.25

    Args:
      w: [d] weights.
      covariance, w_star: as in `solve`.
      core: [d] booleans, True for core features.
      kept: what is left of the covariances.

    Raises:
      ValueError: core is no such mask, w_star is not 0 where it is False, a shape does
        not fit, or a value is not finite.
    """
    problem = check_problem(covariance, w_star, 0.0, 2)
    mask = _core(problem, core)
    check_number("kept", kept)
    error = np.asarray(check_vector("w", w, len(mask)), float) - problem.w_star
    cross = problem.covariance[np.ix_(mask, ~mask)]
    return float(-2 * (1 - kept) * error[mask] @ cross @ error[~mask])


def _core(problem: Problem, core: ArrayLike) -> np.ndarray:
    mask = check_core(core, len(problem.w_star))
    if problem.w_star[~mask].any():
        raise ValueError(
            "w_star must be 0 on spurious features, where core is False, got "
            f"{problem.w_star[~mask]}"
        )
    return mask
