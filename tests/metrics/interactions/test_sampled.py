"""Sampled interactions (O10, O14): no bias, calibrated errors, few forwards, files."""

import functools
import os
import shutil
import signal
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

from robjax.metrics.interactions import (
    design_pairs,
    exact,
    image_game,
    sampled,
    usual_orders,
)
from robjax.metrics.interactions.design import Blocks, Layout, draw_ranks
from robjax.runs import preemption
from robjax.samples import fold_keys, sample_keys
from tests.metrics.interactions import closed_forms
from tests.oracles import interactions as oracle

ORDERS = [0, 1, 25, 101, 127, 128, 203, 241, 253, 254]
KEY = jax.random.key(0)
DESIGNS: list = [
    "all",
    "adjacent",
    2,
    np.array([[0, 17], [3, 200], [40, 41], [17, 255]]),
]


def recorded(value_fn):
    """The value function, and a list of the masks that it is called with."""
    calls = []

    def play(masks):
        calls.append(np.array(masks))
        return value_fn(masks)

    return play, calls


@pytest.mark.parametrize("pairs", DESIGNS, ids=str)
def test_a_game_of_size_alone_has_no_sampling_error(pairs):
    found = sampled(
        lambda masks: masks.sum(1) ** 3, 256, key=KEY, orders=ORDERS, pairs=pairs,
        blocks=3,
    )  # fmt: skip
    m = np.array(ORDERS)
    np.testing.assert_allclose(found.mean, (m + 2) ** 3 - 2 * (m + 1) ** 3 + m**3)
    np.testing.assert_allclose(found.stderr, 0, atol=1e-8)


def errors(value_fn, want, orders, pairs):
    """How far the means are from a closed form, and how far they may be."""
    found = sampled(
        value_fn, 256, key=jax.random.key(3), orders=orders, pairs=pairs, blocks=20
    )
    assert (found.stderr > 0).any()
    rounding = 1e-9 * np.abs(want).max()
    return np.abs(found.mean - want), 4 * found.stderr + rounding


@pytest.mark.parametrize("pairs", DESIGNS, ids=str)
def test_quadratic_games_of_256_players(pairs):
    value_fn, b = closed_forms.quadratic(256)
    edges = design_pairs(pairs, 256)
    found = sampled(value_fn, 256, key=KEY, orders=ORDERS, pairs=pairs, blocks=9)
    first, second = np.moveaxis(found.pairs, -1, 0)
    np.testing.assert_allclose(found.means, [b[first, second]] * len(ORDERS), atol=1e-8)
    want = b[edges[:, 0], edges[:, 1]].mean()
    np.testing.assert_array_less(np.abs(found.mean - want), 4 * found.stderr + 1e-9)


@pytest.mark.parametrize("pairs", DESIGNS, ids=str)
def test_product_games_of_256_players(pairs):
    value_fn, t = closed_forms.product(256)
    edges = design_pairs(pairs, 256)
    if len(edges) > 10_000:
        want = closed_forms.product_curvature(t)[ORDERS]
    else:
        want = closed_forms.product_interactions(t, edges, ORDERS)
    np.testing.assert_array_less(*errors(value_fn, want, ORDERS, pairs))


@pytest.mark.parametrize("pairs", DESIGNS[1:], ids=str)
def test_games_of_neighbours_among_256_players(pairs):
    # contexts that leave out the surroundings of a pair would get these wrong
    value_fn, triples, dividends = closed_forms.local_triples(16)
    edges = design_pairs(pairs, 256)
    orders = [25, 101, 128, 203, 241, 254]
    want = closed_forms.triple_interactions(triples, dividends, edges, 256, orders)
    np.testing.assert_array_less(*errors(value_fn, want, orders, pairs))


@pytest.mark.parametrize(
    "pairs", ["all", "adjacent", np.array([[0, 1], [2, 4]])], ids=str
)
@pytest.mark.parametrize("size", [2, 4, 6])
def test_random_games_at_every_order_without_bias(pairs, size):
    _, value_fn = oracle.random_game(6, 0)
    edges = design_pairs(pairs, 6, (2, 3))
    want = exact(value_fn, 6).interactions[:, edges[:, 0], edges[:, 1]].mean(1)
    table = exact(value_fn, 6).values
    found = sampled(
        lambda masks: table[masks @ 2 ** np.arange(6)], 6, key=KEY, pairs=pairs,
        grid=(2, 3), orders=range(5), blocks=3000, block_players=size,
    )  # fmt: skip
    np.testing.assert_array_less(np.abs(found.mean - want), 4 * found.stderr + 1e-12)
    assert found.stderr[1:4].max() < 0.1


@pytest.mark.parametrize("n", [4, 5, 9])
@pytest.mark.parametrize("pairs", ["all", np.array([[0, 3], [1, 2], [3, 1]])], ids=str)
def test_corners_are_the_four_sets_of_the_definition(n, pairs):
    keys = jax.random.split(KEY, 3)
    blocks = Blocks.draw(keys, design_pairs(pairs, n), n, min(n, 4))
    ranks = draw_ranks(keys, n=n, contexts=5)
    for order in range(n - 1):
        layout = Layout.of(blocks, ranks, order)
        assert layout.masks.shape == (3, 5, blocks.forwards, n)
        for block, context, pair in np.ndindex(layout.sign.shape):
            i, j = blocks.pairs[block, pair]
            rest = [k for k in np.argsort(ranks[block, context]) if k not in (i, j)]
            s = frozenset(rest[:order])
            rows = layout.corners[:, block, context, pair]
            base, one, other, both = (
                frozenset(np.flatnonzero(mask))
                for mask in layout.masks[block, context, rows]
            )
            sign = layout.sign[block, context, pair]
            found = {base: sign, both: sign, one: -sign, other: -sign}
            assert found == {s | {i, j}: 1, s | {i}: -1, s | {j}: -1, s: 1}


def test_contexts_are_uniform():
    keys = jax.random.split(KEY, 4)
    ranks = draw_ranks(keys, n=5, contexts=2500)
    blocks = Blocks.draw(keys, design_pairs("all", 5), 5, 5)
    layout = Layout.of(blocks, ranks, 2)
    for pair in range(10):
        rows = np.moveaxis(layout.corners[..., pair], 0, -1)[..., None]
        corners = np.take_along_axis(layout.masks, rows, axis=2)
        s = corners.all(2).reshape(-1, 5)  # what the four corners have in common
        _, counts = np.unique(s, axis=0, return_counts=True)
        assert len(counts) == 3 and (s.sum(1) == 2).all()  # two of three others
        # of 10000 draws a third has a standard error of 47
        assert np.abs(counts - 10_000 / 3).max() < 4 * 47


@pytest.mark.parametrize(("pairs", "most"), [("all", 1.5), ("adjacent", 1.6)])
def test_forwards_for_each_difference(pairs, most):
    play, calls = recorded(lambda masks: masks.sum(1))
    blocks = {"all": 100, "adjacent": 12}[pairs]
    found = sampled(play, 256, key=KEY, pairs=pairs, blocks=blocks)
    assert found.orders.tolist() == usual_orders(256)
    rows = sum(map(len, calls))
    assert rows == found.forwards.sum()
    assert rows / found.differences.sum() <= most
    inner = slice(1, -1)
    ratio = found.forwards[inner] / found.differences[inner]
    assert (ratio <= most).all()


@pytest.mark.parametrize("order", [0, 254])
def test_the_only_context_is_played_once(order):
    play, calls = recorded(lambda masks: masks.sum(1) ** 2)
    found = sampled(play, 256, key=KEY, orders=[order], blocks=40, contexts=50)
    masks = np.concatenate(calls)
    assert len(np.unique(masks, axis=0)) == len(masks) == found.forwards[0]
    assert found.contexts.tolist() == [1]
    pairs = np.unique(found.pairs.reshape(-1, 2), axis=0)
    assert found.forwards[0] == 1 + len(np.unique(pairs)) + len(pairs)


def test_contexts_are_averaged_pair_by_pair():
    value_fn, _ = closed_forms.product(12)
    found = sampled(
        value_fn, 12, key=KEY, orders=[4], blocks=2, contexts=7, block_players=3
    )
    assert found.pairs.shape == (2, 3, 2)
    ranks = draw_ranks(fold_keys(sample_keys(KEY, 2), 4), n=12, contexts=7)
    for block, pair in np.ndindex(2, 3):
        i, j = found.pairs[block, pair]
        changes = []
        for order in np.argsort(ranks[block], axis=1):
            s = [k for k in order if k not in (i, j)][:4]
            masks = np.zeros((4, 12), bool)
            masks[:, s] = True
            masks[:2, i] = True
            masks[::2, j] = True
            v = value_fn(masks)
            changes.append(v[0] - v[1] - v[2] + v[3])
        assert found.means[0, block, pair] == pytest.approx(np.mean(changes))
        size = np.mean(np.abs(changes))
        assert found.magnitudes[0, block, pair] == pytest.approx(size)


def test_a_pair_of_games_shares_its_sets():
    first = closed_forms.product(30, seed=0)[0]
    second = closed_forms.product(30, seed=1)[0]
    arguments = {"key": KEY, "orders": [3, 14], "blocks": 20}
    pair = sampled(lambda m: np.stack([first(m), second(m)]), 30, **arguments)
    apart = sampled(lambda m: first(m) - second(m), 30, **arguments)
    assert pair.mean.shape == (2, 2) and pair.means.shape == (2, 2, 20, 66)
    np.testing.assert_allclose(pair.change.mean, apart.mean, atol=1e-12)
    np.testing.assert_allclose(pair.change.stderr, apart.stderr, atol=1e-12)
    independent = np.hypot(*pair.stderr)
    assert (pair.change.stderr < 0.5 * independent).all()


def test_orders_and_blocks_do_not_depend_on_what_else_is_sampled():
    value_fn, _ = closed_forms.product(30)
    many = sampled(value_fn, 30, key=KEY, orders=[2, 9, 25], blocks=9)
    one = sampled(value_fn, 30, key=KEY, orders=[9], blocks=4)
    np.testing.assert_array_equal(one.means[0], many.means[1, :4])


def test_one_program_for_every_order_and_image():
    traces = []

    def network(weight, x):
        traces.append(None)
        return x.reshape(len(x), -1) @ weight

    for seed in range(2):
        x = jax.random.uniform(jax.random.key(seed), (6, 6))
        weight = jax.random.normal(jax.random.key(seed), (36, 3))
        game = image_game(
            Partial(network, weight), x, 0, grid=(6, 6), devices=jax.devices()[:1]
        )
        sampled(game, 36, key=KEY, pairs="adjacent", blocks=5)
        if seed == 0:
            first = len(traces)
            game(np.ones((1, 36), bool))
    assert len(traces) == first <= 4


class Killed(Exception):
    pass


def test_a_killed_run_goes_on_to_the_same_bits(tmp_path, monkeypatch):
    module = sys.modules["robjax.metrics.interactions.sampled"]
    monkeypatch.setattr(module, "_MASKS_AT_ONCE", 400)
    weight = jax.random.normal(KEY, (64, 3))

    def network(weight, x):
        return jnp.tanh(x.reshape(len(x), -1) @ weight)

    def make(weight=weight):
        x = jax.random.uniform(KEY, (8, 8))
        return image_game(Partial(network, weight), (x, 1 - x), 0, grid=(8, 8))

    arguments = {"key": KEY, "orders": [0, 5, 40], "blocks": 11, "contexts": 2}
    whole = sampled(make(), 64, **arguments)
    game = make()
    left = [0]

    def fragile(value_fn, masks):
        if not left[0]:
            raise Killed
        left[0] -= 1
        return play(value_fn, masks)

    play = module.play
    with monkeypatch.context() as patch:
        patch.setattr(module, "play", fragile)
        resumes = 0
        while True:
            left[0] = 3
            try:
                found = sampled(
                    game, 64, **arguments, run_dir=tmp_path, resume=resumes > 0
                )
                break
            except Killed:
                resumes += 1
                assert resumes < 20
    assert resumes > 2
    jax.tree.map(np.testing.assert_array_equal, found, whole)

    def again(game=game, **change):
        return sampled(game, 64, **(arguments | change), run_dir=tmp_path, resume=True)

    # told to stop while it plays, after the sets that describe the game
    parts = sorted(path.name for path in (tmp_path / "order-0040").iterdir())
    shutil.rmtree(tmp_path / "order-0040")
    plays = []

    def told(value_fn, masks):
        plays.append(len(masks))
        if len(plays) == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return play(value_fn, masks)

    with monkeypatch.context() as patch, pytest.raises(preemption.Preempted) as stopped:
        patch.setattr(module, "play", told)
        again()
    assert stopped.value.code == preemption.EXIT_CODE
    (kept,) = (tmp_path / "order-0040").iterdir()
    assert kept.name == parts[0] and len(parts) > 1
    kept.write_bytes(kept.read_bytes()[:-9])
    with pytest.warns(UserWarning, match=r"order-0040/000000\.npz .* done again"):
        jax.tree.map(np.testing.assert_array_equal, again(), whole)
    more = again(make(), orders=[0, 5, 17, 40])  # further orders may be added
    np.testing.assert_array_equal(more.means[:, [0, 1, 3]], whole.means)
    with pytest.raises(ValueError, match="already holds a run"):
        sampled(game, 64, **arguments, run_dir=tmp_path)
    for change, name in [
        ({"game": make(weight + 1)}, "game"),
        ({"key": jax.random.key(1)}, "key"),
        ({"blocks": 12}, "blocks|key"),
        ({"contexts": 3}, "contexts"),
        ({"block_players": 5}, "pairs"),
        ({"pairs": "adjacent"}, "pairs"),
    ]:
        with pytest.raises(ValueError, match=f"holds a run with another ({name})"):
            again(**change)
    with pytest.raises(ValueError, match="run_dir must be given with resume=True"):
        sampled(game, 64, **arguments, resume=True)
    (tmp_path / "run.json").unlink()
    with pytest.raises(ValueError, match="no run.json that says of which"):
        again()


POWER = 2


def test_a_game_that_changed_under_its_name_is_another(tmp_path, monkeypatch):
    def game(masks):
        return masks.sum(1) ** POWER

    run = functools.partial(sampled, game, 12, key=KEY, blocks=3, run_dir=tmp_path)
    run()
    run(resume=True)
    monkeypatch.setitem(globals(), "POWER", 3)
    with pytest.raises(ValueError, match="holds a run with another game"):
        run(resume=True)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"n": 1}, "n must be a whole number of at least 2"),
        ({"orders": [15]}, "orders must be distinct numbers from 0 to n − 2 = 14"),
        ({"orders": [-1]}, "orders must be a whole number of at least 0"),
        ({"orders": []}, "orders must be distinct numbers"),
        ({"orders": [3, 3]}, "orders must be distinct numbers"),
        ({"blocks": 0}, "blocks must be a whole number"),
        ({"contexts": 0}, "contexts must be a whole number"),
        ({"block_players": 1}, "block_players must be a whole number of at least 2"),
        ({"key": 3}, "key must be one key"),
        ({"pairs": "near"}, "pairs must be 'all', 'adjacent', a radius"),
        ({"pairs": 0}, "pairs must be a whole number of at least 1"),
        ({"pairs": [[0, 16]]}, "pairs must name players from 0 to 15"),
        ({"pairs": [[0, 1], [1, 0]]}, "pairs must be distinct"),
        ({"pairs": [[2, 2]]}, "pairs must be distinct, each of two different players"),
        ({"pairs": [0, 1]}, "pairs must be 'all'"),
        ({"pairs": "adjacent", "grid": (3, 5)}, r"grid must hold 16 players"),
        ({"pairs": "adjacent", "n": 15}, r"grid must hold 15 players"),
    ],
)
def test_bad_arguments_are_named(change, message):
    arguments = {"n": 16, "key": KEY} | change
    with pytest.raises(ValueError, match=message):
        sampled(lambda masks: masks.sum(1), **arguments)


@pytest.mark.parametrize("n", [2, 3, 4])
def test_the_smallest_games(n):
    _, value_fn = oracle.random_game(n, 0)
    found = sampled(value_fn, n, key=KEY, orders=range(n - 1), blocks=400)
    want = exact(value_fn, n).mean
    np.testing.assert_array_less(np.abs(found.mean - want), 4 * found.stderr + 1e-12)


def test_a_change_is_that_of_a_pair():
    def games(masks):
        return np.stack([masks.sum(1) ** 2, masks.sum(1) ** 3, 0 * masks.sum(1)])

    run = functools.partial(sampled, n=12, key=KEY, orders=[1, 2], blocks=3)
    pair = run(lambda masks: games(masks)[[0, 2]])
    np.testing.assert_allclose(pair.change.mean, 2)
    for several in (lambda masks: games(masks)[0], games):
        with pytest.raises(ValueError, match=r"change needs two games \(x, x_adv\)"):
            _ = run(several).change


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"orders": 5}, "orders must be a list of orders, got 5"),
        ({"pairs": 1, "grid": (-4, -4)}, r"grid must be two whole numbers.*\(-4, -4\)"),
        ({"pairs": 1, "grid": 4}, "grid must be two whole numbers.*got 4"),
        ({"pairs": 1, "grid": (4, 2, 2)}, "grid must be two whole numbers"),
    ],
)
def test_what_cannot_be_sampled(options, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        sampled(lambda masks: masks.sum(1), 16, key=KEY, blocks=2, **options)


def test_a_played_image_game_is_still_the_same(tmp_path):
    x = jax.random.uniform(KEY, (4, 4, 1))
    weight = jax.random.normal(KEY, (16, 3))

    def make(weight, **options):
        model = Partial(lambda w, x: x.reshape(len(x), -1) @ w, weight)
        return image_game(model, x, 1, **options)

    game = make(weight)
    run = functools.partial(sampled, n=16, key=KEY, orders=[1], blocks=5)
    first = run(game, run_dir=tmp_path)
    for again in (game, make(weight, batch_size=64, devices=jax.devices()[:1])):
        found = run(again, run_dir=tmp_path, resume=True)
        np.testing.assert_array_equal(found.means, first.means)
    with pytest.raises(ValueError, match="another game's model"):
        run(make(weight + 1), run_dir=tmp_path, resume=True)
