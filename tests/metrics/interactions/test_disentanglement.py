"""D^(m) in both forms: brute force, its floor, 0/0. Oracle O12."""

import jax
import numpy as np
import pytest

from robjax.metrics.interactions import (
    disentanglement,
    exact,
    pair_magnitudes,
    sampled,
)
from tests.metrics.interactions import closed_forms
from tests.oracles import interactions as oracle

KEY = jax.random.key(0)


@pytest.mark.parametrize("n", [2, 5, 7])
def test_exact_values_by_brute_force(n):
    worth, value_fn = oracle.random_game(n, n)
    upper = np.triu_indices(n, 1)
    means = oracle.interactions(worth, n)[:, *upper]
    magnitudes = oracle.magnitudes(worth, n)[:, *upper]
    game = exact(value_fn, n)
    np.testing.assert_allclose(pair_magnitudes(game), magnitudes, atol=1e-10)
    found = disentanglement(game)
    ratios = (np.abs(means) / magnitudes).mean(1)
    np.testing.assert_allclose(found.mean_of_ratios.mean, ratios, atol=1e-10)
    whole = np.abs(means).mean(1) / magnitudes.mean(1)
    np.testing.assert_allclose(found.ratio_of_means.mean, whole, atol=1e-10)
    for form in (found.mean_of_ratios, found.ratio_of_means):
        np.testing.assert_allclose(form.mean[[0, -1]], 1)  # one context
    scaled = disentanglement(exact(lambda masks: -3 * value_fn(masks), n))
    np.testing.assert_allclose(scaled.mean_of_ratios.mean, ratios, atol=1e-10)


@pytest.mark.parametrize("contexts", [25, 100])
def test_noise_shows_the_floor(contexts):
    def noise(masks):  # a worth for every set, without regard to any other
        code = np.packbits(masks, axis=1).astype(np.uint64)
        mixed = code @ np.random.default_rng(0).integers(
            1, 2**63, code.shape[1], np.uint64
        )
        mixed = (mixed ^ (mixed >> np.uint64(29))) * np.uint64(0xBF58476D1CE4E5B9)
        mixed = (mixed ^ (mixed >> np.uint64(32))) * np.uint64(0x94D049BB133111EB)
        return (mixed >> np.uint64(11)).astype(float) / 2**53

    found = disentanglement(
        sampled(noise, 64, key=KEY, orders=[0, 20, 40], blocks=40, contexts=contexts)
    )
    np.testing.assert_allclose(found.floor, [1, *[contexts**-0.5] * 2])
    for form in (found.mean_of_ratios, found.ratio_of_means):
        assert form.mean[0] == 1
        np.testing.assert_allclose(form.mean[1:], contexts**-0.5, rtol=0.05)


@pytest.mark.parametrize("pairs", ["all", "adjacent"])
def test_many_contexts_reach_the_exact_value(pairs):
    value_fn, _ = closed_forms.product(9)
    rng = np.random.default_rng(0)
    table = rng.normal(size=2**9) + 3 * value_fn(
        (np.arange(2**9)[:, None] >> np.arange(9)) & 1
    )
    table += 2 * rng.normal() * exact(lambda m: m[:, :3].all(1), 9).values

    def game(masks):
        return table[masks @ 2 ** np.arange(9)]

    whole = exact(game, 9)
    edges = np.stack(np.triu_indices(9, 1), axis=1)
    row, column = np.divmod(edges, 3)
    near = (np.abs(np.diff(row)) <= 1) & (np.abs(np.diff(column)) <= 1)
    chosen = near[:, 0] if pairs == "adjacent" else np.ones(36, bool)
    means = whole.interactions[:, *edges.T][:, chosen]
    magnitudes = pair_magnitudes(whole)[:, chosen]
    found = disentanglement(
        sampled(
            game, 9, key=KEY, pairs=pairs, orders=range(8), blocks=6, contexts=4000,
            block_players=9,
        )
    )  # fmt: skip
    want = (np.abs(means) / magnitudes).mean(1)
    np.testing.assert_allclose(found.mean_of_ratios.mean, want, atol=0.015)
    want = np.abs(means).mean(1) / magnitudes.mean(1)
    np.testing.assert_allclose(found.ratio_of_means.mean, want, atol=0.015)


def test_constant_differences_agree_wholly():
    found = disentanglement(
        sampled(
            lambda masks: masks.sum(1) ** 2, 40, key=KEY, orders=[7], blocks=4,
            contexts=9,
        )
    )  # fmt: skip
    assert found.mean_of_ratios.mean.tolist() == [1.0]
    assert found.mean_of_ratios.stderr.tolist() == [0.0]


def test_pairs_without_interaction_are_left_out_and_counted():
    def value_fn(masks):
        return masks[:, 0] & masks[:, 1]

    found = disentanglement(exact(value_fn, 5))
    np.testing.assert_array_equal(found.mean_of_ratios.mean, 1)
    np.testing.assert_array_equal(found.ratio_of_means.mean, 1)
    np.testing.assert_allclose(found.undefined, 0.9)
    drawn = disentanglement(
        sampled(value_fn, 5, key=KEY, orders=[1], blocks=8, contexts=3, block_players=3)
    )
    assert drawn.mean_of_ratios.mean.tolist() == [1.0]
    assert 0 < drawn.undefined[0] < 1
    nothing = disentanglement(exact(lambda masks: masks.sum(1), 5))
    assert np.isnan(nothing.mean_of_ratios.mean).all()
    assert np.isnan(nothing.ratio_of_means.mean).all()
    np.testing.assert_array_equal(nothing.undefined, 1)


def test_games_together():
    _, first = oracle.random_game(5, 0)
    _, second = oracle.random_game(5, 1)

    def games(masks):
        return np.stack([first(masks), second(masks)])

    found = disentanglement(exact(games, 5))
    for number, value_fn in enumerate((first, second)):
        alone = disentanglement(exact(value_fn, 5))
        np.testing.assert_allclose(
            found.mean_of_ratios.mean[number], alone.mean_of_ratios.mean
        )
    drawn = disentanglement(
        sampled(games, 5, key=KEY, orders=[1, 2], blocks=5, contexts=4)
    )
    assert drawn.ratio_of_means.mean.shape == drawn.undefined.shape == (2, 2)


def test_rounding_is_no_interaction():
    """One pair interacts, with a positive sign everywhere; the rest only add up."""
    weights = np.array([0.1, 0.2, 0.3, 0.4, 0.5, 0.6])

    def game(masks):
        return masks @ weights + (masks[:, 0] & masks[:, 1])

    found = disentanglement(exact(game, 6))
    np.testing.assert_allclose(found.mean_of_ratios.mean, 1, rtol=1e-12)
    np.testing.assert_allclose(found.ratio_of_means.mean, 1, rtol=1e-12)
    np.testing.assert_allclose(found.undefined, 14 / 15)
    some = sampled(
        game, 6, key=jax.random.key(0), orders=[1, 2], blocks=4, contexts=3,
        block_players=6,
    )  # fmt: skip
    np.testing.assert_allclose(disentanglement(some).undefined, 14 / 15)


@pytest.mark.parametrize("seed", range(5))
def test_it_lies_between_0_and_1(seed):
    rng = np.random.default_rng(seed)
    weights, values = rng.normal(size=9), rng.normal(size=(2, 2**4))

    def game(masks):  # four of nine players interact
        number = masks[:, :4] @ 2 ** np.arange(4)
        return masks @ weights + values[:, number]

    found = disentanglement(exact(game, 9))
    for form in (found.mean_of_ratios.mean, found.ratio_of_means.mean):
        assert (form >= 0).all() and (form <= 1 + 1e-12).all()
        np.testing.assert_allclose(form[:, [0, -1]], 1, rtol=1e-9)  # one context
    np.testing.assert_allclose(found.undefined, 1 - 6 / 36)


def test_what_is_no_game_is_named():
    with pytest.raises(ValueError, match="game must come from exact or sampled, got"):
        disentanglement(np.zeros(3))
