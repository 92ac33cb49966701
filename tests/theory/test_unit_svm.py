"""Where an SVM of norm 1 exists, and which it is: by brute force over the disc."""

import jax
import numpy as np
import pytest
from scipy import stats as scipy_stats

from robjax.theory import gaussian_svm

ANGLES = np.concatenate(
    [np.linspace(0, np.pi / 2, 3001), np.pi / 2 - np.logspace(-10, -3, 200)]
)
P = (0.5, 0.51, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99)
M = (0.01, 0.1, 0.2, 0.3, 0.4, 0.5, 0.7, 1.0, 1.5, 2.0, 3.0, 5.0)


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


def hinge(w1, v, p, m):
    """E max(0, 1 − y⟨w, x⟩) with ⟨w, x⟩ = ±w_1 + v t, t ~ N(y m, 1)."""
    total = np.zeros(np.broadcast_shapes(np.shape(w1), np.shape(v)))
    safe = np.where(v > 0, v, 1.0)
    for sign, weight in ((1, p), (-1, 1 - p)):
        mean = 1 - sign * w1 - m * v
        z = mean / safe
        spread = mean * scipy_stats.norm.cdf(z) + safe * scipy_stats.norm.pdf(z)
        total += weight * np.where(v > 0, spread, np.maximum(mean, 0))
    return total


def least_at(norm, p, m):
    return hinge(norm * np.sin(ANGLES), norm * np.cos(ANGLES), p, m).min()


def exists(p, m):
    """The hinge is convex: with a penalty it is least at norm 1 where it still falls.

    Up to norm 1, that is: some λ > 0 makes up for the slope outwards.
    """
    inside = min(least_at(norm, p, m) for norm in (0.0, 0.3, 0.6, 0.9, 0.99, 0.999))
    return least_at(1.0, p, m) < inside - 1e-12


def found(p, m):
    try:
        return gaussian_svm.unit_svm(p=p, m=m)
    except ValueError as error:
        assert "no SVM has norm 1" in str(error)
        return None


@pytest.mark.parametrize("p", P)
def test_one_is_found_wherever_there_is_one(p):
    kinds = set()
    for m in M:
        svm = found(p, m)
        assert (svm is not None) == exists(p, m), m
        kinds.add("none" if svm is None else "kink" if svm.v == 0 else "arc")
    assert "arc" in kinds
    assert "kink" in kinds or p == 0.5


@pytest.mark.parametrize("p", P)
def test_it_has_norm_1_and_no_other_weights_are_better(p):
    rng = np.random.default_rng(0)
    for m in M:
        svm = found(p, m)
        if svm is None:
            continue
        assert svm.lam > 0
        assert np.hypot(svm.w1, svm.v) == pytest.approx(1, abs=1e-12)

        def objective(w1, v, m=m, lam=svm.lam):
            return hinge(w1, v, p, m) + lam / 2 * (w1 * w1 + v * v)

        best = objective(svm.w1, svm.v)
        for scale in (1e-6, 1e-4, 1e-2, 0.3):
            step = scale * rng.normal(size=(2, 500))
            v = np.abs(svm.v + step[1])
            v[::4] = svm.v
            assert (objective(svm.w1 + step[0], v) >= best - 1e-14).all()
        again = gaussian_svm.svm(p=p, m=m, d=10, eps=0.0, lam=svm.lam)
        np.testing.assert_allclose(again, svm, atol=1e-9)


def test_weak_features_that_say_next_to_nothing_are_left_out():
    svm = gaussian_svm.unit_svm(p=0.6, m=0.1)
    assert (svm.w1, svm.v) == (1.0, 0.0)
    assert 0 < svm.lam <= 2 * 0.6 - 1
    # with more to say they come in, and there are m for which no norm is 1
    assert [found(0.6, m) is None for m in (0.2, 0.35, 0.6)] == [False, True, False]
    assert gaussian_svm.unit_svm(p=0.95, m=1.0).v == 0
    table = gaussian_svm.unit_svm(p=np.array([0.6, 0.95]), m=np.array([0.1, 4.0]))
    assert table.v[0] == 0 < table.v[1]


@pytest.mark.parametrize("p", [0.9, 0.95, 0.99])
def test_weak_weights_grow_from_0_as_m_rises(p):
    # the kink ends where S = p (φ(m) − m Φ(−m)) − (1 − p) m, the slope in v, is 0
    m = np.linspace(0.01, 3, 60)
    normal = scipy_stats.norm
    slope = p * (normal.pdf(m) - m * normal.cdf(-m)) - (1 - p) * m
    svm = gaussian_svm.unit_svm(p=p, m=m)
    np.testing.assert_array_equal(np.asarray(svm.v) == 0, slope >= 0)
    end = m[slope >= 0][-1]
    near = [found(p, end + step) for step in np.geomspace(1e-4, 0.1, 20)]
    weights = [one.v for one in near if one is not None]
    assert len(weights) == 20 and 0 <= weights[0] < 0.3


@pytest.mark.parametrize("m", [10.0, 20.0, 37.0])
def test_the_largest_m_keep_their_digits(m):
    svm = gaussian_svm.unit_svm(p=0.9, m=m)
    assert svm.w1 > 0 and svm.lam > 0
    # stationary on the circle, from log-densities that do not underflow
    w1, v = svm.w1, svm.v
    log_cdf = [
        np.log(weight) + scipy_stats.norm.logcdf((1 - sign * w1 - m * v) / v)
        for sign, weight in ((1, 0.9), (-1, 0.1))
    ]
    along = np.exp(log_cdf[1]) - np.exp(log_cdf[0])
    assert -along / w1 == pytest.approx(svm.lam, rel=1e-6, abs=0)
