import numpy as np
import pytest
import scipy.stats

from experiments import common


@pytest.mark.parametrize(
    ("values", "verdict"),
    [
        ([1.0, 1.1, 0.9], common.HELD),
        ([-1.0, -1.1, -0.9], common.FAILED),
        ([0.0, 0.0, 0.0], common.FAILED),
        ([0.1, 0.1, 0.1], common.HELD),
        ([5.0, 0.1, -1.0], common.FAILED),  # the mean is above 0, its bound is not
        ([1.0], common.UNTESTABLE),
        ([1.0, np.nan], common.UNTESTABLE),
    ],
)
def test_verdict_is_that_of_the_confidence_bound(values, verdict):
    assert common.is_above(values, 0) == verdict
    assert common.is_below(-np.array(values), 0) == verdict


@pytest.mark.parametrize("shift", [-0.01, 0.01])
def test_verdict_agrees_with_the_t_test(shift):
    values = np.array([0.3, 0.7, 0.4, 0.9])
    # the threshold at which scipy's one-sided test has p = 0.05 exactly
    interval = scipy.stats.ttest_1samp(values, 0, alternative="greater")
    bound = interval.confidence_interval(0.95).low
    held = common.is_above(values, bound + shift) == common.HELD
    assert held == (shift < 0)


def test_rank_correlation_for_each_seed():
    x = np.array([[1.0, 2, 3, 4], [1, 2, 3, 4], [1, 1, 1, 1], [1, 2, 2, 4]])
    y = np.array([[1.0, 8, 27, 64], [4, 3, 2, 1], [1, 2, 3, 4], [0, 5, 1, 9]])
    rho = common.rank_correlation(x, y)
    # ranks (1, 2½, 2½, 4) and (1, 3, 2, 4), by hand
    np.testing.assert_allclose(rho, [1, -1, np.nan, 4.5 / np.sqrt(4.5 * 5)])


def test_three_epochs_say_nothing():
    assert np.isnan(common.rank_correlation([[1, 2, 3]], [[1, 2, 3]])).all()
