"""The curve of visible players and its curvature: oracle O8."""

import jax
import numpy as np
import pytest

from robjax.metrics.interactions import exact, visibility
from tests.metrics.interactions import closed_forms
from tests.oracles import interactions as oracle

KEY = jax.random.key(0)


@pytest.mark.parametrize("n", [2, 5, 8])
def test_the_curvature_is_the_mean_interaction_of_all_pairs(n):
    _, value_fn = oracle.random_game(n, n)
    found = exact(value_fn, n)
    curvature = np.diff(found.visibility, n=2)
    np.testing.assert_allclose(found.mean, curvature, atol=1e-10)
    pairs = np.nanmean(found.interactions, axis=(1, 2))
    np.testing.assert_allclose(pairs, curvature, atol=1e-10)
    # efficiency as a Taylor series
    v = found.visibility
    weights = n - 1 - np.arange(n - 1)
    series = v[0] + n * (v[1] - v[0]) + weights @ curvature
    assert series == pytest.approx(found.values[-1], abs=1e-10)


def test_curves_and_interactions_are_unbiased():
    _, value_fn = oracle.random_game(6, 1)
    want = exact(value_fn, 6)
    found = visibility(
        lambda masks: want.values[masks @ 2 ** np.arange(6)], 6, key=KEY,
        permutations=3000,
    )  # fmt: skip
    np.testing.assert_array_less(
        np.abs(found.mean - want.visibility), 4 * found.stderr + 1e-9
    )
    np.testing.assert_allclose(found.stderr[[0, -1]], 0, atol=1e-12)
    single = found.interactions()
    np.testing.assert_array_less(np.abs(single.mean - want.mean), 4 * single.stderr)
    smooth = found.interactions(window=1)
    padded = [want.mean[max(0, m - 1) : m + 2].mean() for m in range(5)]
    np.testing.assert_array_less(np.abs(smooth.mean - padded), 4 * smooth.stderr)
    assert (smooth.stderr < single.stderr).all()


def test_closed_form_of_256_players():
    value_fn, t = closed_forms.product(256)
    found = visibility(value_fn, 256, key=KEY, permutations=40)
    estimate = found.interactions(window=6)
    exact_curvature = closed_forms.product_curvature(t)
    want = [exact_curvature[max(0, m - 6) : m + 7].mean() for m in range(255)]
    np.testing.assert_array_less(np.abs(estimate.mean - want), 4 * estimate.stderr)


def test_games_together_and_forwards():
    rows = []

    def games(masks):
        rows.append(len(masks))
        return np.stack([masks.sum(1), 2.0 * masks[:, 0]])

    found = visibility(games, 7, key=KEY, permutations=5)
    assert found.curves.shape == (2, 5, 8) and sum(rows) == found.forwards == 32
    np.testing.assert_array_equal(found.mean[0], np.arange(8))
    assert (np.diff(found.curves[1]) >= 0).all()
    assert found.interactions(window=2).mean.shape == (2, 6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"n": 1}, "n must be a whole number of at least 2"),
        ({"permutations": 0}, "permutations must be a whole number"),
        ({"key": 0}, "key must be one key"),
    ],
)
def test_bad_arguments_are_named(change, message):
    arguments = {"n": 4, "key": KEY} | change
    with pytest.raises(ValueError, match=message):
        visibility(lambda masks: masks.sum(1), **arguments)
    with pytest.raises(ValueError, match="window must be a whole number"):
        visibility(lambda masks: masks.sum(1), 4, key=KEY).interactions(window=-1)
