"""A data set as arrays in memory, and where it comes from."""

import os
from typing import Any, NamedTuple

import numpy as np

from robjax.checks import check_count
from robjax.data import digits, tfds
from robjax.data.batching import stratified_split


class Dataset(NamedTuple):
    """Labelled images; ``images / scale`` lies in [0, 1].

    Attributes:
      images: uint8 [N, H, W, C], scaled on the device by `to_float`; float32 with a
        scale of 1 for own floating-point images.
      labels: int32 [N] in 0..num_classes − 1.
      num_classes: K.
      scale: the value of a white pixel in `images`.
      name: where they come from, for people.
    """

    images: np.ndarray
    labels: np.ndarray
    num_classes: int
    scale: float
    name: str


def load(
    name: str, split: str, *, data_dir: str | os.PathLike[str] | None = None
) -> Dataset:
    """Loads a data set into memory, in a fixed shuffled order.

    Args:
      name: "digits" (1,797 images of 8×8 pixels that come with scikit-learn), or an
        image-classification set of TensorFlow Datasets, as "mnist", "cifar10",
        "svhn_cropped", "name/config:version". Neither TensorFlow nor the network is
        used: the set must have been prepared as ArrayRecord.
      split: "train", "test", or what other splits the set has.
      data_dir: folder of the prepared sets; default: the environment variable
        TFDS_DATA_DIR, else ~/tensorflow_datasets.

    Raises:
      NotPreparedError: (a ValueError) no such set in `data_dir`; says what to run.
      ValueError: no such split, or not a set of images of one size with one label.
    """
    if name == "digits":
        images, labels = digits.read(split)
        return from_arrays(images, labels, num_classes=10, scale=16.0, name=name)
    images, labels, num_classes = tfds.read(name, split, data_dir)
    return from_arrays(images, labels, num_classes=num_classes, name=name)


def from_arrays(
    images: Any,
    labels: Any,
    *,
    num_classes: int | None = None,
    scale: float = 255.0,
    name: str = "arrays",
) -> Dataset:
    """Makes a data set of own arrays; their order is kept.

    Args:
      images: [N, H, W, C], uint8 from 0 to `scale`, or floating from 0 to 1.
      labels: integers [N] in 0..num_classes − 1.
      num_classes: K; default: the largest label + 1.
      scale: the value of a white pixel of uint8 images; unused for floating ones.
      name: of the data set, for people.

    Raises:
      ValueError: a shape, dtype or value is not as described here.
    """
    images, labels = np.asarray(images), np.asarray(labels)
    if images.ndim != 4 or images.size == 0:
        raise ValueError(
            f"images must be non-empty [N, H, W, C], got shape {images.shape}"
        )
    if np.issubdtype(images.dtype, np.floating):
        images, scale = images.astype(np.float32), 1.0
    elif images.dtype != np.uint8:
        raise ValueError(f"images must be uint8 or floating, got {images.dtype}")
    lowest, highest = images.min(), images.max()
    # Written so that NaN fails too.
    if not (lowest >= 0 and highest <= scale):
        raise ValueError(
            f"images must lie in [0, {scale:g}], got values from {lowest} to {highest}"
        )
    if labels.shape != images.shape[:1] or not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(
            f"labels must be integers of shape ({len(images)},), got {labels.dtype} "
            f"{labels.shape}"
        )
    if num_classes is None:
        num_classes = int(labels.max()) + 1
    check_count("num_classes", num_classes, minimum=2)
    if labels.min() < 0 or labels.max() >= num_classes:
        raise ValueError(
            f"labels must lie in 0..{num_classes - 1}, got values from {labels.min()} "
            f"to {labels.max()}"
        )
    return Dataset(images, labels.astype(np.int32), num_classes, float(scale), name)


def subset(dataset: Dataset, size: int, *, seed: int = 0) -> Dataset:
    """Draws `size` different examples, the classes in proportion, order shuffled.

    Raises:
      ValueError: `size` is not a whole number from 1 to the size of the data set.
    """
    available = len(dataset.labels)
    if check_count("size", size) > available:
        raise ValueError(f"size must be 1 to {available}, got {size}")
    check_count("seed", seed, minimum=0)
    rows, _ = stratified_split(dataset.labels, size, seed=seed)
    return dataset._replace(images=dataset.images[rows], labels=dataset.labels[rows])
