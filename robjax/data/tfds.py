"""Prepared sets of TensorFlow Datasets, read without TensorFlow and without network."""

import os
import pathlib
import shlex
from typing import Any

import numpy as np

from robjax.data.batching import random_order
from robjax.runs.files import PathLike

CHUNK = 1000
"""How many examples are decoded at a time."""


class NotPreparedError(ValueError):
    """A data set is not on this machine in a form that can be read."""


def read(
    name: str, split: str, data_dir: PathLike | None
) -> tuple[np.ndarray, np.ndarray, int]:
    """Reads one split of a prepared set into memory.

    The order is a fixed permutation of the prepared one, because some sets are
    prepared sorted by class.

    >>> try:
    ...     read("mnist", "train", "/no/such/folder")
    ... except NotPreparedError as error:
    ...     print(str(error).partition(" (")[0])
    data set 'mnist' is unknown or not prepared in /no/such/folder

    Args:
      name, split, data_dir: as in `robjax.data.load`.

    Returns:
      uint8 images [N, H, W, C], int32 labels [N] and the number of classes.

    Raises:
      NotPreparedError: see `robjax.data.load`.
      ValueError: no such split; not a set of uint8 images of one size and one label.
    """
    root = data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
    builder = _find(name, pathlib.Path(root).expanduser())
    image_key, label_key = _image_and_label(builder.info)
    if split not in builder.info.splits:
        raise ValueError(
            f"split of {name} must be one of {', '.join(sorted(builder.info.splits))}, "
            f"got {split!r}"
        )
    source = builder.as_data_source(split=split)
    size = len(source)
    features = builder.info.features
    images = np.empty((size, *features[image_key].shape), np.uint8)
    labels = np.empty(size, np.int32)
    place = np.argsort(random_order(size, seed=0))
    for start in range(0, size, CHUNK):
        rows = range(start, min(start + CHUNK, size))
        for row, example in zip(rows, source.__getitems__(rows), strict=True):
            images[place[row]] = example[image_key]
            labels[place[row]] = example[label_key]
    return images, labels, features[label_key].num_classes


def _find(name: str, root: pathlib.Path) -> Any:
    """The builder of a prepared set that can be read without TensorFlow."""
    try:
        from tensorflow_datasets.core import file_adapters, read_only_builder
    except ImportError as error:
        raise NotPreparedError(
            f"data set {name!r} needs the package tensorflow-datasets: {error}"
        ) from error

    # tfds.builder(name) would ask a server about a set that is not on the disk.
    try:
        builder: Any = read_only_builder.builder_from_files(name, data_dir=str(root))
    except ValueError:
        raise NotPreparedError(_how_to_prepare(name, root)) from None
    readable = file_adapters.FileFormat.with_random_access()
    if not builder.info.available_file_formats() & readable:
        raise NotPreparedError(
            f"data set {name!r} is prepared in {builder.data_dir} as "
            f"{builder.info.file_format.value} only, which needs TensorFlow to read. "
            "Remove that folder or choose another TFDS_DATA_DIR, then run:\n"
            f"{_command(name)}"
        )
    return builder


def _how_to_prepare(name: str, root: pathlib.Path) -> str:
    """A message that names the sets in the folder and the command for this one."""
    prepared = {path.parents[1] for path in root.glob("*/*/dataset_info.json")}
    prepared |= {path.parents[2] for path in root.glob("*/*/*/dataset_info.json")}
    present = ", ".join(sorted(path.name for path in prepared)) or "nothing"
    return (
        f"data set {name!r} is unknown or not prepared in {root} (there: {present}; "
        "embedded: digits). If it is in the catalogue "
        "https://www.tensorflow.org/datasets/catalog, prepare it with:\n"
        f"{_command(name)} --data-dir {shlex.quote(str(root))}"
    )


def _command(name: str) -> str:
    return (
        "    pip install 'robjax[prepare]'\n"
        f"    python -m robjax.data.prepare {shlex.quote(name)}"
    )


def _image_and_label(info: Any) -> tuple[str, str]:
    """The names of the two features that a set of labelled images has."""
    from tensorflow_datasets import features as kinds

    keys = info.supervised_keys or ("image", "label")
    if len(keys) == 2 and all(key in info.features for key in keys):
        image, label = (info.features[key] for key in keys)
        if (
            isinstance(image, kinds.Image)
            and isinstance(label, kinds.ClassLabel)
            and image.np_dtype == np.uint8
            and None not in info.features[keys[0]].shape
        ):
            return keys
    raise ValueError(
        f"data set {info.name!r} is not a set of uint8 images of one size, each with "
        f"one class label: it holds {dict(info.features.items())}"
    )
