"""Objectives on pairs (x, x'): formulas in NumPy, expectations, finite differences."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from robjax.balls import Linf
from robjax.models import MLP, Linear
from robjax.training import objectives
from robjax.training.objectives import smoothness
from tests.training.by_hand import (
    BATCH,
    CLASSES,
    attack_that_returns,
    cross_entropy,
    kl,
    linear_logits,
    problem,
)
from tests.training.test_fisher_penalties import explicit_fisher
from tests.training.test_objectives import differences


def noise(keys, x):
    """The draws of a step, [B, *S]."""
    return jax.vmap(lambda key: jax.random.normal(key, x.shape[1:], x.dtype))(keys)


def dense1(network):
    return np.asarray(network.variables["params"]["dense1"]["kernel"], np.float64)


def test_siamese_is_the_length_of_the_noise_in_a_linear_feature_space():
    network, x, y, keys = problem(MLP(CLASSES, widths=(5,)))
    options = {"sigma": 0.6, "weight": 0.7, "layer": "dense1"}
    losses, metrics, _ = objectives.siamese(
        network, x, y, keys=keys, strength=0.5, **options
    )
    moved = 0.3 * np.asarray(noise(keys, x)).reshape(BATCH, -1) @ dense1(network)
    distance = np.linalg.norm(moved, axis=1)
    np.testing.assert_allclose(metrics["distance"], distance, rtol=1e-4)
    expected = cross_entropy(network.train(x)[0], y) + 0.7 * distance
    np.testing.assert_allclose(losses, expected, rtol=1e-5)


@pytest.mark.parametrize("width", [1, 5])
def test_mean_of_the_siamese_distance_over_noise(width):
    network, x, _, _ = problem(MLP(CLASSES, widths=(width,)))
    count, sigma = 4000, 0.2
    keys = jax.random.split(jax.random.key(5), count)
    same = jnp.broadcast_to(x[:1], (count, *x.shape[1:])), jnp.zeros(count, int)
    options = {"keys": keys, "strength": 1.0, "sigma": sigma, "layer": "dense1"}
    siamese = functools.partial(objectives.siamese, network, **options)
    distance = jax.jit(lambda x, y: siamese(x, y)[1]["distance"])(*same)
    distance = np.asarray(distance, np.float64)

    def check(values, expected):
        assert abs(values.mean() - expected) < 4 * values.std() / np.sqrt(count)

    size = np.linalg.norm(dense1(network))  # ‖W‖_F
    check(distance**2, sigma**2 * size**2)  # E‖Wn‖² = σ²‖W‖_F²
    if width == 1:
        check(distance, sigma * size * np.sqrt(2 / np.pi))


MATCHING = functools.partial(objectives.feature_matching, ball=Linf(0.1), step_size=0.2)
ALL = [
    objectives.siamese,
    MATCHING,
    objectives.noise_augmentation,
    objectives.stability,
    objectives.vat,
]


@pytest.mark.parametrize("objective", ALL)
def test_without_a_perturbation_there_is_only_the_cross_entropy(objective):
    network, x, y, keys = problem(MLP(CLASSES, widths=(5,)))

    @functools.partial(jax.jit, static_argnums=1)
    @functools.partial(jax.grad, has_aux=True)
    def slope(params, objective):
        here = network._replace(variables={"params": params})
        values = objective(here, x, y, keys=keys, strength=0.0)[0]
        return values.mean(), values

    params = network.variables["params"]
    found = jax.tree.leaves(slope(params, objective))
    expected = jax.tree.leaves(slope(params, objectives.standard))
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("objective", [objectives.siamese, objectives.stability])
def test_gradient_is_the_sum_of_both_branches(objective):
    with jax.enable_x64(True):
        network, x, y, keys = problem(MLP(CLASSES, widths=(5,)), jnp.float64)
        flat, unravel = ravel_pytree(network.variables["params"])
        along = jax.random.normal(jax.random.key(1), (6, len(flat)), jnp.float64)

        @jax.jit
        def loss(weights):
            here = network._replace(variables={"params": unravel(weights)})
            return objective(here, x, y, keys=keys, strength=1.0)[0].mean()

        expected = differences(loss, flat, along)
        np.testing.assert_allclose(along @ jax.grad(loss)(flat), expected, atol=1e-7)


def test_feature_matching_with_a_known_attack(monkeypatch):
    calls = attack_that_returns(monkeypatch, "pgd", lambda f, x: x + 0.07)
    network, x, y, keys = problem(MLP(CLASSES, widths=(5,)))
    losses, _, _ = MATCHING(
        network, x, y, keys=keys, strength=0.5, weight=0.3, layer="dense1"
    )
    assert float(calls[0]["ball"].eps) == pytest.approx(0.05)
    assert calls[0]["step_size"] == pytest.approx(0.1)
    distance = np.linalg.norm(np.full((1, 4), 0.07) @ dense1(network))
    expected = cross_entropy(network.train(x)[0], y) + 0.3 * distance
    np.testing.assert_allclose(losses, expected, rtol=1e-5)


def test_noise_augmentation_is_standard_training_on_noisy_images():
    network, x, y, keys = problem(MLP(CLASSES, widths=(5,)))
    options = {"keys": keys, "strength": 0.5}
    losses = objectives.noise_augmentation(network, x, y, sigma=0.4, **options)[0]
    noisy = x + 0.2 * noise(keys, x)
    expected = objectives.standard(network, noisy, y, **options)[0]
    np.testing.assert_allclose(losses, expected, rtol=1e-6)


def test_stability_is_the_divergence_from_the_clean_to_the_noisy_prediction():
    network, x, y, keys = problem(Linear(CLASSES))
    losses, metrics, _ = objectives.stability(
        network, x, y, keys=keys, strength=0.5, sigma=0.8, alpha=3.0
    )
    z = linear_logits(network, x)
    moved = linear_logits(network, np.asarray(x + 0.4 * noise(keys, x)))
    forwards, back = kl(z, moved), kl(moved, z)
    np.testing.assert_allclose(metrics["divergence"], forwards, rtol=1e-4)
    assert np.max(np.abs(back / forwards - 1)) > 0.01  # the direction matters
    expected = cross_entropy(z, y) + 3 * forwards
    np.testing.assert_allclose(losses, expected, rtol=1e-5)


@pytest.mark.parametrize("apart", [False, True])
def test_divergence_is_zero_where_logits_differ_by_a_constant(apart):
    network, x, y, keys = problem(Linear(CLASSES))
    layer = network.variables["params"]["logits"]
    kernel = jnp.broadcast_to(layer["kernel"][:, :1], layer["kernel"].shape)
    kernel = layer["kernel"] if apart else kernel
    network = network._replace(
        variables={"params": {"logits": {**layer, "kernel": kernel}}}
    )
    found = objectives.stability(network, x, y, keys=keys, strength=1.0)[1]
    if apart:
        assert (np.asarray(found["divergence"]) > 1e-5).all()
    else:
        np.testing.assert_allclose(found["divergence"], 0, atol=1e-12)


@pytest.mark.parametrize("steps", [1, 200])
def test_vat_goes_along_the_power_iteration_of_the_fisher_information(steps):
    with jax.enable_x64(True):
        network, x, y, keys = problem(Linear(CLASSES), jnp.float64)
        losses, _, _ = objectives.vat(
            network, x, y, keys=keys, strength=0.5, eps=0.6, alpha=2, power_steps=steps
        )
        start = np.asarray(noise(keys, x)).reshape(BATCH, -1)
    fisher = explicit_fisher(network, x)
    d = np.einsum("bij,bj->bi", fisher, start)
    if steps > 1:  # the top eigenvector, on the side of the start
        d = np.linalg.eigh(fisher)[1][:, :, -1]
        d *= np.sign(np.sum(d * start, axis=1, keepdims=True))
    d /= np.linalg.norm(d, axis=1, keepdims=True)
    z = linear_logits(network, x)
    moved = linear_logits(network, np.asarray(x) + 0.3 * d.reshape(x.shape))
    expected = cross_entropy(z, y) + 2 * kl(z, moved)
    np.testing.assert_allclose(losses, expected, rtol=1e-8)


def test_vat_holds_the_clean_prediction_and_the_direction(monkeypatch):
    with jax.enable_x64(True):
        network, x, y, keys = problem(MLP(CLASSES, widths=(5,)), jnp.float64)
        flat, unravel = ravel_pytree(network.variables["params"])
        along = jax.random.normal(jax.random.key(1), (6, len(flat)), jnp.float64)
        d = smoothness._steepest(network.logits_fn("eval"), x, keys, 1)
        natural = network.train(x)[0]

        def loss(weights, held):
            here = network._replace(variables={"params": unravel(weights)})
            if not held:
                return objectives.vat(here, x, y, keys=keys, strength=1.0)[0].mean()
            z, moved = here.train(x)[0], here.train(x + d)[0]
            p = jax.nn.softmax(natural)
            log_ratio = jnp.log(p) - jax.nn.log_softmax(moved)
            own = -jax.nn.log_softmax(z)[jnp.arange(BATCH), y]
            return (own + jnp.sum(p * log_ratio, axis=1)).mean()

        held = jax.jit(functools.partial(loss, held=True))
        slope = jax.grad(loss)(flat, False)
        expected = differences(held, flat, along)
        np.testing.assert_allclose(along @ slope, expected, atol=1e-7)


def test_vat_finds_a_direction_where_squares_of_the_gradient_underflow():
    network, x, _, keys = problem(Linear(CLASSES))
    layer = network.variables["params"]["logits"]
    sure = {**layer, "bias": jnp.array([60.0, 0.0, 0.0])}
    network = network._replace(variables={"params": {"logits": sure}})
    d = smoothness._steepest(network.logits_fn("eval"), x, keys, 1)
    length = np.linalg.norm(np.asarray(d).reshape(BATCH, -1), axis=1)
    np.testing.assert_allclose(length, 1, rtol=1e-5)


class NormNet(nn.Module):
    """A batch norm before the last layer."""

    num_classes: int = CLASSES

    @nn.compact
    def __call__(self, x, train=False):
        x = nn.Dense(5)(x.reshape((x.shape[0], -1)))
        x = nn.BatchNorm(use_running_average=not train, momentum=0.9)(x)
        return nn.Dense(self.num_classes, name="logits")(x)


def test_features_are_those_of_the_pass_that_gives_the_logits():
    network, x, y, keys = problem(NormNet())
    logits, features, after = network.train_tapped(x, "BatchNorm_0")
    expected, plain = network.train(x)
    np.testing.assert_array_equal(logits, expected)
    layer = network.variables["params"]["logits"]
    np.testing.assert_allclose(
        features @ layer["kernel"] + layer["bias"][None], logits, rtol=1e-5, atol=1e-6
    )
    assert list(after.variables) == list(network.variables)
    noisy = x + 0.2 * noise(keys, x)
    twice = plain.train(noisy)[1].variables["batch_stats"]
    options = {"keys": keys, "strength": 1.0, "layer": "BatchNorm_0"}
    found = objectives.siamese(network, x, y, **options)[2].variables["batch_stats"]
    for a, b in zip(*map(jax.tree.leaves, (found, twice)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("objective", "options", "message"),
    [
        (objectives.siamese, {"layer": "conv9"}, "one of dense1, .*got 'conv9'"),
        (objectives.siamese, {"sigma": -1.0}, "sigma must be .* at least 0, got -1"),
        (objectives.siamese, {"weight": np.nan}, "weight must be finite"),
        (MATCHING, {"weight": -1}, "weight must be .* at least 0"),
        (objectives.noise_augmentation, {"sigma": "a"}, "sigma must be a real number"),
        (objectives.stability, {"alpha": -1}, "alpha must be .* at least 0"),
        (objectives.vat, {"eps": -1}, "eps must be .* at least 0"),
        (objectives.vat, {"power_steps": 0}, "power_steps must be"),
        (objectives.vat, {"attack_mode": "test"}, "attack_mode must be 'eval' or"),
    ],
)
def test_arguments(objective, options, message):
    network, x, y, keys = problem(MLP(CLASSES, widths=(5,)))
    with pytest.raises(ValueError, match=message):
        objective(network, x, y, keys=keys, strength=1.0, **options)
