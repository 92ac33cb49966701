"""Adversarial training of a linear classifier, to its exact optimum and without PGD.

The score s(x) = ⟨w, x⟩ + b, labels y in {−1, +1}, an L∞ ball of radius ε. The worst
score is known in closed form, also where images are kept inside bounds: with the
lowest and highest value that pixel j can take, l = max(x − ε, low), h = min(x + ε,
high), and w = p − q, p, q ≥ 0,

    worst margin  m(x, y) = ⟨p, l⟩ − ⟨q, h⟩ + b       for y = +1
                          = ⟨q, l⟩ − ⟨p, h⟩ − b       for y = −1

(without bounds m = y s(x) − ε‖w‖₁: Tsipras et al., ICLR 2019, section 2.2). It is
linear in (p, q, b), so that adversarial training

    J(w, b) = mean log(1 + e^{−m}) + λ/2 ‖w‖₂²

is logistic regression with non-negative weights on the features (±l, ∓h): convex,
and L-BFGS-B finds its minimum in float64. How near it came is certified by the
largest entry of the subgradient of J closest to 0, `residual`.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial
from scipy import optimize, special

from robjax.checks import Bounds, check_bounds, check_count, check_images, check_number


class LinearClassifier(NamedTuple):
    """The minimiser of J and how it was reached.

    w: [*S] weights, float64; exactly 0 where it does not pay to look.
    b: bias.
    objective: J, in nats.
    residual: KKT residual: ‖·‖_∞ of the smallest subgradient of J, 0 at a minimum.
    iterations: of L-BFGS-B.
    """

    w: np.ndarray
    b: float
    objective: float
    residual: float
    iterations: int

    @property
    def logits_fn(self) -> Partial:
        """Images [B, *S] -> logits [B, 2], class 1 for y = +1."""
        return Partial(_logits, jnp.asarray(self.w), jnp.asarray(self.b))


def _logits(w: jax.Array, b: jax.Array, x: jax.Array) -> jax.Array:
    w, b = w.astype(x.dtype), b.astype(x.dtype)
    score = x.reshape(len(x), -1) @ w.reshape(-1) + b
    return jnp.stack([-score / 2, score / 2], axis=1)


def worst_case(
    w: Any, x: Any, y: Any, *, eps: float, bounds: Bounds | None = None
) -> np.ndarray:
    """The images [N, *S] of lowest margin: x − ε y sign(w), inside the bounds.

    Args:
      w: [*S] weights.
      x: [N, *S] images.
      y: [N] labels in {−1, +1}.
      eps: radius in L∞.
      bounds: lowest and highest pixel value; None: none.

    Raises:
      ValueError: an argument is malformed; the message names it.
    """
    x, y = _check(x, y, eps, bounds)
    w = np.asarray(w, float)
    if w.shape != x.shape[1:] or not np.isfinite(w).all():
        raise ValueError(f"w must be finite weights {x.shape[1:]}, got shape {w.shape}")
    signs = y.reshape(-1, *(1,) * (x.ndim - 1)) * np.sign(w)
    moved = x - eps * signs
    return moved if bounds is None else np.clip(moved, *bounds)


def worst_margins(
    w: Any, b: float, x: Any, y: Any, *, eps: float, bounds: Bounds | None = None
) -> np.ndarray:
    """m [N] of every image; at most 0 where the adversary wins. As `worst_case`."""
    check_number("b", b)
    moved = worst_case(w, x, y, eps=eps, bounds=bounds)
    return np.asarray(y) * (_flat(moved) @ np.ravel(w) + b)


def collapse_radius(x: Any, y: Any) -> float:
    """½ max_j |E[x_j | y = 1] − E[x_j | y = −1]|: from this ε on w = 0 is optimal.

    Without bounds, for any class balance: at w = 0 and the best b both classes have
    the same weight in the gradient, which then is ε − ½|difference of the means| > 0.
    """
    x, y = _check_both(x, y, 0.0, None)
    return float(np.abs(x[y > 0].mean(axis=0) - x[y < 0].mean(axis=0)).max() / 2)


def fit(
    x: Any,
    y: Any,
    *,
    eps: float,
    bounds: Bounds | None = None,
    l2: float = 0.0,
    tolerance: float = 1e-9,
    max_iterations: int = 10_000,
) -> LinearClassifier:
    """The minimiser of J; see the module.

    Args:
      x: [N, *S] images, any floating dtype; computed in float64.
      y: [N] labels in {−1, +1}, both present.
      eps: ε ≥ 0 in L∞.
      bounds: lowest and highest pixel value of the adversary's images; None: none.
      l2: λ ≥ 0.
      tolerance: the `residual` to aim for.
      max_iterations: of L-BFGS-B. Too few show in `residual`.

    Raises:
      ValueError: an argument is malformed; or all images are right under attack and l2
        is 0, so that J has no minimum (it falls on to 0 as ‖w‖ grows). If some can only
        be right by being on the boundary, J has none either, but that is not noticed:
        w then depends on `tolerance`, and a small l2 is the remedy.
    """
    x, y = _check_both(x, y, eps, bounds)
    check_number("l2", l2, minimum=0)
    check_number("tolerance", tolerance, minimum=0)
    rows = _features(_flat(x), y, eps, bounds)
    d = (rows.shape[1] - 1) // 2

    def objective(theta: np.ndarray) -> tuple[float, np.ndarray]:
        margins, w = rows @ theta, theta[:d] - theta[d : 2 * d]
        value = np.logaddexp(0, -margins).mean() + l2 / 2 * (w @ w)
        slope = -(special.expit(-margins) @ rows) / len(rows)
        slope[:d] += l2 * w
        slope[d : 2 * d] -= l2 * w
        return float(value), slope

    found = optimize.minimize(
        objective,
        np.zeros(2 * d + 1),
        jac=True,
        method="L-BFGS-B",
        bounds=[(0, None)] * (2 * d) + [(None, None)],
        options={
            "maxiter": check_count("max_iterations", max_iterations),
            "maxfun": 10 * max_iterations,
            "maxcor": 50,
            "ftol": 0,
            "gtol": tolerance,
        },
    )
    w = found.x[:d] - found.x[d : 2 * d]
    theta = np.concatenate([np.maximum(w, 0), np.maximum(-w, 0), found.x[-1:]])
    if l2 == 0 and (rows @ theta > 0).all():
        raise ValueError(
            f"l2 must be positive here, got 0: at eps = {eps:g} every image can be "
            "right under attack, so that there is no optimum"
        )
    value, slope = objective(theta)
    up, down = slope[:d], slope[d : 2 * d]  # ∂J/∂p, ∂J/∂q; at w_j = 0 both must be ≥ 0
    at_zero = np.maximum(0, np.maximum(-up, -down))
    distance = np.where(w > 0, np.abs(up), np.where(w < 0, np.abs(down), at_zero))
    residual = max(distance.max(), abs(slope[-1]))
    return LinearClassifier(
        w.reshape(x.shape[1:]), float(theta[-1]), value, float(residual), found.nit
    )


def _features(x: np.ndarray, y: np.ndarray, eps: float, bounds: Bounds | None):
    """The rows (±l, ∓h, y) [N, 2d + 1] with m = ⟨row, (p, q, b)⟩."""
    low, high = x - eps, x + eps
    if bounds is not None:
        low, high = np.clip(low, *bounds), np.clip(high, *bounds)
    positive = (y > 0)[:, None]
    of_p, of_q = np.where(positive, low, -high), np.where(positive, -high, low)
    return np.concatenate([of_p, of_q, y[:, None]], axis=1)


def _flat(x: np.ndarray) -> np.ndarray:
    return x.reshape(len(x), -1)


def _check(x: Any, y: Any, eps: Any, bounds: Any) -> tuple[np.ndarray, np.ndarray]:
    x = np.asarray(x)
    check_images(x, bounds=None if bounds is None else check_bounds(bounds))
    check_number("eps", eps, minimum=0)
    y = np.asarray(y)
    if y.shape != x.shape[:1] or not np.isin(y, (-1, 1)).all():
        raise ValueError(
            f"y must hold labels -1 and 1 in shape {x.shape[:1]}, got shape {y.shape} "
            f"with values {np.unique(y)[:5]}"
        )
    return x.astype(np.float64), y.astype(np.float64)


def _check_both(*arguments: Any) -> tuple[np.ndarray, np.ndarray]:
    x, y = _check(*arguments)
    if np.ptp(y) == 0:
        raise ValueError(f"y must hold both labels, -1 and 1, got only {y[0]:g}")
    return x, y
