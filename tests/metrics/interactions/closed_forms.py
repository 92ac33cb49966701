"""Large games whose interactions are known; float64 on the host."""

import math

import numpy as np


def local_triples(side, seed=0):
    """Σ_T a_T [T ⊆ S] over straight triples of neighbouring cells of a grid.

    Returns:
      The value function, the triples [K, 3] and their dividends [K].
    """
    cell = np.arange(side * side).reshape(side, side)
    rows = np.stack([cell[:, :-2], cell[:, 1:-1], cell[:, 2:]], -1).reshape(-1, 3)
    columns = np.stack([cell[:-2], cell[1:-1], cell[2:]], -1).reshape(-1, 3)
    triples = np.concatenate([rows, columns])
    belongs = (np.arange(side * side)[:, None, None] == triples).any(2)
    belongs = belongs.astype(np.float32)
    dividends = np.random.default_rng(seed).exponential(size=len(triples))

    def value_fn(masks):
        present = masks.astype(np.float32) @ belongs
        return (present == 3) @ dividends

    return value_fn, triples, dividends


def triple_interactions(triples, dividends, pairs, n, orders):
    """The mean over `pairs` of Σ_{T⊇ij} a_T C(n − 3, m − 1) / C(n − 2, m)."""
    inside = [
        sum(a for t, a in zip(triples, dividends, strict=True) if {*pair} <= {*t})
        for pair in pairs.tolist()
    ]
    share = [math.comb(n - 3, m - 1) / math.comb(n - 2, m) if m else 0 for m in orders]
    return np.mean(inside) * np.array(share)


def quadratic(n, seed=0):
    """Σ a_i s_i + Σ_{i<j} b_ij s_i s_j, and b [n, n], symmetric."""
    rng = np.random.default_rng(seed)
    linear = rng.normal(size=n)
    b = rng.normal(1, 1, size=(n, n))
    b = np.triu(b, 1) + np.triu(b, 1).T

    def value_fn(masks):
        s = masks.astype(float)
        return s @ linear + ((s @ b) * s).sum(1) / 2

    return value_fn, b


def product(n, seed=0):
    """Π_{i∈S} t_i and t [n], which changes slowly from player to player."""
    t = (
        1
        + 0.05 * np.sin(np.arange(n) / 9)
        + 0.01 * np.random.default_rng(seed).normal(size=n)
    )

    def value_fn(masks):
        return np.exp(masks @ np.log(t))

    return value_fn, t


def product_curvature(t):
    """Δ²V(m) for all m, V(k) = e_k(t) / C(n, k): the mean over all pairs."""
    means = np.ones(1)
    for r, factor in enumerate(t, start=1):
        k = np.arange(r + 1)
        grown = (r - k) * np.append(means, 0) + k * factor * np.insert(means, 0, 0)
        means = grown / r
    return np.diff(means, n=2)


def product_interactions(t, pairs, orders):
    """The mean over `pairs` of (t_i − 1)(t_j − 1) e_m(t without ij) / C(n − 2, m)."""
    keep = np.ones((len(pairs), len(t)), bool)
    keep[np.arange(len(pairs))[:, None], pairs] = False
    rest = np.broadcast_to(t, keep.shape)[keep].reshape(len(pairs), -1)
    means = np.zeros((len(pairs), rest.shape[1] + 1))
    means[:, 0] = 1
    # e_k / C(r, k) of r factors, one factor more each time
    for r, factor in enumerate(rest.T, start=1):
        k = np.arange(1, r + 1)
        old = means[:, : r + 1].copy()
        means[:, 1 : r + 1] = (
            (r - k) * old[:, 1:] + k * factor[:, None] * old[:, :-1]
        ) / r
    ends = (t[pairs] - 1).prod(1)
    return (ends[:, None] * means[:, orders]).mean(0)
