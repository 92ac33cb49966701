"""Patches: where they lie, and what they are on a model whose best patch is known."""

import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

from robjax import attacks, evaluation
from robjax.attacks.patch import _place as place

RNG = np.random.default_rng(0)
KEY = jax.random.key(0)
NOISE = RNG.uniform(-0.25, 0.25, size=(12, 8, 9, 2))
NOISE -= NOISE.mean(axis=(1, 2), keepdims=True)
# how much darker the first channel is; where a patch lies, 12 of 72 pixels change it by
# up to 1 + LESS, so that 0.2 is about what a patch can make up for
LESS = np.array([-0.1, -0.02, 0.02, 0.1, *np.linspace(0.18, 0.22, 8)])[:, None]
HALF = (LESS * np.array([-0.5, 0.5]))[:, None, None]
X = jnp.asarray(0.5 + NOISE + HALF, jnp.float32)
V = jnp.array(
    [[0.0, 1.0], [0.0, -1.0]]
)  # class 1 sees the first channel less the other


def means(v, x):
    """Logits from the mean of each channel."""
    return 40 * (x.mean(axis=(1, 2)) - 0.5) @ v


Y = jnp.argmax(means(V, X), axis=1)


def transform(low, high, degrees):
    return jnp.array([low, high, math.radians(degrees)], jnp.float32)


def test_an_unturned_patch_is_copied_to_every_place():
    keys = jax.random.split(KEY, 600)
    patch = RNG.uniform(size=(3, 4, 2)).astype(np.float32)
    where = place(keys, (8, 9), (3, 4), transform(1, 1, 0))
    corners = np.asarray(where.centre) - [1.0, 1.5]
    np.testing.assert_array_equal(corners, corners.round())
    assert corners.min() == 0 and corners.max(axis=0).tolist() == [5, 5]
    # each of 36 corners as often as any other
    counts = np.bincount((corners @ [6, 1]).astype(int), minlength=36)
    assert np.abs(counts - 600 / 36).max() < 4.5 * math.sqrt(600 / 36)
    pasted = attacks.paste(X, patch, jax.tree.map(lambda a: a[:12], where))
    for image, found, (row, column) in zip(
        X, pasted, corners.astype(int), strict=False
    ):
        wanted = np.array(image)
        wanted[row : row + 3, column : column + 4] = patch
        np.testing.assert_array_equal(found, wanted)


@pytest.mark.parametrize("quarter", [1, 2, 3])
def test_a_quarter_turn_is_that_of_numpy(quarter):
    patch = RNG.uniform(size=(3, 3, 2)).astype(np.float32)
    where = attacks.Placement(
        jnp.array([[4.0, 5.0]]), jnp.ones(1), jnp.array([quarter * math.pi / 2])
    )
    found = attacks.paste(X[:1], patch, where)[0, 3:6, 4:7]
    np.testing.assert_allclose(found, np.rot90(patch, quarter), atol=1e-5)


def test_turned_and_scaled_patches_stay_inside_the_image():
    keys = jax.random.split(KEY, 400)
    low, high, degrees = 0.7, 1.5, 40
    where = place(keys, (28, 30), (6, 9), transform(low, high, degrees))
    scale, angle = np.asarray(where.scale), np.asarray(where.angle)
    assert low <= scale.min() < 0.75 and 1.45 < scale.max() <= high
    most = math.radians(degrees)
    assert -most <= angle.min() < -0.9 * most and 0.9 * most < angle.max() <= most
    for down, right in itertools.product((-3, 3), (-4.5, 4.5)):
        rows = where.centre[:, 0] + scale * (
            np.cos(angle) * down - np.sin(angle) * right
        )
        columns = where.centre[:, 1] + scale * (
            np.sin(angle) * down + np.cos(angle) * right
        )
        for places, side in ((rows, 28), (columns, 30)):
            assert places.min() > -0.5 - 1e-4 and places.max() < side - 0.5 + 1e-4
    # as large as it should be: the pixels inside are about s² h w
    black = jnp.zeros((400, 28, 30, 1))
    covered = attacks.paste(black, jnp.ones((6, 9, 1)), where).sum(axis=(1, 2, 3))
    np.testing.assert_allclose(covered, 54 * scale**2, rtol=0.25)


@functools.cache
def made():
    return attacks.patch(
        Partial(means, V), X, jnp.zeros_like(Y),
        key=KEY, size=(3, 4), steps=60, target=1, batch_size=5, places=40,
    )  # fmt: skip


def exact_share(patch, y, wrong):
    """Of images and all 36 corners, the share that is `wrong` of the logits."""
    shares = []
    for image in np.asarray(X, np.float64):
        hits = 0
        for row, column in itertools.product(range(6), range(6)):
            moved = image.copy()
            moved[row : row + 3, column : column + 4] = patch
            z = 40 * (moved.mean(axis=(0, 1)) - 0.5) @ np.asarray(V)
            hits += wrong(z, y[len(shares)])
        shares.append(hits / 36)
    return np.array(shares)


def test_the_best_patch_of_a_model_of_means_is_found():
    """To reach class 1 the first channel has to be bright and the second one dark."""
    found = made()
    np.testing.assert_array_equal(found.patch[..., 0], 1)
    np.testing.assert_array_equal(found.patch[..., 1], 0)
    assert found.counted.all()
    assert "40 new places on 12 images" in repr(found)


def test_new_places_fool_as_often_as_all_places_do():
    found = made()
    shares = exact_share(np.asarray(found.patch), Y, lambda z, y: z.argmax() == 1)
    assert np.sum((shares > 0) & (shares < 1)) >= 3
    error = math.sqrt((shares * (1 - shares)).mean() / (12 * 40))
    assert abs(found.rate.mean - shares.mean()) < 4 * error + 1e-9
    spread = np.asarray(found.fooled).mean(1).std(ddof=1) / math.sqrt(12)
    assert found.rate.stderr == pytest.approx(spread)


def test_an_evaluation_puts_it_at_other_places():
    found = made()
    # classes as the model sees them, so that the patch turns all of class 0
    attack = functools.partial(attacks.patched, patch=found.patch)
    table = evaluation.evaluate(
        Partial(means, V), (X, Y), {"patch": attack}, key=jax.random.key(1)
    )
    shares = exact_share(np.asarray(found.patch), Y, lambda z, y: z.argmax() == y)
    error = math.sqrt((shares * (1 - shares)).sum()) / 12
    assert abs(table.robust_accuracy("patch").mean - shares.mean()) <= 4 * error + 1e-9
    assert not any("outside" in text for text in table.warnings)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"size": (9, 9)}, "must fit into images of (8, 9) pixels"),
        ({"size": (3, 3, 1)}, "size must be (h, w)"),
        ({"scale": (0, 1)}, "scale must be 0 < smallest <= largest"),
        ({"scale": 1.0}, "scale must have shape [2]"),
        ({"rotation": -3.0}, "rotation must be finite and at least 0"),
        ({"target": 2}, "target must be a class from 0 to 1"),
    ],
)
def test_bad_input_is_named(change, message):
    given = {"key": KEY, "size": (3, 4)} | change
    with pytest.raises(ValueError) as caught:
        attacks.patch(Partial(means, V), X, Y, **given)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("patch", "message"),
    [
        (jnp.zeros((2, 2, 3)), "patch must be [h, w, 2]"),
        (jnp.full((2, 2, 2), 2.0), "patch must lie inside bounds"),
        (jnp.zeros((9, 2, 2)), "must fit into images"),
    ],
)
def test_patches_that_are_none_are_refused(patch, message):
    with pytest.raises(ValueError) as caught:
        attacks.patched(Partial(means, V), X, Y, key=KEY, patch=patch)
    assert message in str(caught.value)
