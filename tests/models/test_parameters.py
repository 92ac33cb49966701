"""Sizes of the models against closed forms, and their initialisation."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from robjax import models

CIFAR = jnp.zeros((1, 32, 32, 3))
MNIST = jnp.zeros((1, 28, 28, 1))


def count(model, images):
    shapes = jax.eval_shape(model.init, jax.random.key(0), images)
    return sum(leaf.size for leaf in jax.tree.leaves(shapes["params"]))


def chain(widths, kernel):
    """Weights and biases of convolutions through channels `widths`."""
    pairs = itertools.pairwise(widths)
    return sum(kernel**2 * a * b + b for a, b in pairs)


VGG_CHANNELS = {
    models.vgg11: [3, 64, 128, 256, 256, 512, 512, 512, 512],
    models.vgg13: [3, 64, 64, 128, 128, 256, 256, 512, 512, 512, 512],
    models.vgg16: [3, 64, 64, 128, 128] + [256] * 3 + [512] * 6,
}


@pytest.mark.parametrize("make", VGG_CHANNELS)
@pytest.mark.parametrize("form", ["relu", "half_linear", "pure_linear"])
def test_vgg_parameters(make, form):
    expected = chain(VGG_CHANNELS[make], 3) + 512 * 10 + 10
    assert count(make(10, form=form), CIFAR) == expected


def resnet_parameters(blocks, width):
    """3×3 convolutions without bias, two numbers of batch norm for each channel."""
    total, channels = 27 * 16 + 2 * 16, 16
    for out in (16 * width, 32 * width, 64 * width):
        for _ in range(blocks):
            total += 9 * channels * out + 9 * out * out + 4 * out
            total += channels * out + 2 * out if channels != out else 0
            channels = out
    return total + channels * 10 + 10


@pytest.mark.parametrize("width", [1, 5, 10])
@pytest.mark.parametrize(
    ("make", "blocks"), [(models.resnet20, 3), (models.resnet32, 5)]
)
def test_resnet_parameters(make, blocks, width):
    assert count(make(10, width=width), CIFAR) == resnet_parameters(blocks, width)


def wide_resnet_parameters(blocks, width):
    total, channels = 27 * 16, 16
    for out in (16 * width, 32 * width, 64 * width):
        for _ in range(blocks):
            total += 2 * channels + 9 * channels * out + 2 * out + 9 * out * out
            total += channels * out if channels != out else 0
            channels = out
    return total + 2 * channels + channels * 10 + 10


def test_wide_resnet_parameters():
    assert count(models.wide_resnet_28_10(10), CIFAR) == wide_resnet_parameters(4, 10)
    small = models.WideResNet(10, depth=10, width=1)
    assert count(small, CIFAR) == wide_resnet_parameters(1, 1)


def test_small_model_parameters():
    assert count(models.Linear(10), MNIST) == 784 * 10 + 10
    mlp = models.MLP(10, widths=(20, 30))
    assert count(mlp, MNIST) == 785 * 20 + 21 * 30 + 31 * 10
    default = chain([1, 16, 32], 5) + (7 * 7 * 32 + 1) * 100 + 101 * 10
    assert count(models.CNN(10), MNIST) == default
    classic = models.CNN(10, blocks=((32, 32), (64, 64)), kernel=3, hidden=200)
    dense = (7 * 7 * 64 + 1) * 200 + 201 * 10
    assert count(classic, MNIST) == chain([1, 32, 32, 64, 64], 3) + dense


def test_init_is_a_function_of_the_key():
    model = models.CNN(10, blocks=((2,),), kernel=3, hidden=4)
    first, again, other = (
        model.init(jax.random.key(seed), jnp.zeros((1, 4, 4, 1))) for seed in (0, 0, 1)
    )
    jax.tree.map(np.testing.assert_array_equal, first, again)
    mine, theirs = (v["params"]["conv1_1"]["kernel"] for v in (first, other))
    assert not np.array_equal(np.asarray(mine), np.asarray(theirs))


def test_vgg_initial_weights():
    model = models.VGG(10, blocks=((64, 64),))
    params = model.init(jax.random.key(0), jnp.zeros((1, 2, 2, 3)))["params"]
    kernel = np.asarray(params["conv1_2"]["kernel"])
    fan_out = 9 * 64
    # Standard error of a sample standard deviation: 1/√(2n); five of them.
    np.testing.assert_allclose(
        kernel.std(), np.sqrt(2 / fan_out), rtol=5 / np.sqrt(2 * kernel.size)
    )
    assert np.abs(kernel).max() > 3 * np.sqrt(2 / fan_out)  # not truncated
    logits = np.asarray(params["logits"]["kernel"])
    np.testing.assert_allclose(logits.std(), 0.01, rtol=5 / np.sqrt(2 * logits.size))
    for layer in ("conv1_2", "logits"):
        np.testing.assert_array_equal(params[layer]["bias"], 0.0)
