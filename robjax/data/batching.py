"""Which examples make a batch: pure functions of the seed, stable across versions.

Orders come from sorting the raw output of the counter-based Philox generator
(Salmon et al., SC 2011), which NumPy promises never to change. The shuffles of NumPy
and JAX carry no such promise.
"""

from typing import Any

import jax
import jax.core
import jax.numpy as jnp
import numpy as np

from robjax.arrays import check_array
from robjax.checks import check_count, check_labels, check_number
from robjax.data.stored import Images, StoredImages


def random_order(size: int, *, seed: int, stream: int = 0) -> np.ndarray:
    """A random permutation of 0..size − 1 that depends on the arguments only.

    >>> order = random_order(5, seed=0)
    >>> sorted(order.tolist())
    [0, 1, 2, 3, 4]

    Args:
      size: N.
      seed: chooses the permutation.
      stream: chooses another one for the same seed, independent of the first.

    Returns:
      int64 [size].
    """
    generator = np.random.Philox(key=np.array([seed, stream], np.uint64))
    return np.argsort(generator.random_raw(size), kind="stable")


def stratified_split(
    labels: np.ndarray, size: int, *, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Splits 0..N − 1 into `size` rows and the others, both with classes in proportion.

    Each example is put at the quantile of its random rank within its class. The `size`
    examples of the lowest quantiles are the first part. With K classes, a class that
    makes up the share p of all examples has between p size − (1 + Kp) / 2 and
    p size + (1 + Kp) / 2 examples there.

    >>> labels = np.array([0, 0, 0, 0, 1, 1])
    >>> first, rest = stratified_split(labels, 3, seed=0)
    >>> sorted(labels[first].tolist()), sorted(labels[rest].tolist())
    ([0, 0, 1], [0, 0, 1])

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
    first = order[:size]
    rest = order[size:]
    return (
        first[random_order(len(first), seed=seed, stream=1)],
        rest[random_order(len(rest), seed=seed, stream=2)],
    )


def batch_indices(
    num_examples: int, batch_size: int, *, seed: int, epoch: int
) -> np.ndarray:
    """The batches of one epoch, as rows of the data set.

    Each epoch has a random order of its own and visits every example at most once. The
    last ``num_examples % batch_size`` of that order would not fill a batch and are left
    out. The rows depend on nothing but the arguments, so a resumed run sees the same
    batches.

    >>> rows = batch_indices(7, 3, seed=0, epoch=2)
    >>> rows.shape, len(set(rows.ravel().tolist()))
    ((2, 3), 6)

    Args:
      num_examples: N, the size of the data set.
      batch_size: B, at most N.
      seed: of all orders, at least 0.
      epoch: number of the epoch, at least 0.

    Returns:
      int64 [steps, batch_size].

    Raises:
      ValueError: an argument is not a whole number or is below its minimum (1 for the
        counts, 0 for seed and epoch), or the batch is larger than the data set.
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


def balanced_indices(
    labels: np.ndarray, batch_size: int, *, seed: int, epoch: int
) -> np.ndarray:
    """The batches of one epoch in which every class is equally frequent.

    An epoch is as long as that of `batch_indices`, N draws. Each class that occurs gets
    N / K of them, rounded up for some. A class draws its examples in turn, in a random
    order of its own for each epoch: of a large class some are left out, those of a
    small one are repeated. The rows depend on nothing but the arguments.

    >>> rows = balanced_indices(np.array([0, 0, 0, 0, 0, 1]), 6, seed=0, epoch=0)
    >>> np.bincount(np.array([0, 0, 0, 0, 0, 1])[rows[0]]).tolist()
    [3, 3]

    Args:
      labels: integers [N].
      batch_size: B, at most N.
      seed: of all orders, at least 0.
      epoch: number of the epoch, at least 0.

    Returns:
      int64 [steps, batch_size].

    Raises:
      ValueError: as `batch_indices`.
    """
    labels = np.asarray(check_labels(labels, np.size(labels), name="labels"))
    positions = batch_indices(len(labels), batch_size, seed=seed, epoch=epoch)
    classes = np.unique(labels)
    size, more = divmod(len(labels), len(classes))
    # the orders of epochs are the streams below 2^32
    lucky = random_order(len(classes), seed=seed, stream=(1 << 32) + epoch)[:more]
    drawn = []
    for number, label in enumerate(classes):
        members = np.flatnonzero(labels == label)
        stream = ((number + 2) << 32) + epoch
        order = members[random_order(len(members), seed=seed, stream=stream)]
        drawn.append(np.resize(order, size + (number in lucky)))
    return np.concatenate(drawn)[positions]


def check_scale(scale: Any) -> Any:
    """Checks the value of a white pixel, which is positive.

    >>> check_scale(255)
    255
    """
    check_number("scale", scale)
    if not isinstance(scale, jax.core.Tracer) and not scale > 0:
        raise ValueError(f"scale must be positive, got {scale!r}")
    return scale


def to_float(images: jax.Array | Images, scale: float) -> jax.Array:
    """Turns images of a data set into float32 in [0, 1], on the device.

    >>> to_float(np.array([[0, 255]], np.uint8), scale=255).tolist()
    [[0.0, 1.0]]

    Args:
      images: [B, *S] of any dtype.
      scale: the value of a white pixel.

    Returns:
      float32 [B, *S].

    Raises:
      ValueError: `images` holds no numbers, or `scale` is not positive.
    """
    pixels = np.asarray(images) if isinstance(images, StoredImages) else images
    pixels = check_array("images", pixels, "[B, …]", finite=False)
    return jnp.asarray(pixels).astype(jnp.float32) / check_scale(scale)
