"""Do the interactions of a pair agree from context to context, or cancel?

Ren et al., arXiv 2103.07364, Eq. 4. For a pair of players and an order,

    |E_S Δv(i, j, S)| / E_S |Δv(i, j, S)|     1: one sign in all contexts; 0: balanced

D^(m) is one of two averages over pairs, which differ:

    mean of ratios    the mean over pairs of this ratio       the paper's formula
    ratio of means    mean |E_S Δv| / mean E_S |Δv|           the published code

* A pair without any interaction (E_S |Δv| = 0) has no ratio. It is left out of the mean
  of ratios and counted in `undefined`; without a pair that has a ratio, D is NaN.
  Differences within float64's rounding of the values count as 0. The rounding of a
  float32 value function is larger, and is not told from interactions.
* From T contexts, even pure noise of mean 0 has a ratio of about 1/√T. So compare
  values of the same T only. At orders 0 and n − 2 there is one context, and D = 1.
"""

import itertools
from typing import NamedTuple

import numpy as np

from robjax.metrics.interactions.estimates import BlockMean, block_mean
from robjax.metrics.interactions.exact import (
    ExactInteractions,
    check_exact,
    set_sizes,
    without_rounding,
)
from robjax.metrics.interactions.sampled import SampledInteractions
from robjax.samples import is_concrete


class Disentanglement(NamedTuple):
    """D^(m) in both forms at R orders; several games at once put their axes first.

    Attributes:
      orders: [R] m.
      mean_of_ratios: [R], with standard errors over blocks; 0 from all contexts.
      ratio_of_means: [R], the same.
      floor: [R] 1/√T, what pure noise would show; 0 from all contexts.
      undefined: [R] the share of pairs without any interaction.
    """

    orders: np.ndarray
    mean_of_ratios: BlockMean
    ratio_of_means: BlockMean
    floor: np.ndarray
    undefined: np.ndarray

    def __repr__(self) -> str:
        """Means over orders and games."""
        means = (self.mean_of_ratios.mean, self.ratio_of_means.mean)
        if not all(map(is_concrete, (*means, self.floor))):
            return "Disentanglement(traced)"
        paper, code = (np.mean(mean) for mean in means)
        return (
            f"Disentanglement({len(self.orders)} orders, mean of ratios {paper:.3g}, "
            f"ratio of means {code:.3g}, floor {np.mean(self.floor):.2g})"
        )


def disentanglement(game: ExactInteractions | SampledInteractions) -> Disentanglement:
    """Computes D^(m) over all pairs of an exact game, or over sampled ones.

    >>> from robjax.metrics.interactions import exact
    >>> found = disentanglement(exact(lambda masks: masks.sum(1) ** 2, 5))
    >>> found.mean_of_ratios.mean.tolist()  # every Δv is 2
    [1.0, 1.0, 1.0, 1.0]

    Args:
      game: made by `exact`, or by `sampled` with several contexts for each block.

    Raises:
      ValueError: `game` is none of these.
    """
    if isinstance(game, ExactInteractions):
        return _exact(game)
    if not isinstance(game, SampledInteractions):
        raise ValueError(
            "game must come from exact or sampled, got " + type(game).__name__
        )
    ratios = _ratios(game.means, game.magnitudes)
    known = ~np.isnan(ratios)
    share = known.mean(-1)
    paper = _ratio(np.where(known, ratios, 0).mean(-1), share)
    size = np.abs(game.means).mean(-1)
    return Disentanglement(
        orders=game.orders,
        mean_of_ratios=paper,
        ratio_of_means=_ratio(size, game.magnitudes.mean(-1)),
        floor=1 / np.sqrt(game.contexts),
        undefined=1 - share.mean(-1),
    )


def pair_magnitudes(game: ExactInteractions) -> np.ndarray:
    """The mean of |Δv(i, j, S)| over all contexts, for each pair i < j.

    >>> from robjax.metrics.interactions import exact
    >>> pair_magnitudes(exact(lambda masks: masks.sum(1) ** 2, 3)).tolist()
    [[2.0, 2.0, 2.0], [2.0, 2.0, 2.0]]

    Args:
      game: made by `exact`.

    Returns:
      [n − 1, P], the pairs in the order of `np.triu_indices(n, 1)`.

    Raises:
      ValueError: `game` was not made by `exact`.
    """
    return _direct(game)[1]


def _direct(game: ExactInteractions) -> tuple[np.ndarray, np.ndarray]:
    """The means over contexts of Δv and of |Δv|, from the same differences.

    `ExactInteractions.interactions` are the former, but rounded in another way, so that
    the ratio to the latter could exceed 1.
    """
    check_exact(game)
    n = game.players
    values = game.values.reshape(-1, 2**n)
    contexts = np.arange(2 ** (n - 2))
    sizes = set_sizes(n - 2)
    counts = np.bincount(sizes)
    found = np.zeros((2, len(values), n - 1, n * (n - 1) // 2))
    for pair, (i, j) in enumerate(itertools.combinations(range(n), 2)):
        sets = _insert_zero(_insert_zero(contexts, i), j)
        for game_number, v in enumerate(values):
            with_i, with_j = v[sets | 1 << i], v[sets | 1 << j]
            both = v[sets | 1 << i | 1 << j]
            changes = without_rounding(both - with_i - with_j + v[sets], v)
            for own, weights in zip(found, (changes, np.abs(changes)), strict=True):
                sums = np.bincount(sizes, weights=weights)
                own[game_number, :, pair] = sums / counts
    means, magnitudes = found.reshape(2, *game.values.shape[:-1], n - 1, -1)
    return means, magnitudes


def _insert_zero(numbers: np.ndarray, bit: int) -> np.ndarray:
    """Makes room for a bit that is 0; the higher bits move up."""
    low = numbers & ((1 << bit) - 1)
    return (numbers - low) * 2 + low


def _exact(game: ExactInteractions) -> Disentanglement:
    n = game.players
    means, magnitudes = _direct(game)
    ratios = _ratios(means, magnitudes)
    known = ~np.isnan(ratios)
    count = known.sum(-1)
    paper = np.where(known, ratios, 0).sum(-1) / np.where(count, count, np.nan)
    whole = magnitudes.mean(-1)
    code = np.abs(means).mean(-1) / np.where(whole > 0, whole, np.nan)
    return Disentanglement(
        orders=np.arange(n - 1),
        mean_of_ratios=BlockMean(paper, np.zeros_like(paper)),
        ratio_of_means=BlockMean(code, np.zeros_like(code)),
        floor=np.zeros(n - 1),
        undefined=1 - known.mean(-1),
    )


def _ratios(means: np.ndarray, magnitudes: np.ndarray) -> np.ndarray:
    """|mean| / magnitude; NaN where there is no interaction."""
    return np.abs(means) / np.where(magnitudes > 0, magnitudes, np.nan)


def _ratio(above: np.ndarray, below: np.ndarray) -> BlockMean:
    """The ratio of two means over blocks [..., B]; its error by the delta method."""
    whole = below.mean(-1)
    whole = np.where(whole > 0, whole, np.nan)
    ratio = above.mean(-1) / whole
    residual = (above - ratio[..., None] * below) / whole[..., None]
    return BlockMean(mean=ratio, stderr=block_mean(residual).stderr)
