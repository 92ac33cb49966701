"""Networks on digits in front of correlated backgrounds: trained once, measured once.

A `Recipe` decides a network. What was measured on it lies in results/scenes/, and is
found again by the next study. The images are those of `robjax.data.backgrounds`, 16×16
in colour. The network is a CNN of two convolutions.
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

from experiments import common
from robjax import attacks, data, evaluation, models, training
from robjax.balls import L2, Ball, Linf
from robjax.data import backgrounds
from robjax.metrics import spurious
from robjax.runs import files
from robjax.training import FitConfig, objectives

# To be raised with any change of what is trained or measured below.
FORMAT = 1
IMAGE_SIZE = 16
EPOCHS = 15
# The L2 levels of the specification are those of images of 224×224×3 numbers.
_L2_LEVELS = np.asarray(spurious.L2_LEVELS) * IMAGE_SIZE / 224
LIMITS = {"digits": (None, None), "mnist": (4000, 1000)}
"""Training and test images of each source; None: all."""


@dataclasses.dataclass(frozen=True)
class Arguments:
    """What every study of scenes can be told on the command line."""

    source: Literal["digits", "mnist"] = "digits"
    """Digits needs nothing, MNIST must have been prepared with TFDS."""
    seeds: int = 3
    """Repetitions, at least 2 for verdicts."""
    smoke: bool = False
    """About a minute, to see that everything works; under results/smoke."""
    results: Path = Path("results")
    """Folder of all results."""


@dataclasses.dataclass(frozen=True)
class Recipe:
    """Everything that decides a network and what is measured on it.

    norm: of the attack in training, "L2" or "Linf"; "none": standard training.
    eps: its radius, images in [0, 1].
    dro: trained by Group-DRO on balanced groups.
    correlation: share of the training images on the background of their class.
    """

    source: str
    amplitude: float
    correlation: float
    seed: int
    norm: str = "none"
    eps: float = 0.0
    dro: bool = False
    classes: int = 4
    epochs: int = EPOCHS
    limits: tuple[int | None, int | None] = (None, None)


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
"""


def ball_of(recipe: Recipe) -> Ball:
    """The threat model of the training; of radius 0 for standard training."""
    return L2(recipe.eps) if recipe.norm == "L2" else Linf(recipe.eps)


@functools.cache  # one object for all seeds, so that they share a compiled step
def _objective(norm: str, eps: float, dro: bool) -> objectives.Objective:
    if dro:
        return objectives.group_dro
    if norm == "none":
        return objectives.standard
    ball = L2(eps) if norm == "L2" else Linf(eps)
    return functools.partial(
        objectives.adversarial, ball=ball, steps=7, step_size=eps / 3
    )


@functools.cache
def _model(classes: int) -> models.CNN:
    return models.CNN(classes, kernel=3)


def measure(recipe: Recipe, results: Path) -> Measured:
    """Trains and measures the network, unless that has been done."""
    plain = json.dumps([files.plain(recipe), FORMAT], sort_keys=True)
    digest = hashlib.sha256(plain.encode()).hexdigest()[:12]
    path = results / "scenes" / f"{digest}.json"
    if path.exists():
        return files.load_json(path)["measured"]
    measured = _measure(recipe, _train(recipe))
    path.parent.mkdir(parents=True, exist_ok=True)
    files.save_json(path, {"recipe": recipe, "measured": measured})
    return measured


def split_of(recipe: Recipe, split: str) -> data.Scenes:
    """A split of the scenes of a recipe."""
    return backgrounds.make(
        split,
        correlation=recipe.correlation,
        amplitude=recipe.amplitude,
        image_size=IMAGE_SIZE,
        classes=recipe.classes,
        source=recipe.source,
        limit=recipe.limits[0 if split == "train" else 1],
        seed=recipe.seed,
    )


def _train(recipe: Recipe) -> Partial:
    dataset = split_of(recipe, "train").dataset()
    if recipe.dro:
        dataset = data.balance_groups(dataset, seed=recipe.seed)
    config = FitConfig(
        epochs=recipe.epochs,
        batch_size=64,
        optimizer="adam",
        learning_rate=2e-3,
        schedule="constant",
        warmup_epochs=4,
        seed=recipe.seed,
    )
    model = _model(recipe.classes)
    objective = _objective(recipe.norm, recipe.eps, recipe.dro)
    state = training.fit(
        model,
        dataset,
        objective=objective,
        config=config,
        devices=jax.local_devices()[:1],
        progress=False,
    )
    return Partial(model.apply, state.weights)


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
        l2_levels=_L2_LEVELS,
    )
    found = {name: float(right[name].mean()) for name in list(splits)[:3]}
    found |= {
        "gap": float(gap),
        "minority": float(right["decorrelated"][~fits].mean()),
        "worst_group": float(worst),
        "relative": float(noise.mean_relative),
    }
    if recipe.norm != "none":
        pgd = functools.partial(attacks.pgd, ball=ball_of(recipe), steps=40)
        for name in ("in_domain", "decorrelated"):
            result = evaluation.evaluate(
                logits_fn, arrays[name], {"PGD-40": pgd}, key=jax.random.key(1)
            )
            found[f"robust_{name}"] = result.robust_accuracy().mean
    return found


def measure_all(
    variants: Mapping[str, Callable[[int], Recipe]], arguments: Arguments
) -> dict[str, list[Measured]]:
    """Title -> what was measured for each seed of a variant."""
    seeds = 1 if arguments.smoke else arguments.seeds
    results = common.results_of(arguments)
    every = [(title, seed) for title in variants for seed in range(seeds)]
    found: dict[str, list[Measured]] = {title: [] for title in variants}
    for title, seed in tqdm(every, unit="network", disable=None):
        found[title].append(measure(variants[title](seed), results))
    return found


def base(arguments: Arguments, **changes: Any) -> Callable[[int], Recipe]:
    """A recipe for each seed: the source of the arguments, and these changes."""
    limits = LIMITS[arguments.source]
    if arguments.smoke:
        limits, changes = (64, 40), changes | {"epochs": 1}

    def recipe(seed: int) -> Recipe:
        return Recipe(source=arguments.source, seed=seed, limits=limits, **changes)

    return recipe


def column(rows: Sequence[Measured], name: str) -> np.ndarray:
    """[seeds] a number that was measured."""
    return np.array([row[name] for row in rows])
