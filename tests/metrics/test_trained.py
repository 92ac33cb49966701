"""The identities of the metrics on networks that have been trained, on digits."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

from experiments.networks import MODELS, RECIPES, make_objective
from robjax import attacks, data, metrics, training
from robjax.balls import Linf
from robjax.metrics import interactions
from tests.oracles import kl as oracle

RECIPE = RECIPES["digits"]
OBJECTIVES = ("standard", "madry", "fisher")
ACCURACY = {"standard": 0.7, "madry": 0.3, "fisher": 0.3}


@functools.cache
def trained(model, objective):
    """A network after six epochs."""
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
    return Partial(network.apply, state.weights)


def held_out(count):
    """The first test images and their labels."""
    test = data.load("digits", "test")
    return data.to_float(test.images[:count], test.scale), test.labels[:count]


def in_float64(fn):
    """The same network with its weights in float64; inside jax.enable_x64."""
    weights = jax.tree.map(lambda a: jnp.asarray(a, jnp.float64), fn.args)
    return Partial(fn.func, *weights)


def apart(y):
    """Anchors and partners of all ordered pairs with different labels."""
    return np.nonzero(y[:, None] != y[None])


@pytest.mark.slow
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_a_pure_linear_network_has_no_network_part_after_training(objective):
    fn, (x, y) = trained("vgg4_pure_linear", objective), held_out(40)
    assert np.mean(np.argmax(fn(x), axis=1) == y) > ACCURACY[objective]
    pairs = metrics.pairwise_kl(fn, x, y)
    assert pairs.mean > 0.1
    assert abs(pairs.network) < 1e-5 * pairs.mean
    i, j = apart(y)
    with jax.enable_x64(True):
        wide = jnp.asarray(x, jnp.float64)
        parts = metrics.kl_components(in_float64(fn), wide[i], wide[j])
        total, fisher, softmax, network = map(np.asarray, parts)
    assert network.dtype == np.float64
    assert np.all(np.abs(network) < 1e-12 * total)
    size = np.abs(fisher) + np.abs(softmax)
    assert np.all(np.abs(total - fisher - softmax - network) <= 1e-12 * size)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_sums_and_fisher_norms_of_a_trained_network(objective):
    fn, (x, y) = trained("small_cnn", objective), held_out(40)
    pairs = metrics.pairwise_kl(fn, x, y)
    total = pairs.fisher + pairs.softmax + pairs.network
    assert total == pytest.approx(pairs.mean, rel=1e-5)
    i, j = apart(y)
    each = np.stack(metrics.kl_components(fn, x[i], x[j]))
    size = np.abs(each[1:]).sum(0)
    assert np.all(np.abs(each[0] - each[1:].sum(0)) <= 1e-5 * size)
    log_p = np.asarray(jax.nn.log_softmax(fn(x)), np.float64)
    kl = (np.exp(log_p) * log_p).sum(1)[:, None] - np.exp(log_p) @ log_p.T
    assert pairs.mean == pytest.approx(kl[y[:, None] != y[None]].mean(), rel=1e-4)

    spectrum = metrics.fisher_spectrum(fn, x)
    with jax.enable_x64(True):
        exact = in_float64(fn)
        for i in range(4):
            matrix = oracle.fisher_matrix(exact, jnp.asarray(x[i], jnp.float64))
            norms = np.linalg.norm(matrix), np.linalg.norm(matrix, 2), np.trace(matrix)
            ours = (
                s[i] for s in (spectrum.frobenius, spectrum.spectral, spectrum.trace)
            )
            np.testing.assert_allclose(list(ours), norms, rtol=1e-3)


EPS = 1e-10  # inside the logarithms of the authors' code
GROUP = 5


def in_groups(kl, y):
    """The authors' mean: the first image of each group against its others.

    Images of the first's own label are left out. Gives the mean over what is left, and
    its standard error for groups as a sample.
    """
    # in random order: neighbours in the file may be by one hand
    groups = np.random.default_rng(0).permutation(len(y)).reshape(-1, GROUP)
    rows = []
    for first, *others in groups:
        used = [j for j in others if y[j] != y[first]]
        rows.append((kl[first, used].sum(), len(used)))
    sums, counts = np.array(rows).T
    mean = sums.sum() / counts.sum()
    spread = np.std(sums - mean * counts, ddof=1) * np.sqrt(len(rows))
    return mean, spread / counts.sum()


def divergences(z):
    """KL of all pairs, and Σ_k p_k log((p_k + ε) / (q_k + ε)) in its place."""
    log_p = z - np.log(np.sum(np.exp(z), axis=1, keepdims=True))
    p = np.exp(log_p)
    ratio = np.log((p[:, None] + EPS) / (p[None] + EPS))
    exact = (p * log_p).sum(1)[:, None] - p @ log_p.T
    return exact, (p[:, None] * ratio).sum(2)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_the_estimator_of_the_authors_is_a_sample_of_ours_cut_off(objective):
    fn, (x, y) = trained("small_cnn", objective), held_out(360)
    with jax.enable_x64(True):
        z = np.asarray(in_float64(fn)(jnp.asarray(x, jnp.float64)))
    exact, theirs = divergences(z)
    ours, (mean, stderr) = metrics.pairwise_kl(fn, x, y).mean, in_groups(exact, y)
    assert abs(mean - ours) < 3 * stderr
    # With ε the sum is, but for ε Σ_k log((p_k + ε) / (q_k + ε)), that of the two
    # distributions mixed with the uniform one, whose KL is smaller by convexity.
    most = -np.log(EPS)
    rest = EPS * z.shape[1] * (most + 1)
    assert in_groups(theirs, y)[0] <= mean + rest
    assert theirs[apart(y)].mean() <= ours * (1 + 1e-5)
    for sharpness in (1, 100):  # the second beyond what ε lets through
        exact, theirs = divergences(sharpness * (z - z.max(axis=1, keepdims=True)))
        assert np.all(theirs <= exact + rest)
        assert np.all(theirs <= most + 2 * EPS)
    assert exact.max() > 2 * most


def test_the_orders_of_interactions_add_up_to_what_an_attack_took():
    """16 players, all 2^16 sets, in float32; the utility is that of two forwards."""
    fn, (x, y) = trained("small_cnn", "standard"), held_out(10)
    x_adv = attacks.pgd(fn, x, y, key=jax.random.key(0), ball=Linf(0.2)).x_adv
    pair = (x[0], x_adv[0])
    game = interactions.image_game(fn, pair, y[0], devices=jax.devices()[:1])
    found = interactions.exact(game, 16)
    normal, adversarial = (
        np.asarray(jax.nn.log_softmax(fn(image[None])))[0, y[0]] for image in pair
    )
    utility = normal - adversarial
    assert utility > 1
    parts = interactions.attack_utility(found)
    for value in (parts.total, parts.value):
        np.testing.assert_allclose(value, utility, rtol=1e-4)
    whole = found.values[:, -1] - found.values[:, 0]
    np.testing.assert_allclose(found.shapley.sum(1), whole, rtol=1e-4)  # efficiency
    np.testing.assert_allclose(interactions.decompose(found).total, found.values[:, -1],
                               rtol=1e-4, atol=1e-4 * utility)  # fmt: skip
