"""Released sets of images on backgrounds, in the layouts in which they are unpacked.

    listing = waterbirds("waterbird_complete95_forest2water2", "test")
    scenes = listing.read(size=(224, 224), rows=range(1000))

A reader looks at names and tables alone and gives a `data.listing.Listing`, whose
`read` decodes the chosen images one by one. What is missing, or in another form than
described, is a `NotPreparedError` or another ValueError that names the file. Nothing is
downloaded.
"""

import csv
import json
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from robjax.checks import check_text
from robjax.data.listing import Listing
from robjax.data.tfds import NotPreparedError
from robjax.runs.files import PathLike, as_path

_IMAGES = {".png", ".jpg", ".jpeg", ".bmp", ".webp"}


def _existing(path: pathlib.Path, what: str) -> pathlib.Path:
    if not path.exists():
        raise NotPreparedError(f"looked for {what} at {path}: no such file or folder")
    return path


def _subfolders(root: pathlib.Path, what: str) -> list[pathlib.Path]:
    return sorted(p for p in _existing(root, what).iterdir() if p.is_dir())


def _images_in(folder: pathlib.Path) -> list[pathlib.Path]:
    found = sorted(
        p
        for p in folder.iterdir()
        if p.suffix.lower() in _IMAGES and not p.name.startswith(".")
    )
    if not found:
        kinds = ", ".join(sorted(_IMAGES))
        raise NotPreparedError(f"looked for images ({kinds}) in {folder}: none there")
    return found


def _json(path: pathlib.Path, what: str) -> Any:
    try:
        return json.loads(_existing(path, what).read_text())
    except json.JSONDecodeError as error:
        raise ValueError(f"{what} at {path} must be JSON: {error}") from None


def _unknown(name: str, path: pathlib.Path, known: Iterable[str]) -> ValueError:
    listed = sorted(known)
    some = ", ".join(listed[:12]) + (", …" if len(listed) > 12 else "")
    return ValueError(f"class {name!r} of {path} is unknown: expected one of {some}")


def _list(
    found: Sequence[tuple[pathlib.Path, int]],
    classes: Sequence[str],
    name: str,
    where: pathlib.Path,
) -> Listing:
    """A listing of (path, label) pairs, of which there must be some."""
    if not found:
        raise NotPreparedError(f"looked for images of {name} in {where}: none there")
    paths, labels = zip(*found, strict=True)
    return Listing(paths, np.array(labels, np.int32), tuple(classes), name)


def folders(
    root: PathLike, *, classes: Sequence[str] | None = None, name: str | None = None
) -> Listing:
    """Plain folders of images, root/<class>/*.png (or .jpg, .jpeg, .bmp, .webp).

    The layout of torchvision's ImageFolder. Images of a class are sorted by name.

    >>> train = folders("photos/train").stream(size=(64, 64))  # doctest: +SKIP

    Args:
      root: the folder that has one folder for each class.
      classes: names of the folders in the order of the labels; default: all of them,
        sorted. A folder that is not among them is an error.
      name: for people; default: that of the folder.

    Raises:
      NotPreparedError: (a ValueError) there is no folder, or one without images.
      ValueError: a folder holds a file that is neither an image nor hidden, so that no
        image of another kind is left out without a word; or it is not in `classes`.
    """
    root = as_path(root, "root")
    if classes is not None:
        named = isinstance(classes, list | tuple) and bool(classes)
        if not (named and all(isinstance(one, str) for one in classes)):
            raise ValueError(f"classes must be names of folders, got {classes!r}")
    if name is not None:
        check_text("name", name)
    present = {p.name: p for p in _subfolders(root, "folders of classes")}
    order = sorted(present) if classes is None else list(classes)
    for folder in present:
        if folder not in order:
            raise _unknown(folder, root, order)
    found = []
    for label, folder in enumerate(order):
        where = _existing(root / folder, f"images of class {folder!r}")
        images = _images_in(where)
        other = {p for p in where.iterdir() if p.name[0] != "."} - {*images}
        if other:
            raise ValueError(
                f"folders of classes must hold images alone, found {min(other)}: take "
                "it away, or hide it by a dot"
            )
        found += [(path, label) for path in images]
    return _list(found, order, name or root.name, root)


def waterbirds(root: PathLike, split: str) -> Listing:
    """Waterbirds: birds of land and water on backgrounds of land and water.

    root/metadata.csv has the columns img_filename, y (0 land bird, 1 water bird), split
    (0, 1, 2) and place (0 land, 1 water). The group is 2 y + place. Sagawa et al., ICLR
    2020 (arXiv 1911.08731).

    >>> waterbirds("waterbird_complete95_forest2water2", "test")  # doctest: +SKIP

    Args:
      root: the unpacked folder.
      split: "train", "val" or "test".
    """
    splits = ("train", "val", "test")
    if split not in splits:
        raise ValueError(f"split must be one of {', '.join(splits)}, got {split!r}")
    root = pathlib.Path(root)
    table = _existing(root / "metadata.csv", "the table of Waterbirds")
    with table.open(newline="") as file:
        rows = list(csv.DictReader(file))
    needed = ("img_filename", "y", "split", "place")
    missing = [column for column in needed if rows and column not in rows[0]]
    if missing:
        raise ValueError(f"{table} must have columns {needed}, lacks {missing}")
    chosen = [row for row in rows if row["split"] == str(splits.index(split))]
    for row in chosen:
        for column in ("y", "place"):
            if row[column] not in ("0", "1"):
                where = f"{column} of {row['img_filename']} in {table}"
                raise ValueError(f"{where} must be 0 or 1, got {row[column]!r}")
    found = [(root / row["img_filename"], int(row["y"])) for row in chosen]
    listing = _list(found, ("landbird", "waterbird"), f"Waterbirds {split}", table)
    places = np.array([int(row["place"]) for row in chosen], np.int32)
    return listing._replace(backgrounds=places, num_backgrounds=2)


def imagenet9(root: PathLike, variant: str) -> Listing:
    """ImageNet-9 of the Backgrounds Challenge, root/<variant>/val/<class>/*.

    Xiao et al., ICLR 2021 (arXiv 2006.09994). Class folders are sorted, as in their
    code. A background's own category is not in the layout.

    >>> same = imagenet9("bg_challenge", "mixed_same")  # doctest: +SKIP

    Args:
      root: the unpacked folder.
      variant: the name of a folder: original, mixed_same, mixed_rand, mixed_next,
        only_fg, no_fg, only_bg_b, only_bg_t.
    """
    return folders(pathlib.Path(root) / variant / "val", name=f"ImageNet-9 {variant}")


def rival10(root: PathLike, split: str, *, mappings: PathLike | None = None) -> Listing:
    """RIVAL10: ImageNet images of ten classes with masks of their objects.

    root/<split>/ordinary/<wnid>_<…>.JPEG with …_merged_mask.JPEG beside it; the files
    wnid_to_class.json and label_mappings.json give the class. Masks count as foreground
    wherever they are not 0, as in the authors' code. Moayeri et al., CVPR 2022 (arXiv
    2201.10766).

    >>> rival10("RIVAL10", "test")  # doctest: +SKIP

    Args:
      root: the unpacked folder.
      split: "train" or "test".
      mappings: the folder of the two JSON files, which come with the authors' code;
        default: `root`.
    """
    if split not in ("train", "test"):
        raise ValueError(f"split must be 'train' or 'test', got {split!r}")
    root = pathlib.Path(root)
    tables = root if mappings is None else pathlib.Path(mappings)
    synsets = _json(tables / "wnid_to_class.json", "the classes of RIVAL10")
    labels = _json(tables / "label_mappings.json", "the labels of RIVAL10")
    names = dict(sorted((label, name) for name, label in labels.values()))
    where = _existing(root / split / "ordinary", f"{split} images of RIVAL10")
    found = []
    for path in _images_in(where):
        if path.stem.endswith("_merged_mask"):
            continue
        wnid = path.stem.split("_")[0]
        if synsets.get(wnid) not in labels:
            raise _unknown(wnid, path, [w for w, s in synsets.items() if s in labels])
        found.append((path, labels[synsets[wnid]][1]))
    listing = _list(found, tuple(names.values()), f"RIVAL10 {split}", where)
    masks = [(p.with_name(f"{p.stem}_merged_mask{p.suffix}"),) for p in listing.paths]
    return listing._replace(masks=tuple(masks))


def salient_imagenet(
    root: PathLike,
    features: Mapping[str, Sequence[int]],
    *,
    classes: Sequence[str] | None = None,
) -> Listing:
    """Salient ImageNet: soft masks of the neural features that belong to a class.

    An image root/<wnid>/feature_<f>/images/<image>.jpeg has its mask at
    root/<wnid>/feature_<f>/cams/<image>.jpeg. If several features have the image, its
    mask is the largest value. Singla and Feizi, ICLR 2022 (arXiv 2110.04301).

    >>> core = {"n02066245": [341, 1697]}
    >>> salient_imagenet("salient_imagenet", core)  # doctest: +SKIP

    Args:
      root: the unpacked folder.
      features: for each class, by its WordNet id, the features to take: the core ones
        or the spurious ones.
      classes: WordNet ids in the order of the labels; default: those of `features`,
        sorted.
    """
    root = pathlib.Path(root)
    order = sorted(features) if classes is None else list(classes)
    found: list[tuple[pathlib.Path, int]] = []
    masks: dict[tuple[str, str], list[pathlib.Path]] = {}
    for wnid, numbers in features.items():
        if wnid not in order:
            raise _unknown(wnid, root, order)
        for number in numbers:
            folder = root / wnid / f"feature_{number}"
            where = _existing(folder / "images", f"feature {number} of class {wnid}")
            for path in _images_in(where):
                if (wnid, path.name) not in masks:
                    found.append((path, order.index(wnid)))
                beside = masks.setdefault((wnid, path.name), [])
                beside.append(folder / "cams" / path.name)
    listing = _list(found, order, "Salient ImageNet", root)
    return listing._replace(masks=tuple(map(tuple, masks.values())), soft=True)


def objectnet(root: PathLike, class_map: PathLike) -> Listing:
    """ObjectNet: folders of images, and a map from folders to outputs of a model.

    root/<folder>/*.png. Folders that the map does not name are left out: ObjectNet has
    313 classes, ImageNet knows 113 of them. Barbu et al., NeurIPS 2019.

    >>> objectnet("objectnet-1.0/images", "folder_to_imagenet.json")  # doctest: +SKIP

    Args:
      root: the folder of the folders.
      class_map: JSON {folder: index or [index, …]}, or CSV with the columns folder and
        index, one row for each pair.
    """
    outputs = read_class_map(class_map)
    root = pathlib.Path(root)
    found = []
    for label, folder in enumerate(outputs):
        what = f"images of class {folder!r} of {class_map}"
        where = _existing(root / folder, what)
        found += [(path, label) for path in _images_in(where)]
    listing = _list(found, tuple(outputs), "ObjectNet", root)
    return listing._replace(outputs=tuple(outputs.values()))


def read_class_map(path: PathLike) -> dict[str, tuple[int, ...]]:
    """Reads which outputs of a model stand for each class, from JSON or CSV.

    >>> read_class_map("folder_to_imagenet.json")  # doctest: +SKIP
    {'banana': (954,), 'chair': (423, 559, 765)}

    Args:
      path: as `class_map` in `objectnet`.

    Returns:
      Outputs of each class, the classes sorted by name.

    Raises:
      NotPreparedError: there is no such file.
      ValueError: the file has another form, or an output stands for two classes.
    """
    path = pathlib.Path(path)
    if path.suffix.lower() == ".csv":
        with _existing(path, "a class map").open(newline="") as file:
            rows = list(csv.DictReader(file))
        if not rows or not {"folder", "index"} <= rows[0].keys():
            raise ValueError(f"{path} must have the columns folder and index")
        pairs = [(row["folder"], row["index"]) for row in rows]
    else:
        table = _json(path, "a class map")
        if not isinstance(table, dict) or not table:
            raise ValueError(f"{path} must be a JSON object {{folder: [index, …]}}")
        pairs = [
            (folder, index)
            for folder, indices in table.items()
            for index in (indices if isinstance(indices, list) else [indices])
        ]
    owners: dict[int, str] = {}
    for folder, index in pairs:
        if not str(index).isdigit():
            raise ValueError(
                f"class {folder!r} of {path} must have outputs 0, 1, …, got {index!r}"
            )
        other = owners.setdefault(int(index), folder)
        if other != folder:
            raise ValueError(
                f"output {index} of {path} must stand for one class, got {other!r} and "
                f"{folder!r}"
            )
    return {
        folder: tuple(index for index, owner in owners.items() if owner == folder)
        for folder in sorted(set(owners.values()))
    }
