"""Released sets of images on backgrounds, as `--data PATH` gives them to an experiment.

The layout is told by what only it has (`LAYOUTS`); a folder that looks like two of them
is an error. Two files are not in the releases and must be written: which features of
Salient ImageNet are core, and which outputs of a model the folders of ObjectNet are.

    core_features.json    {wnid: [feature, …]}, beside the folders of the classes
    class_map.json, .csv  as in `robjax.data.released.objectnet`

What can be measured depends on what a release has (`NEEDS`).
"""

import functools
import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from robjax import data, evaluation
from robjax.data import released
from robjax.data.listing import Listing
from robjax.metrics import spurious
from robjax.runs import files

LAYOUTS = {
    "Waterbirds": "metadata.csv",
    "ImageNet-9": "original/val",
    "RIVAL10": "*/ordinary",
    "Salient ImageNet": "*/feature_*/cams",
    "ObjectNet": "class_map.*",
}
"""Layout -> a path that it has, and no other one; without any: plain folders."""
PLAIN = "plain folders"

_MIXED = "images in mixed_same and mixed_rand"
_GROUPS = "the kind of every background"
_MASKS = "masks of the foregrounds"
NEEDS = {
    "gap": _MIXED,
    "minority": _GROUPS,
    "worst_group": _GROUPS,
    "robust_in_domain": _GROUPS,
    "robust_decorrelated": _GROUPS,
    "relative": _MASKS,
}
"""Measure -> what a release must have for it."""


class Split(NamedTuple):
    """Some images of a listing."""

    listing: Listing
    rows: np.ndarray


class Released(NamedTuple):
    """A folder in a known layout.

    Attributes:
      layout: its name.
      train, test: images for training and for measuring.
      mixed: mixed_same and mixed_rand, or nothing.
      remark: how training and test images were told apart, for the report.
    """

    layout: str
    train: Split
    test: Split
    mixed: Mapping[str, Split]
    remark: str

    @property
    def has(self) -> set[str]:
        """What of `NEEDS` the release has."""
        found = {
            _MIXED: bool(self.mixed),
            _GROUPS: self.test.listing.backgrounds is not None,
            _MASKS: self.test.listing.masks is not None,
        }
        return {need for need, there in found.items() if there}


@functools.cache
def find(root: Path) -> Released:
    """Reads names and tables of a folder, in the layout that it has.

    Raises:
        NotPreparedError: there is no such folder, or a file is missing.
        ValueError: the folder has marks of two layouts; as in `robjax.data.released`.
    """
    if not root.is_dir():
        raise data.NotPreparedError(f"looked for images at {root}: no such folder")
    marks = {name: next(root.glob(mark), None) for name, mark in LAYOUTS.items()}
    present = {name: path for name, path in marks.items() if path is not None}
    if len(present) > 1:
        why = ", ".join(f"{name} ({path})" for name, path in present.items())
        raise ValueError(f"{root} must have one layout, looks like {why}")
    if "Waterbirds" in present:
        train, test = (_all(released.waterbirds(root, s)) for s in ("train", "test"))
        return Released("Waterbirds", train, test, {}, "")
    if "RIVAL10" in present:
        train, test = (_all(released.rival10(root, s)) for s in ("train", "test"))
        return Released("RIVAL10", train, test, {}, "")
    if "ImageNet-9" in present:
        return _imagenet9(root)
    if "Salient ImageNet" in present:
        listing = released.salient_imagenet(root, _core_features(root))
        return _held_out("Salient ImageNet", listing)
    if "ObjectNet" in present:
        return _held_out("ObjectNet", released.objectnet(root, present["ObjectNet"]))
    return _held_out(PLAIN, released.folders(root))


def _all(listing: Listing) -> Split:
    return Split(listing, np.arange(len(listing.labels)))


def _core_features(root: Path) -> dict[str, list[int]]:
    table, form = root / "core_features.json", "{wnid: [feature, …]}"
    if not table.exists():
        raise data.NotPreparedError(
            f"looked for the core features of the classes, {form}, at {table}: no such "
            "file"
        )
    features = files.load_json(table)
    if not isinstance(features, dict) or not features:
        raise ValueError(f"{table} must be {form}, got {features!r}")
    return features


def _imagenet9(root: Path) -> Released:
    """original/train may be missing: it is not in the Backgrounds Challenge."""
    test = released.imagenet9(root, "original")
    train, remark = test, (
        "There is no original/train: the networks were trained on original/val, and "
        "the mixed images show its foregrounds again."
    )  # fmt: skip
    # the same classes in the same order, or an error
    read = functools.partial(released.folders, classes=test.classes)
    if (root / "original" / "train").exists():
        train, remark = read(root / "original" / "train"), ""
    names = ("mixed_same", "mixed_rand")
    mixed = {}
    if all((root / name).exists() for name in names):
        mixed = {name: _all(read(root / name / "val")) for name in names}
    return Released("ImageNet-9", _all(train), _all(test), mixed, remark)


def _held_out(layout: str, listing: Listing) -> Released:
    """One image of five is for testing, the first of each class among them."""
    rank = np.empty(len(listing.labels), int)
    for label in np.unique(listing.labels):
        members = np.flatnonzero(listing.labels == label)
        rank[members] = np.arange(len(members))
    test, train = (np.flatnonzero((rank % 5 == 0) == held) for held in (True, False))
    remark = "One image of five of each class was held out for testing."
    return Released(layout, Split(listing, train), Split(listing, test), {}, remark)


def unanswered(root: Path, claims: Mapping[str, str]) -> str:
    """Which claims (measure -> words) the folder says nothing about, in words.

    Raises:
        ValueError: it says nothing about any of them.
    """
    found = find(root)
    lacking = {name: NEEDS[name] for name in claims if NEEDS[name] not in found.has}
    if len(lacking) == len(claims):
        needed = " or ".join(dict.fromkeys(lacking.values()))
        raise ValueError(
            f"this experiment needs {needed}; {root}, which was read as "
            f"{found.layout}, has none"
        )
    return "".join(
        f'Not judged: "{claims[name]}". {found.layout} has no {need}.\n\n'
        for name, need in lacking.items()
    )


@functools.cache
def digest(root: Path) -> str:
    """A hash of which files the listings name and how large they are."""
    found = find(root)
    code = hashlib.sha256()
    for split in (found.train, found.test, *found.mixed.values()):
        listing = split.listing
        for row in split.rows:
            paths = (listing.paths[row], *(listing.masks[row] if listing.masks else ()))
            kind = None if listing.backgrounds is None else listing.backgrounds[row]
            sizes = [(p.name, p.stat().st_size if p.exists() else -1) for p in paths]
            code.update(repr((sizes, int(listing.labels[row]), kind)).encode())
    return code.hexdigest()[:12]


@functools.lru_cache(maxsize=4)  # of train, test and two mixed: each decoded once
def read(root: Path, name: str, size: int, limit: int | None) -> data.Scenes:
    """Images of "train", "test", "mixed_same" or "mixed_rand", resized to size².

    `limit` takes so many of them, evenly from all classes.
    """
    found = find(root)
    split = {"train": found.train, "test": found.test, **found.mixed}[name]
    rows = split.rows
    if limit is not None and limit < len(rows):
        rows = rows[np.linspace(0, len(rows) - 1, limit).astype(int)]
    return split.listing.read(size=(size, size), rows=rows)


def measure(
    root: Path,
    logits_fn: Partial,
    attacks: Mapping[str, Any],
    *,
    size: int,
    limit: int | None,
    seed: int,
) -> dict[str, float]:
    """All measures of `NEEDS` that the folder allows, and the accuracy `in_domain`.

    Where groups are known, `in_domain` is re-weighted to the shares that they have in
    the training images, as is the custom on Waterbirds, and `decorrelated` so that each
    class has all backgrounds equally often.
    """
    open_ = functools.partial(read, root, size=size, limit=limit)
    test = open_("test")
    key = jax.random.key(1)
    result = evaluation.evaluate(logits_fn, test.dataset(), attacks, key=key)
    verdicts = {"": result.correct} | ({"robust_": result.robust} if attacks else {})
    found = {}
    for prefix, right in verdicts.items():
        if _GROUPS in find(root).has:
            for name, shares in _shares(root, test).items():
                rate = spurious.reweighted_accuracy(right, test.groups, shares)
                found[prefix + name] = float(rate)
        else:
            found[prefix + "in_domain"] = float(right.mean())
    if _GROUPS in find(root).has:
        fits = test.labels == test.backgrounds
        found["minority"] = float(result.correct[~fits].mean())
        worst = spurious.worst_group_accuracy(result.correct, test.groups)
        found["worst_group"] = float(worst)
    if _MIXED in find(root).has:
        same, rand = (
            evaluation.evaluate(logits_fn, open_(name).dataset(), {}, key=key).correct
            for name in ("mixed_same", "mixed_rand")
        )
        found["gap"] = float(spurious.background_gap(same, rand))
    if test.masks is not None:
        noise = spurious.noise_sensitivity(
            logits_fn,
            data.to_float(test.images, 255.0),
            test.labels,
            jnp.asarray(test.masks),
            key=jax.random.key(seed),
            l2_levels=np.asarray(spurious.L2_LEVELS) * size / 224,
        )
        found["relative"] = float(noise.mean_relative)
    return found


def _shares(root: Path, test: data.Scenes) -> dict[str, np.ndarray]:
    """Shares of the groups: those in training, and without a correlation."""
    listing, kinds = find(root).train.listing, test.num_backgrounds
    trained = np.bincount(
        listing.labels * kinds + np.asarray(listing.backgrounds),
        minlength=test.num_classes * kinds,
    )
    classes = np.bincount(test.labels, minlength=test.num_classes)
    return {"in_domain": trained, "decorrelated": np.repeat(classes, kinds)}
