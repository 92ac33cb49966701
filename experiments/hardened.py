"""Networks hardened in several ways: trained once, measured once.

A `Recipe` decides a network, an MLP whose features are the input of its last layer. It
lies in results/hardened/<data set>-<training>-<seed>-<digest>/, with its weights and a
file for whatever a study has measured on it.

Random perturbations have a standard deviation of `SIGMA`, adversarial ones a radius of
`RADIUS` in L∞; that of VAT is in L2. The weights are those of the pilot study of the
specification, but for VAT, which had none.
"""

import dataclasses
import functools
import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial
from tqdm import tqdm

from experiments import common
from experiments.common import Claim
from robjax import attacks, data, losses, models, training
from robjax.balls import Linf
from robjax.models import taps
from robjax.reporting import tables
from robjax.runs import files
from robjax.training import FitConfig, objectives
from robjax.training.objectives.network import Network, Outcome, correct

# To be raised with any change of what is trained or measured, here or in the studies.
FORMAT = 1
RADIUS = 0.1
SIGMA = 0.2
TEST_IMAGES = 100
VAT_RADIUS = {"digits": 0.5, "mnist": 2.0}
STANDARD, NOISE, SIAMESE = "standard", "noise augmentation", "Siamese"
TRAININGS = (
    *(STANDARD, NOISE, "stability", SIAMESE, "Lee", "VAT"),
    *("FGSM training", "PGD training"),
)


@dataclasses.dataclass(frozen=True)
class Arguments:
    """What both studies can be told on the command line."""

    dataset: Literal["digits", "mnist"] = "digits"
    """Digits needs nothing; MNIST must have been prepared with TFDS."""
    seeds: int = 3
    """Repetitions, at least 2 for verdicts."""
    smoke: bool = False
    """About a minute, to see that everything works; under results/smoke."""
    results: Path = Path("results")
    """Folder of all results."""


@dataclasses.dataclass(frozen=True)
class Recipe:
    """Everything that decides a network, and the test images that it is measured on."""

    dataset: str
    training: str
    seed: int
    epochs: int
    batch_size: int
    train_images: int
    test_images: int

    def folder(self, results: Path) -> Path:
        """Where the network lies."""
        plain = json.dumps([files.plain(self), FORMAT], sort_keys=True)
        digest = hashlib.sha256(plain.encode()).hexdigest()[:8]
        name = f"{self.dataset}-{self.training}-{self.seed}-{digest}"
        return results / "hardened" / name.replace(" ", "_")


_SIZES = {
    "digits": {"epochs": 40, "batch_size": 64, "train_images": 1437},
    "mnist": {"epochs": 10, "batch_size": 100, "train_images": 10000},
}
_SMOKE = {"epochs": 1, "batch_size": 32, "train_images": 64, "test_images": 20}
SMOKE_TRAININGS = (STANDARD, NOISE, SIAMESE, "FGSM training")

Measure = Callable[[Recipe, Partial, jax.Array, jax.Array], Mapping[str, Any]]
"""(recipe, network, test images, labels) -> arrays by name."""


def recipe_of(arguments: Arguments, name: str, seed: int) -> Recipe:
    """The recipe of one training."""
    sizes = {"test_images": TEST_IMAGES} | _SIZES[arguments.dataset]
    sizes |= _SMOKE if arguments.smoke else {}
    return Recipe(dataset=arguments.dataset, training=name, seed=seed, **sizes)


def measure_all(
    arguments: Arguments, name: str, measure: Measure
) -> dict[str, list[dict[str, np.ndarray]]]:
    """Training -> what was measured for each seed; trains what is missing.

    Args:
        arguments: of the command line.
        name: of the files that keep what was measured.
        measure: is called for networks that have no such file yet.
    """
    results = common.results_of(arguments)
    trainings = SMOKE_TRAININGS if arguments.smoke else TRAININGS
    seeds = 1 if arguments.smoke else arguments.seeds
    every = [(training, seed) for training in trainings for seed in range(seeds)]
    found: dict[str, list[dict[str, np.ndarray]]] = {t: [] for t in trainings}
    for training_name, seed in tqdm(every, unit="network", disable=None):
        recipe = recipe_of(arguments, training_name, seed)
        path = recipe.folder(results) / f"{name}.npz"
        if not path.exists():
            network = obtain(recipe, results)
            files.save_npz(path, dict(measure(recipe, network, *test_of(recipe))))
        found[training_name].append(files.load_npz(path))
    return found


def obtain(recipe: Recipe, results: Path) -> Partial:
    """The network of a recipe; trained, unless that has been done."""
    path = recipe.folder(results) / "weights.npz"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        layers = _train(recipe)["params"]
        flat = {
            (f"{n}/{k}"): v for n, layer in layers.items() for k, v in layer.items()
        }
        files.save_npz(path, flat)
    params: dict[str, dict[str, jax.Array]] = {}
    for name, array in files.load_npz(path).items():
        layer, kind = name.split("/")
        params.setdefault(layer, {})[kind] = jnp.asarray(array)
    return Partial(_model().apply, {"params": params})


def _train(recipe: Recipe) -> Mapping[str, Any]:
    config = FitConfig(
        epochs=recipe.epochs,
        batch_size=recipe.batch_size,
        optimizer="adam",
        learning_rate=1e-3,
        schedule="constant",
        weight_decay=0.0,
        seed=recipe.seed,
    )
    return training.fit(
        _model(),
        data.subset(data.load(recipe.dataset, "train"), recipe.train_images),
        objective=_objective(recipe.training, recipe.dataset),
        config=config,
        devices=jax.local_devices()[:1],
        progress=False,
    ).weights


def test_of(recipe: Recipe) -> tuple[jax.Array, jax.Array]:
    """The test images that every network of a data set is measured on, and labels."""
    test = data.subset(data.load(recipe.dataset, "test"), recipe.test_images)
    return data.to_float(test.images, test.scale), jnp.asarray(test.labels)


def features_of(network: Partial) -> Partial:
    """The function images -> the input [B, F] of the last layer."""
    return taps.features_fn(network, "features")


@functools.cache
def _model() -> models.MLP:
    return models.MLP(10, widths=(100, 100))


@functools.cache  # one object for all seeds, so that they share a compiled step
def _objective(name: str, dataset: str) -> objectives.Objective:
    ball = Linf(RADIUS)
    pgd = {"ball": ball, "steps": 7, "step_size": 2.5 * RADIUS / 7}
    return {
        STANDARD: objectives.standard,
        NOISE: functools.partial(objectives.noise_augmentation, sigma=SIGMA),
        "stability": functools.partial(objectives.stability, sigma=SIGMA),
        SIAMESE: functools.partial(objectives.siamese, sigma=SIGMA, weight=0.5),
        "Lee": functools.partial(
            objectives.feature_matching, ball=ball, step_size=2 * RADIUS, weight=0.1
        ),
        "VAT": functools.partial(objectives.vat, eps=VAT_RADIUS[dataset]),
        "FGSM training": fgsm_training,
        "PGD training": functools.partial(objectives.adversarial, **pgd),
    }[name]


def fgsm_training(
    network: Network,
    images: jax.Array,
    labels: jax.Array,
    *,
    keys: jax.Array,
    strength: jax.Array | float,
) -> Outcome:
    """CE(x̃, y) with x̃ of the fast gradient sign method, from the image itself."""
    del keys
    logits_fn, ball = network.logits_fn("eval"), Linf(RADIUS * strength)
    attacked = attacks.fgsm(logits_fn, images, labels, ball=ball).x_adv
    logits, network = network.train(attacked)
    metrics = {"adversarial_accuracy": correct(logits, labels)}
    return losses.cross_entropy(logits, labels), metrics, network


def column(rows: list[dict[str, np.ndarray]], name: str) -> np.ndarray:
    """[seeds, ...] what was measured."""
    return np.stack([row[name] for row in rows])


def describe(arguments: Arguments) -> str:
    """Data, networks and seeds, one line."""
    recipe = recipe_of(arguments, STANDARD, 0)
    return (
        f"MLP with hidden layers of 100 and 100 on {recipe.dataset}, "
        f"{recipe.train_images} training and {recipe.test_images} test images, "
        f"{recipe.epochs} epochs, {arguments.seeds} seeds; noise {SIGMA:g}, L∞ radius "
        f"in training {RADIUS:g}, L2 radius of VAT {VAT_RADIUS[recipe.dataset]:g}."
    )


def above(
    words: str, ours: Any, theirs: Any, *, threshold: float = 0, unit: str = ""
) -> Claim:
    """A claim that the mean of ours − theirs [seeds] lies above the threshold."""
    measured = (tables.plus_minus(values, unit=unit) for values in (ours, theirs))
    verdict = common.is_above(ours - theirs, threshold)
    return Claim(words, " against ".join(measured), verdict)
