"""Support vector machines on the Gaussian model, in the population.

Tsipras et al., "Robustness may be at odds with accuracy", ICLR 2019, Theorem 2.2:
standard training is accurate and not robust, and adversarial training has accuracy p
with and without an adversary. The second half needs a training radius ε < 2p − 1. The
paper's "any ε < 1" is the radius of the evaluation.

By symmetry and convexity all d weak weights are equal:

    w = (w_1, v/√d, …, v/√d) with w_1, v ≥ 0      t = Σ weak / √d ~ N(y m, 1), m = η√d

v is the coefficient of the pooled feature t. Further notation is as in `gaussian`; Φ
and φ are the distribution function and the density of N(0, 1).

    expected_hinge         the objective, differentiable
    svm                    its minimiser, any ε
    unit_svm               its minimiser of norm 1 for ε = 0, and the λ that gives it
    adversarial_svm        its minimiser for ε ≥ η, in closed form and traceable
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.core
import jax.numpy as jnp
import numpy as np
from jax.scipy.stats import norm as normal
from jax.typing import ArrayLike
from scipy import optimize, special

from robjax.checks import check_range
from robjax.samples import is_concrete

_TINY = 1e-30
# Weak weights below this are none.
_NONE = 1e-9
# Places on the unit circle, in equal steps of log t, that a sign is looked at.
_STEPS = 300


class SVM(NamedTuple):
    """The weights of a support vector machine, numbers or arrays of one shape.

    Attributes:
      w1: weight of x_1.
      v: weight of the pooled feature t.
      lam: λ, the weight of the penalty.
    """

    w1: float | np.ndarray
    v: float | np.ndarray
    lam: float | np.ndarray

    def __repr__(self) -> str:
        """The numbers, or how many machines there are."""
        if not all(isinstance(part, int | float) or is_concrete(part) for part in self):
            return "SVM(traced)"
        if np.ndim(self.w1) > 0:
            return (
                f"SVM({np.size(self.w1)} machines of shape {list(np.shape(self.w1))})"
            )
        return f"SVM(w1 {self.w1:.4g}, v {self.v:.4g}, λ {self.lam:.4g})"


def expected_hinge(
    w1: ArrayLike,
    v: ArrayLike,
    *,
    p: ArrayLike,
    m: ArrayLike,
    d: ArrayLike,
    eps: ArrayLike = 0.0,
    lam: ArrayLike = 0.0,
) -> jax.Array:
    """The objective of (adversarial) training in the population, eq. 5.

    E max(0, 1 − y⟨w, x⟩ + ε‖w‖₁) + λ/2 ‖w‖₂² with equal weak weights is

        Σ_s P_s [μ_s Φ(μ_s/v) + v φ(μ_s/v)] + λ/2 (w_1² + v²)
        μ_s = 1 − s w_1 − v m + ε(|w_1| + √d v) for s = ±1 with P_s = p, 1 − p

    It is differentiable for v > 1e-12. Below that, v = 0 stands.

    >>> print(expected_hinge(0.0, 0.0, p=0.9, m=3.0, d=9))  # no weights: max(0, 1)
    1.0

    Args:
      w1: weight of x_1.
      v: weight ≥ 0 of the pooled feature t: √d times each weak weight.
      p: probability that x_1 = y.
      m: η√d.
      d: number of weak features, which matters with ε only.
      eps: training radius ε in L∞.
      lam: λ.

    Raises:
      ValueError: v, eps or lam negative, d below 1, p outside [0, 1], or one not
        finite.
    """
    w1 = check_range("w1", w1)
    pooled = check_range("v", v, 0)
    p = check_range("p", p, 0, 1)
    m = check_range("m", m)
    d = check_range("d", d, 1)
    eps = check_range("eps", eps, 0)
    lam = check_range("lam", lam, 0)
    total = lam / 2 * (w1 * w1 + pooled * pooled)
    # below this the density underflows, and its derivative is 0 · ∞
    positive = pooled > 1e-12
    safe = jnp.where(positive, pooled, 1.0)
    for sign, weight in ((1, p), (-1, 1 - p)):
        norm = jnp.abs(w1) + jnp.sqrt(d) * pooled
        mu = 1 - sign * w1 - pooled * m + eps * norm
        z = mu / safe
        smooth = mu * normal.cdf(z) + pooled * normal.pdf(z)
        total += weight * jnp.where(positive, smooth, jnp.maximum(mu, 0))
    return total


def svm(
    *, p: ArrayLike, m: ArrayLike, d: ArrayLike, eps: ArrayLike, lam: ArrayLike
) -> SVM:
    """The minimiser of `expected_hinge`, w_1 ≥ 0 and v ≥ 0, for any ε.

    Both derivatives are monotone by convexity. Their zeros are found one inside the
    other: w_1 for each v, then v. This is solved in float64 on the host, for every
    parameter if they are arrays. A v below 1e-9 is given as 0.

    >>> svm(p=0.95, m=2.0, d=100, eps=0.4, lam=0.5)  # (2p − 1 − ε)/λ on x_1 alone
    SVM(w1 1, v 0, λ 0.5)

    Args:
      p, m, d, eps, lam: as in `expected_hinge`.

    Raises:
      ValueError: p outside [½, 1], m or eps negative, d below 1, or lam not positive.
    """
    p = check_range("p", p, 0.5, 1)
    m = check_range("m", m, 0)
    d = check_range("d", d, 1)
    eps = check_range("eps", eps, 0)
    lam = check_range("lam", lam, _TINY)
    return _each(_svm, p, m, d, eps, lam)


def unit_svm(*, p: ArrayLike, m: ArrayLike) -> SVM:
    """The minimiser of `expected_hinge` of norm 1 for ε = 0, and its λ; Theorem 2.2.

    There are two kinds. One has no weak weights: (1, 0), a kink of the hinge, is the
    minimiser for all λ in (0, 2p − 1] for which

        p φ(Φ⁻¹(q)) ≥ (2(1 − p) + λ) m,    q = (1 − p + λ)/p

    so that no direction (a, b), b > 0, leads down; a/b = −m − Φ⁻¹(q) is the steepest.
    These λ are an interval, whose middle is given. Else the minimiser is stationary on
    the unit circle, v ∂L/∂w_1 = w_1 ∂L/∂v, and λ = −(∂L/∂v)/v. By convexity there is
    one with λ > 0 at most, and none where the hinge alone is least at a norm below 1.

    This is solved in float64 on the host (the objective is of the order 1e-4 and less),
    for every p and m if they are arrays. A v below 1e-9 is given as 0.

    >>> unit_svm(p=0.5, m=4.0)  # x_1 says nothing
    SVM(w1 0, v 1, λ 0.0009677)
    >>> svm = unit_svm(p=0.6, m=0.1)  # the weak features say next to nothing
    >>> svm.w1, svm.v
    (1.0, 0.0)

    Args:
      p, m: as in `expected_hinge`.

    Raises:
      ValueError: p outside [½, 1), m not in (0, 37] (beyond, the hinge underflows), or
        no minimiser has norm 1, whatever λ > 0.
    """
    p = check_range("p", p, 0.5, below=1)
    m = check_range("m", m, _TINY, 37)
    return _each(_unit_svm, p, m)


def adversarial_svm(
    *, p: ArrayLike, eta: ArrayLike, eps: ArrayLike, lam: ArrayLike
) -> jax.Array:
    """w_1 of the minimiser of `expected_hinge` for ε ≥ η; its weak weights are 0.

    * ε < 2p − 1: w_1 = min((2p − 1 − ε)/λ, 1/(1 − ε)).
    * ε ≥ 2p − 1: w_1 = 0, the constant classifier.

    Below η the weak weights may come back: `svm` has that case.

    >>> eps = jnp.array([0.5, 0.8])
    >>> print(adversarial_svm(p=0.875, eta=0.25, eps=eps, lam=0.5))
    [0.5 0. ]

    Args:
      p, eps, lam: as in `expected_hinge`.
      eta: mean η of the weak features.

    Raises:
      ValueError: p outside [½, 1], eta negative, eps below eta, or lam not positive.
    """
    p = check_range("p", p, 0.5, 1)
    eta = check_range("eta", eta, 0)
    eps = check_range("eps", eps, 0)
    lam = check_range("lam", lam, _TINY)
    known = not any(isinstance(value, jax.core.Tracer) for value in (eta, eps))
    if known and np.any(np.asarray(eps) < np.asarray(eta)):
        raise ValueError(f"eps must be at least eta = {eta}, got {eps}: see svm")
    some = jnp.asarray(eps) < 2 * p - 1
    safe = jnp.where(some, eps, 0.0)  # 1/(1 − ε) has no derivative at 1
    return jnp.where(some, jnp.minimum((2 * p - 1 - safe) / lam, 1 / (1 - safe)), 0.0)


def _each(solve: Callable[..., SVM], *parameters: ArrayLike) -> SVM:
    """Solves for each of the parameters, which broadcast."""
    arrays = np.broadcast_arrays(*(np.asarray(value, float) for value in parameters))
    rows = zip(*(array.flat for array in arrays), strict=True)
    found = np.array([solve(*map(float, row)) for row in rows])
    w1, v, lam = found.T.reshape(3, *arrays[0].shape)
    if arrays[0].ndim == 0:
        return SVM(float(w1), float(v), float(lam))
    return SVM(w1, v, lam)


class _Law(NamedTuple):
    """What the expected hinge depends on besides the weights; `cost` is ε√d."""

    p: float
    m: float
    eps: float = 0.0
    cost: float = 0.0


class _Slopes(NamedTuple):
    """Derivatives of the expected hinge."""

    w1: float
    v: float


def _slopes(w1: float, v: float, law: _Law) -> _Slopes:
    """The derivatives at w_1 ≥ 0 and v > 0."""
    along = 0.0
    across = 0.0
    for sign, weight in ((1, law.p), (-1, 1 - law.p)):
        z = (1 - (sign - law.eps) * w1 - (law.m - law.cost) * v) / v
        density = _density(z)
        along -= weight * (sign - law.eps) * special.ndtr(z)
        across += weight * (density - (law.m - law.cost) * special.ndtr(z))
    return _Slopes(float(along), float(across))


def _zero(function: Callable[[float], float], low: float, high: float) -> float:
    return float(optimize.brentq(function, low, high, xtol=1e-15))  # pyright: ignore


def _svm(p: float, m: float, d: float, eps: float, lam: float) -> SVM:
    law = _Law(p=p, m=m, eps=eps, cost=eps * d**0.5)

    def best_w1(v: float) -> float:
        def slope(w1: float) -> float:
            return _slopes(w1, v, law).w1 + lam * w1

        # at w_1 = 1/λ the penalty outweighs any hinge
        return 0.0 if slope(0.0) >= 0 else _zero(slope, 0.0, 1 / lam)

    def slope(v: float) -> float:
        return _slopes(best_w1(v), v, law).v + lam * v

    if slope(_NONE) >= 0:
        room = 2 * p - 1 - eps
        w1 = min(room / lam, 1 / (1 - eps)) if room > 0 else 0.0
        return SVM(w1, 0.0, lam)
    v = _zero(slope, _NONE, (m + 1) / lam)
    return SVM(best_w1(v), v, lam)


def _unit_svm(p: float, m: float) -> SVM:
    kink = _kink(p, m)
    if kink is not None:
        return kink

    def slopes(t: float) -> _Slopes:
        """At w_1 = (1 − t²)/(1 + t²), v = 2t/(1 + t²), without cancellation."""
        near = special.ndtr(t - m)
        far = special.ndtr(1 / t - m)
        densities = p * _density(t - m) + (1 - p) * _density(1 / t - m)
        return _Slopes(
            w1=float((1 - p) * far - p * near),
            v=float(densities - m * (p * near + (1 - p) * far)),
        )

    def stationary(log_t: float) -> float:
        t = math.exp(log_t)
        w1, v = slopes(t)
        return 2 * t * w1 - (1 - t * t) * v

    steps = np.linspace(np.log(_NONE / 2), 0.0, _STEPS)
    signs = np.sign([stationary(step) for step in steps])
    turns = np.flatnonzero(signs[:-1] * signs[1:] < 0)
    found = [math.exp(_zero(stationary, steps[i], steps[i + 1])) for i in turns]
    for t in [1.0] if p == 0.5 else found:
        v = 2 * t / (1 + t * t)
        lam = -slopes(t).v / v
        if lam > 0:
            return SVM((1 - t * t) / (1 + t * t), v, lam)
    raise ValueError(
        f"no SVM has norm 1 for p = {p:g} and m = {m:g}: the hinge alone is least at a "
        "norm below 1; with a larger m there is one"
    )


def _kink(p: float, m: float) -> SVM | None:
    """(1, 0) and the middle of the λ that it minimises for; None if there is none."""

    def slack(lam: float) -> float:  # concave
        least = special.ndtri(min((1 - p + lam) / p, 1.0))
        return float(p * _density(least) - (2 * (1 - p) + lam) * m)

    # where the slack is largest, among λ ≥ 0
    best = max(p * float(special.ndtr(-m)) - (1 - p), 0.0)
    if p == 0.5 or slack(best) <= 0:
        return None
    low = 0.0 if slack(0.0) >= 0 else _zero(slack, 0.0, best)
    high = _zero(slack, best, 2 * p - 1)
    return SVM(1.0, 0.0, (low + high) / 2)


def _density(z: float) -> float:
    return math.exp(-z * z / 2) / math.sqrt(2 * math.pi)
