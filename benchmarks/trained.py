"""Trained networks to attack: standard, Madry and TRADES on digits, MNIST and CIFAR-10.

    python -m benchmarks.trained mnist-madry digits-trades mnist-madry-mixer …

A third word asks for another shape than the plan's, trained on 4,000 images. Each is
trained once, under its name in results/trained/, and found again there. They are small
enough for a CPU, and good enough to be worth attacking.
"""

import dataclasses
import functools
import sys
from pathlib import Path
from typing import Any, NamedTuple

from jax.tree_util import Partial

from benchmarks import networks
from robjax import data, models, training
from robjax.balls import Linf
from robjax.training import FitConfig, objectives

FOLDER = Path("results/trained")


class Plan(NamedTuple):
    """How the networks of one data set are made; the attack takes 7 steps.

    The Madry network of MNIST sees all training images, the others at most `images`.
    """

    model: Any
    eps: float
    step_size: float
    fit: FitConfig
    images: int


_ADAM = FitConfig(optimizer="adam", learning_rate=3e-3, schedule="cosine")
PLANS = {
    "digits": Plan(
        models.CNN(10, kernel=3),
        0.2,
        0.05,
        dataclasses.replace(_ADAM, epochs=12, batch_size=64, warmup_epochs=4),
        1437,
    ),
    "mnist": Plan(
        models.CNN(10),
        0.3,
        0.1,
        dataclasses.replace(_ADAM, epochs=8, warmup_epochs=2),
        15000,
    ),
    "cifar10": Plan(
        models.CNN(10),
        8 / 255,
        2 / 255,
        dataclasses.replace(_ADAM, epochs=6, flip=True),
        15000,
    ),
}
OBJECTIVES = {
    "standard": None,
    "madry": objectives.adversarial,
    "trades": functools.partial(objectives.trades, beta=6.0),
}
_SMALL = models.CNN(10, blocks=((8,), (16,)), kernel=3, hidden=64)
_TINY = models.CNN(10, blocks=((4,), (8,)), kernel=3, hidden=32)
SHAPES = {
    "small": lambda channels: _SMALL if channels == 1 else _TINY,
    "mixer": lambda channels: networks.UserMixer(),
    "resnet": networks.UserResNet,
}
_IMAGES_OF_SHAPES = 4000


def load(name: str) -> tuple[Partial, data.Dataset, float]:
    """A trained network, its test set and its ε in L∞.

    The name is "<data set>-<objective>" or "<data set>-<objective>-<shape>".

    Raises:
      ValueError: there is no such network.
    """
    dataset, objective, shape = [*name.split("-", 2), "", ""][:3]
    if (
        dataset not in PLANS
        or objective not in OBJECTIVES
        or shape not in SHAPES | {"": 0}
    ):
        raise ValueError(
            f"name must be <{'|'.join(PLANS)}>-<{'|'.join(OBJECTIVES)}>, or that and "
            f"-<{'|'.join(SHAPES)}>, got {name!r}"
        )
    plan, fit = PLANS[dataset], PLANS[dataset].fit
    function = OBJECTIVES[objective]
    if function is None:
        function = objectives.standard
        fit = dataclasses.replace(fit, learning_rate=1e-3)
    else:
        attack = {"ball": Linf(plan.eps), "steps": 7, "step_size": plan.step_size}
        function = functools.partial(function, **attack)
    train = data.load(dataset, "train")
    images = _IMAGES_OF_SHAPES if shape else plan.images
    if name != "mnist-madry" and images < len(train.labels):
        train = data.subset(train, images)
    model = SHAPES[shape](train.images.shape[-1]) if shape else plan.model
    state = training.fit(
        model,
        train,
        objective=function,
        config=fit,
        run_dir=FOLDER / name,
        resume=True,
    )
    if shape == "resnet":
        logits_fn = training.logits_fn(model, state.weights)
    else:
        logits_fn = Partial(model.apply, state.weights)
    return logits_fn, data.load(dataset, "test"), plan.eps


if __name__ == "__main__":
    for chosen in sys.argv[1:]:
        load(chosen)
