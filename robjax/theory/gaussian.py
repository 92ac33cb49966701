"""Robustness against accuracy where both are known exactly.

Tsipras et al., "Robustness may be at odds with accuracy", ICLR 2019, section 2.1.
One strong feature x_1 agrees with the label most of the time, and each of d weak
features tells a little about it:

    y uniform in {−1, +1};  x_1 = y with probability p ≥ ½, else −y;
    x_2 … x_{d+1} ~ N(ηy, 1), independent given y                          eq. 3

A linear classifier is sign(⟨w, x⟩ + c). Its weights w = (w_1, u) have the shape
[..., d + 1], with w_1 for the strong feature and u for the weak ones. A score of
exactly 0 is the class −1, so that w = 0 is right half of the time. In the formulas

    S = Σ u_i      n = ‖u‖₂      Φ, φ = distribution function and density of N(0, 1)

Parameters are numbers or arrays that broadcast. Their values are checked unless they
are traced.

There are two adversaries. That of the ball moves every feature. That of the theorem
moves the weak features only (`attack_x1=False`).

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
from jax.typing import ArrayLike, DTypeLike

from robjax.arrays import check_floating
from robjax.checks import check_count, check_flags, check_range
from robjax.numerics import safe_norm
from robjax.samples import check_key
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
    key: jax.Array,
    count: int,
    *,
    d: int,
    p: float,
    eta: float,
    dtype: DTypeLike | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Draws samples of the model and their labels, eq. 3.

    >>> x, y = sample(jax.random.key(0), 5, d=2, p=1.0, eta=0.5)
    >>> x.shape, bool((x[:, 0] == y).all())
    ((5, 3), True)

    Args:
      key: one key.
      count: number of samples.
      d: number of weak features.
      p: probability that x_1 = y.
      eta: mean η of the weak features.
      dtype: of x; None: JAX's default.

    Returns:
      x [count, d + 1] and y [count] in {−1, +1}.

    Raises:
      ValueError: count or d below 1, p outside [0, 1], or eta not finite.
    """
    check_count("count", count)
    check_count("d", d)
    p = check_range("p", p, 0, 1)
    eta = check_range("eta", eta)
    keys = jax.random.split(check_key(key), 3)
    dtype = jnp.zeros(()).dtype if dtype is None else check_floating("dtype", dtype)
    y = jnp.where(jax.random.bernoulli(keys[0], 0.5, (count,)), 1, -1)
    kept = jnp.where(jax.random.bernoulli(keys[1], p, (count,)), 1, -1)
    strong = (y * kept).astype(dtype)[:, None]
    noise = jax.random.normal(keys[2], (count, d), dtype)
    weak = jnp.asarray(eta, dtype) * y[:, None].astype(dtype) + noise
    return jnp.concatenate([strong, weak], axis=1), y


def average_classifier(d: int) -> jax.Array:
    """Weights [d + 1] of f_avg = sign(mean of the weak features), eq. 4.

    >>> average_classifier(4).tolist()
    [0.0, 0.25, 0.25, 0.25, 0.25]

    Raises:
      ValueError: d below 1.
    """
    check_count("d", d)
    return jnp.concatenate([jnp.zeros(1), jnp.full(d, 1 / d)])


def standard_accuracy(
    w: ArrayLike, *, p: ArrayLike, eta: ArrayLike, bias: ArrayLike = 0.0
) -> jax.Array:
    """Accuracy [...] of sign(⟨w, x⟩ + bias) without an adversary.

    ½ Σ_{y=±1} [p Φ((w_1 + ηS + yc)/n) + (1 − p) Φ((−w_1 + ηS + yc)/n)]

    >>> print(standard_accuracy(jnp.array([1.0, 0.0]), p=0.9, eta=0.5))
    0.9

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
    w: ArrayLike,
    *,
    p: ArrayLike,
    eta: ArrayLike,
    eps: ArrayLike,
    norm: float = jnp.inf,
    bias: ArrayLike = 0.0,
    attack_x1: bool = True,
) -> jax.Array:
    """Accuracy [...] of sign(⟨w, x⟩ + bias) against the worst δ, ‖δ‖_norm ≤ ε.

    It is `standard_accuracy` with ηS − ε‖w‖_* in the place of ηS. ‖·‖_* is the dual
    norm. The worst perturbation of L∞ is δ = −ε y sign(w).

    >>> eps = jnp.array([0.5, 1.5])
    >>> print(robust_accuracy(jnp.array([1.0, 0.0]), p=0.9, eta=0.5, eps=eps))
    [0.9 0. ]

    Args:
      w, p, eta, bias: as in `standard_accuracy`.
      eps: radius ε.
      norm: 1, 2 or inf, that of the adversary.
      attack_x1: False leaves x_1 alone, as the adversary in the proof of Theorem 2.1.

    Raises:
      ValueError: norm is none of the three, w has no weak feature or is not finite, p
        is outside [0, 1], eps is negative, or eta or bias is not finite.
    """
    check_flags(attack_x1=attack_x1)
    if not (isinstance(norm, int | float) and norm in (1, 2, jnp.inf)):
        raise ValueError(f"norm must be 1, 2 or inf, got {norm!r}")
    w = _weights(w)
    p = check_range("p", p, 0, 1)
    eta = check_range("eta", eta)
    eps = check_range("eps", eps, 0)
    bias = check_range("bias", bias)
    strong = w[..., 0]
    weak = w[..., 1:]
    dual = {1: jnp.inf, 2: 2, jnp.inf: 1}[norm]
    lost = eps * jnp.linalg.norm(w if attack_x1 else weak, ord=dual, axis=-1)
    mean = eta * weak.sum(-1) - lost
    spread = safe_norm(weak, -1)

    def of_class(y: int) -> jax.Array:
        shift = mean + y * bias
        right = _probability_above(shift + strong, spread, tie=y < 0)
        wrong = _probability_above(shift - strong, spread, tie=y < 0)
        return _mean(p, right, wrong)

    return (of_class(1) + of_class(-1)) / 2


def theorem_bound(standard: ArrayLike, p: ArrayLike) -> Any:
    """Theorem 2.1: the highest robust accuracy that a standard accuracy leaves.

    robust ≤ p/(1 − p) · (1 − standard), for every classifier and ε ≥ 2η in L∞.

    >>> round(theorem_bound(0.99, p=0.95), 3)
    0.19

    Args:
      standard: accuracy without an adversary.
      p: probability that x_1 = y.

    Returns:
      The bound, in the library (Python, NumPy or JAX) of the arguments.

    Raises:
      ValueError: standard outside [0, 1] or p outside [½, 1).
    """
    wrong = 1 - check_range("standard", standard, 0, 1)
    p = check_range("p", p, 0.5, below=1)
    return p / (1 - p) * wrong


def linear_table(w: ArrayLike, *, eta: ArrayLike, bias: ArrayLike = 0.0) -> jax.Array:
    """The table [..., 2, 2] of sign(⟨w, x⟩ + bias), for `table_accuracies`.

    p_ij = Φ((i w_1 + jηS + c)/n) for i, j = ±1, + first.

    >>> linear_table(jnp.array([1.0, 0.0]), eta=0.5).tolist()  # the sign of x_1
    [[1.0, 1.0], [0.0, 0.0]]

    Args:
      w, eta, bias: as in `standard_accuracy`.

    Raises:
      ValueError: w has no weak feature or is not finite, or eta or bias is not finite.
    """
    w = _weights(w)
    eta = check_range("eta", eta)
    bias = check_range("bias", bias)
    strong = w[..., 0]
    weak = w[..., 1:]
    mean = eta * weak.sum(-1)
    spread = safe_norm(weak, -1)

    def row(i: int) -> jax.Array:
        scores = [i * strong + j * mean + bias for j in (1, -1)]
        return jnp.stack([_probability_above(score, spread) for score in scores], -1)

    return jnp.stack([row(1), row(-1)], -2)


def table_accuracies(table: ArrayLike, p: ArrayLike) -> tuple[Any, Any]:
    """Standard accuracy, and accuracy under the shift x_i − 2ηy of the weak features.

    The proof of Theorem 2.1 needs four numbers of a classifier f, linear or not. With
    them, a = 1 − p_{++} + p_{−−} and b = 1 − p_{−+} + p_{+−},

        standard = 1 − (p a + (1 − p) b)/2        shifted = ((1 − p) a + p b)/2

    >>> standard, shifted = table_accuracies(np.array([[1, 1], [0, 0]]), p=0.75)
    >>> float(standard), float(shifted)  # the sign of x_1, which no shift changes
    (0.75, 0.75)

    Args:
      table: [..., 2, 2] p_ij = Pr[f = +1 | x_1 = i, weak features ~ N(jη, 1)], + first.
      p: probability that x_1 = y, broadcasts against [...].

    Raises:
      ValueError: table not [..., 2, 2] probabilities, or p outside [0, 1].
    """
    p = check_range("p", p, 0, 1)
    a, b = _errors(table)
    return 1 - _mean(p, a, b) / 2, _mean(p, b, a) / 2


def shift_slack(table: ArrayLike, p: ArrayLike) -> Any:
    """What Theorem 2.1 gives away: its bound minus the accuracy under the shift.

    slack = a (2p − 1) / (2 (1 − p)), with a of `table_accuracies`. It is not computed
    as a difference, so that no rounding makes it negative.

    >>> always_plus = np.ones((2, 2))  # is right half of the time; the bound is 3/2
    >>> float(shift_slack(always_plus, p=0.75))
    1.0

    Args:
      table, p: as in `table_accuracies`.

    Raises:
      ValueError: table not [..., 2, 2] probabilities, or p outside [½, 1).
    """
    p = check_range("p", p, 0.5, below=1)
    a, _ = _errors(table)
    return a * (2 * p - 1) / (2 * (1 - p))


def best_robust_accuracy(*, p: ArrayLike, eta: ArrayLike, eps: ArrayLike) -> jax.Array:
    """The highest robust accuracy (L∞) that any classifier could have.

    * ε < η: not known, given as 1.
    * η ≤ ε < 1: p, which sign(x_1) has. The adversary makes the weak features N(0, 1).
    * ε ≥ max(1, η): ½. The adversary moves x_1 to 0 as well.

    >>> print(best_robust_accuracy(p=0.9, eta=0.3, eps=jnp.array([0.2, 0.3, 1.0])))
    [1.  0.9 0.5]

    Args:
      p: probability that x_1 = y.
      eta: mean η of the weak features.
      eps: radius ε.

    Raises:
      ValueError: p outside [½, 1], or eta or eps negative.
    """
    p = check_range("p", p, 0.5, 1)
    mean = check_range("eta", eta, 0)
    radius = check_range("eps", eps, 0)
    return jnp.where(radius < mean, 1.0, jnp.where(radius < 1, p, 0.5))


def frontier(
    tau: ArrayLike, *, p: ArrayLike, m: ArrayLike
) -> tuple[jax.Array, jax.Array]:
    """Standard and shift accuracy of the classifier sign(τ x_1 + t).

    t = Σ weak / √d ~ N(y m, 1) pools the weak features. The larger τ, the more the
    classifier trusts x_1.

    >>> [round(float(accuracy), 3) for accuracy in frontier(9.0, p=0.9, m=3.0)]
    [0.9, 0.9]

    Args:
      tau: weight τ of x_1.
      p: probability that x_1 = y.
      m: η√d.

    Returns:
      The standard accuracy, and the accuracy under the shift x_i − 2ηy of the weak
      features.

    Raises:
      ValueError: p outside [0, 1], or tau or m not finite.
    """
    trust = check_range("tau", tau)
    p = check_range("p", p, 0, 1)
    mean = check_range("m", m)
    standard = _mean(p, normal.cdf(mean + trust), normal.cdf(mean - trust))
    shifted = _mean(p, normal.cdf(trust - mean), normal.cdf(-mean - trust))
    return standard, shifted


def bayes_threshold(*, p: ArrayLike, m: ArrayLike) -> jax.Array:
    """The τ that makes sign(τ x_1 + t) the Bayes classifier: log(p/(1 − p)) / (2m).

    >>> float(bayes_threshold(p=0.5, m=3.0))  # x_1 says nothing
    0.0

    Args:
      p: probability that x_1 = y.
      m: η√d.

    Raises:
      ValueError: p outside [½, 1), or m not positive.
    """
    p = check_range("p", p, 0.5, below=1)
    m = check_range("m", m, _TINY)
    return jnp.log(p / (1 - p)) / (2 * m)


def _weights(w: ArrayLike) -> jax.Array:
    w = jnp.asarray(check_range("w", w))
    if w.ndim == 0 or w.shape[-1] < 2:
        raise ValueError(f"w must have shape [..., d + 1] with d >= 1, got {w.shape}")
    return w


def _errors(table: ArrayLike) -> tuple[Any, Any]:
    """a and b of `table_accuracies`."""
    shares = check_range("table", table, 0, 1)
    if np.shape(shares)[-2:] != (2, 2):
        raise ValueError(f"table must have shape [..., 2, 2], got {np.shape(shares)}")
    a = 1 - shares[..., 0, 0] + shares[..., 1, 1]
    b = 1 - shares[..., 1, 0] + shares[..., 0, 1]
    return a, b


def _mean(p: Any, kept: Any, flipped: Any) -> Any:
    """The mean over the sign of x_1: `kept` if x_1 = y, `flipped` if x_1 = −y."""
    return p * kept + (1 - p) * flipped


def _probability_above(
    score: jax.Array, spread: jax.Array, *, tie: bool = False
) -> jax.Array:
    """Pr[score + spread · N(0, 1) > 0], or Pr[… ≥ 0] with `tie`."""
    safe = jnp.where(spread > 0, spread, 1)
    sure = (score > 0) | ((score == 0) & tie)
    return jnp.where(spread > 0, normal.cdf(score / safe), sure)
