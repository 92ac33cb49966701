"""The price of certainty: intervals by exact enumeration, verdicts by `evaluate`."""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

from benchmarks.autoattack import audits_of
from robjax import attacks, evaluation
from robjax.balls import L1, L2, Linf
from robjax.evaluation import audited, broken_among

EPS, N = 0.1, 300
RNG = np.random.default_rng(0)
X = RNG.uniform(0.2, 0.8, size=(N, 3)).astype(np.float32)
Y = (X[:, 0] > X[:, 1]).astype(np.int32)
W = np.array([[0.0, 1.0], [1.0, 0.0], [0.0, 0.0]], np.float32)
KEY = jax.random.key(0)


def linear(w, x):
    return x @ w


def suite(eps):
    return {"pgd": functools.partial(attacks.pgd, ball=Linf(eps), steps=3)}


def audit(cheap, **options):
    model = Partial(linear, W)
    return audited(model, (X, Y), suite(cheap), suite(EPS), key=KEY, **options)


@pytest.mark.parametrize("survivors", [1, 2, 7, 12])
@pytest.mark.parametrize("confidence", [0.5, 0.9])
def test_the_interval_holds_at_every_stop(survivors, confidence):
    """P(some n has an interval without K), over all orders, for every K."""
    for true in range(survivors + 1):
        reached = {0: 1.0}  # k after n draws -> probability, K always inside so far
        kept = {}
        for n in range(survivors + 1):
            kept = {}
            for k, probability in reached.items():
                low, high = broken_among(survivors, n, k, confidence=confidence)
                assert low <= high and k <= low and high <= survivors - n + k
                if low <= true <= high:
                    kept[k] = probability
            reached = {}
            for k, probability in kept.items():
                if n == survivors:
                    continue
                hit = (true - k) / (survivors - n)
                reached[k + 1] = reached.get(k + 1, 0) + probability * hit
                reached[k] = reached.get(k, 0) + probability * (1 - hit)
            reached = {k: p for k, p in reached.items() if p > 0}
        assert sum(kept.values()) >= confidence


def test_few_samples_say_much_where_nothing_falls():
    """Between what excludes K from n alone, and (1 − p)^n > α b / (n + b), b = 300."""
    low, high = broken_among(5000, 300, 0)
    unseen = math.comb(5000 - high, 300) / math.comb(5000, 300)
    endless = -np.log(0.05 * 300 / 600) / 300
    assert low == 0 and unseen < 0.05 and high / 5000 < endless


@pytest.mark.slow
def test_nineteen_of_twenty_intervals_hold_and_none_is_wide():
    """200 keys on the verdicts of a cheap suite that misses 8 of 1000 images."""
    cheap = np.arange(1000) % 2 == 0
    full = cheap & (np.arange(1000) % 126 != 2)
    assert np.count_nonzero(cheap & ~full) == 8
    audits = audits_of(cheap, full, 200)
    holds = [found.low <= full.mean() <= found.high for found in audits]
    assert np.mean(holds) >= 0.93
    assert all(found.high - found.low <= 0.02 + 1e-9 for found in audits)
    assert all(found.trusted for found in audits)
    sizes = {int(found.audited.sum()) for found in audits}
    # (1 − n/M)^K < 0.05 for the 21st image above what was found, at the least
    assert len(sizes) > 3 and 0.13 < min(sizes) / 500 < 0.15
    assert np.mean([found.audited.mean() for found in audits]) < 0.25


def test_with_every_survivor_it_is_the_expensive_suite():
    found = audit(0.07, half_width=0.0)
    full = evaluation.evaluate(
        Partial(linear, W), (X, Y), suite(EPS), key=KEY, cascade=True
    )
    np.testing.assert_array_equal(found.robust, full.robust)
    np.testing.assert_array_equal(found.robust, np.abs(X[:, 0] - X[:, 1]) > 2 * EPS)
    np.testing.assert_array_equal(found.audited, found.cheap.robust)
    exact = full.robust_accuracy().mean
    assert found.low == found.high == found.robust_accuracy.mean == exact
    assert found.robust_accuracy.stderr == 0


def test_a_sample_is_enough_and_does_not_depend_on_the_batches(tmp_path):
    true = np.mean(np.abs(X[:, 0] - X[:, 1]) > 2 * EPS)
    found = audit(0.098, half_width=0.05, run_dir=tmp_path)
    sampled = found.audited.sum()
    assert 0 < sampled < found.cheap.robust.sum() and found.trusted
    assert found.low <= true <= found.high <= found.low + 0.1
    np.testing.assert_array_equal(found.robust[found.audited], _true()[found.audited])
    again = audit(0.098, half_width=0.05, batch_size=16)
    np.testing.assert_array_equal(again.audited, found.audited)
    np.testing.assert_array_equal(again.robust, found.robust)
    # killed before its last block, it ends with the same
    last = max(tmp_path.glob("full-*"))
    for file in last.rglob("*.npz"):
        file.unlink()
    resumed = audit(0.098, half_width=0.05, run_dir=tmp_path, resume=True)
    np.testing.assert_array_equal(resumed.robust, found.robust)
    with pytest.raises(ValueError, match="already holds a run"):
        audit(0.098, half_width=0.05, run_dir=tmp_path)
    other = audit(0.098, half_width=0.05, most=10)
    assert other.audited.sum() == 10 and other.high - other.low > 0.1


def _true():
    return np.abs(X[:, 0] - X[:, 1]) > 2 * EPS


class Proof(NamedTuple):
    proven: np.ndarray


def test_what_is_proven_is_not_audited():
    far = np.abs(X[:, 0] - X[:, 1]) > 3 * EPS
    found = audit(0.07, half_width=0.0, certificate=Proof(far))
    np.testing.assert_array_equal(found.audited, found.cheap.robust & ~far)
    np.testing.assert_array_equal(found.robust, _true())
    assert found.low == found.high == found.robust_accuracy.mean == _true().mean()
    assert f"{far.sum()} more proven" in str(found)
    unseen = audit(0.07, most=0, certificate=Proof(far))
    assert (unseen.low, unseen.high) == (far.mean(), found.cheap.robust.mean())
    with pytest.raises(ValueError, match="are proven and broken"):
        audit(0.07, certificate=Proof(np.ones(N, bool)))


def test_each_image_keeps_its_box():
    """Pixel 0 may not move: the first two must differ by more than ε alone."""
    box = attacks.limits(jnp.asarray(X), mask=np.array([0, 1, 1]))
    found = audit(0.07, half_width=0.0, bounds=box)
    np.testing.assert_array_equal(found.robust, np.abs(X[:, 0] - X[:, 1]) > EPS)


@pytest.mark.parametrize("ball", [Linf(EPS), L2(2**0.5 * EPS), L1(2 * EPS)])
def test_the_fast_suite_is_exact_on_a_linear_model(ball):
    """Pixels 0 and 1 meet in each of these balls if they are less than 2 ε apart."""
    fast = attacks.suite("fast", ball)
    found = evaluation.evaluate(Partial(linear, W), (X, Y), fast, key=KEY, cascade=True)
    np.testing.assert_array_equal(found.robust, _true())


def test_a_suite_that_misses_much_is_not_trusted():
    found = audit(0.02, half_width=0.2, tolerated=0.02)
    assert not found.trusted and "not to be trusted" in str(found)
    np.testing.assert_array_equal(found.audited, found.cheap.robust)
    assert found.low == found.high == _true().mean()
    # a slope of 0 is a warning of `evaluate`, so all survivors are audited
    flat = audited(
        lambda x: jnp.round(8 * x @ W),
        (X[:20], Y[:20]),
        suite(EPS),
        suite(EPS),
        key=KEY,
        half_width=0.5,
    )
    assert not flat.trusted and flat.warnings
    np.testing.assert_array_equal(flat.audited, flat.cheap.robust)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"confidence": 1.0}, "confidence must be between 0 and 1, got 1.0"),
        ({"half_width": -0.1}, "half_width"),
        ({"most": -1}, "most"),
        ({"tolerated": float("nan")}, "tolerated"),
    ],
)
def test_mistakes_are_named(options, words):
    with pytest.raises(ValueError, match=words):
        audit(EPS, **options)
    with pytest.raises(ValueError, match="must rise from 0, got 2, 1, 5"):
        broken_among(5, 1, 2)
