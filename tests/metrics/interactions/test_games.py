"""Games of a model and an image: masks, values, arguments, programs and devices."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

from robjax import models as networks
from robjax.metrics import interactions
from robjax.metrics.interactions import attack_utility, decompose, exact, image_game
from tests.metrics import models

SHAPE = (8, 8, 3)
MODEL = models.smooth(5, SHAPE)
ONE = jax.local_devices()[:1]
VALUES = {
    "log_softmax": lambda z, y: z[y] - np.log(np.exp(z).sum()),
    "log_odds": lambda z, y: z[y] - np.log(np.exp(np.delete(z, y)).sum()),
    "logit": lambda z, y: z[y],
    "other_categories": lambda z, y: np.log(np.exp(np.delete(z, y)).sum()),
}


def images(count=None, shape=SHAPE, seed=0):
    size = shape if count is None else (count, *shape)
    return jax.random.uniform(jax.random.key(seed), size)


def some_masks(count, n, seed=0):
    return np.random.default_rng(seed).random((count, n)) < 0.5


def by_hand(model, x, y, masks, partition, baseline, value):
    """One masked image after the other, pixel by pixel."""
    found = []
    for mask in masks:
        image = np.array(np.broadcast_to(baseline, x.shape))
        for pixel in np.ndindex(partition.shape):
            if mask[partition[pixel]]:
                image[pixel] = x[pixel]
        found.append(value(np.asarray(model(image[None]))[0], y))
    return np.array(found)


@pytest.mark.parametrize("value", VALUES)
@pytest.mark.parametrize("baseline", ["mean", "zero", "channels", "image"])
def test_values_are_those_of_images_masked_by_hand(value, baseline):
    x = images()
    shown = {
        "mean": np.asarray(x).mean((0, 1)),
        "zero": np.zeros(3, np.float32),
        "channels": np.array([0.1, 0.5, 0.9], np.float32),
        "image": np.asarray(images(seed=1)),
    }[baseline]
    partition = np.array([[(r // 4) * 4 + c // 2 for c in range(8)] for r in range(8)])
    game = image_game(
        MODEL,
        x,
        3,
        grid=(2, 4),
        baseline=baseline if baseline in ("mean", "zero") else shown,
        value=getattr(interactions, value),
        devices=ONE,
    )
    masks = some_masks(12, 8)
    want = by_hand(MODEL, np.asarray(x), 3, masks, partition, shown, VALUES[value])
    np.testing.assert_allclose(game(masks), want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("shape", [(8, 8), (8, 8, 3), (6,)])
def test_any_partition_of_the_pixels(shape):
    pixels = shape[:2]
    partition = np.random.default_rng(0).integers(0, 5, pixels)
    partition.flat[:5] = np.arange(5)
    model = models.smooth(4, shape)
    x = images(shape=shape)
    game = image_game(model, x, 2, grid=partition, baseline="zero", devices=ONE)
    masks = some_masks(9, 5)
    want = by_hand(
        model, np.asarray(x), 2, masks, partition, 0.0, VALUES["log_softmax"]
    )
    np.testing.assert_allclose(game(masks), want, rtol=1e-5, atol=1e-5)


def test_a_pair_and_a_batch_share_masks_and_a_pair_shares_baselines():
    x, x_adv, y = images(3), images(3, seed=1), jnp.array([0, 4, 2])
    games = image_game(MODEL, (x, x_adv), y, grid=(2, 2), devices=ONE)
    masks = some_masks(7, 4)
    found = games(masks)
    assert (
        found.shape == (2, 3, 7) and repr(games) == "ImageGame(4 players, games [2, 3])"
    )
    for i in range(3):
        alone = functools.partial(image_game, MODEL, y=y[i], grid=(2, 2), devices=ONE)
        np.testing.assert_allclose(alone(x[i])(masks), found[0, i], atol=1e-6)
        pair = alone((x[i], x_adv[i]))(masks)
        np.testing.assert_allclose(pair, found[:, i], atol=1e-6)
        channels = x[i].mean((0, 1))
        moved = alone(x_adv[i], baseline=channels)(masks)
        np.testing.assert_allclose(moved, found[1, i], atol=1e-6)
    nothing = games(np.zeros((1, 4), bool))
    np.testing.assert_allclose(nothing[0], nothing[1], atol=1e-6)


def test_every_number_of_masks_and_devices_gives_the_same_values():
    x = images()
    model = models.flax(networks.CNN(5, blocks=((4,), (4,)), hidden=8), x[None])
    make = functools.partial(image_game, model, x, 1, batch_size=4)
    few, many = make(devices=ONE), make(devices=jax.local_devices()[:3])
    masks = some_masks(700, 16)
    want = np.asarray(few(masks))
    np.testing.assert_allclose(many(masks), want, atol=1e-5)
    for count in (1, 3, 13, 257):
        np.testing.assert_array_equal(few(masks[:count]), want[:count])
        np.testing.assert_allclose(many(masks[:count]), want[:count], atol=1e-5)
    np.testing.assert_allclose(jax.jit(few)(masks[:13]), want[:13], atol=1e-5)
    np.testing.assert_allclose(jax.jit(many)(masks[:13]), want[:13], atol=1e-5)


def test_new_weights_images_labels_and_sets_compile_nothing():
    traces = []

    def network(weight, x):
        traces.append(None)
        return x.reshape(len(x), -1) @ weight

    rng = np.random.default_rng(0)
    partition = np.arange(64).reshape(8, 8) // 16
    for seed in range(3):
        weight = jnp.asarray(rng.normal(size=(192, 4)), "float32")
        game = image_game(
            Partial(network, weight),
            images(seed=seed),
            seed,
            grid=rng.permutation(4)[partition],
            baseline=rng.random(3),
            devices=ONE,
        )
        game(some_masks(5 + seed, 4))
        if seed == 0:
            first = len(traces)
    assert len(traces) == first


@pytest.fixture(scope="module")
def network():
    """A random convolutional network, sharp enough that attacks would pay."""
    model = networks.CNN(10, blocks=((8,), (16,)), kernel=3, hidden=32)
    return models.flax(model, images(1, (8, 8, 1)), scale=3.0)


def test_decompositions_of_a_network_add_up_in_float32(network):
    x = images(shape=(8, 8, 1))
    x_adv = jnp.clip(x + 0.1 * jnp.sign(images(shape=(8, 8, 1), seed=5) - 0.5), 0, 1)
    game = image_game(network, (x, x_adv), 3)
    found = exact(game, 16)
    log_p = jax.nn.log_softmax(network(jnp.stack([x, x_adv])))[:, 3]
    whole = decompose(found)
    np.testing.assert_allclose(whole.total, log_p, rtol=1e-5, atol=1e-5)
    utility = float(log_p[0] - log_p[1])
    parts = attack_utility(found)
    assert abs(utility) > 0.1
    assert float(parts.value) == pytest.approx(utility, abs=1e-4 * abs(utility))
    assert float(parts.total) == pytest.approx(utility, abs=1e-4 * abs(utility))
    assert float(parts.empty) == pytest.approx(0, abs=1e-6)
    change = found.interactions[0] - found.interactions[1]
    m = np.arange(15)[:, None, None]
    by_order = np.nansum((15 - m) / (16 * 15) * change, axis=(1, 2))
    np.testing.assert_allclose(parts.orders, by_order, atol=1e-10)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"grid": (3, 4)}, r"grid must divide the images, got 3×4 cells for .*8, 8, 3"),
        ({"grid": 4}, r"grid must be two whole numbers .* got 4"),
        ({"grid": (0, 4)}, "grid must be two whole numbers"),
        ({"grid": np.zeros((4, 8), int)}, r"grid as an array .* got int64 \[4, 8\]"),
        ({"grid": np.zeros((8, 8))}, "grid as an array must hold integers"),
        ({"grid": np.eye(8, dtype=int) + 1}, "numbers 0 … n − 1 and leave none out"),
        ({"y": 5}, "y must hold labels 0 to 4, got values from 5 to 5"),
        ({"y": -1}, "y must hold labels 0 or more"),
        ({"y": 1.5}, "y must be integer class labels"),
        ({"y": [[1]]}, "y must be a label or labels"),
        ({"y": [1, 2]}, r"y must have shape \(8,\)"),  # a batch of 8 images
        ({"baseline": "median"}, "baseline must be 'mean', 'zero' or an array"),
        ({"baseline": np.zeros(4)}, r"baseline must broadcast to images \[8, 8, 3\]"),
        ({"baseline": np.array([0, np.nan, 0])}, "baseline must be finite"),
        ({"x": np.full(SHAPE, np.nan)}, "x must be finite"),
        ({"x": np.zeros(SHAPE, int)}, "x must be floating point"),
        ({"x": (images(), images(shape=(8, 8, 1)))}, r"x must be one array or a pair"),
        ({"x": (images(), jnp.full(SHAPE, jnp.inf))}, "x_adv must be finite"),
        ({"batch_size": 0}, "batch_size must be a whole number"),
        ({"devices": []}, "devices must name at least one device"),
        ({"logits_fn": 3}, "logits_fn must be a callable"),
    ],
)
def test_bad_arguments_are_named_before_anything_compiles(change, message):
    arguments = {"logits_fn": MODEL, "x": images(), "y": 1} | change
    rest = {k: v for k, v in arguments.items() if k not in ("logits_fn", "x", "y")}
    with pytest.raises(ValueError, match=message):
        image_game(arguments["logits_fn"], arguments["x"], arguments["y"], **rest)


@pytest.mark.parametrize(
    "masks", [np.ones((3, 4)), np.ones((3, 5), bool), np.ones(4, bool)]
)
def test_masks_of_another_kind_are_an_error(masks):
    game = image_game(MODEL, images(), 1, grid=(2, 2), devices=ONE)
    with pytest.raises(ValueError, match=r"masks must be bool \[M, 4\]"):
        game(masks)
    with pytest.raises(ValueError, match="masks must hold at least one set"):
        game(np.ones((0, 4), bool))


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (lambda logits, y: logits, r"must return real numbers \[M\].*\[2, 5\]"),
        (lambda logits, y: logits[:, 0] * 1j, "must return real numbers.*complex"),
        (lambda logits, y: (logits[:, 0], y), "must return an array.*tuple"),
        (lambda logits, y: None, "must return an array.*NoneType"),
        (lambda logits: logits[:, 0], r"must be called as value\(logits \[M, K\], y\)"),
        ("logit", "must be a function.*as log_softmax, got 'logit'"),
    ],
)
def test_a_value_that_is_none_is_named_before_anything_is_played(value, message):
    with pytest.raises(ValueError, match=f"^value {message}"):
        image_game(MODEL, images(), 1, value=value, devices=ONE)


def test_whether_the_model_is_right_is_a_value():
    def right(logits, y):
        return logits.argmax(1) == y

    x, masks = images(), some_masks(20, 16)
    margin = image_game(MODEL, x, 1, value=interactions.log_odds, devices=ONE)
    game = image_game(MODEL, x, 1, value=right, devices=ONE)
    wanted = [
        image_game(MODEL, x, k, value=interactions.logit, devices=ONE)(masks)
        for k in range(5)
    ]
    np.testing.assert_array_equal(game(masks), np.argmax(wanted, axis=0) == 1)
    assert game(masks).dtype == margin(masks).dtype


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        (
            [images(), images()],
            1,
            r"x must be an array, or a pair as a tuple \(x, x_adv\)",
        ),
        ((), 1, "x must be one array or a pair, got 0"),
        (images(1), 1, r"x must be one image \[\*S\] for one label.*give x\[0\]"),
    ],
)
def test_images_that_are_not_one_or_a_pair(x, y, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        image_game(MODEL, x, y, devices=ONE)


def test_the_players_are_those_of_the_game():
    game = image_game(MODEL, images(), 1, grid=(2, 2), devices=ONE)
    with pytest.raises(
        ValueError, match="n must be 4, the players of this game, got 5"
    ):
        exact(game, 5)


def test_float64_images_are_played_in_float64():
    with jax.enable_x64(True):
        model = models.smooth(5, SHAPE, dtype=jnp.float64)
        x = jax.random.uniform(jax.random.key(0), SHAPE, jnp.float64)
        game = image_game(model, x, 1, grid=(2, 2), devices=ONE)
        assert game(np.ones((1, 4), bool)).dtype == jnp.float64
