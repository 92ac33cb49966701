"""Group-DRO against the algorithm in NumPy, and how groups reach an objective."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from robjax import data, training
from robjax.models import MLP, Linear
from robjax.training import objectives
from robjax.training.objectives.network import takes_groups
from tests.training.by_hand import BATCH, CLASSES, cross_entropy, linear_logits, problem

GROUPS = jnp.array([0, 2, 2, 0, 0, 2])  # none of group 1
DRO = functools.partial(objectives.group_dro, rate=0.5)
CONFIG = training.FitConfig(
    epochs=2, batch_size=16, optimizer="adam", learning_rate=0.01, pad=0, flip=False
)


def grouped(network, weights):
    return network._replace(
        variables={**network.variables, "groups": {"weights": jnp.asarray(weights)}}
    )


def by_hand(losses, groups, q, rate):
    """Algorithm 1, groups that are absent having the loss 0."""
    means = np.array(
        [losses[groups == g].mean() if (groups == g).any() else 0 for g in range(3)]
    )
    q = q * np.exp(rate * means)
    q /= q.sum()
    return q @ means, q


def test_two_steps_of_the_algorithm():
    network, x, y, keys = problem(Linear(CLASSES))
    each = cross_entropy(linear_logits(network, x), y)
    q = np.array([0.5, 0.2, 0.3])
    network = grouped(network, np.float32(q))
    for _ in range(2):
        losses, metrics, network = DRO(
            network, x, y, keys=keys, strength=1.0, groups=GROUPS
        )
        expected, q = by_hand(each, np.asarray(GROUPS), q, 0.5)
        assert float(losses.mean()) == pytest.approx(expected, rel=1e-5)
        np.testing.assert_allclose(network.variables["groups"]["weights"], q, rtol=1e-5)
        np.testing.assert_allclose(metrics["worst_group"], q.max(), rtol=1e-5)


def test_the_gradient_is_that_of_the_weighted_loss_with_q_held():
    network, x, y, keys = problem(MLP(CLASSES, widths=(5,)))
    network = grouped(network, np.float32([0.5, 0.2, 0.3]))

    def loss(params, objective):
        return objective(network._replace(variables={**network.variables, **params}))

    def dro(network):
        return DRO(network, x, y, keys=keys, strength=1.0, groups=GROUPS)[0].mean()

    after = DRO(network, x, y, keys=keys, strength=1.0, groups=GROUPS)[2]
    q = after.variables["groups"]["weights"]

    def held(network):
        each = -jax.nn.log_softmax(network.train(x)[0])[jnp.arange(BATCH), y]
        return sum(q[g] * each[np.asarray(GROUPS) == g].mean() for g in (0, 2))

    params = {"params": network.variables["params"]}
    found, expected = (jax.grad(loss)(params, f) for f in (dro, held))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6),
        found,
        expected,
    )


def test_weights_neither_overflow_nor_vanish():
    network, x, y, keys = problem(Linear(CLASSES))
    network = grouped(network, np.float32([1.0, 0.0, 0.0]))
    objective = functools.partial(objectives.group_dro, rate=1e30)
    losses, _, network = objective(
        network, x, y, keys=keys, strength=1.0, groups=GROUPS
    )
    assert np.isfinite(losses).all()
    np.testing.assert_array_equal(network.variables["groups"]["weights"], [1, 0, 0])


def unfair(count=480, seed=0):
    """Two pixels: a large one that misleads in group 2 of 3, a small one that is right.

    All groups are equally large.
    """
    rng = np.random.default_rng(seed)
    y = rng.integers(0, 2, count)
    groups = np.arange(count) % 3
    large = np.where(groups == 2, 1 - y, y)
    x = np.stack([large, 0.3 + 0.4 * y], axis=1)
    x = np.clip(x + 0.1 * rng.normal(size=x.shape), 0, 1)
    return data.from_arrays(x.reshape(count, 1, 2, 1), y, groups=groups)


def group_losses(objective, dataset):
    config = dataclasses.replace(CONFIG, learning_rate=0.1, epochs=6)
    state = training.fit(
        Linear(2), dataset, objective=objective, config=config, progress=False
    )
    logits = Linear(2).apply(state.variables, dataset.images)
    each = cross_entropy(logits, dataset.labels)
    return [each[dataset.groups == g].mean() for g in range(3)], state


def test_it_favours_the_group_that_the_average_forgets():
    plain, start = group_losses(objectives.standard, unfair())
    assert "groups" not in start.variables
    slow = functools.partial(objectives.group_dro, rate=0.1)
    fair, state = group_losses(slow, unfair())
    q = np.asarray(state.variables["groups"]["weights"])
    # groups 0 and 1 are alike, so that only the rest of q is determined
    assert q.sum() == pytest.approx(1, abs=1e-5) and q[2] > 0.4
    assert np.argmax(plain) == 2 and max(fair) < max(plain)
    assert np.ptp(fair) < np.ptp(plain) / 2


def test_several_devices_do_what_one_does():
    dataset = unfair(64)
    config = training.FitConfig(epochs=2, batch_size=16, optimizer="adam", pad=0)
    states = [
        training.fit(
            MLP(2, widths=(4,)), dataset, objective=DRO, config=config,
            devices=jax.devices()[:count], progress=False,
        )
        for count in (1, 4)
    ]  # fmt: skip
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-5),
        states[0].variables,
        states[1].variables,
    )


def test_a_resumed_run_goes_on_with_its_weights(tmp_path):
    dataset = unfair(64)
    fit = functools.partial(
        training.fit, MLP(2, widths=(4,)), dataset, objective=DRO, progress=False,
        devices=jax.devices()[:1],
    )  # fmt: skip
    whole = fit(config=CONFIG)

    def stop(epoch, variables):
        if epoch == 2:
            raise KeyboardInterrupt
        return {}

    with pytest.raises(KeyboardInterrupt):
        fit(config=CONFIG, run_dir=tmp_path, on_epoch=stop)
    resumed = fit(config=CONFIG, run_dir=tmp_path, resume=True)
    jax.tree.map(np.testing.assert_array_equal, whole.variables, resumed.variables)
    other = dataset._replace(groups=1 - dataset.groups)
    with pytest.raises(ValueError, match="another run|data"):
        training.fit(
            MLP(2, widths=(4,)), other, objective=DRO, config=CONFIG, progress=False,
            run_dir=tmp_path, resume=True, devices=jax.devices()[:1],
        )  # fmt: skip


def test_every_sample_meets_its_own_group():
    """The label of sample i is i mod 5; its group must be that of the same row."""
    count = 60
    labels = np.arange(count) % 5
    dataset = data.from_arrays(
        np.zeros((count, 1, 2, 1), np.uint8), labels, groups=4 - labels
    )

    def objective(network, images, labels, *, keys, strength, groups):
        loss, metrics, network = objectives.standard(
            network, images, labels, keys=keys, strength=strength
        )
        fits = (groups == 4 - labels).astype(jnp.float32)
        return loss, {**metrics, "fits": fits}, network

    seen = []
    training.fit(
        Linear(5), dataset, objective=objective, config=CONFIG, progress=False,
        on_epoch=lambda epoch, variables: seen.append(variables) or {},
    )  # fmt: skip
    np.testing.assert_allclose(seen[-1]["groups"]["weights"], 0.2)
    with pytest.raises(ValueError, match="data must have groups .* got Dataset"):
        training.fit(
            Linear(5), dataset._replace(groups=None, num_groups=0),
            objective=objective, config=CONFIG, progress=False,
        )  # fmt: skip


def test_which_objectives_take_groups():
    assert takes_groups(objectives.group_dro) and takes_groups(DRO)
    assert not takes_groups(objectives.standard)
    assert not takes_groups(functools.partial(objectives.trades, beta=2.0))
    assert not takes_groups(3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"groups": [0, 1]}, r"groups must be integers of shape \(4,\)"),
        ({"groups": [0, 1, 2, -1]}, "groups must lie in 0..2, got values from -1"),
        ({"groups": [0, 1, 2, 3], "num_groups": 3}, "groups must lie in 0..2"),
        ({"groups": [0, 0, 0, 0]}, "num_groups must be a whole number of at least 2"),
        ({"num_groups": 3}, "num_groups must come with groups, got 3 alone"),
    ],
)
def test_groups_of_a_data_set_are_checked(options, message):
    with pytest.raises(ValueError, match=message):
        data.from_arrays(np.zeros((4, 2, 2, 1)), [0, 1, 0, 1], **options)


def test_balanced_groups():
    groups = np.array([3] * 7 + [0] * 3 + [1])
    images = np.arange(11, dtype=np.uint8).reshape(11, 1, 1, 1)
    dataset = data.from_arrays(images, groups % 2, groups=groups, num_groups=5)
    balanced = data.balance_groups(dataset, seed=1)
    assert np.bincount(balanced.groups, minlength=5).tolist() == [7, 7, 0, 7, 0]
    rows = balanced.images.ravel()
    np.testing.assert_array_equal(balanced.groups, groups[rows])
    np.testing.assert_array_equal(balanced.labels, dataset.labels[rows])
    times = np.bincount(rows)
    assert times[:7].tolist() == [1] * 7 and times[10] == 7
    assert sorted(times[7:10]) == [2, 2, 3]
    with pytest.raises(ValueError, match="dataset must have groups"):
        data.balance_groups(data.load("digits", "test"))
