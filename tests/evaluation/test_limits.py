"""Evaluations in which every sample has a mask of its own."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

from robjax import attacks
from robjax.balls import Linf
from robjax.data import from_arrays
from robjax.evaluation import evaluate, robust_accuracy_curve
from tests.evaluation.models import centred

COUNT, EPS = 21, 0.25
KEY = jax.random.key(0)
RNG = np.random.default_rng(0)
INTEGERS = RNG.integers(0, 256, size=(COUNT, 3, 3, 1)).astype(np.uint8)
X: Any = INTEGERS.astype(np.float32) / np.float32(255)
W = RNG.normal(size=(9, 2)).astype(np.float32)
MODEL = Partial(centred, W)
Y = np.argmax(centred(W, X), axis=1)
DATA = from_arrays(INTEGERS, Y, num_classes=2)
MASKS = RNG.uniform(size=(COUNT, 3, 3)) < np.linspace(0, 1, COUNT)[:, None, None]
FGSM = functools.partial(attacks.fgsm, ball=Linf(EPS))


def best_images(eps):
    """Where masks let them, pixels go as far as ball and box let them."""
    uphill = np.sign(W[:, 1 - Y] - W[:, Y]).T.reshape(X.shape)
    moved = np.clip(X + np.float32(eps) * uphill, 0, 1)
    return np.where(MASKS[..., None], moved, X)


def fooled(x):
    scores = centred(np.float64(W), np.float64(x))
    margin = scores[np.arange(COUNT), 1 - Y] - scores[np.arange(COUNT), Y]
    assert np.abs(margin).min() > 1e-4
    return margin > 0


def test_masks_go_with_their_samples_through_batches_and_devices(tmp_path):
    exact = fooled(best_images(EPS))
    assert 5 <= exact.sum() <= 16
    run = functools.partial(
        evaluate, MODEL, key=KEY, batch_size=16, devices=jax.devices()[:2],
        keep_images=True,
    )  # fmt: skip
    # what is bound as an array is traced with values first, then without
    named = {
        "fgsm": FGSM,
        "pixels": functools.partial(_one_pixel, at=np.arange(3)),
    }
    table = run(DATA, named, bounds=attacks.limits(X, mask=MASKS), run_dir=tmp_path)
    np.testing.assert_array_equal(table.attacks["fgsm"].robust, ~exact)
    np.testing.assert_allclose(
        np.asarray(table.x_adv)[exact], best_images(EPS)[exact], atol=1e-7, rtol=0
    )
    # an attack that changes a pixel fools only where the mask lets it
    may = MASKS[:, 0, 0]
    changed = X.copy()
    changed[:, 0, 0] = 1 - changed[:, 0, 0]
    wins = fooled(changed)
    assert (wins & may).any() and (wins & ~may).any()
    np.testing.assert_array_equal(table.attacks["pixels"].robust, ~(wins & may))
    (found,) = table.warnings
    assert found.startswith(f"pixels: {(~may).sum()} images returned outside the ball")

    other = attacks.limits(X, mask=~MASKS)
    with pytest.raises(ValueError, match="bounds"):
        run(DATA, named, bounds=other, run_dir=tmp_path, resume=True)


def _one_pixel(logits_fn, x, y, *, key, bounds, at):
    assert bounds[0].shape == x.shape
    return x.at[:, at[0], 0].set(1 - x[:, at[0], 0])


def test_each_attack_of_a_suite_gets_the_masks_of_the_samples_left():
    exact = [fooled(best_images(eps)) for eps in (0.05, EPS)]
    named = {
        f"fgsm {eps}": lambda *args, ball, eps=eps, **options: attacks.fgsm(
            *args, ball=Linf(eps), **options
        )
        for eps in (0.05, EPS)
    }
    out = attacks.autoattack(
        MODEL, X, Y, key=KEY, ball=Linf(EPS), version="custom", attacks=named,
        bounds=attacks.limits(X, mask=MASKS), devices=jax.devices()[:1],
    )  # fmt: skip
    np.testing.assert_array_equal(
        out.fooled_by, np.where(exact[0], 1, np.where(exact[1], 2, -1))
    )
    held = ~np.broadcast_to(MASKS[..., None], X.shape)
    np.testing.assert_array_equal(out.x_adv[held], X[held])


def test_a_curve_under_masks():
    grid = [0.05, EPS]
    curve = robust_accuracy_curve(
        MODEL, X, Y, attacks.fgsm, epsilons=grid, key=KEY,
        bounds=attacks.limits(X, mask=MASKS), devices=jax.devices()[:1],
    )  # fmt: skip
    exact = [fooled(best_images(eps)) for eps in grid]
    np.testing.assert_array_equal(curve.broken, exact)


def test_images_outside_their_boxes_are_refused():
    wrong = attacks.limits(jnp.flip(X, axis=0), mask=MASKS)
    with pytest.raises(ValueError, match="data images must lie inside bounds, got"):
        evaluate(MODEL, DATA, {}, key=KEY, bounds=wrong)
