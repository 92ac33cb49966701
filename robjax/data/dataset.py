"""A data set: labelled images in memory or on the disk, and where they come from."""

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from robjax.checks import check_count, check_text
from robjax.data import digits, tfds
from robjax.data.batching import check_scale, random_order, stratified_split
from robjax.data.stored import Images, StoredImages
from robjax.runs.files import PathLike, as_path
from robjax.samples import is_concrete


class Dataset(NamedTuple):
    """Labelled images; ``images / scale`` lies in [0, 1].

    Made by `load`, `from_arrays` or `robjax.data.listing.Listing.stream`.

    Attributes:
      images: uint8 [N, H, W, C], scaled on the device by `to_float`; float32 with a
        scale of 1 for own floating-point images. They may lie on the disk: then
        indexing decodes them.
      labels: int32 [N] in 0..num_classes − 1.
      num_classes: K.
      scale: the value of a white pixel in `images`.
      name: where they come from, for people.
      groups: int32 [N] in 0..num_groups − 1, for objectives and accuracies by group;
        None: there are none.
      num_groups: G; 0 without groups.
    """

    images: Images
    labels: np.ndarray
    num_classes: int
    scale: float
    name: str
    groups: np.ndarray | None = None
    num_groups: int = 0

    def __repr__(self) -> str:
        """The name and the sizes, not the arrays."""
        stored = isinstance(self.images, StoredImages)
        if not (stored or is_concrete(self.images)):
            return "Dataset(traced)"
        count, *pixels = self.images.shape
        size = "×".join(map(str, pixels))
        groups = f" and {self.num_groups} groups" if self.num_groups else ""
        return (
            f"Dataset({self.name}: {count} images {size} in {self.num_classes} classes"
            f"{groups}{', on the disk' if stored else ''})"
        )


def load(
    name: str,
    split: str,
    *,
    data_dir: PathLike | None = None,
    workers: int | None = None,
    size: tuple[int, int] | None = None,
    crop: float | None = None,
) -> Dataset:
    """Loads a data set, in a fixed shuffled order, into memory or to be streamed.

    Neither TensorFlow nor the network is used: a set of TensorFlow Datasets must have
    been prepared as ArrayRecord (``python -m robjax.data.prepare``).

    >>> load("digits", "test")
    Dataset(digits: 360 images 8×8×1 in 10 classes)

    Args:
      name: "digits" (1,797 images of 8×8 pixels that come with scikit-learn), or an
        image-classification set of TensorFlow Datasets, as "mnist", "cifar10",
        "svhn_cropped", "name/config:version".
      split: "train", "test", or what other splits the set has.
      data_dir: folder of the prepared sets; default: the environment variable
        TFDS_DATA_DIR, else ~/tensorflow_datasets.
      workers: None: all images come into memory. A number: they stay on the disk, and
        so many processes decode the batches of `training.fit` ahead; 0: none but this
        one. Labels come into memory in any case.
      size: height and width that all images are resized to, bilinearly, the aspect
        ratio not kept; None: as they are.
      crop: with `size`, the share of the largest central part of that aspect ratio that
        is resized: 0.875 is usual for ImageNet; None: the whole image is.

    Raises:
      NotPreparedError: (a ValueError) no such set in `data_dir`; says what to run.
      ValueError: no such split, or not a set of images with one label, or not of one
        size where none is given.
    """
    check_text("name", name)
    check_text("split", split)
    if data_dir is not None:
        as_path(data_dir, "data_dir")
    if name == "digits":
        if (workers, size, crop) != (None, None, None):
            raise ValueError(
                "workers, size and crop must be None for digits, which come in memory, "
                f"got {workers}, {size} and {crop}"
            )
        images, labels = digits.read(split)
        return from_arrays(images, labels, num_classes=10, scale=16.0, name=name)
    images, labels, num_classes = tfds.stored(
        name, split, data_dir, size=size, crop=crop, workers=workers or 0
    )
    pixels = np.asarray(images) if workers is None else images
    return from_arrays(pixels, labels, num_classes=num_classes, name=name)


def from_arrays(
    images: ArrayLike | StoredImages,
    labels: ArrayLike,
    *,
    num_classes: int | None = None,
    scale: float = 255.0,
    groups: ArrayLike | None = None,
    num_groups: int | None = None,
    name: str = "arrays",
) -> Dataset:
    """Makes a data set of own arrays, in the order that they have.

    >>> from_arrays(np.zeros((4, 28, 28, 1)), [0, 2, 1, 2])
    Dataset(arrays: 4 images 28×28×1 in 3 classes)

    Args:
      images: [N, H, W, C], uint8 from 0 to `scale`, or floating from 0 to 1.
      labels: integers [N] in 0..num_classes − 1.
      num_classes: K; default: the largest label + 1.
      scale: the value of a white pixel of uint8 images; unused for floating ones.
      groups: integers [N] in 0..num_groups − 1 that split the data in another way than
        the labels do, as class and background together; None: no groups.
      num_groups: G; default: the largest group + 1.
      name: of the data set, for people.

    Raises:
      ValueError: a shape, dtype or value is not as described here.
    """
    check_text("name", name)
    check_scale(scale)
    if isinstance(images, StoredImages):
        pixels = images
    else:
        pixels, scale = _check_pixels(np.asarray(images), scale)
    classes = np.asarray(labels)
    num_classes = _check_classes(classes, len(pixels), num_classes)
    if groups is None and num_groups is not None:
        raise ValueError(f"num_groups must come with groups, got {num_groups} alone")
    members = None if groups is None else np.asarray(groups)
    if members is not None:
        num_groups = _check_classes(members, len(pixels), num_groups, name="groups")
    return Dataset(
        images=pixels,
        labels=classes.astype(np.int32),
        num_classes=num_classes,
        scale=float(scale),
        name=name,
        groups=None if members is None else members.astype(np.int32),
        num_groups=num_groups or 0,
    )


def _check_pixels(images: np.ndarray, scale: float) -> tuple[np.ndarray, float]:
    """The images as uint8 or float32, and the value of a white pixel in them."""
    if images.ndim != 4 or images.size == 0:
        hints = {
            2: ": give rows of pixels as images[:, None, None, :]",
            3: ": give grey images as images[..., None], one image as images[None]",
        }
        hint = hints.get(images.ndim, "") if images.size else ""
        raise ValueError(
            f"images must be non-empty [N, H, W, C], got shape {images.shape}{hint}"
        )
    if np.issubdtype(images.dtype, np.floating):
        images = images.astype(np.float32)
        scale = 1.0
    elif images.dtype != np.uint8:
        raise ValueError(
            f"images must be uint8 or floating, got {images.dtype}: give "
            "images.astype(np.uint8) if they are whole numbers from 0 to 255"
        )
    lowest = images.min()
    highest = images.max()
    # Written so that NaN fails too.
    if not (lowest >= 0 and highest <= scale):
        bright = scale == 1 and lowest >= 0 and highest <= 255
        hint = ": give images / 255" if bright else ""
        raise ValueError(
            f"images must lie in [0, {scale:g}], got values from {lowest} to {highest}"
            f"{hint}"
        )
    return images, scale


def _check_classes(
    labels: np.ndarray,
    num_examples: int,
    num_classes: int | None,
    *,
    name: str = "labels",
) -> int:
    """Checks labels, or groups, and returns how many classes there are."""
    if labels.shape != (num_examples,) or not np.issubdtype(labels.dtype, np.integer):
        hint = ""
        if labels.shape == (num_examples, 1):
            hint = f": give {name}[:, 0]"
        elif labels.ndim == 2:
            hint = f": one-hot {name} are given as {name}.argmax(axis=1)"
        elif labels.shape == (num_examples,):
            hint = f": give {name}.astype(int) if they are whole numbers"
        raise ValueError(
            f"{name} must be integers of shape ({num_examples},), got {labels.dtype} "
            f"{labels.shape}{hint}"
        )
    if num_classes is None:
        num_classes = int(labels.max()) + 1
    counted = "num_classes" if name == "labels" else "num_groups"
    check_count(counted, num_classes, minimum=2)
    if labels.min() < 0 or labels.max() >= num_classes:
        from_one = labels.min() == 1 and labels.max() == num_classes
        hint = f": count from 0, give {name} - 1" if from_one else ""
        raise ValueError(
            f"{name} must lie in 0..{num_classes - 1}, got values from {labels.min()} "
            f"to {labels.max()}{hint}"
        )
    return num_classes


def subset(dataset: Dataset, size: int, *, seed: int = 0) -> Dataset:
    """Draws `size` different examples at random, with the classes in proportion.

    >>> subset(load("digits", "train"), 100)
    Dataset(digits: 100 images 8×8×1 in 10 classes)

    Args:
      dataset: to draw from.
      size: how many examples.
      seed: of the choice and of the order.

    Returns:
      The examples in random order.

    Raises:
      ValueError: `size` is not a whole number from 1 to the size of the data set, or
        `seed` is not one of at least 0.
    """
    _check_dataset(dataset)
    available = len(dataset.labels)
    if check_count("size", size) > available:
        raise ValueError(f"size must be 1 to {available}, got {size}")
    check_count("seed", seed, minimum=0)
    return _rows(dataset, stratified_split(dataset.labels, size, seed=seed)[0])


def split(dataset: Dataset, size: int, *, seed: int = 0) -> tuple[Dataset, Dataset]:
    """Sets examples apart at random, with the classes in proportion.

    >>> train, validation = split(load("digits", "train"), 100)
    >>> len(train.labels), len(validation.labels)
    (1337, 100)

    Args:
      dataset: to split.
      size: how many examples to set apart, for validation.
      seed: of the choice and of the order.

    Returns:
      The other examples and those set apart, which are `subset`'s, in random order.

    Raises:
      ValueError: `size` is not a whole number from 1 to one less than the size of the
        data set, or `seed` is not one of at least 0.
    """
    _check_dataset(dataset)
    most = len(dataset.labels) - 1
    if check_count("size", size) > most:
        raise ValueError(f"size must be 1 to {most}, got {size}")
    check_count("seed", seed, minimum=0)
    apart, others = stratified_split(dataset.labels, size, seed=seed)
    return _rows(dataset, others), _rows(dataset, apart)


def _check_dataset(dataset: object) -> None:
    if not isinstance(dataset, Dataset):
        raise ValueError(f"dataset must be a Dataset, got {dataset!r}")


def _rows(dataset: Dataset, rows: np.ndarray) -> Dataset:
    images = dataset.images
    return dataset._replace(
        images=(
            images.select(rows) if isinstance(images, StoredImages) else images[rows]
        ),
        labels=dataset.labels[rows],
        groups=None if dataset.groups is None else dataset.groups[rows],
    )


def balance_groups(dataset: Dataset, *, seed: int = 0) -> Dataset:
    """Repeats examples until all groups that have any are equally large.

    Then batches show every group equally often, as `objectives.group_dro` needs. The
    largest group stays as it is. Examples of another are repeated equally often, but
    for a remainder that is drawn.

    >>> images = np.zeros((5, 2, 2, 1))
    >>> rare = from_arrays(images, [0, 1, 0, 1, 0], groups=[0, 0, 0, 0, 1])
    >>> np.bincount(balance_groups(rare).groups).tolist()
    [4, 4]

    Args:
      dataset: with groups.
      seed: of the remainder.

    Raises:
      ValueError: `dataset` has no groups, or `seed` is not a whole number from 0.
    """
    _check_dataset(dataset)
    check_count("seed", seed, minimum=0)
    if dataset.groups is None:
        raise ValueError(f"dataset must have groups, got {dataset!r}")
    sizes = np.bincount(dataset.groups)
    chosen = []
    for group in np.flatnonzero(sizes):
        members = np.flatnonzero(dataset.groups == group)
        order = members[random_order(len(members), seed=seed, stream=int(group))]
        chosen.append(np.resize(order, sizes.max()))
    return _rows(dataset, np.concatenate(chosen))
