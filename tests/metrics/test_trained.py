"""The identities of the metric on networks that have been trained, on digits."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

from experiments.networks import MODELS, RECIPES, make_objective
from robjax import data, metrics, training
from tests.oracles import kl as oracle

RECIPE = RECIPES["digits"]


@functools.cache
def trained(model, objective):
    """A network after six epochs, and 40 test images with labels."""
    recipe = dataclasses.replace(RECIPE, model=model, objective=objective)
    config = dataclasses.replace(recipe.fit, epochs=6, warmup_epochs=0.0)
    network = MODELS[model](10)
    state = training.fit(
        network,
        data.load("digits", "train"),
        objective=make_objective(dataclasses.replace(recipe, fit=training.FitConfig())),
        config=config,
        devices=jax.devices()[:1],
        progress=False,
    )
    test = data.load("digits", "test")
    x = data.to_float(test.images[:40], test.scale)
    return Partial(network.apply, state.weights), x, test.labels[:40]


def test_a_pure_linear_network_has_no_network_part_after_training():
    fn, x, y = trained("vgg4_pure_linear", "standard")
    assert np.mean(np.argmax(fn(x), axis=1) == y) > 0.7
    pairs = metrics.pairwise_kl(fn, x, y)
    assert pairs.mean > 0.5
    assert abs(pairs.network) < 1e-4 * pairs.mean
    shuffled = jnp.roll(x, 1, axis=0)
    parts = metrics.kl_components(fn, x, shuffled)
    assert float(jnp.max(jnp.abs(parts.network) / (parts.total + 1e-3))) < 1e-3


@pytest.mark.parametrize("objective", ["standard", "madry"])
def test_sums_and_fisher_norms_of_a_trained_network(objective):
    fn, x, y = trained("small_cnn", objective)
    pairs = metrics.pairwise_kl(fn, x, y)
    total = pairs.fisher + pairs.softmax + pairs.network
    assert total == pytest.approx(pairs.mean, rel=1e-5)
    log_p = np.asarray(jax.nn.log_softmax(fn(x)), np.float64)
    kl = (np.exp(log_p) * log_p).sum(1)[:, None] - np.exp(log_p) @ log_p.T
    assert pairs.mean == pytest.approx(kl[y[:, None] != y[None]].mean(), rel=1e-4)

    spectrum = metrics.fisher_spectrum(fn, x)
    with jax.enable_x64(True):
        weights = jax.tree.map(lambda a: jnp.asarray(a, jnp.float64), fn.args)
        exact = Partial(fn.func, *weights)
        for i in range(4):
            matrix = oracle.fisher_matrix(exact, jnp.asarray(x[i], jnp.float64))
            norms = np.linalg.norm(matrix), np.linalg.norm(matrix, 2), np.trace(matrix)
            ours = (
                s[i] for s in (spectrum.frobenius, spectrum.spectral, spectrum.trace)
            )
            np.testing.assert_allclose(list(ours), norms, rtol=1e-3)
