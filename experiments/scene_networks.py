"""Networks on scenes, digits in front of backgrounds or released sets, from recipes.

The images are those of `robjax.data.backgrounds`, or of a released set
(experiments/folders.py). The network is a CNN of two convolutions, or a perceptron with
one hidden layer. Perceptrons are trained side by side: one program for all radii,
brightnesses and seeds of a norm.
"""

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from experiments import folders, mlps
from robjax import data, models, training
from robjax.balls import L2, Ball, Linf
from robjax.data import backgrounds
from robjax.training import FitConfig, objectives

IMAGE_SIZE = 16
EPOCHS = 15
BATCH_SIZE = 64
LEARNING_RATE = 2e-3


@dataclasses.dataclass(frozen=True)
class Recipe:
    """Everything that decides a network and what is measured on it.

    norm: of the attack in training, "L2" or "Linf"; "none": standard training.
    eps: its radius, images in [0, 1]; in L2 that of 16×16 images, see `radius`.
    dro: trained by Group-DRO on balanced groups.
    balanced: trained on images that are repeated until all groups are equally large.
    correlation: share of the training images on the background of their class.
    folder: of a released set, for which amplitude, correlation and classes say nothing.
    """

    source: str
    seed: int
    amplitude: float = 0.0
    correlation: float = 0.0
    norm: str = "none"
    eps: float = 0.0
    dro: bool = False
    balanced: bool = False
    classes: int = 4
    epochs: int = EPOCHS
    limits: tuple[int | None, int | None] = (None, None)
    model: str = "cnn"
    scenery: str = "stripes"
    image_size: int = IMAGE_SIZE
    folder: str | None = None


def radius(recipe: Recipe) -> float:
    """The radius of the training; in L2 it grows with the side, as distances do."""
    scale = recipe.image_size / IMAGE_SIZE if recipe.norm == "L2" else 1.0
    return recipe.eps * scale


def ball_of(recipe: Recipe) -> Ball:
    """The threat model of the training; of radius 0 for standard training."""
    return (L2 if recipe.norm == "L2" else Linf)(radius(recipe))


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
def _model(kind: str, classes: int) -> models.CNN | models.MLP:
    return models.MLP(classes) if kind == "mlp" else models.CNN(classes, kernel=3)


def split_of(recipe: Recipe, split: str) -> data.Scenes:
    """A split of the scenes of a recipe, or the training images of a released set."""
    limit = recipe.limits[0 if split == "train" else 1]
    if recipe.folder is not None:
        return folders.read(Path(recipe.folder), split, recipe.image_size, limit)
    return backgrounds.make(
        split,
        correlation=recipe.correlation,
        amplitude=recipe.amplitude,
        image_size=recipe.image_size,
        classes=recipe.classes,
        source=recipe.source,
        background=_background(recipe.scenery, split),
        limit=limit,
        seed=recipe.seed,
    )


@functools.cache  # reads a data set
def _background(scenery: str, split: str) -> backgrounds.Background:
    if scenery == "stripes":
        return backgrounds.stripes
    return backgrounds.scenery(scenery, "train" if split == "train" else "test")


def training_images(recipe: Recipe) -> data.Dataset:
    """What the network is trained on."""
    dataset = split_of(recipe, "train").dataset()
    if recipe.dro or recipe.balanced:
        dataset = data.balance_groups(dataset, seed=recipe.seed)
    return dataset


def train(recipe: Recipe) -> Partial:
    """The trained network; many perceptrons are faster with `train_together`."""
    if recipe.model == "mlp":
        return train_together([recipe])[recipe]
    dataset = training_images(recipe)
    config = FitConfig(
        epochs=recipe.epochs,
        batch_size=min(BATCH_SIZE, len(dataset.labels)),
        optimizer="adam",
        learning_rate=LEARNING_RATE,
        schedule="constant",
        warmup_epochs=4,
        seed=recipe.seed,
    )
    model = _model("cnn", dataset.num_classes)
    objective = _objective(recipe.norm, radius(recipe), recipe.dro)
    state = training.fit(
        model,
        dataset,
        objective=objective,
        config=config,
        devices=jax.local_devices()[:1],
        progress=False,
    )
    return Partial(model.apply, state.weights)


def train_together(recipes: Sequence[Recipe]) -> dict[Recipe, Partial]:
    """Perceptrons, one program for each norm; standard training is radius 0 of one."""
    norms = [r.norm for r in recipes if r.norm != "none"]
    first = norms[0] if norms else "Linf"
    found = {}
    for norm in dict.fromkeys(norms or [first]):
        chosen = [r for r in recipes if r.norm == norm]
        chosen += [r for r in recipes if r.norm == "none" and norm == first]
        # networks that differ in the radius alone share their images
        sets: dict[Recipe, data.Dataset] = {}
        shared = [dataclasses.replace(r, norm="none", eps=0.0) for r in chosen]
        for recipe in shared:
            if recipe not in sets:
                sets[recipe] = training_images(recipe)
        counts = {recipe: len(each.labels) for recipe, each in sets.items()}
        starts = dict(zip(sets, np.cumsum([0, *counts.values()]), strict=False))
        most = max(counts.values())
        model = _model("mlp", next(iter(sets.values())).num_classes)
        weights = mlps.train(
            jnp.concatenate([data.to_float(s.images, s.scale) for s in sets.values()]),
            jnp.concatenate([jnp.asarray(s.labels) for s in sets.values()]),
            jnp.stack([starts[r] + jnp.arange(most) for r in shared]),
            jnp.array([counts[r] for r in shared]),
            jnp.array([radius(r) for r in chosen]),
            jnp.array([r.seed for r in chosen]),
            model=model,
            ball=L2 if norm == "L2" else Linf,
            steps=chosen[0].epochs * -(-most // BATCH_SIZE),
            batch_size=BATCH_SIZE,
            learning_rate=LEARNING_RATE,
        )
        for index, recipe in enumerate(chosen):
            found[recipe] = Partial(model.apply, mlps.select(weights, index))
    return found
