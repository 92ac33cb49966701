"""Real digits on backgrounds whose category goes with the label, more or less often.

    train = make("train", correlation=0.95, amplitude=0.7)
    test = make("decorrelated", amplitude=0.7)

An image is  x = α · white + (1 − α) · amplitude · b(category)  with

    α      the digit, enlarged and put at a random place; the mask is α > 0. Ink below
           a fifth is left away, so that the mask has the shape of the digit
    b      a background in [0, 1] of the category, one for each class

So the amplitude is the scale of the spurious feature, and at 0 there is only the
digit. Everything is a function of the arguments. One seed gives all splits but "train"
the same digits at the same places, so that only backgrounds differ from split to split.

The setting is that of Moayeri et al., "Explicit tradeoffs between adversarial and
natural distributional robustness", NeurIPS 2022 (arXiv 2209.07592). The four splits
that are named mixed or only are those of ImageNet-9, Xiao et al., "Noise or signal",
ICLR 2021 (arXiv 2006.09994).
"""

import functools
from collections.abc import Callable

import numpy as np

from robjax.checks import check_count, check_number, check_range
from robjax.data.dataset import load
from robjax.data.scenes import Scenes
from robjax.runs.files import PathLike

Background = Callable[..., np.ndarray]
"""(categories [N], classes=, image_size=, seed=) -> images [N, H, W, 3] in [0, 1]."""

# Share of the image's height that a digit takes up, and its faintest ink.
_DIGIT = 0.75
_FAINTEST = 0.2

SPLITS = (
    "train",
    "in_domain",
    "decorrelated",
    "reversed",
    "mixed_same",
    "mixed_rand",
    "only_background",
    "only_foreground",
)
"""What `make` makes; all but "train" are of the test digits."""


def _uniform(shape: int | tuple[int, ...], *, seed: int, stream: int) -> np.ndarray:
    """Numbers in [0, 1) that NumPy promises never to change; see `data.batching`."""
    raw = np.random.Philox(key=np.array([seed, stream], np.uint64)).random_raw(
        int(np.prod(shape))
    )
    return ((raw >> np.uint64(11)) * 2.0**-53).reshape(shape)


def stripes(
    categories: np.ndarray, *, classes: int, image_size: int, seed: int
) -> np.ndarray:
    """Coloured stripes: angle and hue are the category, width and phase are drawn.

    >>> stripes(np.array([0, 1]), classes=4, image_size=8, seed=0).shape
    (2, 8, 8, 3)

    Args:
      categories: int [N] in 0..classes − 1.
      classes: how many there are.
      image_size: height and width in pixels.
      seed: of the draws.

    Returns:
      [N, H, W, 3] in [0, 1].
    """
    width, phase = _uniform((2, len(categories), 1, 1), seed=seed, stream=0)
    angle = np.pi * categories[:, None, None] / classes
    row, column = np.indices((image_size, image_size))[:, None] / image_size
    along = np.cos(angle) * column + np.sin(angle) * row
    wave = 0.5 + 0.5 * np.sin(2 * np.pi * ((2 + 2 * width) * along + phase))
    return wave[..., None].astype(np.float32) * _hues(categories, classes)


def tints(
    categories: np.ndarray, *, classes: int, image_size: int, seed: int
) -> np.ndarray:
    """One colour all over: the hue is the category, the brightness is drawn.

    >>> red, cyan = tints(np.array([0, 1]), classes=2, image_size=8, seed=0)[:, 0, 0]
    >>> (red > 0.1).tolist(), (cyan > 0.1).tolist()
    ([True, False, False], [False, True, True])

    Args:
      categories, classes, image_size, seed: as in `stripes`.

    Returns:
      [N, H, W, 3] in [0, 1].
    """
    bright = 0.5 + 0.5 * _uniform((len(categories), 1, 1, 1), seed=seed, stream=0)
    flat = np.ones((1, image_size, image_size, 1), np.float32)
    return bright.astype(np.float32) * flat * _hues(categories, classes)


def _hues(categories: np.ndarray, classes: int) -> np.ndarray:
    """Full colours [N, 1, 1, 3], evenly around the circle of hues from red on."""
    turn = categories[:, None] / classes + np.array([[0.0, 2 / 3, 1 / 3]])
    distance = np.abs((turn + 0.5) % 1 - 0.5)  # from the primary colour, in turns
    return np.clip(2 - 6 * distance, 0, 1)[:, None, None].astype(np.float32)


def scenery(
    name: str = "cifar10", split: str = "test", *, data_dir: PathLike | None = None
) -> Background:
    """Real images as backgrounds: category k shows images of class k of a data set.

    >>> background = scenery("cifar10", "train")  # doctest: +SKIP

    Args:
      name, split, data_dir: as in `robjax.data.load`; a set of colour images.

    Returns:
      A background for `make`.

    Raises:
      NotPreparedError: as in `robjax.data.load`.
      ValueError: not a set of colour images.
    """
    images, labels, num_classes, scale, *_ = load(name, split, data_dir=data_dir)
    if images.shape[-1] != 3:
        raise ValueError(
            f"name must be a set of colour images, got {name!r} of {images.shape[-1]} "
            "channel(s)"
        )

    def background(
        categories: np.ndarray, *, classes: int, image_size: int, seed: int
    ) -> np.ndarray:
        if classes > num_classes:
            raise ValueError(
                f"classes must be at most the {num_classes} classes of {name}, got "
                f"{classes}"
            )
        draw = _uniform(len(categories), seed=seed, stream=0)
        found = np.empty((len(categories), image_size, image_size, 3), np.float32)
        for category in range(classes):
            members = np.flatnonzero(labels == category)
            here = np.flatnonzero(categories == category)
            chosen = members[(draw[here] * len(members)).astype(int)]
            for row, image in zip(here, chosen, strict=True):
                found[row] = _resized(images[image] / scale, image_size)
        return found

    return background


def make(
    split: str,
    *,
    correlation: float = 0.95,
    amplitude: float = 0.7,
    image_size: int = 16,
    classes: int = 4,
    source: str = "digits",
    background: Background = stripes,
    limit: int | None = None,
    seed: int = 0,
    data_dir: PathLike | None = None,
) -> Scenes:
    """Puts digits on backgrounds whose category agrees with the label this often.

    | split | category of the background |
    |---|---|
    | train, in_domain | the label for the share `correlation`, else another one |
    | decorrelated, mixed_rand | any, whatever the label |
    | reversed | as in_domain, with the next class in the place of the label |
    | mixed_same | the label |
    | only_background | as in_domain; no digit, the mask is 0 |
    | only_foreground | none (−1); black |

    All others have the same share, and 1/classes is no correlation at all. Within each
    class the shares are met to the image. mixed_rand is decorrelated, drawn anew.

    >>> make("mixed_same", classes=4)
    Scenes(digits mixed_same: 145 images 16×16 in 4 classes on 4 backgrounds, masks)

    Args:
      split: one of `SPLITS`; "train" uses the source's training images.
      correlation: share in [0, 1] of the images whose category is the label.
      amplitude: brightness in [0, 1] of the brightest background.
      image_size: height and width in pixels, at least 8.
      classes: K ≥ 2, the first K classes of the source.
      source: "digits", "mnist" or another set of grey images, see `robjax.data.load`.
      background: `stripes`, `tints`, `scenery(...)` or a function like these.
      limit: number of images; default: all.
      seed: of every draw.
      data_dir: as in `robjax.data.load`.

    Returns:
      Scenes with boolean masks.

    Raises:
      NotPreparedError: as in `robjax.data.load`.
      ValueError: an argument is out of its range; the message names it.
    """
    if split not in SPLITS:
        raise ValueError(f"split must be one of {', '.join(SPLITS)}, got {split!r}")
    check_range("correlation", check_number("correlation", correlation), 0, 1)
    check_range("amplitude", check_number("amplitude", amplitude), 0, 1)
    check_count("image_size", image_size, minimum=8)
    check_count("seed", seed, minimum=0)
    digits, labels = _digits(source, split == "train", classes, limit, data_dir)
    alpha = _place(digits, image_size, seed, stream=_stream("place", split))
    categories = _categories(split, labels, correlation, classes, seed)

    behind = np.zeros((len(labels), image_size, image_size, 3), np.float32)
    if split == "only_background":
        alpha = np.zeros_like(alpha)
    if split == "only_foreground":
        categories = np.full_like(categories, -1)
    else:
        # a seed of its own for each split, hence other widths, phases, sceneries
        own = int(_uniform(1, seed=seed, stream=_stream("behind", split))[0] * 2**53)
        made = background(categories, classes=classes, image_size=image_size, seed=own)
        behind = np.float32(amplitude) * _check_background(made, behind.shape)
    pixels = alpha[..., None] + (1 - alpha[..., None]) * behind
    return Scenes(
        images=np.round(255 * pixels).astype(np.uint8),
        labels=labels,
        masks=alpha > 0,
        backgrounds=categories,
        num_classes=classes,
        num_backgrounds=classes,
        name=f"{source} {split}",
    )


def _stream(what: str, split: str) -> int:
    """The number of a stream of draws; digits of all test splits lie alike."""
    if what == "place":
        return 1 if split == "train" else 2
    return 10 + 2 * SPLITS.index(split) + (what == "behind")


@functools.lru_cache(maxsize=4)  # to decode MNIST takes seconds
def _digits(
    source: str, train: bool, classes: int, limit: int | None, data_dir: PathLike | None
) -> tuple[np.ndarray, np.ndarray]:
    """Grey images [N, h, w] in [0, 1] of the first classes, and labels [N]."""
    images, labels, num_classes, scale, *_ = load(
        source, "train" if train else "test", data_dir=data_dir
    )
    if images.shape[-1] != 1:
        raise ValueError(f"source must be a set of grey images, got {source!r}")
    if check_count("classes", classes, minimum=2) > num_classes:
        raise ValueError(
            f"classes must be at most the {num_classes} of {source}, got {classes}"
        )
    rows = np.flatnonzero(labels < classes)
    if limit is not None:
        if check_count("limit", limit) > len(rows):
            raise ValueError(f"limit must be 1 to {len(rows)}, got {limit}")
        rows = rows[:limit]
    return images[rows, ..., 0] / scale, labels[rows]


def _place(
    digits: np.ndarray, image_size: int, seed: int, *, stream: int
) -> np.ndarray:
    """α [N, H, W]: every digit enlarged, at a random place of an empty image."""
    side = round(_DIGIT * image_size)
    room = image_size - side + 1
    corner = (room * _uniform((len(digits), 2), seed=seed, stream=stream)).astype(int)
    alpha = np.zeros((len(digits), image_size, image_size), np.float32)
    for image, digit, (row, column) in zip(alpha, digits, corner, strict=True):
        image[row : row + side, column : column + side] = _resized(digit, side)
    return np.where(alpha < _FAINTEST, 0, alpha)


def _resized(image: np.ndarray, side: int) -> np.ndarray:
    """An image [h, w] or [h, w, 3] in [0, 1] at another size, to 8 bits."""
    from PIL import Image

    bytes_ = np.round(255 * image).astype(np.uint8)
    resized = Image.fromarray(bytes_).resize((side, side), Image.Resampling.BILINEAR)
    return np.asarray(resized) / 255


def _categories(
    split: str, labels: np.ndarray, correlation: float, classes: int, seed: int
) -> np.ndarray:
    """The category int32 [N] of each background, by the table of `make`."""
    share = {"decorrelated": 1 / classes, "mixed_rand": 1 / classes, "mixed_same": 1.0}
    agree = share.get(split, correlation)
    draw = _uniform(len(labels), seed=seed, stream=_stream("category", split))
    quantile = np.empty(len(labels))
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        rank = np.argsort(np.argsort(draw[members], kind="stable"), kind="stable")
        quantile[members] = (rank + 0.5) / len(members)
    # the quantiles above `agree` are shared out evenly to the other categories
    above = (quantile - agree) / max(1 - agree, np.finfo(float).tiny)
    shift = np.where(quantile < agree, 0, 1 + np.floor(above * (classes - 1)))
    if split == "reversed":
        shift = shift + 1
    return ((labels + shift.astype(int)) % classes).astype(np.int32)


def _check_background(made: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    if np.shape(made) != shape or not (np.min(made) >= 0 and np.max(made) <= 1):
        raise ValueError(
            f"background must return images {list(shape)} in [0, 1], got shape "
            f"{list(np.shape(made))} from {np.min(made):.3g} to {np.max(made):.3g}"
        )
    return made
