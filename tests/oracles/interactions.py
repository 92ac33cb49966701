"""Interactions by their definitions, set by set; shares no code with robjax."""

import itertools
import math

import numpy as np


def subsets(players):
    """All subsets of some players, as frozensets."""
    for size in range(len(players) + 1):
        yield from map(frozenset, itertools.combinations(players, size))


def random_game(n, seed):
    """A worth for every set, and the value function on masks that pays it."""
    rng = np.random.default_rng(seed)
    worth = {s: float(rng.normal()) for s in subsets(range(n))}
    return worth, on_masks(worth)


def on_masks(worth):
    """The value function on masks of a game given set by set."""

    def value_fn(masks):
        return np.array([worth[frozenset(np.flatnonzero(mask))] for mask in masks])

    return value_fn


def difference(worth, i, j, s):
    return worth[s | {i, j}] - worth[s | {i}] - worth[s | {j}] + worth[s]


def contexts(n, i, j, m):
    return [s for s in subsets([k for k in range(n) if k not in (i, j)]) if len(s) == m]


def interactions(worth, n):
    """I_ij^(m) at (m, i, j), NaN on the diagonal."""
    found = np.full((n - 1, n, n), np.nan)
    for m, i, j in itertools.product(range(n - 1), range(n), range(n)):
        if i != j:
            found[m, i, j] = np.mean(
                [difference(worth, i, j, s) for s in contexts(n, i, j, m)]
            )
    return found


def magnitudes(worth, n):
    """E_S |Δv| at (m, i, j), NaN on the diagonal."""
    found = np.full((n - 1, n, n), np.nan)
    for m, i, j in itertools.product(range(n - 1), range(n), range(n)):
        if i != j:
            found[m, i, j] = np.mean(
                [abs(difference(worth, i, j, s)) for s in contexts(n, i, j, m)]
            )
    return found


def order_shapley(worth, n):
    """φ^(m)(i) at (m, i)."""
    found = np.zeros((n, n))
    for m, i in itertools.product(range(n), range(n)):
        rest = [s for s in subsets([k for k in range(n) if k != i]) if len(s) == m]
        found[m, i] = np.mean([worth[s | {i}] - worth[s] for s in rest])
    return found


def shapley(worth, n):
    """The Shapley value with its factorial weights."""
    found = np.zeros(n)
    for i in range(n):
        for s in subsets([k for k in range(n) if k != i]):
            weight = math.factorial(len(s)) * math.factorial(n - len(s) - 1)
            found[i] += weight / math.factorial(n) * (worth[s | {i}] - worth[s])
    return found


def grabisch_roubens(worth, n):
    """The Shapley interaction index with its factorial weights [n, n]."""
    found = np.full((n, n), np.nan)
    for i, j in itertools.permutations(range(n), 2):
        found[i, j] = 0
        for s in subsets([k for k in range(n) if k not in (i, j)]):
            weight = math.factorial(len(s)) * math.factorial(n - 2 - len(s))
            found[i, j] += weight / math.factorial(n - 1) * difference(worth, i, j, s)
    return found


def dividends(worth, n):
    """a_T by the alternating sum, as a dictionary."""
    return {
        t: sum((-1) ** (len(t) - len(s)) * worth[s] for s in subsets(sorted(t)))
        for t in subsets(range(n))
    }


def number(s):
    return sum(2**i for i in s)
