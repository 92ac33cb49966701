"""Prepared sets of TensorFlow Datasets, read without TensorFlow and without network."""

import os
import pathlib
import shlex
from typing import Any

import numpy as np

from robjax.data.batching import random_order
from robjax.data.decoder import MODES, feature
from robjax.data.stored import StoredImages, make_form
from robjax.runs.files import PathLike

CHUNK = 1000
"""How many examples are read at a time."""


class NotPreparedError(ValueError):
    """A data set is not on this machine in a form that can be read."""


def stored(
    name: str,
    split: str,
    data_dir: PathLike | None,
    *,
    size: tuple[int, int] | None = None,
    crop: float | None = None,
    workers: int = 0,
) -> tuple[StoredImages, np.ndarray, int]:
    """One split of a prepared set, whose images stay on the disk.

    The order is a fixed permutation of the prepared one, because some sets are
    prepared sorted by class.

    >>> try:
    ...     stored("mnist", "train", "/no/such/folder")
    ... except NotPreparedError as error:
    ...     print(str(error).partition(" (")[0])
    data set 'mnist' is unknown or not prepared in /no/such/folder

    Args:
      name, split, data_dir, size, crop: as in `robjax.data.load`.
      workers: how many processes decode batches.

    Returns:
      The images [N, H, W, C], int32 labels [N] and the number of classes.

    Raises:
      NotPreparedError: see `robjax.data.load`.
      ValueError: no such split; not a set of uint8 images with one label each, or not
        of one size where `size` is not given.
    """
    root = data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
    builder = _find(name, pathlib.Path(root).expanduser())
    image_key, label_key = _image_and_label(builder.info, any_size=size is not None)
    if split not in builder.info.splits:
        raise ValueError(
            f"split of {name} must be one of {', '.join(sorted(builder.info.splits))}, "
            f"got {split!r}"
        )
    # the examples as they are stored, not decoded
    examples: Any = builder.as_data_source(split=split).data_source
    count = len(examples)
    labels = np.empty(count, np.int32)
    for start in range(0, count, CHUNK):
        rows = range(start, min(start + CHUNK, count))
        for row, example in zip(rows, examples.__getitems__(rows), strict=True):
            labels[row] = feature(example, label_key)
    order = random_order(count, seed=0)
    features = builder.info.features
    info = builder.info.splits[split]
    images = StoredImages(
        lambda rows: examples.__getitems__(rows.tolist()),
        make_form(
            features[image_key].shape,
            size=size,
            channels=features[image_key].shape[-1],
            crop=crop,
            feature=image_key,
        ),
        rows=order,
        source=f"{builder.info.full_name} {split} {info.shard_lengths}",
        workers=workers,
    )
    return images, labels[order], features[label_key].num_classes


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


def _image_and_label(info: Any, *, any_size: bool) -> tuple[str, str]:
    """The names of the two features that a set of labelled images has."""
    from tensorflow_datasets import features as kinds

    keys = info.supervised_keys or ("image", "label")
    if len(keys) == 2 and all(key in info.features for key in keys):
        image, label = (info.features[key] for key in keys)
        if (
            isinstance(image, kinds.Image)
            and isinstance(label, kinds.ClassLabel)
            and image.np_dtype == np.uint8
            and (any_size or None not in info.features[keys[0]].shape)
            and info.features[keys[0]].shape[-1] in MODES
        ):
            return keys
    raise ValueError(
        f"data set {info.name!r} is not a set of uint8 images of one size "
        "(or, with size=, of any), each with one class label: it holds "
        f"{dict(info.features.items())}"
    )
