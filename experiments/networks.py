"""The networks that experiments share: each is trained once and found again.

A `Recipe`, with the code of this file (`FORMAT`), decides a network. Its folder is
results/networks/<data set>-<model>-<objective>-<seed>-<digest of all that>/, with

    config.json        the recipe and the versions
    metrics.jsonl      a record of every epoch: training, and what `follow` measures
    checkpoints/       of the training; one that was stopped goes on where it was
    samples.npz        of every tracked image: Fisher spectrum and minimal distances
    pairs.npz          KL parts class pair by class pair, along paths, at adversarial x'
    robustness.npz     final attacks, per test image; written last
    metric.npz         M and its parts in the end, once a study has asked for them

so that an experiment which needs a network that another has trained only reads it.
"""

import dataclasses
import functools
import hashlib
import json
from collections.abc import Callable, Sequence
from math import nan
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from robjax import attacks, data, evaluation, losses, metrics, models, training
from robjax.balls import L2, Linf
from robjax.runs import files, preemption, provenance
from robjax.training import FULL, TRACKING, FitConfig, objectives

PARTS = ("fisher", "softmax", "network")
FOLLOWED = (
    *("test_accuracy", "robust_accuracy", "metric", *PARTS),
    *(f"{part}_share" for part in PARTS),
    *("fisher_norm", "spectral", "effective_rank"),
)
TITLES = {
    "standard": "standard",
    "madry": "adversarial (Madry)",
    "fisher": "Fisher-regularised",
}
_NARROW = ((16,), (32,), (64,))
MODELS: dict[str, Callable[..., Any]] = {
    "linear": models.Linear,
    "small_cnn": functools.partial(models.CNN, kernel=3),
    "cnn": models.CNN,
    "strided_cnn": models.StridedCNN,
    "vgg4": functools.partial(models.VGG, blocks=_NARROW),
    "resnet8": functools.partial(models.ResNet, blocks_per_group=1),
    "resnet8x2": functools.partial(models.ResNet, blocks_per_group=1, width=2),
    "vgg13": models.vgg13,
    "resnet20": models.resnet20,
    "resnet32x10": functools.partial(models.resnet32, width=10),
}
for _form in ("pure_linear", "half_linear"):
    for _name in ("vgg4", "vgg13"):
        MODELS[f"{_name}_{_form}"] = functools.partial(MODELS[_name], form=_form)
TIMES = np.linspace(0, 1, 11)
Splits = tuple[data.Dataset, data.Dataset, data.Dataset]
# To be raised with any change of what is trained or measured below, so that networks
# from before it are not taken for new ones.
FORMAT = 1


@dataclasses.dataclass(frozen=True)
class Recipe:
    """Everything that decides a network and what is measured on it.

    The attack in training takes `steps` of `step_size`; robust accuracy is that under
    PGD-20 with steps of eps / 4 from the image itself, as in the code of arXiv
    1906.02494. `eps` is the radius in L∞, `beta` the weight of "fisher".
    """

    dataset: str
    model: str
    eps: float
    steps: int
    step_size: float
    fit: FitConfig
    objective: str = "standard"
    beta: float = 5.0
    train_images: int | None = None
    test_images: int | None = None
    tracked_images: int = 360
    explained: bool = True

    def folder(self, results: Path) -> Path:
        """Where the network lies."""
        model = provenance.describe(MODELS[self.model](2))
        decides = [files.plain(self), model, FORMAT]
        plain = json.dumps(decides, sort_keys=True)
        digest = hashlib.sha256(plain.encode()).hexdigest()[:8]
        name = f"{self.dataset}-{self.model}-{self.objective}-{self.fit.seed}-{digest}"
        return results / "networks" / name


_DIGITS = Recipe(
    dataset="digits",
    model="small_cnn",
    eps=0.2,
    steps=7,
    step_size=0.05,
    fit=FitConfig(
        epochs=12,
        batch_size=64,
        optimizer="adam",
        learning_rate=2e-3,
        schedule="constant",
        warmup_epochs=4,
    ),
)
RECIPES = {
    "digits": _DIGITS,
    "mnist": Recipe(
        dataset="mnist",
        model="cnn",
        eps=0.3,
        steps=7,
        step_size=0.1,
        fit=FitConfig(
            epochs=8,
            optimizer="adam",
            learning_rate=3e-3,
            schedule="cosine",
            warmup_epochs=2,
        ),
        train_images=15000,
        test_images=2000,
        tracked_images=500,
    ),
    "cifar10": Recipe(
        dataset="cifar10",
        model="vgg13",
        eps=8 / 255,
        steps=10,
        step_size=2 / 255,
        fit=dataclasses.replace(TRACKING, pad=4, flip=True),
        tracked_images=500,
    ),
}
# What the paper trained CIFAR-10 networks with; the recipe above is for its short runs.
FULL_CIFAR10 = dataclasses.replace(FULL, pad=4, flip=True)
SMOKE: dict[str, Any] = {
    "model": "linear",
    "train_images": 128,
    "test_images": 40,
    "tracked_images": 40,
}
# CPU seconds that a pass over one training image takes, compilation and measurements
# included, in the mean over what a study trains; elsewhere it has not been measured.
SECONDS = {
    ("digits", "small_cnn"): 0.0022,
    ("mnist", "cnn"): 0.0025,
    **{("digits", name): 0.0016 for name in MODELS if name[:4] in ("vgg4", "resn")},
    **{("mnist", name): 0.0059 for name in MODELS if name[:4] == "vgg4"},
    ("mnist", "resnet8"): 0.0059,
}


def describe(recipes: Sequence[Recipe], results: Path) -> str:
    """What the networks are and what training the missing ones will cost."""
    # in a smoke run several variants are the same network
    recipes = list({r.folder(results): r for r in recipes}.values())
    missing = [r for r in recipes if not is_done(r, results)]
    first = recipes[0]
    known = [(r.dataset, r.model) in SECONDS for r in missing]
    cost = "no training left to do"
    if missing and all(known):
        seconds = sum(
            SECONDS[r.dataset, r.model] * r.fit.epochs * _training_images(r)
            for r in missing
        )
        cost = f"about {max(seconds / 60, 0.5):.1f} minutes of CPU time"
    elif missing:
        cost = "not measured for these networks"
    return (
        f"Here: {first.dataset}, Linf eps = {first.eps:.3g}, {first.fit.epochs} epochs,"
        f" {len(recipes)} networks, of which {len(missing)} are still to be trained.\n"
        f"Cost: {cost}."
    )


def _training_images(recipe: Recipe) -> int:
    return recipe.train_images or {"digits": 1437, "cifar10": 50000}.get(
        recipe.dataset, 60000
    )


def is_done(recipe: Recipe, results: Path) -> bool:
    """Whether the network has been trained and measured."""
    return (recipe.folder(results) / "robustness.npz").exists()


def obtain(recipe: Recipe, results: Path) -> Path:
    """Trains and measures the network, or goes on with it; returns its folder."""
    folder = recipe.folder(results)
    if is_done(recipe, results):
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "config.json").exists():
        files.save_json(
            folder / "config.json",
            {"config": recipe, "versions": provenance.versions()},
        )
    with preemption.watch(folder) as notice:
        _, test, tracked = splits = load_splits(recipe)
        logits_fn = train(recipe, folder, splits)
        notice.leave()
        if recipe.explained:
            explain(recipe, logits_fn, tracked, folder)
        notice.leave()
        result = evaluation.evaluate(
            logits_fn, test, final_attacks(recipe), key=jax.random.key(1)
        )
        print(f"{folder.name}: {result.table()}", flush=True)
        result.save(folder / "robustness.npz")
    return folder


def final_metric(recipe: Recipe, results: Path) -> dict[str, np.ndarray]:
    """M ("metric") and its parts on the tracked images, of the final network, nats."""
    folder = obtain(recipe, results)
    if not (folder / "metric.npz").exists():
        splits = load_splits(recipe)
        images = data.to_float(splits[2].images, splits[2].scale)
        logits_fn = train(recipe, folder, splits)
        pairs = metrics.pairwise_kl(logits_fn, images, splits[2].labels)
        parts = {part: getattr(pairs, part) for part in PARTS}
        files.save_npz(folder / "metric.npz", {"metric": pairs.mean, **parts})
    return files.load_npz(folder / "metric.npz")


def train(recipe: Recipe, folder: Path, splits: Splits) -> Partial:
    """The network in its folder; trained, as far as it has not been."""
    images, _, tracked = splits
    model = MODELS[recipe.model](images.num_classes)
    state = training.fit(
        model,
        images,
        objective=make_objective(dataclasses.replace(recipe, fit=FitConfig())),
        config=recipe.fit,
        run_dir=folder,
        resume=True,
        on_epoch=follow(recipe, model, tracked) if recipe.explained else None,
    )
    return Partial(model.apply, state.weights)


@functools.cache  # the same object for all seeds, so that they share a compiled step
def make_objective(recipe: Recipe) -> objectives.Objective:
    """The training objective of the recipe; its `fit` plays no part.

    Raises:
        ValueError: it is not one of these.
    """
    attack = {
        "ball": Linf(recipe.eps),
        "steps": recipe.steps,
        "step_size": recipe.step_size,
    }
    known = {
        "standard": objectives.standard,
        "madry": functools.partial(objectives.adversarial, **attack),
        "fisher": functools.partial(objectives.trades, beta=recipe.beta, **attack),
        "ibp": functools.partial(objectives.ibp, ball=Linf(recipe.eps)),
        "crown_ibp": functools.partial(objectives.crown_ibp, ball=Linf(recipe.eps)),
    }
    if recipe.objective not in known:
        names = ", ".join(known)
        raise ValueError(f"objective must be one of {names}, got {recipe.objective!r}")
    return known[recipe.objective]


def tracked_attack(recipe: Recipe) -> Callable[..., attacks.AttackResult]:
    """PGD-20 with steps of eps / 4 from the image itself."""
    return functools.partial(
        attacks.pgd,
        ball=Linf(recipe.eps),
        steps=20,
        step_size=recipe.eps / 4,
        random_start=False,
        early_exit=True,
    )


def final_attacks(recipe: Recipe) -> dict[str, Any]:
    """PGD-20 as over training, and PGD-40 from a random start."""
    pgd = functools.partial(attacks.pgd, ball=Linf(recipe.eps), early_exit=True)
    step = jnp.asarray(recipe.eps / 15)
    return {
        "PGD-20": tracked_attack(recipe),
        "PGD-40": functools.partial(pgd, steps=40, step_size=step),
    }


def load_splits(recipe: Recipe) -> Splits:
    """Training images, test images and the test images followed over training."""
    train, test = (data.load(recipe.dataset, split) for split in ("train", "test"))
    if recipe.train_images is not None:
        train = data.subset(train, recipe.train_images)
    if recipe.test_images is not None:
        test = data.subset(test, recipe.test_images)
    return train, test, data.subset(test, min(recipe.tracked_images, len(test.labels)))


def follow(recipe: Recipe, model: Any, tracked: data.Dataset) -> Callable[..., dict]:
    """A function (epoch, variables) -> everything measured on the tracked images."""
    images = data.to_float(tracked.images, tracked.scale)
    labels = jnp.asarray(tracked.labels)

    def measure(epoch: int, variables: Any) -> dict[str, float]:
        del epoch
        logits_fn = Partial(model.apply, variables)
        result = evaluation.evaluate(
            logits_fn,
            tracked,
            {"PGD-20": tracked_attack(recipe)},
            key=jax.random.key(0),
            batch_size=len(tracked.labels),
        )
        pairs = metrics.pairwise_kl(logits_fn, images, labels)
        spectrum = metrics.fisher_spectrum(logits_fn, images)
        total = pairs.mean
        parts = {part: getattr(pairs, part) for part in PARTS}
        return {
            "test_accuracy": result.accuracy.mean,
            "robust_accuracy": result.robust_accuracy().mean,
            "metric": total,
            "metric_stderr": pairs.stderr,
            **parts,
            **{f"{name}_share": part / (total or nan) for name, part in parts.items()},
            "fisher_norm": float(jnp.mean(spectrum.frobenius)),
            "spectral": float(jnp.mean(spectrum.spectral)),
            "effective_rank": float(jnp.mean(spectrum.effective_rank)),
        }

    return measure


def explain(
    recipe: Recipe, logits_fn: Any, tracked: data.Dataset, folder: Path
) -> None:
    """Measures the final network on the tracked images; samples.npz and pairs.npz."""
    x, y = data.to_float(tracked.images, tracked.scale), jnp.asarray(tracked.labels)
    spectrum = metrics.fisher_spectrum(logits_fn, x)
    columns = {
        "label": y,
        "correct": jnp.argmax(logits_fn(x), axis=1) == y,
        "spectral": spectrum.spectral,
        "trace": spectrum.trace,
        "frobenius": spectrum.frobenius,
        "effective_rank": spectrum.effective_rank,
        "linear_distance": linear_distance(logits_fn, x, y),
        "ddn": attacks.ddn(logits_fn, x, y, ball=L2(1e6)).distance,
        "fmn": attacks.fmn(logits_fn, x, y, ball=Linf(1.0)).distance,
    }
    files.save_npz(folder / "samples.npz", columns)
    classes = metrics.class_pair_kl(logits_fn, x, y)
    partner = np.roll(np.argsort(tracked.labels, kind="stable"), len(y) // 2)
    partner = partner[np.argsort(np.argsort(tracked.labels, kind="stable"))]
    apart = tracked.labels != tracked.labels[partner]
    path = metrics.kl_path(logits_fn, x[apart], x[partner[apart]], jnp.asarray(TIMES))
    moved = tracked_attack(recipe)(logits_fn, x, y, key=jax.random.key(0)).x_adv
    attacked = metrics.kl_components(logits_fn, x, moved)
    files.save_npz(
        folder / "pairs.npz",
        {
            "class_mean": np.stack(classes.mean),
            "class_stderr": np.stack(classes.stderr),
            "path": np.stack([np.mean(part, axis=1) for part in path]),
            "attacked": np.stack([np.asarray(part) for part in attacked]),
        },
    )


@jax.jit
def linear_distance(logits_fn: Any, x: jax.Array, y: jax.Array) -> jax.Array:
    """How far away in L2 the margin m, linearised, is 0: max(0, −m) / ‖∇m‖₂ [B]."""

    def total(x):
        margin = losses.margin(logits_fn(x), y)
        return jnp.sum(margin), margin

    slope, margin = jax.grad(total, has_aux=True)(x)
    length = jnp.linalg.norm(slope.reshape(len(slope), -1), axis=1)
    distance = jnp.maximum(-margin, 0) / jnp.where(length > 0, length, 1)
    return jnp.where(length > 0, distance, jnp.inf)
