"""Labelled images on the disk: what is where, and decoding of those that are wanted."""

import os
import pathlib
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple, cast

import numpy as np

from robjax.checks import check_count
from robjax.data.dataset import Dataset
from robjax.data.decoder import MODES, measure
from robjax.data.scenes import Scenes
from robjax.data.stored import StoredImages, make_form
from robjax.data.tfds import NotPreparedError


class Listing(NamedTuple):
    """N images that lie on the disk, not decoded yet.

    Attributes:
      paths: of the N images.
      labels: int32 [N] places in `classes`.
      classes: names of the classes, in the order of the labels.
      name: where they come from, for people.
      masks: for each image the files whose pixelwise largest value is its mask; None:
        the release has none.
      soft: masks are weights in [0, 1]; if not, any value above 0 is foreground.
      backgrounds: int32 [N] categories; None: the release does not say.
      num_backgrounds: of categories.
      outputs: for each class the outputs of another model, of ImageNet mostly, that
        count as right, see `robjax.metrics.spurious.map_classes`; None: the labels are
        the outputs.
    """

    paths: tuple[pathlib.Path, ...]
    labels: np.ndarray
    classes: tuple[str, ...]
    name: str
    masks: tuple[tuple[pathlib.Path, ...], ...] | None = None
    soft: bool = False
    backgrounds: np.ndarray | None = None
    num_backgrounds: int = 0
    outputs: tuple[tuple[int, ...], ...] | None = None

    def __repr__(self) -> str:
        """The name and the sizes, not the files."""
        classes = f"{len(self.paths)} images in {len(self.classes)} classes"
        return f"Listing({self.name}: {classes}, not decoded)"

    def table(self, num_outputs: int) -> np.ndarray:
        """The class int32 [num_outputs] that each output stands for; −1: none.

        For `robjax.metrics.spurious.map_classes`.

        Raises:
          ValueError: there is no map from classes to outputs, or it names another one.
        """
        if self.outputs is None:
            raise ValueError(f"{self!r} must have outputs to make a table, has none")
        table = np.full(check_count("num_outputs", num_outputs), -1, np.int32)
        largest = max(max(each) for each in self.outputs)
        if largest >= num_outputs:
            raise ValueError(
                f"num_outputs must be above {largest}, the largest output of "
                f"{self.name}'s class map, got {num_outputs}"
            )
        for label, each in enumerate(self.outputs):
            table[list(each)] = label
        return table

    def stream(
        self,
        *,
        size: tuple[int, int] | None = None,
        channels: int | None = None,
        crop: float | None = None,
        workers: int = 1,
    ) -> Dataset:
        """The images as a data set that leaves them on the disk, without masks.

        What is not given is read off the first bytes of all files, which takes some
        seconds for 50,000 of them. `training.fit` has the batches decoded ahead.
        Wherever else images are wanted, they are decoded then, in this process.

        >>> from robjax.data import folders
        >>> folders("photos/train").stream(size=(64, 64), workers=4)  # doctest: +SKIP
        Dataset(train: 50000 images 64×64×3 in 10 classes, on the disk)

        Args:
          size: height and width that all images are resized to, bilinearly, the aspect
            ratio not kept; None: all images must have one size.
          channels: 1 (grey), 3 (RGB) or 4 (RGBA), that all images are converted to;
            None: all images must have the same.
          crop: with `size`, the share of the largest central part of that aspect ratio
            that is resized: 0.875 is usual for ImageNet; None: the whole image is.
          workers: how many processes decode batches ahead, of 20 MB each; 0: none but
            this one.

        Raises:
          ValueError: an option is out of range, images differ where they must not, or
            there is one class only; the message names the files.
        """
        if len(self.classes) < 2:
            raise ValueError(
                f"images must be of two classes or more, {self.name} has {self.classes}"
            )
        paths = [str(path) for path in self.paths]
        like = (None, None, None)
        if size is None or channels is None:
            like = _measured(paths, any_size=size is not None, channels=channels)
        root = os.path.commonpath(paths)
        files = [f"{os.path.relpath(p, root)} {os.path.getsize(p)}" for p in paths]
        images = StoredImages(
            lambda rows: [paths[row] for row in rows],
            make_form(like, size=size, channels=channels, crop=crop),
            rows=np.arange(len(paths)),
            source="\n".join(files),
            workers=workers,
        )
        scenes = Scenes(
            images=cast(Any, images),
            labels=self.labels,
            masks=None,
            backgrounds=self.backgrounds,
            num_classes=len(self.classes),
            num_backgrounds=self.num_backgrounds,
            name=self.name,
        )
        return scenes.dataset()

    def read(
        self, *, size: tuple[int, int], rows: Iterable[int] | None = None
    ) -> Scenes:
        """Decodes images and masks, and resizes them bilinearly to one size.

        Args:
          size: height and width; the aspect ratio of an image is not kept.
          rows: which images, in this order; default: all.

        Raises:
          NotPreparedError: a file is missing or is no image.
          ValueError: a mask has another size than its image; or a malformed `size` or
            row.
        """
        height, width = (check_count("size", side) for side in size)
        chosen = np.arange(len(self.paths)) if rows is None else np.asarray([*rows])
        inside = chosen.size and chosen.min() >= 0 and chosen.max() < len(self.paths)
        if not (inside and np.issubdtype(chosen.dtype, np.integer)):
            raise ValueError(
                f"rows must be places in 0..{len(self.paths) - 1}, got {rows!r}"
            )
        images = np.empty((len(chosen), height, width, 3), np.uint8)
        masks = None
        if self.masks is not None:
            kind = np.float32 if self.soft else bool
            masks = np.empty((len(chosen), height, width), kind)
        for place, row in enumerate(chosen):
            path = self.paths[row]
            image = _decode(path, "RGB")
            images[place] = _resize(image, height, width)
            if self.masks is not None and masks is not None:
                mask = _union(self.masks[row], path, image.shape[:2])
                resized = _resize(mask, height, width)
                masks[place] = resized / 255 if self.soft else resized > 0
        known = self.backgrounds
        return Scenes(
            images=images,
            labels=self.labels[chosen],
            masks=masks,
            backgrounds=None if known is None else known[chosen],
            num_classes=len(self.classes),
            num_backgrounds=self.num_backgrounds,
            name=self.name,
        )


def _measured(
    paths: Sequence[str], *, any_size: bool, channels: int | None
) -> tuple[int, int, int | None]:
    """Height, width and channels of all files, which must not differ but as allowed."""
    height, width, mode = measure(paths[0])
    known = {name: depth for depth, name in MODES.items()}
    for path in paths:
        found = measure(path)
        if found[:2] != (height, width) and not any_size:
            raise ValueError(
                f"images must have one size, but {paths[0]} is {height}×{width} and "
                f"{path} is {found[0]}×{found[1]}: give size=(height, width)"
            )
        if channels is None and (found[2] != mode or mode not in known):
            raise ValueError(
                f"images must all be one of {', '.join(known)}, but {paths[0]} is "
                f"{mode} and {path} is {found[2]}: give channels=3 to make all RGB"
            )
    return height, width, known.get(mode)


def _decode(path: pathlib.Path, mode: str) -> np.ndarray:
    """An image file as uint8 [h, w, 3] ("RGB") or [h, w] ("L")."""
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as image:
            return np.asarray(image.convert(mode))
    except (FileNotFoundError, UnidentifiedImageError) as error:
        found = "no such file" if isinstance(error, FileNotFoundError) else "no image"
        raise NotPreparedError(f"looked for an image at {path}: {found}") from None


def _resize(image: np.ndarray, height: int, width: int) -> np.ndarray:
    from PIL import Image

    bilinear = Image.Resampling.BILINEAR
    return np.asarray(Image.fromarray(image).resize((width, height), bilinear))


def _union(
    files: Sequence[pathlib.Path], image: pathlib.Path, size: tuple[int, ...]
) -> np.ndarray:
    """The pixelwise largest value of mask files, uint8 [h, w]."""
    found = np.zeros(size, np.uint8)
    for file in files:
        mask = _decode(file, "L")
        if mask.shape != size:
            raise ValueError(
                f"a mask must have the size of its image: {image} is {list(size)}, "
                f"its mask {file} is {list(mask.shape)}"
            )
        found = np.maximum(found, mask)
    return found
