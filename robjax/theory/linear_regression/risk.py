"""The adversarial risk of any weights, its gradient and the worst perturbation."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.scipy.special import erf
from jax.typing import ArrayLike

from robjax.checks import check_range
from robjax.numerics import safe_norm
from robjax.theory.linear_regression.problem import (
    check_covariance,
    check_norm,
    check_vector,
)

C = math.sqrt(2 / math.pi)
"""c = E|Z| of Z ~ N(0, 1)."""


def adversarial_risk(
    w: ArrayLike,
    *,
    covariance: ArrayLike,
    w_star: ArrayLike,
    noise: ArrayLike,
    eps: ArrayLike,
    norm: float,
    mean: ArrayLike | None = None,
) -> jax.Array:
    """The expected squared error [...] of weights w when every input is attacked.

        E max_{‖δ‖_p ≤ ε} (y − ⟨w, x + δ⟩)² = E r² + 2ε n E|r| + ε² n²,   r = y − ⟨w, x⟩
        E r² = s² + μ²     E|r| = c s exp(−μ²/2s²) + μ erf(μ/(s√2))     μ = ⟨w* − w, m⟩

    Without means it is s² + 2cεsn + ε²n². It is convex in w and differentiable; at a
    kink (s = 0, w_i = 0, equal largest weights) the derivative is a subgradient.

    >>> risk = adversarial_risk(jnp.array([0.5, 0.0]), covariance=jnp.eye(2),
    ...     w_star=jnp.array([1.0, 0.0]), noise=0.0, eps=1.0, norm=2)
    >>> round(float(risk), 4)  # (1/2)² + 2 √(2/π) (1/2)² + (1/2)²
    0.8989

    Args:
      w: [..., d] weights.
      covariance: [d, d] Σ of the inputs.
      w_star: [d] true weights w*.
      noise: standard deviation σ of the noise on y, a number or [...].
      eps: radius ε, a number or [...].
      norm: p, that of the attack: 1, 2 or inf.
      mean: [d] mean m of the inputs; None: 0.

    Raises:
      ValueError: a shape does not fit, a value is not finite, noise or eps is negative,
        norm is none of the three, or covariance is not symmetric or has a negative
        eigenvalue.
    """
    terms = _terms(w, covariance, w_star, noise, eps, norm, mean)
    return (
        terms.square
        + 2 * terms.eps * terms.size * terms.absolute
        + (terms.eps * terms.size) ** 2
    )


def risk_gradient(
    w: ArrayLike,
    *,
    covariance: ArrayLike,
    w_star: ArrayLike,
    noise: ArrayLike,
    eps: ArrayLike,
    norm: float,
    mean: ArrayLike | None = None,
) -> jax.Array:
    """A subgradient [..., d] of `adversarial_risk`, by its formula.

        2 Σ(w − w*) − 2μ m + 2ε n ∇E|r| + 2ε (E|r| + εn) u,     u ∈ ∂‖w‖_q
        ∇E|r| = c exp(−μ²/2s²) Σ(w − w*)/s − erf(μ/(s√2)) m

    Without means it is 2(1 + cεn/s) Σ(w − w*) + 2ε(cs + εn) u.

    >>> problem = {"covariance": jnp.eye(2), "w_star": jnp.array([1.0, 0.0])}
    >>> w = jnp.array([0.5, 0.0])
    >>> gradient = risk_gradient(w, **problem, noise=0.0, eps=1.0, norm=2)
    >>> gradient.round(4).tolist()  # a slope of −1 from s, and +1 from ‖w‖
    [0.0, 0.0]

    Args:
      w, covariance, w_star, noise, eps, norm, mean: as in `adversarial_risk`.

    Raises:
      ValueError: as in `adversarial_risk`.
    """
    t = _terms(w, covariance, w_star, noise, eps, norm, mean)

    def times(scalar: jax.Array, vector: jax.Array) -> jax.Array:
        return jnp.broadcast_to(scalar[..., None], vector.shape) * vector

    safe = jnp.where(t.spread > 0, t.spread, 1)
    absolute = times(t.density / safe, t.slope) - times(t.tilt, t.mean)
    return (
        2 * t.slope
        - 2 * times(t.shift, t.mean)
        + 2 * times(t.eps * t.size, absolute)
        + 2 * times(t.eps * (t.absolute + t.eps * t.size), _steepest(t.w, norm))
    )


def worst_perturbation(
    w: ArrayLike, x: ArrayLike, y: ArrayLike, *, eps: ArrayLike, norm: float
) -> jax.Array:
    """The perturbations [B, d] that make the squared errors of a linear model largest.

    δ = −sign(y − ⟨w, x⟩) ε u with u ∈ ∂‖w‖_q: w/‖w‖₂ for p = 2, sign(w) for p = ∞, and
    for p = 1 the signs of the largest |w_i|, with equal shares. The error becomes
    (|y − ⟨w, x⟩| + ε‖w‖_q)².

    >>> x = jnp.array([[1.0, 1.0]])
    >>> w = jnp.array([2.0, -1.0])
    >>> worst_perturbation(w, x, jnp.array([0.0]), eps=0.5, norm=jnp.inf).tolist()
    [[0.5, -0.5]]

    Args:
      w: [d] weights.
      x: [B, d] inputs.
      y: [B] targets.
      eps: radius ε.
      norm: p, that of the attack: 1, 2 or inf.

    Raises:
      ValueError: a shape does not fit, a value is not finite, eps is negative, or norm
        is none of the three.
    """
    weights = jnp.asarray(check_vector("w", w))
    check_norm(norm)
    inputs = jnp.asarray(check_range("x", x))
    targets = jnp.asarray(check_range("y", y))
    if inputs.ndim != 2 or inputs.shape[1] != len(weights):
        raise ValueError(f"x must have shape [B, {len(weights)}], got {inputs.shape}")
    if targets.shape != inputs.shape[:1]:
        raise ValueError(f"y must have shape {inputs.shape[:1]}, got {targets.shape}")
    radius = _broadcast("eps", check_range("eps", eps, 0), ())
    residual = targets - jnp.matmul(inputs, weights, precision="highest")
    side = jnp.where(residual >= 0, -1, 1) * radius
    return side[:, None] * _steepest(weights, norm)[None]


class _Terms(NamedTuple):
    """What the risk and its gradient are made of, in the notation of the package."""

    w: jax.Array
    slope: jax.Array  # Σ(w − w*)
    mean: jax.Array  # m
    spread: jax.Array  # s
    shift: jax.Array  # μ
    size: jax.Array  # n
    square: jax.Array  # E r²
    absolute: jax.Array  # E|r|
    density: jax.Array  # c exp(−μ²/2s²)
    tilt: jax.Array  # erf(μ/(s√2))
    eps: jax.Array


def _terms(
    w: Any, covariance: Any, w_star: Any, noise: Any, eps: Any, norm: Any, mean: Any
) -> _Terms:
    w_star = check_vector("w_star", w_star)
    d = jnp.shape(w_star)[0]
    covariance = check_covariance(covariance, d)
    check_norm(norm)
    w = check_range("w", w)
    if jnp.shape(w)[-1:] != (d,):
        raise ValueError(f"w must have shape [..., {d}], got {jnp.shape(w)}")
    if mean is not None:
        check_vector("mean", mean, d)
    dtype = jnp.result_type(float, *map(jnp.asarray, (w, covariance, w_star)))
    w = jnp.asarray(w, dtype)
    batch = w.shape[:-1]
    sigma = _broadcast("noise", check_range("noise", noise, 0), batch).astype(dtype)
    radius = _broadcast("eps", check_range("eps", eps, 0), batch).astype(dtype)
    error = w - jnp.broadcast_to(jnp.asarray(w_star, dtype), w.shape)
    slope = jnp.matmul(error, jnp.asarray(covariance, dtype), precision="highest")
    excess = jnp.maximum((error * slope).sum(-1), 0)  # rounding may leave −1e-17
    spread = _root(sigma**2 + excess)
    centre = jnp.broadcast_to(jnp.asarray(0 if mean is None else mean, dtype), w.shape)
    shift = -(error * centre).sum(-1)
    positive = spread > 0
    # beyond ±40 both functions have saturated, and z² may overflow
    z = shift / (jnp.where(positive, spread, 1) * math.sqrt(2))
    z = jnp.where(positive, jnp.clip(z, -40, 40), 40 * jnp.sign(shift))
    density = C * jnp.exp(-z * z)
    tilt = erf(z)
    return _Terms(
        w=w,
        slope=slope,
        mean=centre,
        spread=spread,
        shift=shift,
        size=_dual_norm(w, norm),
        square=sigma**2 + excess + shift**2,
        absolute=density * spread + shift * tilt,
        density=density,
        tilt=tilt,
        eps=radius,
    )


def _root(values: jax.Array) -> jax.Array:
    """√ with the derivative 0 at 0."""
    positive = values > 0
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, values, 1)), 0)


def _broadcast(name: str, value: Any, batch: tuple[int, ...]) -> jax.Array:
    shape = jnp.shape(value)
    if shape not in ((), batch):
        allowed = "()" if batch == () else f"() or {batch}"
        raise ValueError(f"{name} must have shape {allowed}, got {shape}")
    return jnp.broadcast_to(jnp.asarray(value), batch)


def _dual_norm(w: jax.Array, norm: float) -> jax.Array:
    """‖w‖_q [...] for the norm p of the attack."""
    if norm == 2:
        return safe_norm(w, -1)
    return jnp.abs(w).sum(-1) if norm == jnp.inf else jnp.abs(w).max(-1)


def _steepest(w: jax.Array, norm: float) -> jax.Array:
    """u ∈ ∂‖w‖_q [..., d]."""
    if norm == jnp.inf:
        return jnp.sign(w)
    if norm == 2:
        size = safe_norm(w, -1)[..., None]
        return w / jnp.broadcast_to(jnp.where(size > 0, size, 1), w.shape)
    largest = jnp.broadcast_to(jnp.abs(w).max(-1, keepdims=True), w.shape)
    tied = (jnp.abs(w) == largest).astype(w.dtype)
    return jnp.sign(w) * tied / jnp.broadcast_to(tied.sum(-1, keepdims=True), w.shape)
