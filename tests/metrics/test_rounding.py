"""What rounding takes from the parts of the KL divergence, and what the result says."""

import copy
import itertools
import pickle
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from robjax.metrics import class_pair_kl, kl_components, kl_path, pairwise_kl
from robjax.metrics.kl import KLComponents, split_kl
from tests.metrics import models

PARTS = ("total", "fisher", "softmax", "network")
ACTIVATIONS = {
    "linear": lambda h: h,
    "relu": jax.nn.relu,
    "leaky": lambda h: jnp.where(h > 0, h, 0.1 * h),
    "tanh": jnp.tanh,
}


def network(rng, activation, widths, scale):
    """Weights and biases in float32; logits of the order of `scale`."""
    gain = scale ** (1 / (len(widths) - 1))
    layers = []
    for rows, columns in itertools.pairwise(widths):
        weight = gain * rng.normal(size=(rows, columns)) * np.sqrt(2 / rows)
        bias = 0.1 * rng.normal(size=columns)
        layers.append((weight.astype(np.float32), bias.astype(np.float32)))
    return activation, layers


def apply(activation, layers, x):
    for weight, bias in layers[:-1]:
        x = ACTIVATIONS[activation](x @ weight + bias[None])
    weight, bias = layers[-1]
    return x @ weight + bias[None]


def in_both_precisions(activation, layers, x, x_prime):
    """(what float32 gives, what float64 gives), of the same weights and images."""
    found = []
    for dtype in (np.float32, np.float64):
        with jax.enable_x64(dtype is np.float64):
            cast = [[jnp.asarray(a, dtype) for a in layer] for layer in layers]
            model = jax.tree_util.Partial(apply, activation, cast)
            pair = (jnp.asarray(a, dtype) for a in (x, x_prime))
            found.append(jax.device_get(kl_components(model, *pair)))
    return found


def errors_and_estimates(rng, *, depth, width, pixels, scale, step, classes=10):
    """Of 40 pairs for each activation, [4, pairs] both."""
    errors, estimates = [], []
    for activation in ACTIVATIONS:
        widths = [pixels, *[width] * (depth - 1), classes]
        x = rng.uniform(size=(40, pixels)).astype(np.float32)
        x_prime = rng.uniform(size=x.shape).astype(np.float32)
        if step < 1:
            x_prime = (x + step * rng.normal(size=x.shape)).astype(np.float32)
        narrow, wide = in_both_precisions(
            *network(rng, activation, widths, scale), x, x_prime
        )
        error = np.abs(np.stack(narrow) - np.stack(wide))
        # beneath the range of float32 there is nothing to tell
        errors.append(np.where(error < 1e-30, 0, error))
        estimates.append(np.stack(narrow.rounding))
    return np.concatenate(errors, axis=1), np.concatenate(estimates, axis=1)


SHAPES = [(2, 64, 200), (4, 14, 784), (10, 64, 200)]


@pytest.mark.slow
@pytest.mark.parametrize("step", [1e-3, 1.0])
@pytest.mark.parametrize("scale", [1.0, 30.0])
def test_99_per_cent_of_the_errors_are_below_the_estimate_and_not_far(scale, step):
    rng = np.random.default_rng(0)
    found = [
        errors_and_estimates(
            rng, depth=depth, width=width, pixels=pixels, scale=scale, step=step
        )
        for depth, width, pixels in SHAPES
    ]
    for error, estimate in found:
        assert (error <= estimate).mean() > 0.97
    error, estimate = (
        np.concatenate(each, axis=1) for each in zip(*found, strict=True)
    )
    below = (error <= estimate).mean(1)
    chance = 2 * np.sqrt(0.99 * 0.01 / error.shape[1])  # two standard errors of 99 %
    assert below.min() >= 0.99 - chance
    high = np.quantile(error, 0.99, axis=1), np.quantile(estimate, 0.99, axis=1)
    assert (high[1] < 100 * high[0]).all()


@pytest.mark.parametrize("classes", [2, 300])
def test_the_estimate_holds_for_few_and_many_classes(classes):
    rng = np.random.default_rng(classes)
    error, estimate = errors_and_estimates(
        rng, depth=2, width=64, pixels=100, scale=10.0, step=1.0, classes=classes
    )
    assert (error <= estimate).mean(1).min() >= 0.98
    assert (estimate.mean(1) < 100 * error.mean(1)).all()


@pytest.mark.parametrize("offset", [1e2, 1e4, 1e6])
def test_large_logits_in_common_take_the_digits_and_it_is_said(offset):
    rng = np.random.default_rng(3)
    activation, layers = network(rng, "relu", [50, 64, 10], 3.0)
    layers[-1] = layers[-1][0], layers[-1][1] + np.float32(offset)
    x, x_prime = rng.uniform(size=(2, 100, 50)).astype(np.float32)
    narrow, wide = in_both_precisions(activation, layers, x, x_prime)
    for name in PARTS:
        error = np.abs(getattr(narrow, name) - getattr(wide, name))
        estimate = getattr(narrow.rounding, name)
        assert (error <= estimate).mean() >= 0.99
        assert estimate.mean() < 500 * error.mean()


def confident_and_linear(rng):
    """Logits in the thousands: the network part of a linear network is all rounding."""
    weight = (100 * rng.normal(size=(784, 10))).astype(np.float32)
    bias = np.zeros(10, np.float32)
    x, x_prime = rng.uniform(size=(2, 50, 784)).astype(np.float32)
    return jax.tree_util.Partial(_linear, weight, bias), x, x_prime


def _linear(weight, bias, x):
    return x @ weight + bias[None]


def test_a_network_part_without_a_digit_says_so():
    fn, x, x_prime = confident_and_linear(np.random.default_rng(0))
    parts = kl_components(fn, x, x_prime)
    assert parts.total.max() > 2000
    noise = np.abs(np.asarray(parts.network))
    assert noise.max() > 1e-5
    assert (noise <= parts.rounding.network).all()
    assert parts.rounding.network.mean() < 200 * noise.mean()
    large = np.asarray(parts.total) > 100  # those have their digits
    assert (parts.rounding.total < 1e-3 * parts.total)[large].all()
    text = repr(parts)
    assert re.search(r"network \S+ ± \S+ by rounding\)$", text)
    assert "nats = " in text and "± " not in text.partition(" nats")[0]

    labels = np.arange(50) % 3
    pairs = pairwise_kl(fn, jnp.asarray(x), labels)
    assert abs(pairs.network) <= pairs.network_rounding
    assert pairs.rounding < 1e-4 * pairs.mean
    assert re.search(r"network \S+ ± \S+ % ± \S+ % by rounding\)$", repr(pairs))
    few = pairwise_kl(fn, jnp.asarray(x), labels, partners=2, key=jax.random.key(0))
    assert abs(few.network) <= few.network_rounding
    classes = class_pair_kl(fn, jnp.asarray(x), labels)
    off = classes.mean.rounding
    assert off is not None and off.network.shape == (3, 3)
    assert (np.abs(classes.mean.network) <= off.network).all()


def test_means_over_pairs_have_the_mean_of_the_estimates():
    fn = models.smooth(3, (2, 3))
    x = jax.random.uniform(jax.random.key(0), (9, 2, 3))
    y = np.arange(9) % 3
    i, j = np.nonzero(y[:, None] != y[None])
    each = kl_components(fn, x[i], x[j]).rounding
    pairs = pairwise_kl(fn, x, y)
    means = [float(np.mean(part)) for part in each]
    fields = ("rounding", "fisher_rounding", "softmax_rounding", "network_rounding")
    found = [getattr(pairs, name) for name in fields]
    np.testing.assert_allclose(found, means, rtol=1e-2)


def test_a_network_part_that_has_digits_prints_without_rounding():
    fn = models.smooth(3, (2, 3))
    x = jax.random.uniform(jax.random.key(0), (6, 2, 3))
    assert "rounding" not in repr(kl_components(fn, x, x[::-1]))
    assert "rounding" not in repr(pairwise_kl(fn, x, np.arange(6) % 3))


def test_the_precision_of_the_logits_counts():
    fn = models.smooth(3, (2, 3))
    x = jax.random.uniform(jax.random.key(0), (40, 2, 3))
    exact = kl_components(fn, x, x[::-1])
    half = kl_components(lambda v: fn(v).astype(jnp.bfloat16), x, x[::-1])
    for name in PARTS:
        error = np.abs(getattr(half, name) - getattr(exact, name))
        assert (error <= getattr(half.rounding, name)).all()
    ratio = np.mean(half.rounding.total) / np.mean(exact.rounding.total)
    assert 2**14 < ratio < 2**18  # 8 bits against 24


def test_four_parts_unpack_and_rounding_travels_with_them():
    fn = models.smooth(3, (2, 3))
    x = jax.random.uniform(jax.random.key(0), (6, 2, 3))
    parts = kl_components(fn, x, x[::-1])
    total, _fisher, _softmax, _network = parts
    assert len(parts) == 4 and parts._fields == PARTS
    assert total is parts.total
    for other in (
        jax.jit(lambda tree: tree)(parts),
        jax.jit(kl_components)(fn, x, x[::-1]),
        jax.device_get(parts),
        copy.deepcopy(parts),
        pickle.loads(pickle.dumps(jax.device_get(parts))),
    ):
        assert type(other) is KLComponents
        np.testing.assert_allclose(
            other.rounding.network, parts.rounding.network, rtol=1e-2
        )
    assert KLComponents(*parts).rounding is None
    assert kl_path(fn, x, x[::-1], jnp.ones(2)).rounding.total.shape == (2, 6)


@pytest.mark.parametrize("gap", [20.0, 30.0, 40.0])
def test_the_network_part_of_a_confident_network_keeps_its_digits(gap):
    # classes that nobody believes in move far: the parts are tiny, and ρ is large
    rng = np.random.default_rng(0)
    z = rng.normal(size=(50, 6)).astype(np.float32)
    z[:, 0] += gap
    v = rng.normal(size=z.shape).astype(np.float32)
    z_prime = z + v + 3 * rng.normal(size=z.shape).astype(np.float32)
    got = split_kl(*map(jnp.asarray, (z, v, z_prime)))
    with jax.enable_x64(True):
        wide = (jnp.asarray(a, jnp.float64) for a in (z, v, z_prime))
        want = jax.tree.map(np.asarray, split_kl(*wide))
    size = np.abs(want.total) + np.abs(want.total - want.network)
    assert size.max() < 1e-2
    assert (np.abs(got.network - want.network) < 1e-4 * size).all()
    whole = got.fisher + got.softmax + got.network
    terms = np.abs(np.stack(got)).sum(0)
    assert (np.abs(got.total - whole) < 1e-5 * terms).all()
