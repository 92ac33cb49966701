"""What the best attack on a linear model does, in float64."""

import numpy as np
from scipy.optimize import linprog, minimize


def best_gain(w, x, norm, eps, low=0.0, high=1.0) -> float:
    """max ⟨w, δ⟩ over ‖δ‖ ≤ ε and low ≤ x + δ ≤ high; w, x of any equal shape.

    L∞: every pixel to its end. L1: ε goes to the pixels of largest |w| first. L2:
    δ = min(t|w|, room) for the t that spends ε, by bisection.
    """
    w, x, low, high = (np.asarray(a, np.float64).ravel() for a in (w, x, low, high))
    room = np.where(w > 0, high - x, x - low)
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


def least_eps(w, need, x, norm, low, high):
    """The least ε with `best_gain` ≥ `need`, by bisection; inf if there is none."""
    none, enough = 0.0, float(np.sum(high - low))
    if best_gain(w, x, norm, enough, low, high) < need:
        return np.inf
    for _ in range(60):
        middle = (none + enough) / 2
        reached = best_gain(w, x, norm, middle, low, high) >= need
        none, enough = (none, middle) if reached else (middle, enough)
    return enough


def to_hyperplane(w, need, x, norm):
    """The least ‖δ‖ with ⟨w, δ⟩ ≥ need > 0 and x + δ in the box; inf if there is none.

    L∞ and L1 by linear programming, L2 by bisection, L0 by taking what helps most.
    """
    if best_gain(w, x, "Linf", 1.0) < need:
        return np.inf
    if norm == "L0":
        gains = np.sort(np.where(w > 0, w * (1 - x), -w * x))[::-1]
        return 1 + np.flatnonzero(gains.cumsum() >= need)[0]
    if norm == "L2":
        room, low, high = np.where(w > 0, 1 - x, x), 0.0, 1e6
        for _ in range(100):
            middle = (low + high) / 2
            far = np.abs(w) @ np.minimum(middle * np.abs(w), room) >= need
            low, high = (low, middle) if far else (middle, high)
        return np.linalg.norm(np.minimum(high * np.abs(w), room))
    n = x.size
    # variables: δ, then one bound on all |δ_i| (L∞) or one on each (L1)
    bound = np.ones((n, 1)) if norm == "Linf" else np.eye(n)
    solution = linprog(
        np.r_[np.zeros(n), np.ones(bound.shape[1])],
        A_ub=np.block([[np.eye(n), -bound], [-np.eye(n), -bound]]),
        b_ub=np.zeros(2 * n),
        A_eq=np.r_[w, np.zeros(bound.shape[1])][None],
        b_eq=[need],
        bounds=[(-u, 1 - u) for u in x] + [(0, None)] * bound.shape[1],
    )
    return solution.fun


def shortest(weights, bias, x, y, norm, margin=0.0):
    """[B] distance to the nearest image of this margin for z = x weights + bias."""
    weights, bias = (np.asarray(a, np.float64) for a in (weights, bias))
    images = np.asarray(x, np.float64).reshape(len(x), -1)
    logits = images @ weights + bias
    return np.array(
        [
            min(
                to_hyperplane(
                    weights[:, c] - weights[:, t], z[t] - z[c] + margin, image, norm
                )
                for c in range(len(bias))
                if c != t
            )
            for image, z, t in zip(images, logits, np.asarray(y), strict=True)
        ]
    )


def to_class(weights, bias, x, targets, norm):
    """[B] least ‖δ‖, L2 or L∞, for which class t has the largest logit, in the box.

    inf where the box holds no such image.

    L∞ by linear programming, L2 by sequential quadratic programming.
    """
    weights, bias = (np.asarray(a, np.float64) for a in (weights, bias))
    images = np.asarray(x, np.float64).reshape(len(x), -1)
    n = images.shape[1]
    found = []
    for image, t in zip(images, targets, strict=True):
        gaps = (weights[:, [t]] - np.delete(weights, t, axis=1)).T
        need = np.delete(bias, t) - bias[t] - gaps @ image
        box = [(-u, 1 - u) for u in image]
        if norm == "L2":
            inside = {"type": "ineq", "fun": lambda d, g=gaps, m=need: g @ d - m}
            squares = (lambda d: d @ d), np.zeros(n)
            options = {"ftol": 1e-14, "maxiter": 500}
            solved = minimize(
                *squares,
                bounds=box,
                constraints=inside,
                method="SLSQP",
                options=options,
            )
            reached = (gaps @ solved.x >= need - 1e-6).all()
            found.append(np.sqrt(solved.fun) if reached else np.inf)
            continue
        ones = np.ones((n, 1))
        solved = linprog(
            np.r_[np.zeros(n), 1],
            A_ub=np.block(
                [
                    [np.eye(n), -ones],
                    [-np.eye(n), -ones],
                    [-gaps, np.zeros((len(gaps), 1))],
                ]
            ),
            b_ub=np.r_[np.zeros(2 * n), -need],
            bounds=[*box, (0, None)],
        )
        found.append(solved.fun if solved.status == 0 else np.inf)
    return np.array(found)
