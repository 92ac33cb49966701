"""Taps: named activations as functions of the images."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

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


def test_features_of_a_linen_model_however_it_is_given(mlp):
    model, variables, x = mlp
    expected = taps.Tap(model, "features")(variables, x)
    forms = [
        jax.tree_util.Partial(model.apply, variables),
        functools.partial(model.apply, variables),
        model.bind(variables),
    ]
    for form in forms:
        np.testing.assert_array_equal(taps.features_fn(form, "features")(x), expected)


class Base(nnx.Module):
    """Its `__call__` is inherited below."""

    def __call__(self, x):
        self.sow(nnx.Intermediate, "twice", 2 * x)
        return self.dense(x)


class Block(Base):
    def __init__(self, rngs):
        self.dense = nnx.Linear(4, 4, rngs=rngs)


class Net(nnx.Module):
    def __init__(self, seed=0):
        rngs = nnx.Rngs(seed)
        self.layers = nnx.List([nnx.Linear(4, 4, rngs=rngs), Block(rngs)])
        self.norm = nnx.BatchNorm(4, rngs=rngs)
        self.drop = nnx.Dropout(0.5, rngs=rngs)
        self.head = nnx.Linear(4, 3, rngs=rngs)

    def __call__(self, x):
        for layer in self.layers:
            x = nnx.relu(layer(x))
        x = self.drop(self.norm(x))
        self.sow(nnx.Intermediate, "features", x)
        return self.head(x)


def nnx_net(seed=0):
    net = Net(seed)
    net.eval()
    return net


X = jnp.asarray(np.random.default_rng(1).normal(size=(2, 4)), jnp.float32)


def test_activations_of_an_nnx_module_and_nothing_done_to_it():
    net = nnx_net()
    before = nnx.split(net)
    first = np.asarray(net.layers[0].kernel[...]), np.asarray(net.layers[0].bias[...])
    expected = np.asarray(X) @ first[0] + first[1]
    names = taps.names(*before, X)
    inner = ("layers/1", "layers/1/dense", "layers/1/twice")
    assert names == ("drop", "features", "head", "layers/0", *inner, "norm")

    found = {name: np.asarray(taps.features_fn(net, name)(X)) for name in names}
    np.testing.assert_allclose(found["layers/0"], expected, rtol=1e-5, atol=1e-6)
    twice = 2 * np.maximum(expected, 0)
    np.testing.assert_allclose(found["layers/1/twice"], twice, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(found["layers/1"], found["layers/1/dense"])
    np.testing.assert_array_equal(found["features"], found["norm"])
    head = np.asarray(net.head.kernel[...]), np.asarray(net.head.bias[...])
    logits = found["features"] @ head[0] + head[1]
    np.testing.assert_allclose(found["head"], logits, rtol=1e-5, atol=1e-6)

    graph, state = nnx.split(net)
    assert graph == before[0]
    for now, then in zip(*map(jax.tree.leaves, (state, before[1])), strict=True):
        assert (now == then).all()
    assert type(net.layers[1]) is Block


def test_an_nnx_tap_under_transformations_and_without_retracing():
    traces = []

    @jax.jit
    def slope(tap, x):
        traces.append(None)
        return jax.vmap(jax.grad(lambda row: tap(row[None]).sum()))(x)

    for seed in (0, 1):
        net = nnx_net(seed)
        found = slope(taps.features_fn(net, "layers/0"), X)
        expected = np.broadcast_to(net.layers[0].kernel[...].sum(1), X.shape)
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
    assert len(traces) == 1


def test_what_has_no_tap():
    with pytest.raises(ValueError, match=r"must be one of drop, .*layers/0.*'layer'"):
        taps.features_fn(nnx_net(), "layer")(X)
    with pytest.raises(ValueError, match=r"train mode.*call \.eval\(\).*at drop"):
        taps.features_fn(Net(), "norm")
    for model in (lambda x: x, models.MLP(3), models.MLP(3).apply):
        with pytest.raises(ValueError, match=r"^model must be Partial\(model.apply, v"):
            taps.features_fn(model, "features")
