"""Attributions of the highest order, their dispersion, AUROC."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from robjax.balls import L2, Linf
from robjax.metrics.interactions import (
    auroc,
    dispersion,
    exact,
    leave_one_out,
    recoverability,
)
from tests.oracles import interactions as oracle


@pytest.mark.parametrize("n", [2, 6])
def test_leave_one_out_is_the_highest_order(n):
    _, value_fn = oracle.random_game(n, n)
    found = leave_one_out(value_fn, n)
    np.testing.assert_allclose(found, exact(value_fn, n).order_shapley[-1], atol=1e-12)


def test_several_games_at_once():
    def games(masks):
        return np.stack([masks.sum(1) ** 2, 3 * masks[:, 0]])

    assert leave_one_out(games, 3).tolist() == [[5, 5, 5], [3, 0, 0]]


def test_dispersion_as_scipy_has_it():
    values = np.random.default_rng(0).normal(size=(4, 17))
    found = dispersion(values)
    np.testing.assert_allclose(found.quartiles, scipy.stats.iqr(values, axis=1))
    mad = scipy.stats.median_abs_deviation(values, axis=1)
    np.testing.assert_allclose(found.absolute, mad)
    np.testing.assert_allclose(
        found.deviation, scipy.stats.tstd(values, axis=1, ddof=0)
    )
    for field, moved in zip(found, dispersion(5 - 2 * values), strict=True):
        np.testing.assert_allclose(moved, 2 * field)


scores = st.lists(st.integers(0, 5).map(float), min_size=1, max_size=8)


@given(scores, scores)
def test_auroc_counts_pairs(positive, negative):
    above = np.subtract.outer(positive, negative)
    expected = np.mean((above > 0) + 0.5 * (above == 0))
    assert auroc(positive, negative) == pytest.approx(expected)
    assert auroc(negative, positive) == pytest.approx(1 - expected)


def test_a_score_that_is_nan_stays_visible():
    assert np.isnan(auroc([1.0, np.nan], [0.0]))
    assert np.isnan(auroc([1.0], [np.nan]))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: leave_one_out(lambda masks: 0, 3),
            "value_fn must return real numbers",
        ),
        (lambda: dispersion(np.zeros((2, 0))), "attributions must not be empty"),
        (lambda: auroc([], [1.0]), "positive must not be empty"),
        (lambda: auroc([1.0], [[1.0]]), r"negative must have shape \[M\]"),
    ],
)
def test_bad_arguments_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_the_way_back_on_a_linear_model():
    # at x = (0.4, 0.6) the attack goes down-up by 4·0.05, the way back undoes it
    x = jnp.array([[0.6, 0.5], [0.1, 0.5]])
    y = jnp.array([0, 0])
    found = recoverability(lambda x: x, x, y, ball=Linf(0.4), steps=4, step_size=0.05)
    np.testing.assert_allclose(found.x_adv, [[0.4, 0.7], [0, 0.7]], atol=1e-6)
    # the box stopped the second image at 0, and the way back overshoots by 0.1
    np.testing.assert_allclose(found.x_back, [[0.6, 0.5], [0.2, 0.5]], atol=1e-6)
    np.testing.assert_allclose(
        found.attacked_distance, [np.sqrt(0.08), np.sqrt(0.05)], atol=1e-6
    )
    np.testing.assert_allclose(found.returned_distance, [0, 0.1], atol=1e-6)
    assert found.fooled.tolist() == [True, True]
    assert found.returned.tolist() == [True, False]


def test_the_way_back_is_bounded_around_the_attacked_image():
    x = jax.random.uniform(jax.random.key(0), (4, 3))
    weights = jax.random.normal(jax.random.key(1), (3, 2))
    found = recoverability(
        lambda x: x @ weights, x, jnp.zeros(4, int), ball=L2(0.1), steps=20
    )
    for start, end in ((x, found.x_adv), (found.x_adv, found.x_back)):
        assert np.linalg.norm(end - start, axis=1).max() <= 0.1 + 1e-6
