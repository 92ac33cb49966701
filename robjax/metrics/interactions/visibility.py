"""What a game is worth when k players are visible, and the interactions in that curve.

V(k) is the mean of v(S) over the sets of size k. Its second difference is the mean
interaction over *all* pairs,

    E_{i≠j} I_ij^(m) = V(m + 2) − 2 V(m + 1) + V(m)

since S ∪ ij, S ∪ i and S are uniform sets of their sizes. Efficiency is its discrete
Taylor series, V(n) = V(0) + n ΔV(0) + Σ_m (n − 1 − m) Δ²V(m).

A random permutation gives a nested set of every size, so n + 1 forwards are an unbiased
draw of the whole curve. Second differences of few permutations are noisy; a mean over a
window of orders costs nothing and calms them.
"""

from typing import NamedTuple

import jax
import numpy as np
from tqdm import tqdm

from robjax.checks import check_count, check_flags
from robjax.metrics.interactions.design import draw_ranks
from robjax.metrics.interactions.estimates import BlockMean, block_mean
from robjax.metrics.interactions.exact import check_value_fn, play
from robjax.metrics.interactions.games import ValueFn
from robjax.samples import is_concrete, sample_keys

_MASKS_AT_ONCE = 2**14


class Visibility(NamedTuple):
    """Curves of P permutations; several games at once put their axes first.

    Attributes:
      curves: [P, n + 1] v of the first k players of each permutation; float64.
      forwards: sets played.
    """

    curves: np.ndarray
    forwards: int

    def __repr__(self) -> str:
        """The ends of the mean curve of the first game."""
        if not is_concrete(self.curves):
            return "Visibility(traced)"
        permutations, sizes = self.curves.shape[-2:]
        first = np.asarray(self.curves).reshape(-1, permutations, sizes)[0].mean(0)
        return (
            f"Visibility({sizes - 1} players, {permutations} permutations, "
            f"{first[0]:.4g} to {first[-1]:.4g})"
        )

    @property
    def mean(self) -> np.ndarray:
        """[n + 1] the estimate of V(k)."""
        return self.curves.mean(-2)

    @property
    def stderr(self) -> np.ndarray:
        """[n + 1] the standard errors of `mean`: 0 at both ends, NaN from one curve."""
        return block_mean(np.moveaxis(self.curves, -2, -1)).stderr

    def interactions(self, window: int = 0) -> BlockMean:
        """[n − 1] the mean interaction over all pairs at each order.

        Args:
          window: each order is averaged with so many on both sides, as far as there
            are such orders.
        """
        window = check_count("window", window, minimum=0)
        second = np.moveaxis(np.diff(self.curves, n=2), -2, -1)
        orders = np.arange(second.shape[-2])
        near = np.abs(orders[:, None] - orders[None]) <= window
        weights = near / near.sum(1, keepdims=True)
        return block_mean(np.einsum("ab,...bp->...ap", weights, second))


def visibility(
    value_fn: ValueFn,
    n: int,
    *,
    key: jax.Array,
    permutations: int = 16,
    progress: bool = False,
) -> Visibility:
    """Estimates V(k) for all k from nested sets of players.

    Loops on the host, so it is not for use inside jit.

    >>> found = visibility(lambda masks: masks.sum(1) ** 2, 5, key=jax.random.key(0))
    >>> found.mean.tolist(), found.interactions().mean.tolist()
    ([0.0, 1.0, 4.0, 9.0, 16.0, 25.0], [2.0, 2.0, 2.0, 2.0])

    Args:
      value_fn: masks, bool [M, n] -> [M], or [*G, M] for several games.
      n: players, at least 2.
      key: one key, or one for each permutation.
      permutations: how many.
      progress: show a bar.

    Raises:
      ValueError: a count is too small, or `key` is neither one key nor so many.
    """
    check_flags(progress=progress)
    check_value_fn(value_fn)
    n = check_count("n", n, minimum=2)
    permutations = check_count("permutations", permutations)
    keys = sample_keys(key, permutations)
    ranks = draw_ranks(keys, n=n, contexts=1)[:, 0]
    ends = play(value_fn, np.repeat([[False], [True]], n, axis=1))
    inner = np.arange(1, n)
    at_once = max(1, _MASKS_AT_ONCE // (n - 1))
    parts = []
    with tqdm(total=permutations, disable=not progress, unit="permutation") as bar:
        for start in range(0, permutations, at_once):
            some = ranks[start : start + at_once]
            masks = some[:, None] < inner[None, :, None]
            values = play(value_fn, masks.reshape(-1, n))
            parts.append(values.reshape(*ends.shape[:-1], len(some), n - 1))
            bar.update(len(some))
    middle = np.concatenate(parts, axis=-2)
    shape = (*middle.shape[:-1], 1)
    none, all_players = (
        np.broadcast_to(ends[..., None, end], shape[:-1])[..., None] for end in (0, 1)
    )
    curves = np.concatenate([none, middle, all_players], axis=-1)
    return Visibility(curves, forwards=2 + permutations * (n - 1))
