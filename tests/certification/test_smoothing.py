"""Randomised smoothing against linear classifiers, whose answers are exact."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial
from scipy import stats

from robjax.certification import smoothing

pytestmark = pytest.mark.usefixtures("one_device")

DEVICES = jax.local_devices()
WEIGHT = jnp.array([2.0, -1.0, 2.0])  # of length 3
X = jnp.array([[0.5, 0.1, 0.4], [0.2, 0.9, 0.1], [0.5, 0.5, 0.0], [0.1, 0.8, 0.6]])


def linear(weight, x):
    score = x @ weight - 0.5
    return jnp.stack([score, jnp.zeros_like(score)], axis=1)


MODEL = Partial(linear, WEIGHT)
OPTIONS = {"key": jax.random.key(0), "n0": 20, "n": 3000, "batch_size": 64}
DISTANCE = np.abs(np.asarray(X @ WEIGHT) - 0.5) / 3


def test_of_linear_classifiers_radius_and_class_are_known():
    found = smoothing.certify(MODEL, X, sigma=0.25, **OPTIONS)
    assert found.prediction.tolist() == [0, 1, smoothing.ABSTAIN, 0]
    # the lower bound of Φ(distance / σ) from 3000 draws, give or take its noise
    p = stats.norm.cdf(DISTANCE / 0.25)
    error = 5 * np.sqrt(p * (1 - p) / 3000)
    for sign in (-1, 1):
        hits = np.clip(np.round(3000 * (p + sign * error)), 0, 3000)
        ends = 0.25 * stats.norm.ppf(smoothing.lower_confidence(hits, 3000, 0.001))
        assert (sign * (ends - found.radius) >= 0)[[0, 1, 3]].all()
    assert (found.radius <= DISTANCE + 1e-12).all()
    assert found.radius[2] == 0


def test_draws_do_not_depend_on_batches_nor_on_other_images():
    full = smoothing.certify(MODEL, X, sigma=0.25, **OPTIONS)
    keys = jax.vmap(lambda i: jax.random.fold_in(OPTIONS["key"], i))(jnp.arange(4))
    one = smoothing.certify(
        MODEL, X[1:2], sigma=0.25, **{**OPTIONS, "key": keys[1:2], "batch_size": 50}
    )
    assert one.radius[0] == full.radius[1]


def test_a_run_can_be_killed_and_shared_by_devices(tmp_path):
    full = smoothing.certify(MODEL, X, sigma=0.25, **OPTIONS)
    options = {**OPTIONS, "sigma": 0.25, "run_dir": tmp_path / "run"}
    kept = smoothing.certify(MODEL, X, **options)
    np.testing.assert_array_equal(kept.radius, full.radius)
    parts = sorted((tmp_path / "run").glob("*.npz"))
    assert len(parts) == 4
    parts[2].write_bytes(parts[2].read_bytes()[:-9])  # damaged
    parts[3].unlink()
    with pytest.raises(ValueError, match="already holds a run"):
        smoothing.certify(MODEL, X, **options)
    with pytest.raises(ValueError, match="another n:"):
        smoothing.certify(MODEL, X, **{**options, "n": 2999}, resume=True)
    with pytest.warns(UserWarning, match="000002.npz"):
        again = smoothing.certify(MODEL, X, **options, devices=DEVICES[:3], resume=True)
    np.testing.assert_array_equal(again.radius, full.radius)
    np.testing.assert_array_equal(again.prediction, full.prediction)
    assert sorted((tmp_path / "run").glob("*.npz")) == parts
    looser = smoothing.certify(MODEL, X, **options, resume=True, alpha=0.1)
    assert (looser.radius >= full.radius).all() and looser.radius[0] > full.radius[0]


def test_the_lower_bound_is_exact_and_covers():
    n, p, alpha = 60, 0.8, 0.1
    bound = smoothing.lower_confidence(np.arange(n + 1), n, alpha)
    # by definition: at the bound, so many hits or more have probability α
    np.testing.assert_allclose(
        stats.binom.sf(np.arange(1, n + 1) - 1, n, bound[1:]), alpha, rtol=1e-9
    )
    wrong = stats.binom.pmf(np.arange(n + 1), n, p)[bound > p].sum()
    assert alpha / 3 < wrong <= alpha


def test_logits_that_are_not_finite_are_no_class():
    def broken(x):
        return jnp.stack([x[:, 0], jnp.where(x[:, 0] > 0, jnp.nan, -1.0)], axis=1)

    found = smoothing.certify(broken, X[:1], sigma=0.1, **OPTIONS)
    assert found.prediction[0] == smoothing.ABSTAIN


def test_noise_of_half_precision_has_its_tails():
    def half_line(x):  # class 1 from 3 σ on: with the 8 bits of bfloat16, never
        score = x[:, 0].astype(jnp.float32) - 3
        return jnp.stack([-score, score], axis=1)

    x, options = jnp.zeros((1, 1), jnp.bfloat16), {**OPTIONS, "n": 20_000}
    found = smoothing.certify(half_line, x, sigma=1.0, **{**options, "batch_size": 999})
    assert 2.5 < found.radius[0] < 3


def test_the_curve():
    found = smoothing.Smoothed(np.array([1, 0, -1, 2]), np.array([0.5, 0.2, 0, 0.1]))
    curve = smoothing.certified_accuracy(found, [1, 0, 0, 1], [0, 0.2, 0.3, 0.6])
    assert curve.tolist() == [0.5, 0.5, 0.25, 0]


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"sigma": 0.0}, "sigma"),
        ({"sigma": 0.1, "alpha": 0.0}, "alpha"),
        ({"sigma": 0.1, "alpha": 1.0}, "alpha"),
        ({"sigma": 0.1, "n0": 0}, "n0"),
        ({"sigma": 0.1, "n": 1.5}, "n "),
        ({"sigma": 0.1, "batch_size": 0}, "batch_size"),
    ],
)
def test_arguments(changes, name):
    with pytest.raises(ValueError, match=name):
        smoothing.certify(MODEL, X, **{**OPTIONS, **changes})
