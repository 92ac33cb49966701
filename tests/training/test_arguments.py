"""What `fit` is given by mistake, and data that are made of arrays."""

import functools
from typing import Any

import flax.linen as nn
import jax
import numpy as np
import optax
import pytest
from jax.tree_util import Partial

from robjax import attacks, data, models, training
from robjax.balls import Linf
from robjax.training import FitConfig
from tests.test_models_people_have import (
    LINEN,
    TORCH,
    VARIABLES,
    ChannelsFirst,
    W,
    X,
    Y,
    flat,
    linear,
)


class Masked(nn.Module):
    @nn.compact
    def __call__(self, x, mask, train=False):
        return nn.Dense(3)(flat(x) * mask)


class FlagFirst(nn.Module):
    @nn.compact
    def __call__(self, train, x):
        return nn.Dense(3)(flat(x))


class Returning(nn.Module):
    """A network of three outputs, of which `change` makes something."""

    change: Any

    @nn.compact
    def __call__(self, x, train=False):
        return self.change(nn.Dense(3)(flat(x)))


class FailsInTrainMode(nn.Module):
    @nn.compact
    def __call__(self, x, train=False):
        z = nn.Dense(3)(flat(x))
        return z.reshape(7) if train else z


class AnyKeywords(nn.Module):
    @nn.compact
    def __call__(self, x, **keywords):
        return nn.Dense(3)(flat(x))


DATA = data.from_arrays(np.asarray(255 * X, np.uint8), Y)
MLP = models.MLP(3, widths=(4,))


@pytest.mark.parametrize(
    ("model", "dataset", "message"),
    [
        (MLP, (X, Y), r"data must be a Dataset.*from_arrays\(images, labels\).*tuple"),
        (MLP, [X, Y], "data must be a Dataset.*got list"),
        (MLP, None, "data must be a Dataset.*got NoneType"),
        (models.MLP, DATA, "model must be a flax module.*got the class MLP"),
        (ChannelsFirst(), DATA, "model must be a flax module.*got ChannelsFirst"),
        (Partial(linear, W), DATA, "model must be a flax module.*got Partial"),
        (TORCH, DATA, "model must be a flax module.*got Net"),
        (VARIABLES, DATA, "model must be a flax module.*got dict"),
        (LINEN.bind(VARIABLES), DATA, "model must have no weights.*unbind"),
        (Masked(), DATA, r"model must be called.*write __call__.*x, mask, train=False"),
        (FlagFirst(), DATA, r"model must be called.*write __call__\(self, x, train: "),
        (
            Returning(lambda z: {"logits": z}),
            DATA,
            r"model must return one array.*dict",
        ),
        (Returning(lambda z: (z, 1.0)), DATA, r"model must return one array.*tuple"),
        (Returning(lambda z: z[:, 0]), DATA, r"model must return logits.*jnp.stack"),
        (Returning(lambda z: z[:, :1]), DATA, r"model must return logits.*jnp.stack"),
        (Returning(lambda z: z.argmax(1)), DATA, "model must return.*got int32"),
        (Returning(lambda z: z.reshape(7)), DATA, r"model must take images.*reshape"),
        (FailsInTrainMode(), DATA, "model must run in train mode, got TypeError"),
    ],
)
def test_fit(model, dataset, message):
    config = FitConfig(epochs=1, batch_size=4)
    with pytest.raises(ValueError, match=f"^{message}"):
        training.fit(
            model, dataset, config=config, progress=False, devices=jax.devices()[:1]
        )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"objective": "trades"}, "objective must be a function.*got 'trades'"),
        ({"objective": None}, "objective must be a function.*got None"),
        (
            {"objective": functools.partial(attacks.pgd, ball=Linf(0.1))},
            r"objective must be called as objective\(network, images, labels",
        ),
        ({"config": {"epochs": 1}}, r"config must be a FitConfig.*got {'epochs': 1}"),
        ({"config": FitConfig}, "config must be a FitConfig"),
        ({"optimizer": "adam"}, r"optimizer must be one of optax.*got 'adam'"),
        ({"optimizer": optax.adam}, r"optimizer must be one of optax, as optax.adam"),
        ({"run_dir": 3}, "run_dir must be the path of a folder, got 3"),
        ({"on_epoch": lambda *_: None}, "on_epoch must return a mapping.*got None"),
        ({"on_epoch": 3}, "on_epoch must be a function or None, got 3"),
        ({"callbacks": lambda *_: {}}, "callbacks must be a list.*is on_epoch"),
        ({"callbacks": [lambda *_: {}]}, "callbacks must be a list.*is on_epoch"),
        ({"variables": [1.0]}, 'variables must be {"params": ...}.*got list'),
        ({"extends": "nowhere"}, "extends='nowhere' must be the folder of a run"),
        ({"devices": "cpu"}, "devices must be a list of jax.devices.*got 'cpu'"),
        ({"devices": jax.devices()[0]}, "devices must be a list of jax.devices"),
    ],
)
def test_options_of_fit(options, message):
    given = {"config": FitConfig(epochs=1, batch_size=4), "progress": False}
    given |= {"devices": jax.devices()[:1]} | options
    with pytest.raises(ValueError, match=f"^{message}"):
        training.fit(MLP, DATA, **given)


def test_fit_takes_a_model_of_any_keywords():
    config = FitConfig(epochs=1, batch_size=4)
    state = training.fit(
        AnyKeywords(), DATA, config=config, progress=False, devices=jax.devices()[:1]
    )
    assert int(state.step) == 1


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (X[..., 0], Y, r"images must be.*give grey images as images\[..., None\]"),
        (flat(X), Y, r"images must be.*images\[:, None, None, :\]"),
        (255 * X, Y, "images must lie in.*give images / 255"),
        (np.int64(255 * X), Y, r"images must be uint8.*images.astype\(np.uint8\)"),
        (X, jax.nn.one_hot(Y, 3), r"labels must .*labels.argmax\(axis=1\)"),
        (X, Y[:, None], r"labels must .*give labels\[:, 0\]"),
        (X, Y.astype(float), r"labels must .*labels.astype\(int\)"),
    ],
)
def test_data_from_arrays(images, labels, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        data.from_arrays(np.asarray(images), np.asarray(labels))
