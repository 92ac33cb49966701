"""Sums of the KL divergence and its parts over all ordered pairs of images.

In a pair, x_i is the *anchor* and x_j its *partner*; J_i is the Jacobian of the logits
at x_i. The linear change of the logits, which `split_kl` takes, is

    J_i(x_j − x_i) = J_i x_j − J_i x_i

So for every pair it follows from the Jacobian J_i of each anchor (K backward passes)
and one matrix product. That takes N·K backward passes, N forward passes and N²·K·d
multiply-adds, instead of N² forward-mode passes. Images are centred on their mean
first, which keeps the difference accurate.
"""

import functools
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from robjax import lowering
from robjax.metrics.finite import finite_samples
from robjax.metrics.fisher import logits_and_jacobian
from robjax.metrics.kl.split import split_kl
from robjax.numerics import finite_or_zero, map_batched
from robjax.runs import provenance
from robjax.runs.processes import Group, joined
from robjax.traced import TracedCallable

# Logits of pairs held at a time. On a CPU a few arrays of them stay in its caches; an
# accelerator is to have more work than it takes to start it.
_BLOCK, _LARGE_BLOCK = 2**17, 2**22


class PairSums(NamedTuple):
    """Sums over pairs of the KL divergence and its three parts, and of their rounding.

    Over partners of other labels, both are [8, N]. With a number of classes C they are
    over partners of each label apart, [8, N, C]. Then the pair of an image with itself
    is included, whose parts are 0.

    Attributes:
      by_anchor: over the partners x′ of each x.
      by_partner: over the anchors x of each x′.
      logits: [N] whether those of an image are finite. Without that it is in no pair.
      gradients: [N] whether its input gradients are.
    """

    by_anchor: np.ndarray
    by_partner: np.ndarray
    logits: np.ndarray
    gradients: np.ndarray


def sum_pairs(
    logits_fn: TracedCallable,
    x: jax.Array,
    y: np.ndarray,
    batch_size: int,
    classes: int | None,
) -> PairSums:
    """Adds up the KL divergence and its parts over all ordered pairs, block by block.

    Several processes share the anchors. Their sums differ from those of one process by
    rounding in float64 only.

    >>> from robjax.model import as_logits_fn
    >>> x = jnp.array([[0.0, 0.0], [0.0, 0.0], [2.0, 0.0]])
    >>> sums = sum_pairs(as_logits_fn(lambda x: x), x, np.array([0, 0, 1]), 3, None)
    >>> total = sums.by_anchor[0]
    >>> total.shape, bool(total[2] > total[0])  # x_2 has two partners, x_0 one
    ((3,), True)

    Args:
      logits_fn: made by `as_logits_fn`.
      x: [N, *S] images.
      y: [N] integer labels; with `classes` from 0 to C − 1.
      batch_size: anchors per block.
      classes: C, to sum over partners of each label apart; None: over partners of other
        labels.
    """

    def about() -> dict[str, Any]:
        facts = provenance.checksum((x, y)), provenance.identify(logits_fn)
        return {"data": facts[0], "model": facts[1], "batch_size": batch_size}

    with joined("sums over pairs", about) as group:
        share = _share_of_sums(group, logits_fn, x, y, batch_size, classes)
        rows, columns, known, gradients = zip(*group.exchange(share), strict=True)
    return PairSums(
        by_anchor=functools.reduce(np.add, rows),
        by_partner=functools.reduce(np.add, columns),
        logits=known[0],
        gradients=np.all(gradients, axis=0),
    )


def _share_of_sums(
    group: Group,
    logits_fn: TracedCallable,
    x: jax.Array,
    y: np.ndarray,
    batch_size: int,
    classes: int | None,
) -> PairSums:
    """The sums over the pairs whose anchors are this process's; see `sum_pairs`."""
    size = x.shape[0]
    batch_size = min(batch_size, size)
    flat = x.reshape(size, -1)
    flat = flat - jnp.mean(flat, 0)[None]
    logits = _logits(logits_fn, x, batch_size)
    known = np.asarray(finite_samples(logits))
    y = np.where(known, y, -1)
    block = _BLOCK if jax.default_backend() == "cpu" else _LARGE_BLOCK
    width = min(size, max(1, block // (batch_size * logits.shape[1])))
    shape = (8, size) if classes is None else (8, size, classes)
    sums = PairSums(np.zeros(shape), np.zeros(shape), known, np.ones(size, bool))
    partner_chunks = list(chunks(size, width))
    for anchors, real_anchors in group.mine(chunks(size, batch_size)):
        group.check()
        z, jacobian, finite = _jacobian(logits_fn, x[anchors])
        own = _matvec(jacobian, flat[anchors])
        anchor_labels = np.where(real_anchors, y[anchors], -1)
        # all blocks are under way before the first is waited for
        blocks = [
            _block(
                z,
                jacobian,
                own,
                anchor_labels,
                logits[partners],
                flat[partners],
                np.where(real, y[partners], -1),
                classes,
            )
            for partners, real in partner_chunks
        ]
        sums.gradients[anchors] = finite
        for (partners, real), block in zip(partner_chunks, blocks, strict=True):
            rows, columns = map(np.asarray, block)
            sums.by_anchor[:, anchors[real_anchors]] += rows[:, real_anchors]
            sums.by_partner[:, partners[real]] += columns[:, real]
    return sums


def chunks(size: int, width: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Index arrays of equal length, with a mask that is False on the padding.

    >>> [(index.tolist(), real.tolist()) for index, real in chunks(3, 2)]
    [([0, 1], [True, True]), ([2, 2], [True, False])]
    """
    for start in range(0, size, width):
        index = np.arange(start, start + width)
        yield np.minimum(index, size - 1), index < size


@jax.jit
def _jacobian(
    logits_fn: TracedCallable, x: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Logits [A, K], their Jacobian [A, K, d], and whether that was finite [A]."""
    # in float32, lest the network part be that of the rounding
    both = functools.partial(logits_and_jacobian, logits_fn)
    logits, jacobian = lowering.exact(both, forward=False)(x)
    return logits, finite_or_zero(jacobian), finite_samples(jacobian)


@jax.jit
def _matvec(jacobian: jax.Array, flat: jax.Array) -> jax.Array:
    """J_i x_i of the anchors, [K, A]."""
    return jnp.einsum("akd,ad->ka", jacobian, flat, precision="highest")


@functools.partial(jax.jit, static_argnums=2)
def _logits(logits_fn: TracedCallable, x: jax.Array, batch_size: int) -> jax.Array:
    return map_batched(lowering.exact(logits_fn), x, batch_size)


@functools.partial(jax.jit, static_argnums=7)
def _block(
    z: jax.Array,
    jacobian: jax.Array,
    own: jax.Array,
    labels: jax.Array,
    z_prime: jax.Array,
    flat: jax.Array,
    labels_prime: jax.Array,
    classes: int | None,
) -> tuple[jax.Array, jax.Array]:
    """Sums over a block of A × P pairs, by anchor and by partner.

    Args:
      z: [A, K] logits of the anchors.
      jacobian: [A, K, d] of the anchors.
      own: [K, A] J_i x_i.
      labels: [A] of the anchors; −1 is padding or has logits that are not finite.
      z_prime: [P, K] logits of the partners.
      flat: [P, d] the partners.
      labels_prime: [P] of the partners; −1 as above.
      classes: as in `sum_pairs`.

    Returns:
      [8, A] and [8, P], or with `classes` [8, A, C] and [8, P, C].
    """
    # class axis first: reductions over it then run along contiguous pairs
    change = jnp.einsum("akd,pd->kap", jacobian, flat, precision="highest")
    parts = split_kl(
        z.T[:, :, None], change - own[:, :, None], z_prime.T[:, None, :], axis=0
    )
    used = (labels >= 0)[:, None] & (labels_prime >= 0)[None, :]
    if classes is None:
        used = used & (labels[:, None] != labels_prime[None, :])
    values = jnp.where(used[None], jnp.stack(jax.tree.leaves(parts)), 0)
    if classes is None:
        return values.sum(2), values.sum(1)
    member = jax.nn.one_hot(labels, classes, dtype=values.dtype)
    member_prime = jax.nn.one_hot(labels_prime, classes, dtype=values.dtype)
    rows = jnp.einsum("qap,pc->qac", values, member_prime, precision="highest")
    columns = jnp.einsum("qap,ac->qpc", values, member, precision="highest")
    return rows, columns
