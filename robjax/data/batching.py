"""Which examples make a batch: pure functions of the seed, stable across versions.

Orders come from sorting the raw output of the counter-based Philox generator
(Salmon et al., SC 2011), which NumPy promises never to change; the shuffles of NumPy
and JAX carry no such promise.
"""

import jax
import jax.numpy as jnp
import numpy as np

from robjax.checks import check_count


def random_order(size: int, *, seed: int, stream: int = 0) -> np.ndarray:
    """A random permutation, int64 [size], of 0..size − 1; pure in its arguments."""
    generator = np.random.Philox(key=np.array([seed, stream], np.uint64))
    return np.argsort(generator.random_raw(size), kind="stable")


def stratified_split(
    labels: np.ndarray, size: int, *, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Splits 0..N − 1 into `size` rows and the others, both with classes in proportion.

    Each example is put at the quantile of its random rank within its class, and the
    first `size` are taken: the count of a class differs from its share of `size` by
    one half at most, plus its share of the rounding of the others.

    Args:
      labels: integers [N].
      size: of the first part, 0 to N.
      seed: of the choice and of the order.

    Returns:
      Rows [size] and rows [N − size], each in random order.
    """
    order = random_order(len(labels), seed=seed)
    shuffled = labels[order]
    quantile = np.empty(len(labels))
    for label in np.unique(labels):
        members = np.flatnonzero(shuffled == label)
        quantile[members] = (np.arange(len(members)) + 0.5) / len(members)
    order = order[np.argsort(quantile, kind="stable")]
    first, rest = order[:size], order[size:]
    return (
        first[random_order(len(first), seed=seed, stream=1)],
        rest[random_order(len(rest), seed=seed, stream=2)],
    )


def batch_indices(
    num_examples: int, batch_size: int, *, seed: int, epoch: int
) -> np.ndarray:
    """The batches of one epoch: rows of the data set, int64 [steps, batch_size].

    Each epoch visits every example once, in an order of its own, except the last
    ``num_examples % batch_size`` of that order, which it leaves out. Depends on
    nothing but the arguments, so a resumed run sees the same batches.

    Raises:
      ValueError: a count is not a whole number of at least 1 (seed, epoch: 0), or
        the batch is larger than the data set.
    """
    check_count("num_examples", num_examples)
    check_count("seed", seed, minimum=0)
    check_count("epoch", epoch, minimum=0)
    if check_count("batch_size", batch_size) > num_examples:
        raise ValueError(
            f"batch_size must be 1 to {num_examples}, the number of examples, got "
            f"{batch_size}"
        )
    order = random_order(num_examples, seed=seed, stream=epoch)
    steps = num_examples // batch_size
    return order[: steps * batch_size].reshape(steps, batch_size)


def to_float(images: jax.Array | np.ndarray, scale: float) -> jax.Array:
    """Images [B, *S] of a data set -> float32 in [0, 1], computed on the device."""
    return jnp.asarray(images).astype(jnp.float32) / scale
