"""The lasso path and the ℓ∞-penalised path, from w = 0 to λ = 0, node by node.

Both are the minimisers of ½ (w − w*)ᵀ Σ (w − w*) + λ‖w‖_q over λ, and piecewise linear.
With the pull z = Σ(w* − w), w is one of them where

    q = 1    z_i = λ s_i where w_i ≠ 0, else |z_i| ≤ λ           λ falls to 0
    q = ∞    z_i = 0 where |w_i| < t, else w_i = t s_i, z_i s_i ≥ 0    t = ‖w‖_∞ grows

with signs s, λ = ‖z‖_p. On a piece some weights are free (those ≠ 0; those inside ±t)
and the others known (0; ±t). It ends where a weight or a pull meets its bound. How the
tied ones, which just met theirs, move on is a quadratic program,

    min ½ vᵀΣv − fᵀv    q = 1: f = s and s_i v_i ≥ 0    q = ∞: f = 0 and s_i v_i ≤ 1

with bounds for the tied ones alone: v_i is any number where w_i is free already, and 0
(q = 1) or s_i (q = ∞) where w_i is known. Ties and singular Σ need nothing else.
"""

from typing import Any, NamedTuple

import numpy as np
from scipy import linalg

_LAPACK: Any = linalg.lapack  # without types
# Relative to λ or t: what meets its bound within this meets it at once.
_TIE = 1e-11
# Relative to the terms of a sum: what is less is 0.
_ROUNDING = 1e-14
_PIECES = 100  # times d, at most


class Nodes(NamedTuple):
    """Nodes of a piecewise linear path, that of the least λ first.

    Attributes:
      w: [..., k, d] weights.
      error: [..., k, d] w − w*, accurate where it is small.
      pull: [..., k, d] Σ(w* − w).
    """

    w: np.ndarray
    error: np.ndarray
    pull: np.ndarray


def trace(covariance: np.ndarray, w_star: np.ndarray, norm: float) -> Nodes:
    """The nodes of the path for the attack's norm p = ∞ (q = 1) or p = 1 (q = ∞).

    >>> nodes = trace(np.eye(2), np.array([2.0, 0.5]), np.inf)
    >>> nodes.w.round(6).tolist()  # from λ = 0 to w = 0
    [[2.0, 0.5], [1.5, 0.0], [0.0, 0.0]]
    """
    sparse = norm == np.inf
    w = 0 * w_star
    error = -w_star
    pull = covariance @ w_star
    nodes = [Nodes(w, error, pull)]
    sign = np.sign(pull)
    radius = np.abs(pull).max() if sparse else 0.0  # λ or t
    tied = np.abs(pull) >= radius * (1 - _TIE) if sparse else pull == 0
    free = np.zeros_like(tied) if sparse else tied
    for _ in range(_PIECES * len(w_star)):
        if not pull.any():
            break
        move, free = _direction(covariance, sign, free, tied, sparse)
        sign = np.where(tied & ~free & (sign == 0), move, sign)
        drift = covariance @ move
        if sparse:
            events = _events(w, move, pull, -drift, radius, -1, free, sign, tied)
            # at λ = 0 a weight that is 0 but for rounding is 0, not about to be
            late = np.abs(w + radius * move) <= _TIE * np.abs(w).sum()
            time = np.where(late & free, radius, events.time)
            events = events._replace(time=time)
            step = time.min()
            step = radius if step >= radius * (1 - _TIE) else step
        else:
            events = _events(pull, -drift, w, move, radius, 1, ~free, sign, tied)
            step = events.time.min()
        if not np.isfinite(step):
            # what is left of the pulls is rounding, of features that others explain
            nodes[-1] = nodes[-1]._replace(pull=0 * pull)
            break
        once = _TIE * max(radius, step)
        met = events.time <= step + once
        sign = np.where(met, events.sign, sign)
        tied = met | (tied & (step <= once))
        radius += -step if sparse else step
        # the bounds first, exactly; then the rest, so that no rounding is passed on
        inside = free & ~tied
        known = 0 * sign if sparse else radius * sign
        error = np.where(inside, error + step * move, known - w_star)
        excess = -(covariance @ error) - (radius * sign if sparse else 0)
        error[inside] += _solve(covariance[np.ix_(inside, inside)], excess[inside])
        w = np.where(inside, w_star + error, known)
        pull = -(covariance @ error)
        terms = np.abs(covariance) @ (np.abs(w) + np.abs(w_star))
        settled = np.abs(pull) <= _ROUNDING * terms
        if radius == 0 or (settled if sparse else settled | inside).all():
            pull = 0 * pull
        nodes.append(Nodes(w, error, pull))
    else:
        raise RuntimeError(f"a path of more than {_PIECES} d pieces, d = {len(w_star)}")
    nodes = nodes[::-1] if len(nodes) > 1 else 2 * nodes
    return Nodes(*map(np.array, zip(*nodes, strict=True)))


class _Events(NamedTuple):
    """When each feature meets its bound, and the sign that it then has; [d]."""

    time: np.ndarray
    sign: np.ndarray


def _events(
    falling: np.ndarray,
    its_speed: np.ndarray,
    bounded: np.ndarray,
    speed: np.ndarray,
    radius: float,
    growth: float,
    inner: np.ndarray,
    sign: np.ndarray,
    tied: np.ndarray,
) -> _Events:
    """On `inner`, `falling` meets 0; elsewhere `bounded` meets ± the radius."""
    zero = _time(sign * falling, sign * its_speed, inner & ~tied)

    def meets(side: int) -> np.ndarray:
        closing = growth - side * speed
        # a bound that the feature moves along is not met
        apart = ~inner & ~(tied & (sign == side)) & (closing < -1e-12)
        return _time(radius - side * bounded, closing, apart)

    above = meets(1)
    below = meets(-1)
    time = np.minimum(zero, np.minimum(above, below))
    sign = np.where(inner, sign, np.where(above <= below, 1, -1))
    return _Events(time, sign)


def _time(room: np.ndarray, speed: np.ndarray, where: np.ndarray) -> np.ndarray:
    """When room + time · speed is 0, [d]; inf where it is not, or is not asked for."""
    falls = where & (speed < 0)
    return np.where(falls, np.maximum(room, 0) / np.where(falls, -speed, 1), np.inf)


def _direction(
    covariance: np.ndarray,
    sign: np.ndarray,
    free: np.ndarray,
    tied: np.ndarray,
    sparse: bool,
) -> tuple[np.ndarray, np.ndarray]:
    """The program of the module: v [d], and which weights are free from now on."""
    free = free & ~tied
    if sparse:
        low = np.where(tied & (sign < 0), -np.inf, 0)
        high = np.where(tied & (sign > 0), np.inf, 0)
        move = 0 * sign
        linear = sign
        start = free
    else:
        low = np.where(tied, np.where(sign > 0, -np.inf, -1), sign)
        high = np.where(tied, np.where(sign < 0, np.inf, 1), sign)
        move = np.where(free, 0, sign)
        linear = 0 * sign
        start = free | (tied & (sign == 0))
    low = np.where(free, -np.inf, low)
    high = np.where(free, np.inf, high)
    return _minimise(covariance, linear, low, high, move, start)


def _minimise(
    covariance: np.ndarray,
    linear: np.ndarray,
    low: np.ndarray,
    high: np.ndarray,
    move: np.ndarray,
    free: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """min ½ vᵀΣv − fᵀv, low ≤ v ≤ high, by active sets from a feasible v; v and free.

    As Lawson and Hanson's for v ≥ 0: each round solves for the free weights, stops them
    at the first bound, and frees the one whose bound costs the most.
    """
    free = free.copy()
    freed = np.zeros(len(free), int)
    while True:
        target = move.copy()
        rest = linear - covariance[:, ~free] @ move[~free]
        target[free] = _solve(covariance[np.ix_(free, free)], rest[free])
        way = target - move
        limit = np.where(way > 0, high, low)
        blocked = free & np.where(way > 0, target > high, target < low)
        if blocked.any():
            share = np.ones_like(move)
            share[blocked] = (limit - move)[blocked] / way[blocked]
            first = int(share.argmin())
            move = move + share[first] * way
            move[first] = limit[first]
            free[first] = False
            continue
        move = target
        slope = linear - covariance @ move
        rounding = 10 * _ROUNDING * (np.abs(linear) + np.abs(covariance) @ np.abs(move))
        inward = np.where(move >= high, -slope, np.where(move <= low, slope, 0))
        inward = np.where(free | (freed > 2) | (low == high), 0, inward - rounding)
        most = int(inward.argmax())
        if inward[most] <= 0:
            return move, free
        free[most] = True
        freed[most] += 1  # what is sent back again and again is rounding


def _solve(matrix: np.ndarray, right: np.ndarray) -> np.ndarray:
    """A solution of a positive semi-definite system, scaled to a unit diagonal."""
    if not len(right):
        return right
    variance = np.diag(matrix)
    scale = 1 / np.sqrt(np.where(variance > 0, variance, 1))
    scaled = scale[:, None] * matrix * scale
    factor, failed = _LAPACK.dpotrf(scaled, lower=1)
    if failed or np.diag(factor).min() < 1e-7:
        return scale * np.linalg.lstsq(scaled, scale * right, rcond=1e-14)[0]
    solution, _ = _LAPACK.dpotrs(factor, scale * right, lower=1)
    return scale * solution
