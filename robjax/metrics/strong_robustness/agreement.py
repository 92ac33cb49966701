"""How often a prediction stays, over random pairs that an oracle takes for the same.

P( f₁(x) = f₁(x') | f₂(x) = f₂(x'), d₂'(x, x') ≤ δ₂ ), the paper's definition of
strong-robust, needs a law of pairs. Two independent images are hardly ever close, so
with them every network looks robust. The law here is x ~ the data and x' = x + r:

    identity(p)   r uniform in the p-ball of radius δ₂
    linear, pca   r = A₂⁺s + z; s is uniform in the part of the p-ball that A₂ reaches,
                  z in the L2 ball of radius `ignored` in the kernel of A₂
    any oracle    what a sampler of the user's draws

By default x' may leave the bounds of images. With `bounds` it is clipped, which is no
longer the same law: a clipped image may be beyond δ₂, and is then left out.

Pairs of one image are not independent. The interval is exact (Clopper and Pearson) for
one pair for each image, which is the default. With more, each image counts as one trial
whose success is the share of its pairs. That varies less than one pair does, so the
interval is wider than it need be.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.core
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from scipy import special

from robjax import lowering
from robjax.checks import (
    Bounds,
    check_bounds,
    check_count,
    check_images,
    check_number,
    check_range,
)
from robjax.metrics.finite import check_measured, finite_samples
from robjax.metrics.spurious.groups import Estimate, mean
from robjax.metrics.strong_robustness.oracles import (
    Features,
    Linear,
    Oracle,
    ball_of,
    check_oracle,
    difference,
)
from robjax.model import LogitsFn, as_logits_fn, count_classes
from robjax.numerics import map_batched, safe_norm
from robjax.samples import fold_keys, is_concrete, sample_keys
from robjax.traced import TracedCallable, traced

Sampler = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]
"""Keys [B], images x [B, *S] and δ₂ -> images x' [B, *S]."""

_ROUNDING = 1e-5  # relative, of d₂' in float32: what is drawn at δ₂ counts


class PairAgreement(NamedTuple):
    """Verdicts on P pairs for each of B images.

    Attributes:
      agree: [B, P] bool, f₁(x) = f₁(x').
      valid: [B, P] bool, whether d₂' ≤ δ₂, f₂(x) = f₂(x') and all logits are finite;
        others do not count.
    """

    agree: jax.Array
    valid: jax.Array

    @property
    def share(self) -> jax.Array:
        """[B] the share of the valid pairs that agree; NaN for none."""
        count = jnp.sum(self.valid, axis=1)
        kept = jnp.sum(self.agree & self.valid, axis=1)
        return jnp.where(count > 0, kept / jnp.maximum(count, 1), jnp.nan)

    @property
    def estimate(self) -> Estimate:
        """The mean over images, ± the standard error over images."""
        return mean(self.share)

    def interval(self, confidence: float = 0.95) -> tuple[float, float]:
        """The interval of Clopper and Pearson, two-sided; (0, 1) without pairs.

        Args:
          confidence: above 0 and below 1.
        """
        check_range("confidence", confidence, 1e-12, below=1)
        shares = np.asarray(self.share, float)
        shares = shares[~np.isnan(shares)]
        kept, lost = shares.sum(), (1 - shares).sum()
        tail = (1 - confidence) / 2
        low = special.betaincinv(kept, lost + 1, tail) if kept > 0 else 0.0
        high = special.betaincinv(kept + 1, lost, 1 - tail) if lost > 0 else 1.0
        return float(low), float(high)

    def __repr__(self) -> str:
        """The estimate with its interval, and how many pairs are left out."""
        if not (is_concrete(self.agree) and is_concrete(self.valid)):
            return "PairAgreement(traced)"
        low, high = self.interval()
        images, pairs = np.shape(self.agree)
        lost = int(np.size(self.valid) - np.asarray(self.valid).sum())
        words = f", {lost} pairs left out" if lost else ""
        return (
            f"PairAgreement({float(self.estimate):.4g}, 95 % {low:.3g} to {high:.3g}, "
            f"{images} images × {pairs}{words})"
        )


def pair_agreement(
    logits_fn: LogitsFn,
    x: jax.Array | np.ndarray,
    *,
    oracle: Any,
    delta: ArrayLike,
    key: jax.Array,
    pairs: int = 1,
    ignored: ArrayLike = 0.0,
    sampler: Sampler | None = None,
    oracle_logits_fn: LogitsFn | None = None,
    bounds: Bounds | None = None,
    batch_size: int = 256,
) -> PairAgreement:
    """How often f₁ says the same about x and about a random x' near it for the oracle.

    An average over pairs: it says nothing about the worst one (`worst_case_agreement`).
    Pair j of an image draws from fold_in(its own key, j). It costs one forward pass for
    each image and pair, and one for each image.

    >>> from robjax.metrics.strong_robustness import linear
    >>> x = jnp.full((50, 2), 0.5)
    >>> def second(x):  # the oracle ignores what the model looks at
    ...     return jnp.stack([0.5 - x[:, 1], x[:, 1] - 0.5], axis=1)
    >>> found = pair_agreement(
    ...     second, x, oracle=linear([[1.0, 0.0]]), delta=0.1, ignored=0.2,
    ...     key=jax.random.key(0),
    ... )
    >>> 0.2 < float(found.estimate) < 0.8
    True

    Args:
      logits_fn: images [B, *S] -> logits [B, K]; f₁ is their argmax.
      x: [B, *S] images.
      oracle: made by `identity`, `linear`, `pca` or `features`; or a function.
      delta: δ₂, 0 or more.
      key: one key, or one for each sample.
      pairs: P, static.
      ignored: radius of the part of r that the oracle ignores, 0 or more; L2.
      sampler: draws x' in place of the law above; needed by `features`.
      oracle_logits_fn: f₂ as a model; None: its condition is dropped, which changes
        little where δ₂ is small and f₂ has no jumps but at a boundary.
      bounds: lowest and highest pixel value, that x' is clipped to; None: none.
      batch_size: images per chunk, bounds the memory.

    Returns:
      PairAgreement.

    Raises:
      ValueError: an argument is malformed; the oracle needs a sampler; `ignored` is not
        0 though the oracle ignores nothing; or A₂ has dependent rows and p is not 2,
        where the law has no simple form.
    """
    x = check_measured(x)
    model = as_logits_fn(logits_fn)
    count_classes(model, x)
    oracle = check_oracle(oracle, x)
    check_number("delta", delta, minimum=0)
    check_number("ignored", ignored, minimum=0)
    check_count("pairs", pairs)
    check_count("batch_size", batch_size)
    judge = None
    if oracle_logits_fn is not None:
        judge = _check_judge(oracle_logits_fn, x)
    if not (sampler is None or callable(sampler)):
        raise ValueError(f"sampler must be a function, got {sampler!r}")
    if bounds is not None:
        bounds = check_bounds(bounds)
        check_images(x, bounds=bounds)
    if sampler is None:
        _check_law(oracle, ignored)
    return _pair_agreement(
        model,
        judge,
        oracle,
        None if sampler is None else traced(sampler, name="sampler"),
        x,
        sample_keys(key, len(x)),
        jnp.asarray(delta, x.dtype),
        jnp.asarray(ignored, x.dtype),
        bounds,
        pairs,
        batch_size,
    )


def _check_judge(oracle_logits_fn: LogitsFn, x: jax.Array) -> TracedCallable:
    """The model f₂, whose mistakes are told apart from those of f₁."""
    try:
        judge = as_logits_fn(oracle_logits_fn)
        count_classes(judge, x)
    except ValueError as error:
        raise ValueError(f"oracle_logits_fn is a model, whose {error}") from None
    return judge


def _check_law(oracle: Oracle, ignored: ArrayLike) -> None:
    if isinstance(oracle, Features):
        raise ValueError(
            "sampler must be given, got None: no law of pairs is known for an oracle "
            "that is a function"
        )
    if isinstance(oracle, Linear):
        outputs, pixels = np.shape(oracle.matrix)
        rank = len(oracle.basis)
        if rank < outputs and oracle.norm != 2:
            raise ValueError(
                f"oracle must have independent rows or the norm 2, got {oracle!r}"
            )
        all_seen = rank == pixels
    else:
        all_seen = True
    if all_seen and not isinstance(ignored, jax.core.Tracer) and np.any(ignored):
        raise ValueError(
            f"ignored must be 0 for an oracle that ignores nothing, got {ignored}"
        )


@functools.partial(jax.jit, static_argnums=(9, 10))
def _pair_agreement(
    model: TracedCallable,
    judge: TracedCallable | None,
    oracle: Oracle,
    sampler: TracedCallable | None,
    x: jax.Array,
    keys: jax.Array,
    delta: jax.Array,
    ignored: jax.Array,
    bounds: Bounds | None,
    pairs: int,
    batch_size: int,
) -> PairAgreement:
    def classes(fn: TracedCallable, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        logits = fn(x)
        return jnp.argmax(logits, axis=1), finite_samples(logits)

    def measure(rows: tuple[jax.Array, jax.Array]) -> PairAgreement:
        x, keys = rows
        here, known = classes(model, x)
        said = None if judge is None else classes(judge, x)

        def pair(number: jax.Array) -> tuple[jax.Array, jax.Array]:
            own = fold_keys(keys, number)
            if sampler is None:
                there = x + _change(oracle, own, x, delta, ignored)
            else:
                there = sampler(own, x, delta)
            if bounds is not None:
                there = jnp.clip(there, *bounds)
            d = ball_of(oracle, delta).norm(difference(oracle, x, there))
            valid = d <= delta * (1 + _ROUNDING) + 1e-6
            if said is not None and judge is not None:
                says, told = classes(judge, there)
                valid = valid & (says == said[0]) & told & said[1]
            after, known_after = classes(model, there)
            return after == here, valid & known & known_after

        agree, valid = jax.lax.map(pair, jnp.arange(pairs))
        return PairAgreement(agree.T, valid.T)

    return map_batched(lowering.exact(measure), (x, keys), batch_size)


def _change(
    oracle: Oracle, keys: jax.Array, x: jax.Array, delta: jax.Array, ignored: jax.Array
) -> jax.Array:
    """r [B, *S] of the law of the module."""
    if not isinstance(oracle, Linear):
        return ball_of(oracle, delta).sample(keys, x)
    matrix, basis, inverse = (
        jnp.asarray(each).astype(x.dtype)
        for each in (oracle.matrix, oracle.basis, oracle.inverse)
    )
    rank, pixels = basis.shape
    of_image, of_kernel, of_radius = (fold_keys(keys, number) for number in range(3))
    s = ball_of(oracle, delta).sample(of_image, jnp.zeros((len(x), rank), x.dtype))
    if oracle.norm == 2:  # any orthonormal coordinates of the range of A₂ will do
        values = jnp.linalg.norm(matrix @ basis.T, axis=0)
        r = (s / values[None]) @ basis
    else:
        r = s @ inverse.T
    if rank < pixels:
        z = jax.vmap(lambda key: jax.random.normal(key, (pixels,), x.dtype))(of_kernel)
        for _ in range(2):  # once leaves its rounding in the row space
            z = z - (z @ basis.T) @ basis
        u = jax.vmap(lambda key: jax.random.uniform(key, (), x.dtype))(of_radius)
        size = ignored * u ** (1 / (pixels - rank))
        length = safe_norm(z, 1)
        r = r + (size / jnp.where(length > 0, length, 1))[:, None] * z
    return r.reshape(x.shape)
