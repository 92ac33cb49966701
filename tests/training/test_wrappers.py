"""Class weights, smoothed labels and augmentation around any objective."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from robjax import losses
from robjax.balls import Linf
from robjax.models import Linear
from robjax.training import objectives
from robjax.training.arguments import check_ball, check_options
from robjax.training.config import FitConfig
from tests.training.by_hand import BATCH, CLASSES, attack_that_returns, problem

WEIGHTS = (1.0, 3.0, 2.0)


def call(objective, network, x, y, keys, **options):
    return objective(network, x, y, keys=keys, strength=1.0, **options)


@pytest.mark.parametrize("amount", [0.0, 0.3, 1.0])
def test_smoothed_labels_are_those_of_optax(amount, monkeypatch):
    network, x, y, keys = problem(Linear(CLASSES))
    attack_that_returns(monkeypatch, "pgd", lambda f, x: x + 0.07)
    attack_that_returns(monkeypatch, "kl_pgd", lambda f, x: x + 0.07)
    logits, moved = network.train(x)[0], network.train(x + 0.07)[0]
    smooth = optax.smooth_labels(jax.nn.one_hot(y, CLASSES), amount)
    for objective, z, rest in (
        (objectives.standard, logits, 0),
        (objectives.adversarial, moved, 0),
        (objectives.trades, logits, 5 * losses.kl(logits, moved)),
    ):
        found, _, _ = call(objectives.smoothed(objective, amount), network, x, y, keys)
        expected = optax.softmax_cross_entropy(z, smooth) + rest
        np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_weighted_samples_are_samples_that_stand_several_times():
    network, x, y, keys = problem(Linear(CLASSES))
    y = jnp.array([0, 1, 2, 0, 1, 1])
    objective = objectives.weighted(objectives.standard, WEIGHTS)
    times = np.repeat(np.arange(BATCH), np.int32(WEIGHTS)[np.asarray(y)])

    def loss(params, objective, rows):
        here = network._replace(variables={"params": params})
        return call(objective, here, x[rows], y[rows], keys[rows])[0].mean()

    params = network.variables["params"]
    found = jax.value_and_grad(loss)(params, objective, np.arange(BATCH))
    expected = jax.value_and_grad(loss)(params, objectives.standard, times)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7),
        found, expected,
    )  # fmt: skip


def test_weights_count_over_all_devices():
    network, x, y, keys = problem(Linear(CLASSES))
    y = jnp.array([0, 0, 0, 1, 1, 1])
    objective = objectives.weighted(objectives.standard, WEIGHTS)
    alone = call(objective, network, x, y, keys)[0]
    shared = network._replace(axis="shards")
    shards = jax.tree.map(lambda a: a.reshape(2, 3, *a.shape[1:]), (x, y, keys))
    halves = jax.vmap(
        lambda x, y, keys: call(objective, shared, x, y, keys)[0], axis_name="shards"
    )(*shards)
    np.testing.assert_allclose(halves.ravel(), alone, rtol=1e-6)


def test_augmentation_draws_by_sample():
    network, x, y, keys = problem(Linear(CLASSES))

    def shift(image, key):
        return image + jax.random.uniform(key, (1, 1, 1))

    seen = []

    def spy(network, images, labels, *, keys, strength):
        seen.append((images, keys))
        return objectives.standard(
            network, images, labels, keys=keys, strength=strength
        )

    objective = objectives.augmented(spy, shift)
    order = np.array([3, 0, 5, 1, 2, 4])
    call(objective, network, x, y, keys)
    call(objective, network, x[order], y[order], keys[order])
    (images, own), (permuted, others) = seen
    np.testing.assert_array_equal(images[order], permuted)
    np.testing.assert_array_equal(*map(jax.random.key_data, (own[order], others)))
    drawn = (images - x)[:, 0, 0, 0]
    assert np.ptp(images - x, axis=(1, 2, 3)).max() < 1e-6
    assert len(set(drawn.tolist())) == BATCH
    # what the objective draws itself is independent of that
    assert not np.isin(jax.vmap(jax.random.uniform)(own), drawn).any()


def test_wrappers_go_around_each_other_and_around_groups():
    network, x, y, keys = problem(Linear(CLASSES))
    groups = jnp.array([0, 1, 0, 1, 0, 1])
    network = network._replace(
        variables={**network.variables, "groups": {"weights": jnp.array([0.5, 0.5])}}
    )
    dro = objectives.weighted(objectives.group_dro, WEIGHTS)
    check_options(dro, FitConfig(), None, None, ())
    assert call(dro, network, x, y, keys, groups=groups)[0].shape == (BATCH,)

    ball = functools.partial(objectives.adversarial, ball=Linf(-0.1), steps=1)
    inner = objectives.augmented(ball, lambda image, key: image)
    outer = objectives.smoothed(objectives.weighted(inner, WEIGHTS), 0.1)
    check_options(outer, FitConfig(), None, None, ())
    with pytest.raises(ValueError, match=r"objective's ball\.eps"):
        check_ball(outer)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: objectives.weighted(objectives.standard, [1.0, -1.0]), "class_weig"),
        (lambda: objectives.weighted(objectives.standard, [0.0, 0.0]), "not all 0"),
        (lambda: objectives.smoothed(objectives.standard, 1.5), "amount"),
        (lambda: objectives.smoothed(objectives.mart, 0.1), "keyword loss"),
        (lambda: objectives.augmented(objectives.standard, 3), "augment must be"),
    ],
)
def test_mistakes_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_mistakes_that_show_with_a_batch():
    network, x, y, keys = problem(Linear(CLASSES))
    few = objectives.weighted(objectives.standard, [1.0, 2.0])
    with pytest.raises(ValueError, match="class_weights .* each of the 3 outputs"):
        call(few, network, x, y, keys)
    cut = objectives.augmented(objectives.standard, lambda image, key: image[:1])
    with pytest.raises(ValueError, match="augment must keep the shape"):
        call(cut, network, x, y, keys)
