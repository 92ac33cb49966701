"""Robustness against accuracy where both are known exactly.

Tsipras et al., "Robustness may be at odds with accuracy", ICLR 2019, section 2.1.

    y uniform in {−1, +1};  x_1 = y with probability p ≥ ½, else −y;
    x_2 … x_{d+1} ~ N(ηy, 1), independent given y                          eq. 3

One strong feature, d weak ones. A linear classifier sign(⟨w, x⟩ + c) has w = (w_1, u)
[..., d + 1]; S = Σ u_i, n = ‖u‖₂, Φ and φ are the normal distribution function and
density. A score of exactly 0 is the class −1, so that w = 0 is right half of the time.

Two adversaries: that of the theorem moves the weak features only (`attack_x1=False`),
that of the ball moves x_1 too.

    standard_accuracy, robust_accuracy          of any linear classifier
    theorem_bound, shift_slack                  Theorem 2.1 and how tight it is
    frontier, bayes_threshold                   sign(τ x_1 + t), t = Σ weak / √d
    expected_hinge, unit_svm, adversarial_svm   Theorem 2.2, whose second half needs
                                                ε_train < 2p − 1
    best_robust_accuracy                        of any classifier at all
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.stats import norm as normal
from scipy import optimize, special


def sample(
    key: jax.Array, count: int, *, d: int, p: float, eta: float, dtype: Any = None
) -> tuple[jax.Array, jax.Array]:
    """Draws x [count, d + 1] and y [count] in {−1, +1}, eq. 3."""
    keys = jax.random.split(key, 3)
    dtype = jnp.zeros(()).dtype if dtype is None else dtype
    y = jnp.where(jax.random.bernoulli(keys[0], 0.5, (count,)), 1, -1)
    kept = jnp.where(jax.random.bernoulli(keys[1], p, (count,)), 1, -1)
    noise = jax.random.normal(keys[2], (count, d), dtype)
    weak = eta * y[:, None].astype(dtype) + noise
    return jnp.concatenate([(y * kept).astype(dtype)[:, None], weak], axis=1), y


def average_classifier(d: int) -> jax.Array:
    """w of f_avg = sign(mean of the weak features), eq. 4: [d + 1]."""
    return jnp.concatenate([jnp.zeros(1), jnp.full(d, 1 / d)])


def standard_accuracy(w: Any, *, p: Any, eta: Any, bias: Any = 0.0) -> jax.Array:
    """Accuracy [...] of sign(⟨w, x⟩ + bias).

    ½ Σ_{y=±1} [p Φ((w_1 + ηS + yc)/n) + (1 − p) Φ((−w_1 + ηS + yc)/n)]

    Args:
      w: [..., d + 1] weights, w_1 first; the rest broadcasts against [...].
      p: probability that x_1 = y.
      eta: mean η of the weak features.
      bias: c.
    """
    return robust_accuracy(w, p=p, eta=eta, eps=0.0, bias=bias)


def robust_accuracy(
    w: Any,
    *,
    p: Any,
    eta: Any,
    eps: Any,
    norm: float = jnp.inf,
    bias: Any = 0.0,
    attack_x1: bool = True,
) -> jax.Array:
    """Accuracy [...] against the worst perturbation δ, ‖δ‖_norm ≤ eps.

    As `standard_accuracy` with ηS − ε‖w‖_* for ηS, ‖·‖_* the dual norm; the worst
    perturbation of L∞ is −ε y sign(w).

    Args:
      w, p, eta, bias: as in `standard_accuracy`.
      eps: radius.
      norm: 1, 2 or inf, that of the adversary.
      attack_x1: False leaves x_1 alone, as the adversary in the proof of Theorem 2.1.

    Raises:
      ValueError: norm is none of the three.
    """
    if norm not in (1, 2, jnp.inf):
        raise ValueError(f"norm must be 1, 2 or inf, got {norm!r}")
    w = jnp.asarray(w)
    strong, weak = w[..., 0], w[..., 1:]
    dual = {1: jnp.inf, 2: 2, jnp.inf: 1}[norm]
    moved = w if attack_x1 else weak
    lost = eps * jnp.linalg.norm(moved, ord=dual, axis=-1)
    mean, spread = eta * weak.sum(-1) - lost, jnp.linalg.norm(weak, axis=-1)

    def right(score):
        safe = jnp.where(spread > 0, spread, 1)
        sure = (1 + jnp.sign(score)) / 2
        return jnp.where(spread > 0, normal.cdf(score / safe), sure)

    def of_class(y):
        shift = mean + y * bias
        return p * right(shift + strong) + (1 - p) * right(shift - strong)

    return (of_class(1) + of_class(-1)) / 2


def theorem_bound(standard: Any, p: Any) -> Any:
    """Theorem 2.1: robust accuracy ≤ p/(1 − p) · (1 − standard) for ε ≥ 2η in L∞."""
    return p / (1 - p) * (1 - standard)


def table_accuracies(table: Any, p: Any) -> tuple[Any, Any]:
    """Standard accuracy and that against the shift x_i − 2ηy of the weak features.

    `table` [2, 2] holds Pr[f = +1 | x_1, law of the weak features], index 0 for x_1 = 1
    and for N(η, 1), index 1 for −1 and N(−η, 1): the proof of Theorem 2.1, any f.
    """
    a, b = _errors(table)
    return 1 - (p * a + (1 - p) * b) / 2, ((1 - p) * a + p * b) / 2


def shift_slack(table: Any, p: Any) -> Any:
    """What Theorem 2.1 gives away: bound − shift accuracy = a (2p − 1) / (2 (1 − p)).

    a = 1 − p_{++} + p_{−−} as in the proof, `table` as in `table_accuracies`.
    """
    return _errors(table)[0] * (2 * p - 1) / (2 * (1 - p))


def _errors(table: Any) -> tuple[Any, Any]:
    (plus_plus, plus_minus), (minus_plus, minus_minus) = table
    return 1 - plus_plus + minus_minus, 1 - minus_plus + plus_minus


def best_robust_accuracy(*, p: float, eta: float, eps: float) -> float:
    """The highest robust accuracy (L∞) that any classifier could have; 1 if unknown.

    From ε ≥ η on the adversary makes the weak features N(0, 1), which leaves p, as
    sign(x_1) has for ε < 1; from ε ≥ max(1, η) on it moves x_1 to 0 as well.
    """
    if eps < eta:
        return 1.0
    return p if eps < 1 else 0.5


def frontier(tau: Any, *, p: Any, m: Any) -> tuple[jax.Array, jax.Array]:
    """Standard and shift accuracy of sign(τ x_1 + t), t ~ N(y m, 1), m = η√d."""
    standard = p * normal.cdf(m + tau) + (1 - p) * normal.cdf(m - tau)
    shifted = p * normal.cdf(tau - m) + (1 - p) * normal.cdf(-m - tau)
    return standard, shifted


def bayes_threshold(*, p: Any, m: Any) -> jax.Array:
    """τ of the Bayes classifier: log(p/(1 − p)) / (2m)."""
    return jnp.log(p / (1 - p)) / (2 * m)


def expected_hinge(
    w1: Any, v: Any, *, p: Any, m: Any, d: Any = 1, eps: Any = 0.0, lam: Any = 0.0
) -> jax.Array:
    """E max(0, 1 − y⟨w, x⟩ + ε‖w‖₁) + λ/2 ‖w‖₂² with equal weak weights, eq. 5.

    Σ_s P_s [μ_s Φ(μ_s/v) + v φ(μ_s/v)], μ_s = 1 − s w_1 − v m + ε(|w_1| + √d v) for
    s = ±1 with P_s = p, 1 − p; differentiable for v > 0.

    Args:
      w1: weight of x_1.
      v: coefficient ≥ 0 of the pooled feature t ~ N(y m, 1): √d times each weak weight.
      p, m: as in `frontier`.
      d: number of weak features, for ε only.
      eps: training radius in L∞.
      lam: λ.
    """
    total = lam / 2 * (w1 * w1 + v * v)
    safe = jnp.where(v > 0, v, 1.0)
    for sign, weight in ((1, p), (-1, 1 - p)):
        mu = 1 - sign * w1 - v * m + eps * (jnp.abs(w1) + jnp.sqrt(d) * v)
        z = mu / safe
        smooth = mu * normal.cdf(z) + v * normal.pdf(z)
        total += weight * jnp.where(v > 0, smooth, jnp.maximum(mu, 0))
    return total


class UnitSVM(NamedTuple):
    """Weights of x_1 and of the pooled feature (w_1² + v² = 1), and the λ they need."""

    w1: float
    v: float
    lam: float


def unit_svm(*, p: float, m: float) -> UnitSVM:
    """The minimiser of `expected_hinge` of norm 1, ε = 0, and its λ; Theorem 2.2.

    Stationary on the unit circle: v ∂L/∂w_1 = w_1 ∂L/∂v, then λ = −(∂L/∂v)/v. Solved
    in float64 (the objective is of the order 1e-4 and less).

    Raises:
      ValueError: p outside [½, 1) or m not positive.
    """
    if not (0.5 <= p < 1 and m > 0):
        raise ValueError(f"p must be in [1/2, 1) and m positive, got p={p}, m={m}")

    def slopes(angle: float) -> tuple[float, float, float, float]:
        w1, v = np.sin(angle), np.cos(angle)
        along, across = 0.0, 0.0
        for sign, weight in ((1, p), (-1, 1 - p)):
            z = (1 - sign * w1 - v * m) / v
            density = np.exp(-z * z / 2) / np.sqrt(2 * np.pi)
            along -= sign * weight * special.ndtr(z)
            across += weight * (density - m * special.ndtr(z))
        return w1, v, along, across

    def stationary(angle: float) -> float:
        w1, v, along, across = slopes(angle)
        return along * v - across * w1

    angle: Any = 0.0 if p == 0.5 else optimize.brentq(stationary, 0, 1.55, xtol=1e-15)
    w1, v, _, across = slopes(angle)
    return UnitSVM(float(w1), float(v), float(-across / v))


def adversarial_svm(*, p: Any, eps: Any, lam: Any) -> jax.Array:
    """w_1 of the minimiser of `expected_hinge` for η ≤ ε < 1; its weak weights are 0.

    min((2p − 1 − ε)/λ, 1/(1 − ε)) if ε < 2p − 1, else 0: the constant classifier. The
    paper's "any ε < 1" is about the radius of the evaluation, not of the training.
    """
    eps = jnp.asarray(eps)
    room = jnp.minimum((2 * p - 1 - eps) / lam, 1 / (1 - eps))
    return jnp.where(eps < 2 * p - 1, room, 0.0)
