"""Batch norm: train and inference mode, and statistics over eight devices."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from robjax import models
from robjax.models.taps import Tap

DEVICES, PER_DEVICE = 8, 2


def images(size, seed=0):
    return np.random.default_rng(seed).uniform(size=(size, 8, 8, 3))


def draw(random_variables, model, x):
    """Weights of both signs; running variances that are positive."""
    variables = random_variables(model, x, low=-0.3, high=0.3)
    stats = jax.tree.map(lambda v: v + 1.0, variables["batch_stats"])
    return {"params": variables["params"], "batch_stats": stats}


def test_running_statistics_follow_the_batch(random_variables):
    with jax.enable_x64(True):
        model = models.ResNet(4, blocks_per_group=1)
        x = images(6)
        variables = draw(random_variables, model, x)
        before = np.asarray(jax.jit(Tap(model, "conv"))(variables, x))
        train = functools.partial(model.apply, train=True, mutable=["batch_stats"])
        _, updates = jax.jit(train)(variables, x)
    old, new = variables["batch_stats"]["bn"], updates["batch_stats"]["bn"]
    for name, batch in (
        ("mean", before.mean((0, 1, 2))),
        ("var", before.var((0, 1, 2))),
    ):
        expected = 0.9 * old[name] + 0.1 * batch
        np.testing.assert_allclose(new[name], expected, rtol=1e-12)


def test_inference_formula(random_variables):
    with jax.enable_x64(True):
        model = models.ResNet(4, blocks_per_group=1)
        x = images(2)
        variables = draw(random_variables, model, x)
        before = np.asarray(jax.jit(Tap(model, "conv"))(variables, x))
        after = np.asarray(jax.jit(Tap(model, "bn"))(variables, x))
    stats, params = variables["batch_stats"]["bn"], variables["params"]["bn"]
    expected = (before - stats["mean"]) / np.sqrt(stats["var"] + 1e-5)
    expected = expected * params["scale"] + params["bias"]
    np.testing.assert_allclose(after, expected, rtol=1e-10)


def test_neighbours_matter_in_train_mode_only(random_variables):
    with jax.enable_x64(True):
        model = models.WideResNet(4, depth=10, width=1)
        x = images(4)
        variables = draw(random_variables, model, x)
        infer = jax.jit(model.apply)
        np.testing.assert_allclose(
            infer(variables, x[:1]), infer(variables, x)[:1], rtol=1e-10
        )
        train = jax.jit(
            functools.partial(model.apply, train=True, mutable=["batch_stats"])
        )
        alone, together = train(variables, x[:1])[0], train(variables, x)[0][:1]
    assert not np.allclose(alone, together, rtol=1e-2)


def loss_and_updates(model, params, batch_stats, x, y):
    logits, updates = model.apply(
        {"params": params, "batch_stats": batch_stats},
        x,
        train=True,
        mutable=["batch_stats"],
    )
    log_p = jax.nn.log_softmax(logits)
    return -jnp.take_along_axis(log_p, y[:, None], axis=1).mean(), updates


@pytest.mark.parametrize(
    "model",
    [
        models.ResNet(4, blocks_per_group=1, axis_name="devices"),
        models.WideResNet(4, depth=10, width=1, axis_name="devices"),
    ],
    ids=lambda model: type(model).__name__,
)
def test_eight_devices_equal_one_on_the_concatenated_batch(model, random_variables):
    if jax.device_count() < DEVICES:
        pytest.skip(f"needs {DEVICES} devices (jax_num_cpu_devices)")
    with jax.enable_x64(True):
        x = images(DEVICES * PER_DEVICE)
        y = np.arange(DEVICES * PER_DEVICE) % 4
        variables = draw(random_variables, model, x)
        params, stats = variables["params"], variables["batch_stats"]

        def gradient(model):
            loss = functools.partial(loss_and_updates, model)
            return jax.value_and_grad(loss, has_aux=True)

        def step(params, stats, x, y):
            (loss, updates), grads = gradient(model)(params, stats, x, y)
            loss, grads = jax.lax.pmean((loss, grads), "devices")
            return (loss, updates), grads

        expected = jax.jit(gradient(model.clone(axis_name=None)))(params, stats, x, y)
        sharded = jax.pmap(step, axis_name="devices", in_axes=(None, None, 0, 0))(
            params,
            stats,
            x.reshape(DEVICES, PER_DEVICE, *x.shape[1:]),
            y.reshape(DEVICES, PER_DEVICE),
        )
    for ours, theirs in zip(
        jax.tree.leaves(sharded), jax.tree.leaves(expected), strict=True
    ):
        for device in np.asarray(ours):
            np.testing.assert_allclose(device, theirs, rtol=1e-8, atol=1e-12)
