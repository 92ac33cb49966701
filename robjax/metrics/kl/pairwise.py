"""The KL metric of a data set: its mean over ordered pairs of images.

Shi et al., arXiv 1906.02494: M = E over pairs (x_i, x_j), c(x_i) ≠ c(x_j), of
D_KL(p(·|x_i) ‖ p(·|x_j)), and the mean of each part (see `robjax.metrics.kl`).

In a pair, x_i is the *anchor* and x_j its *partner*. Sums over all pairs are made by
`pair_sums`, far more cheaply than pair by pair.

**Standard error.** It says how much the mean would move on other images from the same
source. Pairs share images, so they are not independent. Let

    k_ij                            the KL divergence of a pair, or a part of it
    w_ij, W = Σ w_ij                its weight, 1 for each pair used
    e_ij = w_ij (k_ij − M)/W        its residual
    ψ_i = Σ_j (e_ij + e_ji)         the influence of image i, as anchor and as partner

Then, to first order,

    stderr² = N/(N − 1) Σ_i ψ_i²              over all pairs (a U-statistic)
    stderr² = Σ_i ψ_i² − Σ_pairs e_ij²        over sampled pairs

In the second form, pairs that share an image count once, and a pair with itself not
twice. It is at least Σ e_ij², the value for independent pairs. A share is a ratio of
two means, and by the delta method its influence is (ψ_part − share · ψ_total) / M.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from robjax.checks import check_count, check_labels
from robjax.metrics.finite import check_measured, warn_not_finite
from robjax.metrics.kl.components import checked_model, measure_pairs
from robjax.metrics.kl.pair_sums import chunks, sum_pairs
from robjax.metrics.kl.split import KLComponents, is_known, rounding_in_words
from robjax.model import LogitsFn
from robjax.runs import provenance
from robjax.runs.processes import joined
from robjax.samples import is_concrete, sample_keys
from robjax.traced import TracedCallable

_LEFT_OUT = "they are left out"
_PARTS = ("fisher", "softmax", "network")


class PairwiseKL(NamedTuple):
    """Means over pairs in nats, with their standard errors; Python numbers.

    mean = fisher + softmax + network. Shares are ratios of means: fisher / mean.

    Attributes:
      mean: the metric M.
      stderr: of `mean`; so `fisher_stderr` and the like are of the mean of each part,
        and `fisher_share_stderr` and the like of its share in M.
      fisher: mean of the non-robust component.
      softmax: mean of the curvature of the log-partition.
      network: mean of the curvature of the network.
      pairs: how many there are.
      rounding: how far rounding may have moved the mean; so `fisher_rounding` and the
        like are of the mean of each part.
    """

    mean: float
    stderr: float
    fisher: float
    softmax: float
    network: float
    pairs: int
    fisher_stderr: float
    softmax_stderr: float
    network_stderr: float
    robust_stderr: float
    fisher_share_stderr: float
    softmax_share_stderr: float
    network_share_stderr: float
    rounding: float
    fisher_rounding: float
    softmax_rounding: float
    network_rounding: float

    def __repr__(self) -> str:
        """M and the shares of its parts, ± s.e., and rounding where it can be seen."""
        if not all(map(is_known, self)):
            return "PairwiseKL(traced)"
        shares = ", ".join(self._share_in_words(part) for part in _PARTS)
        return (
            f"PairwiseKL({self.mean:.4g} ± {self.stderr:.2g} nats over {self.pairs} "
            f"pairs: {shares})"
        )

    def _share_in_words(self, part: str) -> str:
        share, stderr = self.share(part)
        off = getattr(self, f"{part}_rounding") / (abs(self.mean) or np.nan)
        known = max(abs(share), 100 * stderr)  # far below the s.e. it is no news
        rounding = rounding_in_words(100 * known, 100 * off, " %")
        return f"{part} {100 * share:.3g} ± {100 * stderr:.2g} %{rounding}"

    def share(self, part: str) -> tuple[float, float]:
        """Share of "fisher", "softmax" or "network" in the mean, and its stderr."""
        if part not in _PARTS:
            raise ValueError(
                f"part must be 'fisher', 'softmax' or 'network', got {part!r}"
            )
        stderr = getattr(self, f"{part}_share_stderr")
        return getattr(self, part) / (self.mean or np.nan), stderr

    @property
    def non_robust(self) -> float:
        """Mean of ½ ΔᵀFΔ; its standard error is `fisher_stderr`."""
        return self.fisher

    @property
    def robust(self) -> float:
        """Mean of all higher orders; its standard error is `robust_stderr`."""
        return self.softmax + self.network


class ClassPairKL(NamedTuple):
    """Means over the pairs of any two classes, in nats.

    Entry (a, b) of a matrix is about the pairs of an x of label a with an x′ of label
    b, and for a = b about pairs of different images.

    Attributes:
      labels: [C], those that occur.
      mean: of KL(p(x) ‖ p(x′)) and its three parts, [C, C] each, and of their
        `rounding`; NaN where there is no pair.
      stderr: standard errors of the means, in the same form.
      pairs: [C, C], how many there are.
    """

    labels: np.ndarray
    mean: KLComponents
    stderr: KLComponents
    pairs: np.ndarray

    def __repr__(self) -> str:
        """The mean over pairs of one class, and of two; not the matrices."""
        if not (is_concrete(self.pairs) and is_concrete(self.mean.total)):
            return "ClassPairKL(traced)"
        pairs = np.asarray(self.pairs)
        sums = np.where(pairs > 0, np.asarray(self.mean.total), 0) * pairs
        alike = np.trace(pairs)
        within = np.trace(sums) / max(alike, 1)
        between = (sums.sum() - np.trace(sums)) / max(pairs.sum() - alike, 1)
        return (
            f"ClassPairKL({len(pairs)} classes: mean KL {between:.4g} nats between "
            f"classes, {within:.4g} within)"
        )


def pairwise_kl(
    logits_fn: LogitsFn,
    x: jax.Array,
    y: ArrayLike,
    *,
    partners: int | None = None,
    key: jax.Array | None = None,
    batch_size: int = 64,
) -> PairwiseKL:
    """Mean KL divergence and its parts over ordered pairs with different labels.

    Loops on the host, so it is not for use inside jit. Several processes share the
    work. A component of an input gradient that is not finite counts as 0. Images whose
    logits are not finite are left out.

    >>> x = jnp.array([[0.0, 0.0], [0.0, 0.0], [2.0, 0.0]])
    >>> found = pairwise_kl(lambda x: x, x, jnp.array([0, 0, 1]))
    >>> found.pairs, abs(found.network) < 1e-6  # the model is linear
    (4, True)

    Args:
      logits_fn: images [B, *S] -> logits [B, K].
      x: [N, *S] images.
      y: [N] integer labels.
      partners: None takes every ordered pair. A number draws that many partners for
        each image, with replacement, uniformly from the other labels. Images then count
        in proportion to their number of possible partners, so that the expectation is
        the mean over all pairs.
      key: PRNG key of the draws, or one per image [N]; needed with `partners`.
      batch_size: images per chunk; bounds the memory together with K·d.

    Returns:
      PairwiseKL of Python numbers.

    Raises:
      ValueError: images not floating or not finite; labels not integer, not one per
        image, or all equal; `key` given without `partners` or the reverse; images with
        finite logits all of one label; or `logits_fn` gives no logits.

    Warns:
      UserWarning: the logits of some images are not finite, or their input gradients.
    """
    x, labels, batch_size = _check(x, y, batch_size)
    if (partners is None) != (key is None):
        raise ValueError(
            "partners and key go together (sampled pairs), got "
            f"partners={partners!r}, key={key!r}"
        )
    model = checked_model(logits_fn, x)
    if partners is None:
        return _all_pairs(model, x, labels, batch_size)
    partners = check_count("partners", partners)
    keys = sample_keys(key, x.shape[0])
    drawn = _draw(keys, labels, partners)
    return _sampled_pairs(model, x, labels, drawn, batch_size)


def class_pair_kl(
    logits_fn: LogitsFn, x: jax.Array, y: ArrayLike, *, batch_size: int = 64
) -> ClassPairKL:
    """The mean KL divergence and its parts, class pair by class pair.

    It tells which classes a network keeps apart by its non-robust part. It costs as
    much as `pairwise_kl` over all pairs, whose M is the mean of the entries off the
    diagonal, weighted by `pairs`.

    The standard error treats the images of each label as a sample of their own:
    stderr² = Var_i(mean over x′) / n_a + Var_j(mean over x) / n_b for a two-sample
    U-statistic, to first order. It is NaN for a class of one image, and on the diagonal
    also for a class of two.

    >>> x = jnp.array([[0.0, 0.0], [0.0, 0.0], [2.0, 0.0]])
    >>> found = class_pair_kl(lambda x: x, x, jnp.array([3, 3, 7]))
    >>> found.labels.tolist(), found.pairs.tolist()
    ([3, 7], [[2, 2], [2, 0]])
    >>> float(abs(found.mean.total[0, 0])) < 1e-6  # equal images
    True

    Args:
      logits_fn, x, y, batch_size: as in `pairwise_kl`.

    Raises:
      ValueError: as in `pairwise_kl`.

    Warns:
      UserWarning: as in `pairwise_kl`.
    """
    x, labels, batch_size = _check(x, y, batch_size)
    present, labels = np.unique(labels, return_inverse=True)
    classes = len(present)
    model = checked_model(logits_fn, x)
    sums = sum_pairs(model, x, labels, batch_size, classes)
    _check_known(labels, sums.logits)
    warn_not_finite(logits=sums.logits, gradients=sums.gradients, then=_LEFT_OUT)
    labels = np.where(sums.logits, labels, -1)
    counts = np.bincount(labels[sums.logits], minlength=classes)
    pairs = np.outer(counts, counts) - np.diag(counts)
    means = np.full((8, classes, classes), np.nan)
    errors = np.full((4, classes, classes), np.nan)
    for a, b in np.argwhere(pairs):
        row = sums.by_anchor[:, labels == a, b]
        column = sums.by_partner[:, labels == b, a]
        means[:, a, b] = row.sum(1) / pairs[a, b]
        row = row[:4]
        column = column[:4]
        if a == b:
            influences = [(row + column) / (counts[a] - 1)]
            least = 3
        else:
            influences = [row / counts[b], column / counts[a]]
            least = 2
        if min(values.shape[1] for values in influences) >= least:
            variance = sum(v.var(1, ddof=1) / v.shape[1] for v in influences)
            errors[:, a, b] = np.sqrt(variance)
    return ClassPairKL(
        labels=present,
        mean=KLComponents(*means[:4], rounding=KLComponents(*means[4:])),
        stderr=KLComponents._make(errors),
        pairs=pairs,
    )


def _check(x: object, y: object, batch_size: int) -> tuple[jax.Array, np.ndarray, int]:
    x = check_measured(x)
    labels = np.asarray(check_labels(y, x.shape[0]))
    batch_size = check_count("batch_size", batch_size)
    if (labels == labels[0]).all():
        raise ValueError(
            f"y must hold two different labels at least, got {labels[0]} only"
        )
    return x, labels, batch_size


def _check_known(labels: np.ndarray, known: np.ndarray) -> None:
    """Checks that there are pairs of images with finite logits."""
    if len(np.unique(labels[known])) < 2:
        raise ValueError(
            "logits_fn must give finite logits for images of two different labels at "
            f"least, got logits that are not finite for {np.count_nonzero(~known)} of "
            f"{len(known)} images"
        )


def _all_pairs(
    logits_fn: TracedCallable, x: jax.Array, y: np.ndarray, batch_size: int
) -> PairwiseKL:
    sums = sum_pairs(logits_fn, x, y, batch_size, None)
    known = sums.logits
    _check_known(y, known)
    warn_not_finite(
        logits=known, gradients=sums.gradients, then=_LEFT_OUT, stacklevel=4
    )
    y = y[known]
    possible = len(y) - np.bincount(y)[y]
    pairs = int(possible.sum())
    means = sums.by_anchor.sum(1) / pairs
    both = (sums.by_anchor + sums.by_partner)[:4, known]
    influence = both - 2 * possible[None] * means[:4, None]
    return _summary(means, influence / pairs, pairs, None)


def _draw(keys: jax.Array, y: np.ndarray, partners: int) -> np.ndarray:
    """Partner indices [N, partners] with labels other than the anchor's own."""
    order = np.argsort(y, kind="stable")
    counts = np.bincount(y)
    first = np.cumsum(counts) - counts
    own = counts[y]

    def uniform(key, most):
        return jax.random.randint(key, (partners,), 0, most)

    ranks = np.asarray(jax.vmap(uniform)(keys, jnp.asarray(len(y) - own)))
    skipped = np.where(ranks >= first[y][:, None], own[:, None], 0)
    return order[ranks + skipped]


def _sampled_pairs(
    logits_fn: TracedCallable,
    x: jax.Array,
    y: np.ndarray,
    drawn: np.ndarray,
    batch_size: int,
) -> PairwiseKL:
    """The means over drawn pairs; `drawn` [N, partners] as made by `_draw`."""
    size, partners = drawn.shape
    anchors = np.repeat(np.arange(size), partners)
    chosen = drawn.reshape(-1)

    def measure(chunk: tuple[np.ndarray, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        index, real = chunk
        block = measure_pairs(logits_fn, x[anchors[index]], x[chosen[index]])
        leaves = np.stack(jax.tree.leaves(jax.device_get(block.parts)))
        finite = np.stack([block.logits, block.logits_prime, block.gradients])
        return leaves[:, real].astype(np.float64), finite[:, real]

    def about() -> dict[str, Any]:
        facts = provenance.checksum((x, drawn)), provenance.identify(logits_fn)
        return {"data or key": facts[0], "model": facts[1], "batch_size": batch_size}

    with joined("pairwise KL", about) as group:
        found = group.map(measure, chunks(len(anchors), batch_size))
    values, finite = (np.concatenate(part, 1) for part in zip(*found, strict=True))
    known = np.ones(size, bool)
    gradients = np.ones(size, bool)
    np.logical_and.at(known, anchors, finite[0])
    np.logical_and.at(known, chosen, finite[1])
    np.logical_and.at(gradients, anchors, finite[2])
    _check_known(y, known)
    warn_not_finite(logits=known, gradients=gradients, then=_LEFT_OUT, stacklevel=4)
    used = known[anchors] & known[chosen]
    if not used.any():
        raise ValueError(
            f"partners must be more than {partners} here: no image with finite logits "
            "was paired with another"
        )
    anchors = anchors[used]
    chosen = chosen[used]
    values = values[:, used]
    weights = (size - np.bincount(y)[y])[anchors].astype(np.float64)
    weights /= weights.sum()
    means = values @ weights
    residuals = weights * (values[:4] - means[:4, None])
    influence = np.zeros((4, size))
    np.add.at(influence.T, anchors, residuals.T)
    np.add.at(influence.T, chosen, residuals.T)
    return _summary(means, influence[:, known], len(anchors), residuals)


def _summary(
    means: np.ndarray, influence: np.ndarray, pairs: int, residuals: np.ndarray | None
) -> PairwiseKL:
    """Means with the standard errors of the module's docstring.

    Args:
      means: [8] of the total and its parts, and of their rounding.
      influence: [4, N] ψ of each.
      pairs: how many there are.
      residuals: [4, pairs] e of sampled pairs; None: all pairs.
    """

    def stderr(combine):
        """Of the sum of means with the weights `combine` [4]."""
        psi = combine @ influence
        variance = psi @ psi
        if len(psi) < 3:  # both have the same influence, whatever the values
            return float("nan")
        if residuals is None:
            return float(np.sqrt(variance * len(psi) / (len(psi) - 1)))
        single = combine @ residuals
        independent = single @ single
        return float(np.sqrt(max(variance - independent, independent)))

    mean, fisher, softmax, network = map(float, means[:4])
    off, fisher_off, softmax_off, network_off = map(float, means[4:])
    e_total, e_fisher, e_softmax, e_network = np.eye(4)

    def share_stderr(part, value):
        return stderr(part - value / mean * e_total) / abs(mean) if mean else np.nan

    return PairwiseKL(
        mean=mean,
        stderr=stderr(e_total),
        fisher=fisher,
        softmax=softmax,
        network=network,
        pairs=pairs,
        fisher_stderr=stderr(e_fisher),
        softmax_stderr=stderr(e_softmax),
        network_stderr=stderr(e_network),
        robust_stderr=stderr(e_softmax + e_network),
        fisher_share_stderr=share_stderr(e_fisher, fisher),
        softmax_share_stderr=share_stderr(e_softmax, softmax),
        network_share_stderr=share_stderr(e_network, network),
        rounding=off,
        fisher_rounding=fisher_off,
        softmax_rounding=softmax_off,
        network_rounding=network_off,
    )
