"""What the best attack on a linear model does, in float64."""

import numpy as np


def best_gain(w, x, norm, eps) -> float:
    """max ⟨w, δ⟩ over ‖δ‖ ≤ ε and 0 ≤ x + δ ≤ 1; w, x of any equal shape.

    L∞: every pixel to its end. L1: ε goes to the pixels of largest |w| first. L2:
    δ = min(t|w|, room) for the t that spends ε, by bisection.
    """
    w, x = np.asarray(w, np.float64).ravel(), np.asarray(x, np.float64).ravel()
    room = np.where(w > 0, 1 - x, x)
    if norm == "Linf":
        move = np.minimum(room, eps)
    elif norm == "L1":
        move, left = np.zeros_like(w), eps
        for i in np.argsort(-np.abs(w)):
            move[i] = min(room[i], left)
            left -= move[i]
    else:
        low, high = 0.0, 1e6
        for _ in range(200):
            t = (low + high) / 2
            inside = np.linalg.norm(np.minimum(t * np.abs(w), room)) <= eps
            low, high = (t, high) if inside else (low, t)
        move = np.minimum(low * np.abs(w), room)
    return float(np.abs(w) @ move)


def best_margin(weights, x, y, norm, eps) -> float:
    """max over ball ∩ box of max_{c≠y} z_c − z_y for z = x weights [d, K]."""
    weights, x = np.asarray(weights, np.float64), np.asarray(x, np.float64).ravel()
    gaps = [weights[:, c] - weights[:, y] for c in range(weights.shape[1]) if c != y]
    return max(float(gap @ x) + best_gain(gap, x, norm, eps) for gap in gaps)
