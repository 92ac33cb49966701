"""Agreement with shapiq, a NumPy library of interaction indices, where installed."""

import warnings

import numpy as np
import pytest

from robjax.metrics.interactions import exact

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    shapiq = pytest.importorskip("shapiq")


@pytest.mark.parametrize("n", [3, 6, 10])
def test_shapley_values_interactions_and_dividends(n):
    table = np.random.default_rng(n).normal(size=2**n)
    table -= table[0]

    def value_fn(masks):
        return table[np.asarray(masks) @ 2 ** np.arange(n)]

    found = exact(value_fn, n)
    peer = shapiq.ExactComputer(value_fn, n_players=n)
    values = peer("SV", order=1)
    index = peer("SII", order=2)
    dividends = peer("Moebius", order=n)
    for i in range(n):
        assert found.shapley[i] == pytest.approx(values[(i,)], abs=1e-10)
        for j in range(i):
            mean = found.interactions[:, i, j].mean()
            assert mean == pytest.approx(index[(j, i)], abs=1e-10)
    for players in dividends.interaction_lookup:
        number = sum(2**i for i in players)
        assert found.mobius[number] == pytest.approx(dividends[players], abs=1e-9)
