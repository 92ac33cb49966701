"""Robustness against accuracy where both are known exactly.

Tsipras et al., "Robustness may be at odds with accuracy", ICLR 2019, section 2.1.

    y uniform in {−1, +1};  x_1 = y with probability p ≥ ½, else −y;
    x_2 … x_{d+1} ~ N(ηy, 1), independent given y                          eq. 3

One strong feature, d weak ones. A linear classifier sign(⟨w, x⟩ + c) has w = (w_1, u)
[..., d + 1]; S = Σ u_i, n = ‖u‖₂, Φ and φ are the normal distribution function and
density. A score of exactly 0 is the class −1, so that w = 0 is right half of the time.
Parameters are numbers or arrays that broadcast; values are checked unless traced.

Two adversaries: that of the theorem moves the weak features only (`attack_x1=False`),
that of the ball moves x_1 too.

    standard_accuracy, robust_accuracy          of any linear classifier
    theorem_bound, shift_slack                  Theorem 2.1 and how tight it is
    linear_table, table_accuracies              the four numbers that its proof needs
    frontier, bayes_threshold                   sign(τ x_1 + t), t = Σ weak / √d
    best_robust_accuracy                        of any classifier at all

    expected_hinge, svm, unit_svm, adversarial_svm      Theorem 2.2: `gaussian_svm`
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.stats import norm as normal

from robjax.checks import check_count, check_range
from robjax.numerics import safe_norm
from robjax.theory.gaussian_svm import (
    SVM,
    adversarial_svm,
    expected_hinge,
    svm,
    unit_svm,
)

__all__ = [
    "SVM",
    "adversarial_svm",
    "average_classifier",
    "bayes_threshold",
    "best_robust_accuracy",
    "expected_hinge",
    "frontier",
    "linear_table",
    "robust_accuracy",
    "sample",
    "shift_slack",
    "standard_accuracy",
    "svm",
    "table_accuracies",
    "theorem_bound",
    "unit_svm",
]

_TINY = 1e-30


def sample(
    key: jax.Array, count: int, *, d: int, p: float, eta: float, dtype: Any = None
) -> tuple[jax.Array, jax.Array]:
    """Draws x [count, d + 1] and y [count] in {−1, +1}, eq. 3.

    Raises:
      ValueError: count or d below 1, p outside [0, 1], or eta not finite.
    """
    check_count("count", count)
    check_count("d", d)
    p, eta = check_range("p", p, 0, 1), check_range("eta", eta)
    keys = jax.random.split(key, 3)
    dtype = jnp.zeros(()).dtype if dtype is None else dtype
    y = jnp.where(jax.random.bernoulli(keys[0], 0.5, (count,)), 1, -1)
    kept = jnp.where(jax.random.bernoulli(keys[1], p, (count,)), 1, -1)
    noise = jax.random.normal(keys[2], (count, d), dtype)
    weak = jnp.asarray(eta, dtype) * y[:, None].astype(dtype) + noise
    return jnp.concatenate([(y * kept).astype(dtype)[:, None], weak], axis=1), y


def average_classifier(d: int) -> jax.Array:
    """w of f_avg = sign(mean of the weak features), eq. 4: [d + 1]."""
    check_count("d", d)
    return jnp.concatenate([jnp.zeros(1), jnp.full(d, 1 / d)])


def standard_accuracy(w: Any, *, p: Any, eta: Any, bias: Any = 0.0) -> jax.Array:
    """Accuracy [...] of sign(⟨w, x⟩ + bias).

    ½ Σ_{y=±1} [p Φ((w_1 + ηS + yc)/n) + (1 − p) Φ((−w_1 + ηS + yc)/n)]

    Args:
      w: [..., d + 1] weights, w_1 first; the rest broadcasts against [...].
      p: probability that x_1 = y.
      eta: mean η of the weak features.
      bias: c.

    Raises:
      ValueError: as in `robust_accuracy`.
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
      ValueError: norm is none of the three, w has no weak feature or is not finite, p
        is outside [0, 1], eps is negative, or eta or bias is not finite.
    """
    if not (isinstance(norm, int | float) and norm in (1, 2, jnp.inf)):
        raise ValueError(f"norm must be 1, 2 or inf, got {norm!r}")
    w = _weights(w)
    p, eta = check_range("p", p, 0, 1), check_range("eta", eta)
    eps, bias = check_range("eps", eps, 0), check_range("bias", bias)
    strong, weak = w[..., 0], w[..., 1:]
    dual = {1: jnp.inf, 2: 2, jnp.inf: 1}[norm]
    moved = w if attack_x1 else weak
    lost = eps * jnp.linalg.norm(moved, ord=dual, axis=-1)
    mean, spread = eta * weak.sum(-1) - lost, safe_norm(weak, -1)

    def of_class(y):
        shift = mean + y * bias
        right, wrong = (_share(shift + s * strong, spread, y < 0) for s in (1, -1))
        return p * right + (1 - p) * wrong

    return (of_class(1) + of_class(-1)) / 2


def theorem_bound(standard: Any, p: Any) -> Any:
    """Theorem 2.1: robust accuracy ≤ p/(1 − p) · (1 − standard) for ε ≥ 2η in L∞.

    Raises:
      ValueError: standard outside [0, 1] or p outside [½, 1).
    """
    standard, p = (
        check_range("standard", standard, 0, 1),
        check_range("p", p, 0.5, below=1),
    )
    return p / (1 - p) * (1 - standard)


def linear_table(w: Any, *, eta: Any, bias: Any = 0.0) -> jax.Array:
    """The table [..., 2, 2] of sign(⟨w, x⟩ + bias), for `table_accuracies`.

    p_ij = Φ((i w_1 + jηS + c)/n) for i, j = ±1, + first.

    Args:
      w, eta, bias: as in `standard_accuracy`.

    Raises:
      ValueError: w has no weak feature or is not finite, or eta or bias is not finite.
    """
    w, eta, bias = _weights(w), check_range("eta", eta), check_range("bias", bias)
    strong, mean, spread = (
        w[..., 0],
        eta * w[..., 1:].sum(-1),
        safe_norm(w[..., 1:], -1),
    )
    rows = [
        jnp.stack([_share(i * strong + j * mean + bias, spread) for j in (1, -1)], -1)
        for i in (1, -1)
    ]
    return jnp.stack(rows, -2)


def table_accuracies(table: Any, p: Any) -> tuple[Any, Any]:
    """Standard accuracy and that against the shift x_i − 2ηy of the weak features.

    1 − (p a + (1 − p) b)/2 and ((1 − p) a + p b)/2 with a = 1 − p_{++} + p_{−−} and
    b = 1 − p_{−+} + p_{+−}: the proof of Theorem 2.1, of any f.

    Args:
      table: [..., 2, 2] p_ij = Pr[f = +1 | x_1 = i, weak features ~ N(jη, 1)], + first.
      p: probability that x_1 = y, broadcasts against [...].

    Raises:
      ValueError: table not [..., 2, 2] probabilities, or p outside [0, 1].
    """
    p = check_range("p", p, 0, 1)
    a, b = _errors(table)
    return 1 - (p * a + (1 - p) * b) / 2, ((1 - p) * a + p * b) / 2


def shift_slack(table: Any, p: Any) -> Any:
    """What Theorem 2.1 gives away: bound − shift accuracy = a (2p − 1) / (2 (1 − p)).

    No difference of the two, so that no rounding makes it negative.

    Args:
      table, p: as in `table_accuracies`, which has a.

    Raises:
      ValueError: table not [..., 2, 2] probabilities, or p outside [½, 1).
    """
    p = check_range("p", p, 0.5, below=1)
    return _errors(table)[0] * (2 * p - 1) / (2 * (1 - p))


def _errors(table: Any) -> tuple[Any, Any]:
    table = check_range("table", table, 0, 1)
    if np.shape(table)[-2:] != (2, 2):
        raise ValueError(f"table must have shape [..., 2, 2], got {np.shape(table)}")
    a = 1 - table[..., 0, 0] + table[..., 1, 1]
    return a, 1 - table[..., 1, 0] + table[..., 0, 1]


def _weights(w: Any) -> jax.Array:
    w = jnp.asarray(check_range("w", w))
    if w.ndim == 0 or w.shape[-1] < 2:
        raise ValueError(f"w must have shape [..., d + 1] with d >= 1, got {w.shape}")
    return w


def _share(score: jax.Array, spread: jax.Array, tie: bool = False) -> jax.Array:
    """Pr[score + spread · N(0, 1) > 0], with `tie` ≥ 0."""
    safe = jnp.where(spread > 0, spread, 1)
    sure = (score > 0) | ((score == 0) & tie)
    return jnp.where(spread > 0, normal.cdf(score / safe), sure)


def best_robust_accuracy(*, p: Any, eta: Any, eps: Any) -> jax.Array:
    """The highest robust accuracy (L∞) that any classifier could have; 1 if unknown.

    From ε ≥ η on the adversary makes the weak features N(0, 1), which leaves p, as
    sign(x_1) has for ε < 1; from ε ≥ max(1, η) on it moves x_1 to 0 as well.

    Raises:
      ValueError: p outside [½, 1], or eta or eps negative.
    """
    p, eta, eps = (
        check_range("p", p, 0.5, 1),
        check_range("eta", eta, 0),
        check_range("eps", eps, 0),
    )
    return jnp.where(eps < eta, 1.0, jnp.where(eps < 1, p, 0.5))


def frontier(tau: Any, *, p: Any, m: Any) -> tuple[jax.Array, jax.Array]:
    """Standard and shift accuracy of sign(τ x_1 + t), t ~ N(y m, 1), m = η√d.

    Raises:
      ValueError: p outside [0, 1], or tau or m not finite.
    """
    tau, p, m = check_range("tau", tau), check_range("p", p, 0, 1), check_range("m", m)
    standard = p * normal.cdf(m + tau) + (1 - p) * normal.cdf(m - tau)
    shifted = p * normal.cdf(tau - m) + (1 - p) * normal.cdf(-m - tau)
    return standard, shifted


def bayes_threshold(*, p: Any, m: Any) -> jax.Array:
    """τ of the Bayes classifier: log(p/(1 − p)) / (2m).

    Raises:
      ValueError: p outside [½, 1), or m not positive.
    """
    p, m = check_range("p", p, 0.5, below=1), check_range("m", m, _TINY)
    return jnp.log(p / (1 - p)) / (2 * m)
