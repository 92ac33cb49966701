"""Taps: named activations as functions of the images."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from robjax import models
from robjax.models import taps


@pytest.fixture(scope="module")
def mlp(random_variables):
    model = models.MLP(3, widths=(4, 5))
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 3, 3, 1)), jnp.float32)
    variables = random_variables(model, x, low=-0.5)
    return model, jax.tree.map(jnp.float32, variables), x


def test_names(mlp, random_variables):
    assert set(taps.names(*mlp)) == {"dense1", "dense2", "features", "logits"}
    resnet = models.ResNet(3, blocks_per_group=1)
    x = jnp.zeros((1, 8, 8, 3))
    variables = random_variables(resnet, x)
    assert {"bn", "group2_block1", "group2_block1/shortcut_conv", "features"} <= set(
        taps.names(resnet, variables, x)
    )


def test_activations_are_those_of_the_forward_pass(mlp):
    model, variables, x = mlp
    params = jax.tree.map(np.asarray, variables["params"])
    hidden = np.asarray(x).reshape(2, 9) @ params["dense1"]["kernel"]
    hidden += params["dense1"]["bias"]
    np.testing.assert_allclose(
        taps.Tap(model, "dense1")(variables, x), hidden, rtol=1e-5, atol=1e-6
    )
    np.testing.assert_array_equal(
        taps.Tap(model, "logits")(variables, x), model.apply(variables, x)
    )
    features = np.asarray(taps.Tap(model, "features")(variables, x))
    logits = features @ params["logits"]["kernel"] + params["logits"]["bias"]
    np.testing.assert_allclose(logits, model.apply(variables, x), rtol=1e-5, atol=1e-6)


def test_tap_is_differentiable_in_the_images(mlp):
    model, variables, x = mlp
    tap = jax.tree_util.Partial(taps.Tap(model, "dense1"), variables)
    _, tangent = jax.jvp(tap, (x,), (jnp.ones_like(x),))
    expected = np.ones((2, 9)) @ variables["params"]["dense1"]["kernel"]
    np.testing.assert_allclose(tangent, expected, rtol=1e-5)


def test_rebuilt_tap_does_not_retrace(mlp):
    _, variables, x = mlp
    traces = []

    @jax.jit
    def total(tap, x):
        traces.append(None)
        return tap(x).sum()

    for _ in range(2):
        rebuilt = taps.Tap(models.MLP(3, widths=(4, 5)), "dense2")
        total(jax.tree_util.Partial(rebuilt, variables), x)
    assert len(traces) == 1


def test_unknown_name(mlp):
    model, variables, x = mlp
    with pytest.raises(ValueError, match=r"name must be one of .*dense1.*'conv9'"):
        taps.Tap(model, "conv9")(variables, x)
