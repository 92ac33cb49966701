"""FreeAT: several updates on each batch, each from one backward pass."""

import dataclasses

import jax
import numpy as np
import optax
import pytest

from robjax import data
from robjax.models import Linear
from robjax.training import FitConfig, fit

CONFIG = FitConfig(
    epochs=2, batch_size=16, learning_rate=0.2, weight_decay=0.0, schedule="cosine"
)


def dataset():
    rng = np.random.default_rng(0)
    images = rng.integers(60, 200, size=(32, 4, 4, 1)).astype(np.uint8)
    images[:, 0], images[:, 1, 2:] = 0, 255
    labels = rng.integers(3, size=32).astype(np.int32)
    return data.Dataset(images, labels, 3, 255.0, "made up")


def train(config, count=1):
    devices = jax.devices()[:count]
    return fit(Linear(3), dataset(), config=config, progress=False, devices=devices)


def by_hand(config):
    """Algorithm 1 on the same batches, with gradients of explicit formulas."""
    train_set = dataset()
    schedule = optax.cosine_decay_schedule(0.2, 2 * 2 * config.replays)
    start = train(dataclasses.replace(config, learning_rate=0.0))
    layer = start.variables["params"]["logits"]
    w, b = np.asarray(layer["kernel"], float), np.asarray(layer["bias"], float)
    velocity, count = [0 * w, 0 * b], 0
    draws = jax.random.split(jax.random.key(0))[1]
    for epoch in range(2):
        batches = data.batch_indices(32, 16, seed=0, epoch=epoch)
        for rows in batches:
            x = train_set.images[rows].reshape(16, -1) / 255
            y = np.eye(3)[train_set.labels[rows]]
            key = jax.random.fold_in(draws, epoch)
            keys = [jax.random.split(jax.random.fold_in(key, i))[1] for i in rows]
            delta = config.replay_eps * np.stack(
                [jax.random.uniform(k, (16,), minval=-1, maxval=1) for k in keys]
            )
            for _ in range(config.replays):
                moved = np.clip(x + delta, 0, 1)
                z = moved @ w + b
                p = np.exp(z - z.max(1, keepdims=True))
                error = (p / p.sum(1, keepdims=True) - y) / 16
                inside = (x + delta >= 0) & (x + delta <= 1)
                slope = error @ w.T * inside
                velocity[0] = 0.9 * velocity[0] + moved.T @ error
                velocity[1] = 0.9 * velocity[1] + error.sum(0)
                rate = float(schedule(count))
                w, b, count = w - rate * velocity[0], b - rate * velocity[1], count + 1
                eps = config.replay_eps
                delta = np.clip(delta + eps * np.sign(slope), -eps, eps)
    return w, b


@pytest.mark.parametrize("eps", [0.0, 0.1])
def test_replays_are_the_algorithm_by_hand(eps):
    config = dataclasses.replace(CONFIG, replays=3, replay_eps=eps)
    state = train(config)
    w, b = by_hand(config)
    layer = state.variables["params"]["logits"]
    np.testing.assert_allclose(layer["kernel"], w, atol=2e-5)
    np.testing.assert_allclose(layer["bias"], b, atol=2e-5)
    assert int(state.step) == 4


def test_one_replay_still_moves_the_images():
    moved = train(dataclasses.replace(CONFIG, replays=1, replay_eps=0.1))
    moved, plain = (s.variables["params"]["logits"] for s in (moved, train(CONFIG)))
    assert np.max(np.abs(moved["kernel"] - plain["kernel"])) > 1e-3


def test_devices_share_a_replayed_batch():
    config = dataclasses.replace(CONFIG, replays=2, replay_eps=0.1)
    one, two = train(config), train(config, count=2)
    for a, b in zip(
        jax.tree.leaves(one.variables), jax.tree.leaves(two.variables), strict=True
    ):
        np.testing.assert_allclose(a, b, atol=1e-5)


@pytest.mark.parametrize(("name", "value"), [("replays", 0), ("replay_eps", -0.1)])
def test_bad_options_are_named(name, value):
    with pytest.raises(ValueError, match=name):
        FitConfig(**{name: value})
