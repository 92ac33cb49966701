"""All interactions of all orders of a game with few players, from all its 2^n values.

Ren et al., arXiv 2103.07364, section 3. With N = {1, …, n} and v(S) what S is worth,

    Δv(i, j, S) = v(S ∪ ij) − v(S ∪ i) − v(S ∪ j) + v(S)
    I_ij^(m)    = E Δv(i, j, S) over S ⊆ N∖{i, j}, |S| = m          m = 0 … n − 2
    φ^(m)(i)    = E [v(S ∪ i) − v(S)] over S ⊆ N∖{i}, |S| = m       m = 0 … n − 1
    φ(i)        = mean of φ^(m)(i) over m, the Shapley value
    a_T         = Σ_{S⊆T} (−1)^{|T|−|S|} v(S), the Harsanyi dividends (Möbius transform)

**How.** In a set of size k each of i and j is present or absent. So every mean above
follows from three sums over the sets of one size k,

    T(k) = Σ v(S)     P_i(k) = Σ_{S∋i} v(S)     P_ij(k) = Σ_{S∋i,j} v(S)

since, for example, the sets with i and without j sum to P_i − P_ij. P is one matrix
product for each size: 2^n n² multiply-adds for all pairs and all orders.

**Accuracy.** All sums are in float64. With |v − v(∅)| at most V, the rounding of an
interaction is about 1e-16 n² V, that of a dividend about 1e-16 2^n V. What a float32
value function rounds itself comes on top; an interaction is a mean of differences, so
it keeps that error small, and a dividend adds up to 2^n such errors.
"""

import math
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

from robjax.checks import check_count, check_flags
from robjax.metrics.interactions.games import ValueFn
from robjax.samples import is_concrete

MOST_PLAYERS = 20
_MASKS_AT_ONCE = 2**13


class ExactInteractions(NamedTuple):
    """Everything about a game of n players; float64 on the host.

    Several games at once put their axes first.

    Attributes:
      interactions: [n − 1, n, n] I_ij^(m) at (m, i, j); symmetric, NaN for i = j.
      shapley: [n] φ(i).
      order_shapley: [n, n] φ^(m)(i) at (m, i).
      mobius: [2^n] a_T at the number Σ_{i∈T} 2^i of T.
      values: [2^n] v(S), numbered in the same way.
    """

    interactions: np.ndarray
    shapley: np.ndarray
    order_shapley: np.ndarray
    mobius: np.ndarray
    values: np.ndarray

    def __repr__(self) -> str:
        """The number of players and the strongest pair of the first game."""
        if not all(map(is_concrete, self)):
            return "ExactInteractions(traced)"
        n = self.players
        first = np.asarray(self.interactions).reshape(-1, n - 1, n, n)[0]
        strength = np.where(np.isnan(first), 0, np.abs(first))
        m, i, j = np.unravel_index(strength.argmax(), first.shape)
        strongest = f"players {i} and {j} at order {m}, {first[m, i, j]:.3g}"
        if not np.isfinite(np.asarray(self.values)).all():
            strongest = "unknown, some values are not finite"
        elif not strength.any():
            strongest = "no interactions"
        return (
            f"ExactInteractions({n} players, games {list(self.shapley.shape[:-1])}, "
            f"strongest: {strongest})"
        )

    @property
    def players(self) -> int:
        """The number n of players."""
        return self.shapley.shape[-1]

    @property
    def mean(self) -> np.ndarray:
        """[n − 1] the mean of I_ij^(m) over all pairs, for each order."""
        upper = np.triu_indices(self.players, 1)
        return self.interactions[..., *upper].mean(-1)

    @property
    def visibility(self) -> np.ndarray:
        """[n + 1] V(k), the mean of v(S) over the sets of size k."""
        sizes = set_sizes(self.players)
        means = [self.values[..., sizes == k].mean(-1) for k in range(self.players + 1)]
        return np.stack(means, axis=-1)


def exact(value_fn: ValueFn, n: int, *, progress: bool = False) -> ExactInteractions:
    """Plays all 2^n sets and computes interactions, Shapley values and dividends.

    Loops on the host, so it is not for use inside jit. The masks come as NumPy arrays;
    a function that computes in float64 is played in float64. Where the value of a set
    is not finite, all results that sets of its size enter are NaN.

    Two players who are worth something only together:

    >>> both = exact(lambda masks: masks[:, 0] & masks[:, 1], 3)
    >>> both
    ExactInteractions(3 players, games [], strongest: players 0 and 1 at order 0, 1)
    >>> both.shapley.tolist(), both.interactions[:, 0, 1].tolist()
    ([0.5, 0.5, 0.0], [1.0, 1.0])

    Args:
      value_fn: masks, bool [M, n] -> [M], or [*G, M] for several games.
      n: the number of players, 2 to 20.
      progress: show a bar.

    Raises:
      ValueError: n is not a whole number from 2 to 20, or `value_fn` returns no
        numbers of such a shape.
    """
    check_flags(progress=progress)
    n = check_count("n", n, minimum=2)
    if n > MOST_PLAYERS:
        raise ValueError(f"n must be at most {MOST_PLAYERS}, got {n}; use `sampled`")
    pieces = []
    with tqdm(total=2**n, disable=not progress, unit="mask") as bar:
        for start in range(0, 2**n, _MASKS_AT_ONCE):
            numbers = np.arange(start, min(start + _MASKS_AT_ONCE, 2**n))
            masks = all_masks(n, numbers)
            pieces.append(play(value_fn, masks))
            bar.update(len(masks))
    values = np.concatenate(pieces, axis=-1)
    games = values.shape[:-1]
    found = [_summarise(v, n) for v in values.reshape(-1, 2**n)]
    fields = (np.stack(field) for field in zip(*found, strict=True))
    shaped = (field.reshape(*games, *field.shape[1:]) for field in fields)
    return ExactInteractions(*shaped)


def check_value_fn(value_fn: object) -> None:
    """Raises ValueError unless a game can be played.

    >>> check_value_fn(lambda masks: masks.sum(1))
    """
    if not callable(value_fn):
        raise ValueError(
            "value_fn must be a function from masks [M, n] to values, as image_game "
            f"makes it, got {value_fn!r}"
        )


def play(value_fn: ValueFn, masks: np.ndarray) -> np.ndarray:
    """The values of masks in float64, checked.

    >>> play(lambda masks: masks.sum(1), np.array([[True, True, False]]))
    array([2.])

    Args:
      value_fn: as in `exact`.
      masks: [M, n] bool.

    Returns:
      [*G, M].

    Raises:
      ValueError: the last axis of what `value_fn` returns is not M, or it holds no real
        numbers.
    """
    check_value_fn(value_fn)
    players = getattr(value_fn, "players", masks.shape[1])
    if players != masks.shape[1]:
        raise ValueError(
            f"n must be {players}, the players of this game, got {masks.shape[1]}"
        )
    found: Any = value_fn(masks)
    values = np.asarray(found)
    if (
        values.size == 0
        or values.ndim == 0
        or values.shape[-1] != len(masks)
        or values.dtype.kind in "cOSU"
    ):
        raise ValueError(
            f"value_fn must return real numbers [{len(masks)}] or [G, {len(masks)}] "
            f"for as many masks, got {values.dtype} {list(values.shape)}"
        )
    return values.astype(np.float64)


def without_rounding(changes: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Differences of values in float64, 0 where rounding alone could make them.

    >>> values = np.array([0.1 + 0.2, 0.3])
    >>> without_rounding(values[:1] - values[1:], values).tolist()
    [0.0]

    Args:
      changes: sums and differences of a few of the values.
      values: all values.
    """
    finite = np.abs(values[np.isfinite(values)])
    noise = 64 * np.finfo(float).eps * finite.max(initial=0.0)
    return np.where(np.abs(changes) <= noise, 0.0, changes)


def check_exact(game: object, *, name: str = "game") -> None:
    """Raises ValueError unless a game was made by `exact`.

    >>> check_exact(exact(lambda masks: masks.sum(1), 2))
    """
    if not isinstance(game, ExactInteractions):
        raise ValueError(f"{name} must come from exact, got {type(game).__name__}")


def all_masks(n: int, numbers: np.ndarray) -> np.ndarray:
    """The sets of n players with these numbers, as masks.

    >>> all_masks(2, np.arange(1, 4)).tolist()
    [[True, False], [False, True], [True, True]]

    Args:
      n: players.
      numbers: [M]; player i is bit i of a number.

    Returns:
      [M, n] bool.
    """
    return (numbers[:, None] >> np.arange(n)[None]) & 1 > 0


def set_sizes(n: int) -> np.ndarray:
    """The size of each of the 2^n sets, in the order of their numbers.

    >>> set_sizes(2).tolist()
    [0, 1, 1, 2]
    """
    return np.bitwise_count(np.arange(2**n))


def mobius(values: np.ndarray) -> np.ndarray:
    """The Harsanyi dividends a_T = Σ_{S⊆T} (−1)^{|T|−|S|} v(S), all 2^n at once.

    >>> mobius(np.array([1.0, 3.0, 4.0, 10.0])).tolist()
    [1.0, 2.0, 3.0, 4.0]

    Args:
      values: [2^n] v(S) at the number of S.

    Returns:
      [2^n] a_T at the number of T.
    """
    dividends = np.array(values)
    for player in range(len(values).bit_length() - 1):
        halves = dividends.reshape(-1, 2, 2**player)
        halves[:, 1] -= halves[:, 0]
    return dividends


def _summarise(values: np.ndarray, n: int) -> ExactInteractions:
    """All results of one game from its values [2^n]."""
    sizes = set_sizes(n)
    # a sum over sets of one size is NaN if one of them is not finite, never 0 · ∞
    unknown = np.isin(sizes, sizes[~np.isfinite(values)])
    known = np.where(unknown, np.nan, values)
    # v(∅) cancels everywhere; a large one would cost digits
    shifted = known - (0.0 if unknown[0] else known[0])
    pairs = _pair_sums(shifted, n)
    single = np.diagonal(pairs, axis1=1, axis2=2)
    total = np.bincount(sizes, weights=shifted, minlength=n + 1)
    by_order = _attributions(total, single)
    return ExactInteractions(
        interactions=_interactions(total, single, pairs),
        shapley=by_order.mean(0),
        order_shapley=by_order,
        mobius=mobius(known),
        values=values,
    )


def _pair_sums(values: np.ndarray, n: int) -> np.ndarray:
    """P_ij(k) at (k, i, j) [n + 1, n, n], with P_i(k) on the diagonal."""
    sizes = set_sizes(n)
    sums = np.zeros((n + 1, n, n))
    for k in range(n + 1):
        numbers = np.flatnonzero(sizes == k)
        masks = all_masks(n, numbers).astype(np.float64)
        product = (masks * values[numbers, None]).T @ masks
        sums[k] = (product + product.T) / 2
    return sums


def _interactions(
    total: np.ndarray, single: np.ndarray, pairs: np.ndarray
) -> np.ndarray:
    """I_ij^(m) [n − 1, n, n] from T(k), P_i(k) and P_ij(k)."""
    n = single.shape[1]
    each = single[:, :, None] + single[:, None, :]
    one = each - 2 * pairs
    neither = total[:, None, None] - each + pairs
    count = [math.comb(n - 2, m) for m in range(n - 1)]
    sums = pairs[2:] - one[1:-1] + neither[:-2]
    found = sums / np.reshape(count, (-1, 1, 1))
    found[:, np.arange(n), np.arange(n)] = np.nan
    return found


def _attributions(total: np.ndarray, single: np.ndarray) -> np.ndarray:
    """φ^(m)(i) [n, n] from T(k) and P_i(k)."""
    n = single.shape[1]
    count = [math.comb(n - 1, m) for m in range(n)]
    without = total[:, None] - single
    return (single[1:] - without[:-1]) / np.reshape(count, (-1, 1))
