"""The KL metric of a data set: its mean over ordered pairs of images.

Shi et al., arXiv 1906.02494: M = E over pairs (x_i, x_j), c(x_i) ≠ c(x_j), of
D_KL(p(·|x_i) ‖ p(·|x_j)), and the mean of each part (see `robjax.metrics.kl`).

**All pairs.** J_i(x_j − x_i) = J_i x_j − J_i x_i, so the Jacobian J_i of each anchor
(K backward passes) and one matrix product give the linear change of the logits of
every pair: N·K backward passes, N forward passes and N²·K·d multiply-adds, instead of
N² forward-mode passes. Images are centred on their mean first, which keeps the
difference accurate.

**Standard error.** Pairs share images, so they are not independent. With kernel
values k_ij, weights w_ij (1 for each pair used), W = Σ w_ij and residuals
e_ij = w_ij (k_ij − M)/W, the influence of image i is ψ_i = Σ_j (e_ij + e_ji), as
anchor and as partner, and

    stderr² = N/(N − 1) Σ_i ψ_i²              all pairs (U-statistic, first order)
    stderr² = Σ_i ψ_i² − Σ_pairs e_ij²        sampled pairs: those that share an image
                                              count once, a pair with itself not twice

(at least Σ e_ij², the value for independent pairs). It says how much the mean would
move on other images from the same source. A share is a ratio of two means, and by the
delta method its influence is (ψ_part − share · ψ_total) / M.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from robjax import lowering
from robjax.checks import check_count, check_images, check_labels
from robjax.metrics.fisher import logits_and_jacobian
from robjax.metrics.kl.components import KLComponents, kl_components, split_kl
from robjax.model import as_logits_fn
from robjax.numerics import map_batched
from robjax.samples import sample_keys

# Logits of pairs held at a time: a few arrays of this size stay in a CPU's cache.
_BLOCK = 2**17


class PairwiseKL(NamedTuple):
    """Means over pairs in nats, with standard errors; `mean` is the metric M.

    mean = fisher + softmax + network. Shares are ratios of means: fisher / mean.
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

    def __repr__(self) -> str:
        """M and the shares of its parts in words, mean ± s.e.; not every field."""
        parts = ("fisher", "softmax", "network")
        shares = (
            (part, *(100 * value for value in self.share(part))) for part in parts
        )
        text = ", ".join(f"{part} {mean:.3g} ± {se:.2g} %" for part, mean, se in shares)
        return (
            f"PairwiseKL({self.mean:.4g} ± {self.stderr:.2g} nats over {self.pairs} "
            f"pairs: {text})"
        )

    def share(self, part: str) -> tuple[float, float]:
        """Share of "fisher", "softmax" or "network" in the mean, and its stderr."""
        if part not in ("fisher", "softmax", "network"):
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
    """Means [C, C] over pairs by the labels of x and x′, nats.

    `labels`: [C], those that occur. `mean`: the four parts; entry (a, b) is the mean of
    KL(p(x) ‖ p(x′)) over x of label a and x′ of label b (for a = b over different
    images), NaN where there is no pair. `stderr`: in the same form. `pairs`: how many.
    """

    labels: np.ndarray
    mean: KLComponents
    stderr: KLComponents
    pairs: np.ndarray


def pairwise_kl(
    logits_fn,
    x: jax.Array,
    y: jax.Array | np.ndarray,
    *,
    partners: int | None = None,
    key: jax.Array | None = None,
    batch_size: int = 64,
) -> PairwiseKL:
    """Mean KL divergence and its parts over ordered pairs with different labels.

    Loops on the host, so it is not for use inside jit.

    Args:
        logits_fn: images [B, *S] -> logits [B, K].
        x: [N, *S] images.
        y: [N] integer labels.
        partners: None takes every ordered pair; a number draws that many partners
            for each image, with replacement, uniformly from the other labels. Images
            then count in proportion to their number of possible partners, so that
            the expectation is the mean over all pairs.
        key: PRNG key of the draws, or one per image [N]; needed with `partners`.
        batch_size: images per chunk; bounds the memory together with K·d.

    Returns:
        PairwiseKL of Python numbers.

    Raises:
        ValueError: images not floating or not finite; labels not integer, not one
            per image, or all equal; `key` given without `partners` or the reverse.
    """
    x, labels, batch_size = _check(x, y, batch_size)
    if (partners is None) != (key is None):
        raise ValueError(
            "partners and key go together (sampled pairs), got "
            f"partners={partners!r}, key={key!r}"
        )
    logits_fn = as_logits_fn(logits_fn)
    if partners is None:
        return _all_pairs(logits_fn, x, labels, batch_size)
    partners = check_count("partners", partners)
    keys = sample_keys(key, x.shape[0])
    drawn = _draw(keys, labels, partners)
    return _sampled_pairs(logits_fn, x, labels, drawn, batch_size)


def class_pair_kl(
    logits_fn, x: jax.Array, y: jax.Array | np.ndarray, *, batch_size: int = 64
) -> ClassPairKL:
    """The metric and its parts class pair by class pair, over all ordered pairs.

    Tells which classes a network keeps apart by its non-robust part. Costs as much as
    `pairwise_kl` over all pairs; M is the mean of the entries off the diagonal by
    `pairs`. The standard error treats the images of each label as a sample of their
    own: Var_i(mean over x′) / n_a + Var_j(mean over x) / n_b for a two-sample
    U-statistic, to first order; NaN for a class of one image (on the diagonal, of two).

    Args, Raises: as in `pairwise_kl`.
    """
    x, labels, batch_size = _check(x, y, batch_size)
    present, labels = np.unique(labels, return_inverse=True)
    counts, classes = np.bincount(labels), len(present)
    logits_fn = as_logits_fn(logits_fn)
    rows, columns = _sums(logits_fn, x, labels, batch_size, classes)
    pairs = np.outer(counts, counts) - np.diag(counts)
    means, errors = np.full((2, 4, classes, classes), np.nan)
    for a, b in np.argwhere(pairs):
        row, column = rows[:, labels == a, b], columns[:, labels == b, a]
        means[:, a, b] = row.sum(1) / pairs[a, b]
        if a == b:
            influences, least = [(row + column) / (counts[a] - 1)], 3
        else:
            influences, least = [row / counts[b], column / counts[a]], 2
        if min(values.shape[1] for values in influences) >= least:
            errors[:, a, b] = np.sqrt(
                sum(v.var(1, ddof=1) / v.shape[1] for v in influences)
            )
    return ClassPairKL(present, KLComponents(*means), KLComponents(*errors), pairs)


def _check(x, y, batch_size):
    x = check_images(x)
    labels = np.asarray(check_labels(y, x.shape[0]))
    batch_size = check_count("batch_size", batch_size)
    if (labels == labels[0]).all():
        raise ValueError(
            f"y must hold two different labels at least, got {labels[0]} only"
        )
    return x, labels, batch_size


def _all_pairs(logits_fn, x, y, batch_size):
    rows, columns = _sums(logits_fn, x, y, batch_size, None)
    possible = len(y) - np.bincount(y)[y]
    pairs = int(possible.sum())
    means = rows.sum(1) / pairs
    influence = rows + columns - 2 * possible[None] * means[:, None]
    return _summary(means, influence / pairs, pairs, None)


def _sums(logits_fn, x, y, batch_size, classes):
    """Sums of the four parts over x′ for each x, and over x for each x′.

    Over other labels, [4, N] both; with a number of classes, over each label apart
    [4, N, C], an image with itself (0) included.
    """
    size, batch_size = x.shape[0], min(batch_size, x.shape[0])
    flat = x.reshape(size, -1)
    flat = flat - jnp.mean(flat, 0)[None]
    logits = _logits(logits_fn, x, batch_size)
    width = min(size, max(1, _BLOCK // (batch_size * logits.shape[1])))
    shape = (4, size) if classes is None else (4, size, classes)
    row_sums, column_sums = np.zeros((2, *shape))
    for anchors, real_anchors in _chunks(size, batch_size):
        z, jacobian = _jacobian(logits_fn, x[anchors])
        jacobian = (jacobian, _matvec(jacobian, flat[anchors]))
        anchor_labels = np.where(real_anchors, y[anchors], -1)
        blocks = [
            (
                chosen,
                real,
                _block(
                    z,
                    *jacobian,
                    anchor_labels,
                    logits[chosen],
                    flat[chosen],
                    np.where(real, y[chosen], -1),
                    classes,
                ),
            )
            for chosen, real in _chunks(size, width)
        ]
        for chosen, real, (rows, columns) in blocks:
            row_sums[:, anchors[real_anchors]] += np.asarray(rows)[:, real_anchors]
            column_sums[:, chosen[real]] += np.asarray(columns)[:, real]
    return row_sums, column_sums


def _chunks(size, width):
    """Index arrays of equal length, with a mask that is False on the padding."""
    for start in range(0, size, width):
        index = np.arange(start, start + width)
        yield np.minimum(index, size - 1), index < size


@jax.jit
def _jacobian(logits_fn, x):
    return lowering.fast(lambda x: logits_and_jacobian(logits_fn, x))(x)


@jax.jit
def _matvec(jacobian, flat):
    return jnp.einsum("akd,ad->ka", jacobian, flat, precision="highest")


def _logits(logits_fn, x, batch_size):
    return map_batched(lowering.fast(logits_fn, forward=True), x, batch_size)


_logits = jax.jit(_logits, static_argnums=2)


@functools.partial(jax.jit, static_argnums=7)
def _block(z, jacobian, own, labels, z_prime, flat, labels_prime, classes):
    """Sums over a block of pairs, by anchor and by partner; label −1 is padding."""
    # class axis first: reductions over it then run along contiguous pairs
    change = jnp.einsum("akd,pd->kap", jacobian, flat, precision="highest")
    parts = split_kl(
        z.T[:, :, None], change - own[:, :, None], z_prime.T[:, None, :], axis=0
    )
    used = (labels >= 0)[:, None] & (labels_prime >= 0)[None, :]
    if classes is None:
        used = used & (labels[:, None] != labels_prime[None, :])
    values = jnp.where(used[None], jnp.stack(parts), 0)
    if classes is None:
        return values.sum(2), values.sum(1)
    member, member_prime = (
        jax.nn.one_hot(y, classes, dtype=values.dtype) for y in (labels, labels_prime)
    )
    rows = jnp.einsum("qap,pc->qac", values, member_prime, precision="highest")
    return rows, jnp.einsum("qap,ac->qpc", values, member, precision="highest")


def _draw(keys, y, partners):
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


def _sampled_pairs(logits_fn, x, y, drawn, batch_size):
    size, partners = drawn.shape
    anchors, chosen = np.repeat(np.arange(size), partners), drawn.reshape(-1)
    parts = []
    for index, real in _chunks(len(anchors), batch_size):
        block = kl_components(logits_fn, x[anchors[index]], x[chosen[index]])
        parts.append(np.asarray(block, np.float64)[:, real])
    values = np.concatenate(parts, axis=1)
    weights = (size - np.bincount(y)[y])[anchors].astype(np.float64)
    weights /= weights.sum()
    means = values @ weights
    residuals = weights * (values - means[:, None])
    influence = np.zeros((4, size))
    np.add.at(influence.T, anchors, residuals.T)
    np.add.at(influence.T, chosen, residuals.T)
    return _summary(means, influence, len(anchors), residuals)


def _summary(means, influence, pairs, residuals):
    def stderr(combine):
        psi = combine @ influence
        variance = psi @ psi
        if len(psi) < 3:  # both have the same influence, whatever the spread
            return float("nan")
        if residuals is None:
            return float(np.sqrt(variance * len(psi) / (len(psi) - 1)))
        single = combine @ residuals
        independent = single @ single
        return float(np.sqrt(max(variance - independent, independent)))

    mean, fisher, softmax, network = map(float, means)
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
    )
