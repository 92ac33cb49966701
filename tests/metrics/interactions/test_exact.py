"""Oracles O1 to O9 and O11: brute force, axioms and closed forms, in float64."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from robjax.metrics.interactions import decompose, exact
from tests.oracles import interactions as oracle

close = {"atol": 1e-10, "rtol": 0}


@pytest.mark.parametrize("n", range(2, 9))
def test_all_fields_equal_their_definitions(n):
    worth, value_fn = oracle.random_game(n, seed=n)
    found = exact(value_fn, n)
    np.testing.assert_allclose(
        found.interactions, oracle.interactions(worth, n), **close
    )
    np.testing.assert_allclose(found.shapley, oracle.shapley(worth, n), **close)
    np.testing.assert_allclose(
        found.order_shapley, oracle.order_shapley(worth, n), **close
    )
    for t, dividend in oracle.dividends(worth, n).items():
        assert found.mobius[oracle.number(t)] == pytest.approx(dividend, abs=1e-10)
        assert found.values[oracle.number(t)] == worth[t]


@pytest.mark.parametrize("n", [12, 16])
def test_many_players_equal_single_means_over_contexts(n):
    rng = np.random.default_rng(n)
    table = 1e3 + rng.normal(size=2**n)
    found = exact(lambda masks: table[masks @ 2 ** np.arange(n)], n)
    sets = np.arange(2**n)
    for i, j in ((0, 1), (2, n - 1)):
        s = sets[((sets >> i) & 1 == 0) & ((sets >> j) & 1 == 0)]
        a, b = 2**i, 2**j
        change = (table[s + a + b] - table[s + a]) - (table[s + b] - table[s])
        size = np.array([bin(int(x)).count("1") for x in s])
        for m in range(n - 1):
            want = math.fsum(change[size == m]) / math.comb(n - 2, m)
            assert found.interactions[m, i, j] == pytest.approx(want, abs=1e-10)


def test_linearity():
    _, first = oracle.random_game(5, 0)
    _, second = oracle.random_game(5, 1)
    both = exact(lambda masks: 2 * first(masks) - 3 * second(masks), 5)
    parts = jax.tree.map(lambda a, b: 2 * a - 3 * b, exact(first, 5), exact(second, 5))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **close), both, parts)


def test_a_dummy_has_no_interaction_and_a_constant_attribution():
    worth, _ = oracle.random_game(5, 2)
    dummy = {s: worth[s - {4}] + 0.7 * (4 in s) for s in oracle.subsets(range(5))}
    found = exact(oracle.on_masks(dummy), 5)
    np.testing.assert_allclose(found.interactions[:, 4, :4], 0, **close)
    np.testing.assert_allclose(found.order_shapley[:, 4], 0.7, **close)


def test_interactions_are_symmetric_and_ignore_a_constant():
    _, value_fn = oracle.random_game(6, 3)
    found = exact(value_fn, 6)
    np.testing.assert_array_equal(
        found.interactions, np.swapaxes(found.interactions, 1, 2)
    )
    assert np.isnan(np.diagonal(found.interactions, axis1=1, axis2=2)).all()
    shifted = exact(lambda masks: value_fn(masks) + 1e4, 6)
    np.testing.assert_allclose(shifted.interactions, found.interactions, atol=1e-10)
    np.testing.assert_allclose(shifted.order_shapley, found.order_shapley, atol=1e-10)


def test_equal_players_interact_equally():
    rng = np.random.default_rng(4)
    table = rng.normal(size=(3, 2**4))  # players 0 and 1 count by their number alone

    def value_fn(masks):
        return table[masks[:, :2].sum(1), masks[:, 2:] @ 2 ** np.arange(4)]

    found = exact(value_fn, 6).interactions
    np.testing.assert_allclose(found[:, 0, 2:], found[:, 1, 2:], **close)


def test_the_mean_over_orders_is_the_index_of_grabisch_and_roubens():
    worth, value_fn = oracle.random_game(6, 5)
    want = oracle.grabisch_roubens(worth, 6)
    np.testing.assert_allclose(exact(value_fn, 6).interactions.mean(0), want, **close)


def test_attributions_accumulate_interactions():
    _, value_fn = oracle.random_game(7, 6)
    found = exact(value_fn, 7)
    mean = np.nanmean(found.interactions, axis=2)
    phi = found.order_shapley
    np.testing.assert_allclose(np.diff(phi, axis=0), mean, **close)
    everyone = found.values[-1]
    without = found.values[2**7 - 1 - 2 ** np.arange(7)]
    np.testing.assert_allclose(phi[-1], everyone - without, **close)
    np.testing.assert_allclose(phi[-1], phi[0] + mean.sum(0), **close)


@given(n=st.integers(2, 9), seed=st.integers(0, 10**6))
def test_efficiency_and_dropout(n, seed):
    rng = np.random.default_rng(seed)
    table = rng.normal(size=2**n)
    found = exact(lambda masks: table[masks @ 2 ** np.arange(n)], n)
    whole = decompose(found)
    assert whole.value == table[-1]
    assert whole.total == pytest.approx(table[-1], abs=1e-10)
    # the paper's sum over ordered pairs, written out
    m = np.arange(n - 1)[:, None, None]
    weighted = np.nansum((n - 1 - m) / (n * (n - 1)) * found.interactions)
    assert whole.orders.sum() == pytest.approx(weighted, abs=1e-10)
    for k in range(n + 1):
        kept = [table[oracle.number(s)] for s in itertools.combinations(range(n), k)]
        part = decompose(found, visible=k)
        assert part.value == pytest.approx(np.mean(kept), abs=1e-10)
        assert part.total == pytest.approx(np.mean(kept), abs=1e-10)
        np.testing.assert_array_equal(part.orders[max(k - 1, 0) :], 0)


def test_dropout_weighs_single_players_by_the_players_kept():
    # α = 0.4 of n = 4 keeps k = 2; the formula with 1 − α gives 2.4
    part = decompose(exact(lambda masks: masks.sum(1), 4), visible=2)
    assert (float(part.value), float(part.single)) == (2.0, 2.0)


def test_interactions_follow_from_the_dividends():
    _, value_fn = oracle.random_game(7, 8)
    found = exact(value_fn, 7)
    want = np.zeros(6)
    for t in oracle.subsets(range(7)):
        if {1, 4} <= t:
            for m in range(6):
                above = m - len(t) + 2
                ways = math.comb(7 - len(t), above) if above >= 0 else 0
                weight = ways / math.comb(5, m)
                want[m] += weight * found.mobius[oracle.number(t)]
    np.testing.assert_allclose(found.interactions[:, 1, 4], want, **close)


def test_unanimity_game():
    found = exact(lambda masks: masks[:, :3].all(1), 7)
    np.testing.assert_allclose(
        found.interactions[:, 0, 1], [0, 0.2, 0.4, 0.6, 0.8, 1], **close
    )
    np.testing.assert_allclose(found.shapley, [1 / 3] * 3 + [0] * 4, **close)
    assert found.mobius.tolist() == [0.0] * 7 + [1.0] + [0.0] * 120


def test_games_played_together_equal_games_played_alone():
    pays = [oracle.random_game(4, seed)[1] for seed in range(3)]
    together = exact(lambda masks: np.stack([pay(masks) for pay in pays]), 4)
    assert repr(together).startswith("ExactInteractions(4 players, games [3], ")
    for number, pay in enumerate(pays):
        jax.tree.map(
            np.testing.assert_array_equal,
            jax.tree.map(lambda field, number=number: field[number], together),
            exact(pay, 4),
        )


def test_functions_of_jax_count_in_their_own_precision():
    table = np.random.default_rng(9).normal(size=2**6)

    def value_fn(masks):
        return jnp.asarray(table)[jnp.asarray(masks) @ 2 ** jnp.arange(6)]

    want = exact(lambda masks: table[masks @ 2 ** np.arange(6)], 6)
    with jax.enable_x64(True):
        np.testing.assert_array_equal(exact(value_fn, 6).values, want.values)
    narrow = exact(jax.jit(value_fn), 6)
    np.testing.assert_allclose(narrow.interactions, want.interactions, atol=1e-6)


def test_a_value_that_is_not_a_number_stays_visible():
    found = exact(lambda masks: np.where(masks.sum(1) == 3, np.nan, 1.0), 6)
    bad = np.isnan(found.interactions[:, 0, 1])
    assert bad.tolist() == [False, True, True, True, False]
    assert np.isnan(exact(lambda masks: np.full(len(masks), np.nan), 3).shapley).all()
    assert "some values are not finite" in repr(found)
    infinite = exact(lambda masks: np.where(masks.all(1), -np.inf, masks.sum(1)), 4)
    np.testing.assert_array_equal(infinite.interactions[:2, 0, 1], 0)
    assert np.isnan(infinite.interactions[2, 0, 1])
    assert "no interactions" in repr(exact(lambda masks: masks.sum(1), 4))


@pytest.mark.parametrize(
    ("value_fn", "n", "message"),
    [
        (lambda m: m[:, 0], 1, "n must be a whole number of at least 2, got 1"),
        (lambda m: m[:, 0], 21, "n must be at most 20, got 21"),
        (lambda m: m[:, 0], 2.0, "n must be a whole number"),
        (lambda m: m, 4, r"value_fn must return real numbers \[16\]"),
        (lambda m: 1.0, 4, r"value_fn must return real numbers \[16\]"),
        (lambda m: m[:0], 4, r"value_fn must return real numbers \[16\]"),
        (3, 4, "value_fn must be a function from masks .*, got 3"),
        (lambda m: m[:, 0] * 1j, 4, "value_fn must return real numbers"),
    ],
)
def test_bad_arguments_are_named(value_fn, n, message):
    with pytest.raises(ValueError, match=message):
        exact(value_fn, n)


@pytest.mark.parametrize("visible", [-1, 4, 1.5])
def test_visible_players_out_of_range(visible):
    with pytest.raises(ValueError, match="visible must be"):
        decompose(exact(lambda masks: masks[:, 0], 3), visible=visible)
