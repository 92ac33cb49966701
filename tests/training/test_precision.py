"""Training in bfloat16: what is rounded, and what stays in float32."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.extend import core

from robjax import attacks, data, training
from robjax.balls import Linf
from robjax.training import FitConfig, objectives
from robjax.training.objectives import Network
from robjax.training.trainable import rounded, trainable

RNG = np.random.default_rng(0)
X = RNG.uniform(size=(8, 4, 4, 1)).astype(np.float32)
KEY = jax.random.key(0)


class LinenNet(nn.Module):
    @nn.compact
    def __call__(self, x, train=False):
        x = nn.Conv(3, (3, 3))(x)
        x = nn.relu(nn.BatchNorm(use_running_average=not train)(x))
        return nn.Dense(3)(x.reshape(len(x), -1))


class NnxNet(nnx.Module):
    def __init__(self):
        rngs = nnx.Rngs(0)
        self.conv = nnx.Conv(1, 3, (3, 3), rngs=rngs)
        self.norm = nnx.BatchNorm(3, rngs=rngs)
        self.last = nnx.Linear(48, 3, rngs=rngs)

    def __call__(self, x):
        x = nnx.relu(self.norm(self.conv(x)))
        return self.last(x.reshape(len(x), -1))


def products(jaxpr):
    """The dtypes of the factors of all products and convolutions."""
    found = set()
    for equation in jaxpr.eqns:
        if equation.primitive.name in ("dot_general", "conv_general_dilated"):
            found |= {variable.aval.dtype.name for variable in equation.invars}
        for inner in jax.tree.leaves(equation.params, is_leaf=is_jaxpr):
            if is_jaxpr(inner):
                found |= products(getattr(inner, "jaxpr", inner))
    return found


def is_jaxpr(value):
    return isinstance(value, core.Jaxpr | core.ClosedJaxpr)


@pytest.mark.parametrize("make", [LinenNet, NnxNet])
def test_products_are_in_bfloat16_and_everything_else_in_float32(make):
    whole = trainable(make())
    half = rounded(whole, "bfloat16")
    variables = half.init(KEY, X)

    def loss(variables, x):
        logits, _, updates = half.train(variables, x, KEY)
        return jnp.sum(logits**2), (logits, updates, half(variables, x))

    differentiate = jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)
    jaxpr, kinds = jax.make_jaxpr(differentiate, return_shape=True)(variables, X)
    assert products(jaxpr.jaxpr) == {"bfloat16"}
    assert {leaf.dtype.name for leaf in jax.tree.leaves(kinds)} == {"float32"}
    assert products(jax.make_jaxpr(whole)(variables, X).jaxpr) == {"float32"}

    # the running mean takes up that of the rounded maps, and is not rounded itself
    (kernel,) = (
        leaf for leaf in jax.tree.leaves(variables["params"]) if leaf.ndim == 4
    )
    half_x, half_kernel = (
        np.asarray(a, jnp.bfloat16).astype(float) for a in (X, kernel)
    )
    padded = np.pad(half_x, [(0, 0), (1, 1), (1, 1), (0, 0)])
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(1, 2))
    maps = np.einsum("bhwcij,ijco->bhwo", windows, half_kernel)
    before = np.float32(1.001)  # 1 in bfloat16
    start = jax.tree.map(lambda a: jnp.full_like(a, before), variables["batch_stats"])
    _, _, updates = jax.jit(half.train)({**variables, "batch_stats": start}, X, KEY)
    after = jax.tree.leaves(updates["batch_stats"])[0]
    expected = 0.99 * before + 0.01 * maps.mean((0, 1, 2))
    np.testing.assert_allclose(after, expected, atol=1e-4, rtol=0)


def test_a_step_is_that_of_rounded_weights_and_images():
    weights = {"kernel": RNG.normal(size=(16, 3)), "bias": RNG.normal(size=3)}
    weights = jax.tree.map(np.float32, weights)
    labels = np.arange(8) % 3
    images = np.uint8(255 * X)
    config = FitConfig(
        epochs=1, batch_size=8, learning_rate=0.5, momentum=0.0, weight_decay=0.0,
        schedule="constant", dtype="bfloat16",
    )  # fmt: skip
    seen = []

    def objective(network, images, labels, *, keys, strength):
        logits, network = network.train(images)
        seen.append((images.dtype, logits.dtype))
        return objectives.standard(
            network, images, labels, keys=keys, strength=strength
        )

    class Dense(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.Dense(3)(x.reshape(len(x), -1))

    state = training.fit(
        Dense(), data.from_arrays(images, labels), objective=objective, config=config,
        variables={"params": {"Dense_0": weights}}, devices=jax.devices()[:1],
        progress=False,
    )  # fmt: skip
    dtypes = {
        leaf.dtype.name for leaf in jax.tree.leaves((state.variables, state.opt_state))
    }
    assert dtypes <= {"float32", "int32"}
    assert {dtype.name for pair in seen for dtype in pair} == {"float32"}

    # by hand: p − y on the rounded logits, then products of rounded factors
    def to_half(array):
        return np.asarray(array, jnp.bfloat16).astype(np.float32)

    x = to_half((images / np.float32(255)).reshape(8, -1))
    product = to_half(x @ to_half(weights["kernel"]))
    logits = to_half(product + to_half(weights["bias"]))
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    slope = to_half((p - np.eye(3)[labels]) / 8)
    moved = state.variables["params"]["Dense_0"]
    expected = {
        "kernel": weights["kernel"] - 0.5 * to_half(x.T @ slope),
        "bias": weights["bias"] - 0.5 * to_half(slope.sum(0)),
    }
    for name, value in expected.items():
        # an error of one unit of bfloat16 in the gradient, far less than of the weight
        np.testing.assert_allclose(moved[name], value, atol=0.5 * 2**-9, rtol=0)
        assert np.abs(to_half(moved[name]) - moved[name]).max() > 1e-4


def test_attacks_walk_in_float32_and_never_see_a_rounded_ball():
    model = rounded(trainable(LinenNet()), "bfloat16")
    network = Network(model, model.init(KEY, X))
    eps = 1e-3  # less than the distance of two bfloat16 numbers near 1
    x = np.clip(X, 0.6, 0.9)
    found = attacks.pgd(
        network.logits_fn("eval"), x, np.arange(8) % 3, key=KEY, ball=Linf(eps),
        steps=3, step_size=eps, keep_best=False,
    )  # fmt: skip
    assert found.x_adv.dtype == jnp.float32
    change = np.abs(np.asarray(found.x_adv, float) - x)
    assert change.max() <= eps * (1 + 1e-4) and np.median(change) > 0.9 * eps


def test_what_cannot_be_had_in_bfloat16_is_refused():
    with pytest.raises(ValueError, match="dtype must be 'bfloat16' or None, got 'flo"):
        FitConfig(dtype="float16")

    class Fixed(nn.Module):
        @nn.compact
        def __call__(self, x):
            kernel = jnp.ones((3, 3, 1, 3), jnp.float32)
            order = ("NHWC", "HWIO", "NHWC")
            x = jax.lax.conv_general_dilated(
                x, kernel, (1, 1), "SAME", dimension_numbers=order
            )
            return nn.Dense(3)(x.reshape(len(x), -1))

    dataset = data.from_arrays(X, np.arange(8) % 3)
    config = FitConfig(epochs=1, batch_size=8, dtype="bfloat16")
    with pytest.raises(ValueError, match="model must take images .* dtypes"):
        training.fit(Fixed(), dataset, config=config, progress=False)
    bounds = functools.partial(objectives.ibp, ball=Linf(0.1))
    with pytest.raises(ValueError, match="must compute in float32"):
        training.fit(
            LinenNet(), dataset, objective=bounds, config=config, progress=False,
            devices=jax.devices()[:1],
        )  # fmt: skip
