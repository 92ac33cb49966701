"""Networks on digits in front of correlated backgrounds: trained once, measured once.

A `Recipe` decides a network (experiments/scene_networks.py). What was measured on it
lies in results/scenes/, and is found again by the next study. A folder of a released
set takes the place of the digits (experiments/folders.py).
"""

import dataclasses
import functools
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial
from tqdm import tqdm

from experiments import common, folders
from experiments.scene_networks import (
    EPOCHS,
    IMAGE_SIZE,
    Recipe,
    ball_of,
    split_of,
    train,
    train_together,
)
from robjax import attacks, data, evaluation
from robjax.metrics import spurious
from robjax.runs import files

# To be raised with any change of what is trained or measured below.
FORMAT = 1
RELEASED_SIZE = 32
LIMITS = {"digits": (None, None), "mnist": (1000, 1000)}
"""Training and test images of each source; None: all."""


@dataclasses.dataclass(frozen=True)
class Arguments:
    """What every study of scenes can be told on the command line."""

    source: Literal["digits", "mnist"] = "digits"
    """Digits needs nothing, MNIST must have been prepared with TFDS."""
    scenery: Literal["stripes", "cifar10"] = "stripes"
    """Backgrounds; CIFAR-10 must have been prepared with TFDS."""
    data: Path | None = None
    """Folder of a released set in place of digits: Waterbirds, ImageNet-9, RIVAL10,
    Salient ImageNet."""
    image_size: int | None = None
    """Height and width of the images, 16 by default; released ones are resized, to 32
    by default."""
    seeds: int = 3
    """Repetitions, at least 2 for verdicts."""
    smoke: bool = False
    """About a minute, to see that everything works; under results/smoke."""
    results: Path = Path("results")
    """Folder of all results."""


Measured = Mapping[str, float]
"""
in_domain, decorrelated, reversed    accuracy on these splits
gap                                  BG-Gap
minority                             accuracy where the background does not fit,
                                     decorrelated
worst_group                          accuracy of the worst group, decorrelated
relative                             relative foreground sensitivity, mean over levels
robust_in_domain, robust_decorrelated
                                     accuracy under PGD-40 at the radius of training

Of a released set these are what `folders.measure` says.
"""


def _path(recipe: Recipe, results: Path) -> Path:
    decides = [files.plain(recipe), FORMAT]
    if recipe.folder is not None:
        decides.append(folders.digest(Path(recipe.folder)))
    plain = json.dumps(decides, sort_keys=True)
    digest = hashlib.sha256(plain.encode()).hexdigest()[:12]
    return results / "scenes" / f"{digest}.json"


def measure(
    recipe: Recipe, results: Path, trained: Mapping[Recipe, Partial] | None = None
) -> Measured:
    """Trains and measures the network, unless that has been done."""
    path = _path(recipe, results)
    if path.exists():
        return files.load_json(path)["measured"]
    network = (trained or {}).get(recipe) or train(recipe)
    measured = (_measure if recipe.folder is None else _measure_released)(
        recipe, network
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    files.save_json(path, {"recipe": recipe, "measured": measured})
    return measured


def _measure(recipe: Recipe, logits_fn: Partial) -> Measured:
    splits = {
        name: split_of(recipe, name)
        for name in (
            "in_domain",
            "decorrelated",
            "reversed",
            "mixed_same",
            "mixed_rand",
        )
    }
    arrays = {
        name: (data.to_float(split.images, 255.0), jnp.asarray(split.labels))
        for name, split in splits.items()
    }
    right = {
        name: np.asarray(jnp.argmax(logits_fn(x), axis=1) == y)
        for name, (x, y) in arrays.items()
    }
    gap = spurious.background_gap(right["mixed_same"], right["mixed_rand"], paired=True)
    apart = splits["decorrelated"]
    fits = apart.labels == apart.backgrounds
    worst = spurious.worst_group_accuracy(right["decorrelated"], apart.groups)
    x, y = arrays["in_domain"]
    noise = spurious.noise_sensitivity(
        logits_fn,
        x,
        y,
        jnp.asarray(splits["in_domain"].masks),
        key=jax.random.key(recipe.seed),
        l2_levels=np.asarray(spurious.L2_LEVELS) * recipe.image_size / 224,
    )
    found = {name: float(right[name].mean()) for name in list(splits)[:3]}
    found |= {
        "gap": float(gap),
        "minority": float(right["decorrelated"][~fits].mean()),
        "worst_group": float(worst),
        "relative": float(noise.mean_relative),
    }
    if recipe.norm != "none":
        for name in ("in_domain", "decorrelated"):
            result = evaluation.evaluate(
                logits_fn, arrays[name], _attacks(recipe), key=jax.random.key(1)
            )
            found[f"robust_{name}"] = result.robust_accuracy().mean
    return found


def _measure_released(recipe: Recipe, logits_fn: Partial) -> Measured:
    return folders.measure(
        Path(str(recipe.folder)),
        logits_fn,
        _attacks(recipe),
        size=recipe.image_size,
        limit=recipe.limits[1],
        seed=recipe.seed,
    )


def _attacks(recipe: Recipe) -> dict[str, Any]:
    """PGD-40 at the radius of training; nothing for standard training."""
    if recipe.norm == "none":
        return {}
    return {"PGD-40": functools.partial(attacks.pgd, ball=ball_of(recipe), steps=40)}


def measure_all(
    variants: Mapping[str, Callable[[int], Recipe]], arguments: Arguments
) -> dict[str, list[Measured]]:
    """Title -> what was measured for each seed of a variant."""
    seeds = 1 if arguments.smoke else arguments.seeds
    results = common.results_of(arguments)
    every = [(t, make(seed)) for t, make in variants.items() for seed in range(seeds)]
    together = [
        recipe
        for _, recipe in every
        if recipe.model == "mlp" and not _path(recipe, results).exists()
    ]
    trained = train_together(together) if together else {}
    found: dict[str, list[Measured]] = {title: [] for title in variants}
    for title, recipe in tqdm(every, unit="network", disable=None):
        found[title].append(measure(recipe, results, trained))
    return found


def base(arguments: Arguments, **changes: Any) -> Callable[[int], Recipe]:
    """A recipe for each seed: the images of the arguments, and these changes."""
    limits = LIMITS[arguments.source]
    if arguments.data is not None:
        own = ("amplitude", "correlation", "classes")
        changes = {k: v for k, v in changes.items() if k not in own}
        changes["folder"] = str(arguments.data.resolve())
        limits = (None, None)
    if arguments.smoke:
        limits, changes = (64, 40), changes | {"epochs": 1}
    size = IMAGE_SIZE if arguments.data is None else RELEASED_SIZE

    def recipe(seed: int) -> Recipe:
        return Recipe(
            source=arguments.source,
            scenery=arguments.scenery,
            seed=seed,
            limits=limits,
            image_size=arguments.image_size or size,
            **changes,
        )

    return recipe


def column(rows: Sequence[Measured], name: str) -> np.ndarray:
    """[seeds] a number that was measured."""
    return np.array([row[name] for row in rows])


def unanswered(arguments: Arguments, claims: Mapping[str, str]) -> str:
    """Which claims (measure -> words) the images say nothing about, for the report.

    Raises:
        ValueError: they say nothing about any, or are asked for twice.
    """
    if arguments.data is None:
        return ""
    if (arguments.source, arguments.scenery) != ("digits", "stripes"):
        raise ValueError(
            f"--data {arguments.data} has images and backgrounds of its own, got "
            f"--source {arguments.source} --scenery {arguments.scenery} as well"
        )
    return folders.unanswered(arguments.data, claims)


def describe(arguments: Arguments, own: str, network: str = "CNN") -> str:
    """The setting in a line; `own` is what only digits on backgrounds have."""
    images = f"{arguments.source}, {own}"
    if arguments.scenery != "stripes":
        images += f", in front of {arguments.scenery}"
    remark = ""
    if arguments.data is not None:
        found = folders.find(arguments.data)
        size = arguments.image_size or RELEASED_SIZE
        images = (
            f"{found.layout} ({arguments.data}), {len(found.train.rows)} training and "
            f"{len(found.test.rows)} test images resized to {size}×{size}"
        )
        remark = (
            f" {found.remark} L2 radii are {size / IMAGE_SIZE:g} times those named."
        )
    return (
        arguments.smoke * common.SMOKE
        + f"{network} on {images}, {EPOCHS} epochs, {arguments.seeds} seeds.{remark}"
    )


def name_of(arguments: Arguments) -> str:
    """Of the report's folder: where the images come from."""
    if arguments.data is not None:
        return arguments.data.resolve().name
    plain = arguments.scenery == "stripes"
    return arguments.source + ("" if plain else f"-{arguments.scenery}")


def where(norm: str, amplitude: float | None) -> str:
    """A training in words; the brightness is that of generated backgrounds."""
    return norm if amplitude is None else f"{norm}, brightness {amplitude}"


def seeds_of(rows: Sequence[Measured]) -> str:
    """How many networks a line or a bar is the mean of, in words."""
    return f"{len(rows)} seeds" if len(rows) > 1 else "one seed"
