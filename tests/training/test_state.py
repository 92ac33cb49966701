"""Configuration, schedules and the step, against formulas in NumPy."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from robjax import data
from robjax.models import Linear
from robjax.training import TRACKING, FitConfig, objectives, parallel, state
from robjax.training.step import attack_strength, make_step

PLAIN = FitConfig(
    epochs=4, batch_size=8, learning_rate=0.5, schedule="constant", weight_decay=0.0
)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("epochs", 0),
        ("batch_size", 2.5),
        ("learning_rate", -0.1),
        ("learning_rate", float("nan")),
        ("learning_rate", "1e-3"),
        ("momentum", None),
        ("clip_norm", "1"),
        ("weight_decay", float("inf")),
        ("momentum", 1.0),
        ("clip_norm", 0.0),
        ("ema_decay", 1.0),
        ("warmup_epochs", -1.0),
        ("pad", -1),
        ("seed", -1),
        ("checkpoint_every", -1),
        ("optimizer", "lion"),
        ("schedule", "linear"),
    ],
)
def test_bad_value_is_named(name, value):
    with pytest.raises(ValueError, match=name):
        FitConfig(**{name: value})


def test_defaults_are_those_of_the_authors():
    full = FitConfig()
    assert (full.epochs, full.batch_size, full.milestones) == (200, 128, (80, 120))
    assert (full.learning_rate, full.momentum, full.weight_decay) == (0.1, 0.9, 1e-4)
    assert (TRACKING.epochs, TRACKING.learning_rate, TRACKING.momentum) == (
        10,
        0.01,
        0.5,
    )


@pytest.mark.parametrize(
    ("epoch", "rate"), [(0, 0.1), (79.9, 0.1), (80.1, 0.01), (119.9, 0.01), (121, 1e-3)]
)
def test_steps_divide_by_ten_at_the_milestones(epoch, rate):
    schedule = state.learning_rate_schedule(FitConfig(), steps_per_epoch=390)
    assert float(schedule(int(epoch * 390))) == pytest.approx(rate, rel=1e-5)


def test_cosine_ends_at_zero():
    config = FitConfig(epochs=10, schedule="cosine", learning_rate=0.2)
    schedule = state.learning_rate_schedule(config, steps_per_epoch=5)
    for step in (0, 10, 25, 50):
        expected = 0.1 * (1 + np.cos(np.pi * step / 50))
        assert float(schedule(step)) == pytest.approx(expected, abs=1e-7)


def test_strength_grows_over_the_warm_up():
    config = FitConfig(warmup_epochs=2.0)
    strength = [float(attack_strength(s, config, 5)) for s in range(12)]
    np.testing.assert_allclose(strength, [*np.arange(1, 11) / 10, 1, 1], rtol=1e-6)
    assert float(attack_strength(0, FitConfig(), 5)) == 1.0


def updates_by_hand(config, weights, gradients):
    """SGD with clipping, weight decay and momentum, as PyTorch defines it."""
    velocity = np.zeros_like(weights)
    for gradient in gradients:
        size = np.linalg.norm(gradient)
        if config.clip_norm is not None:
            gradient = gradient * min(1.0, config.clip_norm / size)
        velocity = config.momentum * velocity + gradient + config.weight_decay * weights
        weights = weights - config.learning_rate * velocity
    return weights


@pytest.mark.parametrize("clip_norm", [None, 0.5])
def test_sgd_by_hand(clip_norm):
    config = dataclasses.replace(
        PLAIN, momentum=0.9, weight_decay=0.01, clip_norm=clip_norm
    )
    optimizer = state.make_optimizer(config, steps_per_epoch=3)
    rng = np.random.default_rng(0)
    weights, gradients = rng.normal(size=4), rng.normal(size=(5, 4))
    params: Any = jnp.asarray(weights, jnp.float32)
    optimizer_state = optimizer.init(params)
    for gradient in gradients:
        updates, optimizer_state = optimizer.update(
            jnp.asarray(gradient, jnp.float32), optimizer_state, params
        )
        params = optax.apply_updates(params, updates)
    expected = updates_by_hand(config, weights, gradients)
    np.testing.assert_allclose(params, expected, rtol=1e-5)


def test_first_adam_step_moves_every_weight_by_the_rate():
    config = dataclasses.replace(
        PLAIN, optimizer="adam", learning_rate=0.01, weight_decay=0.1
    )
    optimizer = state.make_optimizer(config, steps_per_epoch=3)
    weights, gradient = jnp.array([1.0, -2.0]), jnp.array([3.0, -4.0])
    updates: Any = optimizer.update(gradient, optimizer.init(weights), weights)[0]
    expected = -0.01 * (np.sign(gradient) + 0.1 * np.asarray(weights))
    np.testing.assert_allclose(updates, expected, rtol=1e-5)


def run_steps(config, count, objective=objectives.standard):
    """The states before and after each of `count` steps on one fixed batch."""
    dataset = data.subset(data.load("digits", "train"), 8)
    model, optimizer = Linear(10), state.make_optimizer(config, 1)
    x = data.to_float(dataset.images, dataset.scale)
    now = state.create_state(model, x[:1], optimizer, config)
    step = make_step(
        model, objective, optimizer, config, steps_per_epoch=1, scale=dataset.scale
    )
    devices = jax.devices()[:1]
    step = parallel.data_parallel(step, devices)
    now = parallel.replicate(now, devices)
    states, metrics = [parallel.one_copy(now)], []
    rows = np.arange(8, dtype=np.int32)
    for _ in range(count):
        batch = (dataset.images[None], dataset.labels[None], rows[None])
        now, values = step(now, *batch)
        states.append(parallel.one_copy(now))
        metrics.append(jax.device_get(values))
    return dataset, states, metrics


def test_step_descends_the_gradient_of_the_mean_loss():
    config = dataclasses.replace(PLAIN, momentum=0.0)
    dataset, (before, after), metrics = run_steps(config, 1)
    x = np.asarray(dataset.images, np.float64).reshape(8, -1) / dataset.scale
    layer = before.variables["params"]["logits"]
    kernel = np.asarray(layer["kernel"], np.float64)
    p = np.exp(x @ kernel)
    p = p / p.sum(1, keepdims=True)
    error = (p - np.eye(10)[dataset.labels]) / 8
    gradient = x.T @ error
    np.testing.assert_allclose(
        after.variables["params"]["logits"]["kernel"],
        kernel - 0.5 * gradient,
        atol=1e-6,
    )
    norm = np.sqrt(np.sum(gradient**2) + np.sum(error.sum(0) ** 2))
    assert metrics[0]["grad_norm"] == pytest.approx(norm, rel=1e-5)
    loss = -np.log(p[np.arange(8), dataset.labels]).mean()
    assert metrics[0]["loss"] == pytest.approx(loss, rel=1e-5)


def test_running_mean_of_the_weights():
    _, states, _ = run_steps(dataclasses.replace(PLAIN, ema_decay=0.7), 4)
    expected = jax.device_get(states[0].variables)
    for now in states[1:]:
        expected = jax.tree.map(
            lambda m, n: 0.7 * m + 0.3 * np.asarray(n), expected, now.variables
        )
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7),
            now.ema,
            expected,
        )
    assert states[-1].weights is states[-1].ema


def test_without_a_running_mean_the_weights_are_the_current_ones():
    _, states, _ = run_steps(PLAIN, 1)
    assert states[-1].ema is None
    assert states[-1].weights is states[-1].variables


def test_draws_belong_to_the_sample_and_the_epoch():
    # An objective that reports its draws: the same sample draws anew in every epoch,
    # and the samples of a batch draw differently.
    def draws(network, images, labels, *, keys, strength):
        losses, metrics, network = objectives.standard(
            network, images, labels, keys=keys, strength=strength
        )
        uniform = jax.vmap(jax.random.uniform)(keys)
        share = {f"draw{i}": jnp.full(8, uniform[i]) for i in range(3)}
        return losses, {**metrics, **share}, network

    _, _, metrics = run_steps(PLAIN, 3, draws)
    values = [float(m[f"draw{i}"]) for m in metrics for i in range(3)]
    assert len(set(values)) == 9
    config = dataclasses.replace(PLAIN, seed=1)
    other = run_steps(config, 1, draws)[2]
    assert float(other[0]["draw0"]) not in values
