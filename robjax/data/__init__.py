"""Labelled images in memory or on the disk, batches of them, and augmentation.

    train = data.load("digits", "train")       # embedded; or any prepared TFDS name
    photos = data.folders("photos/train").stream(size=(64, 64))   # left on the disk
    rows = data.batch_indices(len(train.labels), 128, seed=0, epoch=3)[step]
    x = data.to_float(train.images[rows], train.scale)

The files:

    dataset.py        what a data set is; sets by name, own arrays, subsets
    digits.py         the set that needs no network
    tfds.py           prepared sets of TensorFlow Datasets
    prepare.py        the command that prepares them
    batching.py       orders, splits and batches as functions of a seed
    augmentation.py   random crops and flips
    scenes.py         images with masks of the foreground and categories of background
    backgrounds.py    such images made of digits, with a correlation of choice
    released.py       such images in the layouts of released sets
    listing.py        what lies in such a layout, not decoded yet
    stored.py         images that are decoded when wanted, in batches by processes
    decoder.py        what those processes do
"""

from robjax.data import backgrounds, released
from robjax.data.augmentation import augment
from robjax.data.batching import balanced_indices, batch_indices, to_float
from robjax.data.dataset import (
    Dataset,
    balance_groups,
    from_arrays,
    load,
    split,
    subset,
)
from robjax.data.released import folders
from robjax.data.scenes import Scenes
from robjax.data.stored import Batches, Images, StoredImages
from robjax.data.tfds import NotPreparedError

__all__ = [
    "Batches",
    "Dataset",
    "Images",
    "NotPreparedError",
    "Scenes",
    "StoredImages",
    "augment",
    "backgrounds",
    "balance_groups",
    "balanced_indices",
    "batch_indices",
    "folders",
    "from_arrays",
    "load",
    "released",
    "split",
    "subset",
    "to_float",
]
