"""Adversarial training of a linear classifier, to its exact optimum and without PGD.

The score is s(x) = ⟨w, x⟩ + b, labels y are in {−1, +1}, and the adversary has an L∞
ball of radius ε. The worst score is known in closed form, also where images are kept
inside bounds. Let l = max(x − ε, low) and h = min(x + ε, high) be the lowest and the
highest value that pixel j can take, and w = p − q with p, q ≥ 0. Then

    worst margin  m(x, y) = ⟨p, l⟩ − ⟨q, h⟩ + b       for y = +1
                          = ⟨q, l⟩ − ⟨p, h⟩ − b       for y = −1

Without bounds m = y s(x) − ε‖w‖₁: Tsipras et al., ICLR 2019, section 2.2. The margin is
linear in θ = (p, q, b), so that adversarial training

    J(w, b) = mean log(1 + e^{−m}) + λ/2 ‖w‖₂²

is logistic regression with non-negative weights on the features (±l, ∓h). J is convex,
and L-BFGS-B finds its minimum in float64. `residual` certifies how near it came: the
largest entry of the subgradient of J that is closest to 0.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial
from jax.typing import ArrayLike
from scipy import optimize, special

from robjax.checks import Bounds, check_bounds, check_count, check_images, check_number
from robjax.samples import is_concrete


class LinearClassifier(NamedTuple):
    """The minimiser of J and how it was reached.

    Attributes:
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

    def __repr__(self) -> str:
        """How many pixels it looks at and how good an optimum it is; not the arrays."""
        if not all(isinstance(part, int | float) or is_concrete(part) for part in self):
            return "LinearClassifier(traced)"
        used = f"{np.count_nonzero(self.w)} of {np.size(self.w)} weights nonzero"
        optimum = f"objective {self.objective:.4g}, residual {self.residual:.1e}"
        return f"LinearClassifier({used}, {optimum})"


def _logits(w: jax.Array, b: jax.Array, x: jax.Array) -> jax.Array:
    weights = w.astype(x.dtype).reshape(-1)
    score = x.reshape(len(x), -1) @ weights + b.astype(x.dtype)
    return jnp.stack([-score / 2, score / 2], axis=1)


def worst_case(
    w: ArrayLike,
    x: ArrayLike,
    y: ArrayLike,
    *,
    eps: float,
    bounds: Bounds | None = None,
) -> np.ndarray:
    """The images [N, *S] of lowest margin: x − ε y sign(w), inside the bounds.

    >>> x = np.array([[0.25, 0.5]])
    >>> worst_case(np.array([2.0, 0.0]), x, np.array([1]), eps=0.125).tolist()
    [[0.125, 0.5]]

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
    w: ArrayLike,
    b: float,
    x: ArrayLike,
    y: ArrayLike,
    *,
    eps: float,
    bounds: Bounds | None = None,
) -> np.ndarray:
    """The margin m [N] of every image; at most 0 where the adversary wins.

    >>> x = np.array([[0.25, 0.5]])
    >>> worst_margins(np.array([2.0, 0.0]), 0.0, x, np.array([1]), eps=0.125).tolist()
    [0.25]

    Args:
      w, x, y, eps, bounds: as in `worst_case`.
      b: bias.

    Raises:
      ValueError: an argument is malformed; the message names it.
    """
    check_number("b", b)
    moved = worst_case(w, x, y, eps=eps, bounds=bounds)
    return np.asarray(y) * (_flat(moved) @ np.ravel(w) + b)


def collapse_radius(x: ArrayLike, y: ArrayLike) -> float:
    """The ε from which on w = 0 is optimal: half the largest difference of the means.

    ½ max_j |E[x_j | y = 1] − E[x_j | y = −1]|, without bounds and for any class
    balance. At w = 0 and the best b both classes have the same weight in the gradient.
    It is then ε − ½|difference of the means| > 0.

    >>> x = np.array([[0.25, 0.5], [0.75, 0.5]])
    >>> collapse_radius(x, np.array([-1, 1]))
    0.25

    Raises:
      ValueError: as in `fit`.
    """
    x, y = _check_both(x, y, 0.0, None)
    return float(np.abs(x[y > 0].mean(axis=0) - x[y < 0].mean(axis=0)).max() / 2)


def fit(
    x: ArrayLike,
    y: ArrayLike,
    *,
    eps: float,
    bounds: Bounds | None = None,
    l2: float = 0.0,
    tolerance: float = 1e-9,
    max_iterations: int = 10_000,
) -> LinearClassifier:
    """Trains a linear classifier against an adversary: the minimiser of J.

    J is defined in the module.

    >>> x = np.array([[0.25, 0.5], [0.75, 0.5]])  # only the first pixel differs
    >>> y = np.array([-1, 1])
    >>> fit(x, y, eps=0.125, l2=0.1)  # doctest: +ELLIPSIS
    LinearClassifier(1 of 2 weights nonzero, objective 0.6..., residual ...)
    >>> fit(x, y, eps=0.25).w.tolist()  # from `collapse_radius` on
    [0.0, 0.0]

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
    d = x[0].size
    found = optimize.minimize(
        _objective,
        np.zeros(2 * d + 1),
        (rows, l2),
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
    w = _split(found.x).w
    # taking the same off p_j and q_j lowers no margin, so one of them may be 0
    theta = np.concatenate([np.maximum(w, 0), np.maximum(-w, 0), found.x[-1:]])
    if l2 == 0 and (rows @ theta > 0).all():
        raise ValueError(
            f"l2 must be positive here, got 0: at eps = {eps:g} every image can be "
            "right under attack, so that there is no optimum"
        )
    value, slope = _objective(theta, rows, l2)
    return LinearClassifier(
        w=w.reshape(x.shape[1:]),
        b=float(theta[-1]),
        objective=value,
        residual=_residual(w, slope),
        iterations=found.nit,
    )


class _Theta(NamedTuple):
    """θ = (p, q, b), or the derivatives for its parts."""

    p: np.ndarray
    q: np.ndarray
    b: float

    @property
    def w(self) -> np.ndarray:
        return self.p - self.q


def _split(theta: np.ndarray) -> _Theta:
    """The parts of θ [2d + 1]."""
    d = len(theta) // 2
    return _Theta(p=theta[:d], q=theta[d : 2 * d], b=theta[-1])


def _objective(
    theta: np.ndarray, rows: np.ndarray, l2: float
) -> tuple[float, np.ndarray]:
    """J and its gradient [2d + 1]."""
    margins = rows @ theta
    w = _split(theta).w
    value = np.logaddexp(0, -margins).mean() + l2 / 2 * (w @ w)
    slope = -(special.expit(-margins) @ rows) / len(rows)
    return float(value), slope + l2 * np.concatenate([w, -w, [0.0]])


def _residual(w: np.ndarray, slope: np.ndarray) -> float:
    """‖·‖_∞ of the subgradient of J in (w, b) that is closest to 0.

    With w_j > 0 that is ∂J/∂p_j, with w_j < 0 ∂J/∂q_j. At w_j = 0 both must be ≥ 0.
    """
    up, down, bias = _split(slope)
    at_zero = np.maximum(0, np.maximum(-up, -down))
    distance = np.where(w > 0, np.abs(up), np.where(w < 0, np.abs(down), at_zero))
    return float(max(distance.max(), abs(bias)))


def _features(
    x: np.ndarray, y: np.ndarray, eps: float, bounds: Bounds | None
) -> np.ndarray:
    """The rows (±l, ∓h, y) [N, 2d + 1] with m = ⟨row, (p, q, b)⟩."""
    low = x - eps
    high = x + eps
    if bounds is not None:
        low = np.clip(low, *bounds)
        high = np.clip(high, *bounds)
    positive = (y > 0)[:, None]
    of_p = np.where(positive, low, -high)
    of_q = np.where(positive, -high, low)
    return np.concatenate([of_p, of_q, y[:, None]], axis=1)


def _flat(x: np.ndarray) -> np.ndarray:
    return x.reshape(len(x), -1)


def _check(
    x: object, y: object, eps: object, bounds: object
) -> tuple[np.ndarray, np.ndarray]:
    """Images and labels in float64, if all arguments are well formed."""
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


def _check_both(*arguments: object) -> tuple[np.ndarray, np.ndarray]:
    """As `_check`, where both labels must be there."""
    x, y = _check(*arguments)
    if np.ptp(y) == 0:
        raise ValueError(f"y must hold both labels, -1 and 1, got only {y[0]:g}")
    return x, y
