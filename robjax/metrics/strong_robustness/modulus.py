"""How far features move for a given move of what the oracle sees.

    ratio = d₁'(x, x') / d₂'(x, x'),    d₁' = ‖g₁(x) − g₁(x')‖₂

Where g₁ is a Lipschitz function of g₂ its supremum L is finite, and a margin m keeps
the prediction up to d₂' < m/L. On a finite set of images any two topologies agree, so
no test of "finer" can be made from data; ratios of close pairs can be measured.

**Scale.** Training may shrink features and grow the last layer instead. So ratios are
compared after both distances were divided by the spread of their features,

    spread_i = √(mean over images of ‖g_i(x) − mean g_i‖²).

A pair at d₂' = 0 < d₁' has the ratio inf and is counted with the others. A pair at
d₁' = d₂' = 0 says nothing: its ratio is NaN, and quantiles leave it out.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy import stats

from robjax import lowering
from robjax.checks import check_count, check_number, check_range
from robjax.metrics.finite import check_measured, widened
from robjax.metrics.strong_robustness.oracles import (
    Oracle,
    check_oracle,
    oracle_distance,
)
from robjax.numerics import map_batched, safe_norm
from robjax.samples import flatten_samples, is_concrete


class Quantile(NamedTuple):
    """A quantile of a sample, with a confidence interval for that of the population.

    Attributes:
      value: float.
      low, high: two order statistics. The interval holds the quantile with at least the
        confidence asked for, whatever the distribution; −inf or inf where the sample is
        too small for that.
    """

    value: float
    low: float
    high: float


class Modulus(NamedTuple):
    """Ratios of the distances of B pairs of images.

    Attributes:
      ratio: [B] d₁'/d₂' as measured; inf where d₂' = 0 < d₁', NaN where both are 0.
      scale: spread₂ / spread₁, which makes ratios comparable.
    """

    ratio: jax.Array
    scale: jax.Array

    @property
    def normalised(self) -> jax.Array:
        """[B] ratios of distances in units of the spreads of the features."""
        return self.ratio * self.scale

    def quantile(self, share: float, *, confidence: float = 0.95) -> Quantile:
        """A quantile of the normalised ratios, with an interval by order statistics.

        Pairs must be of different images, so that they are independent.

        Args:
          share: from 0 to 1; 0.5 is the median.
          confidence: above 0 and below 1.
        """
        check_range("share", share, 0, 1)
        check_range("confidence", confidence, 1e-12, below=1)
        values = np.sort(np.asarray(self.normalised, float))
        values = values[~np.isnan(values)]
        count = len(values)
        if not count:
            return Quantile(np.nan, -np.inf, np.inf)
        # P[v_(l) ≤ q ≤ v_(u)] ≥ P[l ≤ number below < u] for ranks l, u from 1 on
        tail = (1 - confidence) / 2
        below = int(stats.binom.ppf(tail, count, share))
        above = int(stats.binom.ppf(1 - tail, count, share)) + 1
        ends = np.concatenate([[-np.inf], values, [np.inf]])
        rank = min(max(int(np.ceil(share * count)), 1), count)
        return Quantile(
            float(values[rank - 1]),
            float(ends[below]),
            float(ends[min(above, count + 1)]),
        )

    def __repr__(self) -> str:
        """Median and 95 % quantile of the normalised ratios; not the arrays."""
        if not (is_concrete(self.ratio) and is_concrete(self.scale)):
            return "Modulus(traced)"
        median, top = self.quantile(0.5).value, self.quantile(0.95).value
        endless = int(np.isinf(np.asarray(self.ratio)).sum())
        return (
            f"Modulus({np.size(self.ratio)} pairs, normalised: median {median:.3g}, "
            f"95 % quantile {top:.3g}, {endless} infinite)"
        )


def modulus(
    features_fn: Callable[..., jax.Array],
    x: jax.Array | np.ndarray,
    x_prime: jax.Array | np.ndarray,
    *,
    oracle: Any,
    tolerance: float = 1e-6,
    batch_size: int = 256,
) -> Modulus:
    """Compares how far pairs of images are for the features and for the oracle.

    Take close pairs, such as images and images moved a little, one pair for each image.

    >>> from robjax.metrics.strong_robustness import linear
    >>> x = jnp.array([[0.0, 0.0], [1.0, 0.0]])
    >>> moved = x + jnp.array([[0.1, 0.0], [0.0, 0.1]])
    >>> modulus(lambda x: 3 * x, x, moved, oracle=linear([[1.0, 0.0]]))
    Modulus(2 pairs, normalised: median 1, 95 % quantile inf, 1 infinite)

    Args:
      features_fn: g₁, images [B, *S] -> [B, ...], a layer or the logits.
      x: [B, *S] images.
      x_prime: [B, *S] their partners.
      oracle: made by `identity`, `linear`, `pca` or `features`; or a function.
      tolerance: distances up to this share of the spread count as 0.
      batch_size: images per chunk, bounds the memory.

    Returns:
      Modulus.

    Raises:
      ValueError: an argument is malformed, or the features do not vary over x.
    """
    x = check_measured(x)
    x_prime = check_measured(x_prime, name="x_prime")
    if x.shape != x_prime.shape:
        raise ValueError(
            f"x_prime must have the shape of x, {x.shape}, got {x_prime.shape}"
        )
    check_number("tolerance", tolerance, minimum=0)
    check_count("batch_size", batch_size)
    oracle = check_oracle(oracle, x)
    g1 = check_oracle(features_fn, x, name="features_fn")
    first, moved = _distances(g1, x, x_prime, batch_size)
    second = _values(oracle, x, batch_size)
    spreads = [_spread(each) for each in (first, second)]
    if is_concrete(spreads[0]) and not all(float(s) > 0 for s in spreads):
        raise ValueError(
            "x must be images whose features vary, got spreads "
            f"{[float(spread) for spread in spreads]}"
        )
    d1 = jnp.where(moved > tolerance * spreads[0], moved, 0)
    d2 = oracle_distance(oracle, x, x_prime).astype(d1.dtype)
    seen = d2 > tolerance * spreads[1]
    ratio = d1 / jnp.where(seen, d2, 1)
    unseen = jnp.where(d1 > 0, jnp.inf, jnp.nan)
    return Modulus(jnp.where(seen, ratio, unseen), spreads[1] / spreads[0])


@functools.partial(jax.jit, static_argnums=2)
def _values(g: Oracle, x: jax.Array, batch_size: int) -> jax.Array:
    return map_batched(lambda x: widened(lowering.exact(g)(x)), x, batch_size)


def _distances(
    g: Oracle, x: jax.Array, x_prime: jax.Array, batch_size: int
) -> tuple[jax.Array, jax.Array]:
    """g(x) [B, M] and ‖g(x') − g(x)‖₂ [B]."""
    here, there = (_values(g, each, batch_size) for each in (x, x_prime))
    return here, safe_norm(there - here, 1)


def _spread(values: jax.Array) -> jax.Array:
    centred = flatten_samples(values) - jnp.mean(values, axis=0, keepdims=True)
    return jnp.sqrt(jnp.mean(jnp.sum(centred * centred, axis=1)))
