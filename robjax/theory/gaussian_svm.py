"""Support vector machines on the Gaussian model, in the population.

Tsipras et al., "Robustness may be at odds with accuracy", ICLR 2019, Theorem 2.2:
standard training is accurate and not robust, adversarial training both with p. Its
second half needs a training radius ε < 2p − 1: "any ε < 1" is that of the evaluation.

By symmetry and convexity all d weak weights are equal: w = (w_1, v/√d, …, v/√d) with
w_1, v ≥ 0, m = η√d, and t = Σ weak / √d ~ N(y m, 1). Notation as in `gaussian`; Φ and φ
are the normal distribution function and density.

    expected_hinge         the objective, differentiable
    svm                    its minimiser, any ε
    unit_svm               that of norm 1 for ε = 0, and its λ
    adversarial_svm        that for ε ≥ η, in closed form and traceable
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.core
import jax.numpy as jnp
import numpy as np
from jax.scipy.stats import norm as normal
from scipy import optimize, special

from robjax.checks import check_range

_TINY = 1e-30
# Weak weights below this are none.
_NONE = 1e-9


class SVM(NamedTuple):
    """Weights of x_1 and of the pooled feature, and λ; arrays of one shape."""

    w1: Any
    v: Any
    lam: Any


def expected_hinge(
    w1: Any, v: Any, *, p: Any, m: Any, d: Any, eps: Any = 0.0, lam: Any = 0.0
) -> jax.Array:
    """E max(0, 1 − y⟨w, x⟩ + ε‖w‖₁) + λ/2 ‖w‖₂² with equal weak weights, eq. 5.

    Σ_s P_s [μ_s Φ(μ_s/v) + v φ(μ_s/v)], μ_s = 1 − s w_1 − v m + ε(|w_1| + √d v) for
    s = ±1 with P_s = p, 1 − p; differentiable for v > 1e-12, below which v = 0 stands.

    Args:
      w1: weight of x_1.
      v: coefficient ≥ 0 of the pooled feature t ~ N(y m, 1): √d times each weak weight.
      p, m: as in `gaussian.frontier`.
      d: number of weak features, which matters with ε only.
      eps: training radius in L∞.
      lam: λ.

    Raises:
      ValueError: v, eps or lam negative, d below 1, p outside [0, 1], or one not
        finite.
    """
    w1, v = check_range("w1", w1), check_range("v", v, 0)
    p, m, d = check_range("p", p, 0, 1), check_range("m", m), check_range("d", d, 1)
    eps, lam = check_range("eps", eps, 0), check_range("lam", lam, 0)
    total = lam / 2 * (w1 * w1 + v * v)
    # below this the density underflows, and its derivative is 0 · ∞
    positive = v > 1e-12
    safe = jnp.where(positive, v, 1.0)
    for sign, weight in ((1, p), (-1, 1 - p)):
        mu = 1 - sign * w1 - v * m + eps * (jnp.abs(w1) + jnp.sqrt(d) * v)
        z = mu / safe
        smooth = mu * normal.cdf(z) + v * normal.pdf(z)
        total += weight * jnp.where(positive, smooth, jnp.maximum(mu, 0))
    return total


def svm(*, p: Any, m: Any, d: Any, eps: Any, lam: Any) -> SVM:
    """The minimiser of `expected_hinge`, w_1 ≥ 0 and v ≥ 0, for any ε.

    Zeros of the derivatives, monotone by convexity: w_1 for each v, then v. Solved in
    float64 on the host, for every parameter if they are arrays; v is 0 below 1e-9.

    Args:
      p, m, d, eps, lam: as in `expected_hinge`.

    Raises:
      ValueError: p outside [½, 1], m or eps negative, d below 1, or lam not positive.
    """
    p, m = check_range("p", p, 0.5, 1), check_range("m", m, 0)
    d, eps = check_range("d", d, 1), check_range("eps", eps, 0)
    lam = check_range("lam", lam, _TINY)
    return _each(_svm, p, m, d, eps, lam)


def unit_svm(*, p: Any, m: Any) -> SVM:
    """The minimiser of `expected_hinge` of norm 1, ε = 0, and its λ; Theorem 2.2.

    Stationary on the unit circle: v ∂L/∂w_1 = w_1 ∂L/∂v, then λ = −(∂L/∂v)/v. Solved
    in float64 on the host (the objective is of the order 1e-4 and less), for every p
    and m if they are arrays.

    Raises:
      ValueError: p outside [½, 1), m not in (0, 37] (beyond, the hinge underflows), or
        no minimiser has norm 1, whatever λ > 0: m too small for p.
    """
    p, m = check_range("p", p, 0.5, below=1), check_range("m", m, _TINY, 37)
    return _each(_unit_svm, p, m)


def adversarial_svm(*, p: Any, eta: Any, eps: Any, lam: Any) -> jax.Array:
    """w_1 of the minimiser of `expected_hinge` for ε ≥ η; its weak weights are 0.

    min((2p − 1 − ε)/λ, 1/(1 − ε)) if ε < 2p − 1, else 0: the constant classifier.
    Below η, where the weak weights may come back, `svm` has it.

    Raises:
      ValueError: p outside [½, 1], eta negative, eps below eta, or lam not positive.
    """
    p, eta = check_range("p", p, 0.5, 1), check_range("eta", eta, 0)
    eps, lam = check_range("eps", eps, 0), check_range("lam", lam, _TINY)
    known = not any(isinstance(value, jax.core.Tracer) for value in (eta, eps))
    if known and np.any(np.asarray(eps) < np.asarray(eta)):
        raise ValueError(f"eps must be at least eta = {eta}, got {eps}: see svm")
    some = jnp.asarray(eps) < 2 * p - 1
    safe = jnp.where(some, eps, 0.0)  # 1/(1 − ε) has no derivative at 1
    return jnp.where(some, jnp.minimum((2 * p - 1 - safe) / lam, 1 / (1 - safe)), 0.0)


def _each(solve: Callable[..., tuple[float, float, float]], *parameters: Any) -> SVM:
    arrays = np.broadcast_arrays(*(np.asarray(value, float) for value in parameters))
    found = [
        solve(*map(float, row)) for row in zip(*(a.flat for a in arrays), strict=True)
    ]
    parts = np.array(found).T.reshape(3, *arrays[0].shape)
    return SVM(*(part if part.ndim else float(part) for part in parts))


def _slopes(
    w1: float, v: float, p: float, m: float, eps: float = 0.0, cost: float = 0.0
) -> tuple[float, float]:
    """Derivatives of the expected hinge in w_1 ≥ 0 and v > 0; `cost` is ε√d."""
    along, across = 0.0, 0.0
    for sign, weight in ((1, p), (-1, 1 - p)):
        z = (1 - (sign - eps) * w1 - (m - cost) * v) / v
        density = np.exp(-z * z / 2) / np.sqrt(2 * np.pi)
        along -= weight * (sign - eps) * special.ndtr(z)
        across += weight * (density - (m - cost) * special.ndtr(z))
    return float(along), float(across)


def _zero(function: Callable[[float], float], low: float, high: float) -> float:
    return float(optimize.brentq(function, low, high, xtol=1e-15))  # pyright: ignore


def _svm(
    p: float, m: float, d: float, eps: float, lam: float
) -> tuple[float, float, float]:
    law = p, m, eps, eps * d**0.5

    def strong(v: float) -> float:
        def slope(w1: float) -> float:
            return _slopes(w1, v, *law)[0] + lam * w1

        # at w_1 = 1/λ the penalty outweighs any hinge
        return 0.0 if slope(0.0) >= 0 else _zero(slope, 0.0, 1 / lam)

    def slope(v: float) -> float:
        return _slopes(strong(v), v, *law)[1] + lam * v

    if slope(_NONE) >= 0:
        room = 2 * p - 1 - eps
        return (min(room / lam, 1 / (1 - eps)) if room > 0 else 0.0), 0.0, lam
    v = _zero(slope, _NONE, (m + 1) / lam)
    return strong(v), v, lam


def _unit_svm(p: float, m: float) -> tuple[float, float, float]:
    def at(angle: float) -> tuple[float, float]:
        return float(np.sin(angle)), float(np.cos(angle))

    def stationary(angle: float) -> float:
        (w1, v), (along, across) = at(angle), _slopes(*at(angle), p, m)
        return along * v - across * w1

    lam, angle = -1.0, 0.0
    if p == 0.5 or stationary(0.0) * stationary(1.55) < 0:
        if p > 0.5:
            angle = _zero(stationary, 0, 1.55)
        lam = -_slopes(*at(angle), p, m)[1] / at(angle)[1]
    if lam <= 0:
        raise ValueError(
            f"no SVM has norm 1 for p = {p:g} and m = {m:g}: m must be larger"
        )
    return *at(angle), lam
