"""95 % intervals hold the truth in 93 to 97 % of 1000 runs."""

import jax
import numpy as np
import pytest

from robjax.metrics.interactions import design_pairs, sampled, visibility
from tests.metrics.interactions import closed_forms

FEW_PAIRS = np.array([[0, 1], [1, 6], [20, 7]])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("pairs", "contexts", "orders"),
    [("all", 1, [9, 34]), (FEW_PAIRS, 2, [20])],
    ids=["all", "few"],
)
def test_sampled_interactions(pairs, contexts, orders):
    value_fn, t = closed_forms.product(36)
    edges = design_pairs(pairs, 36)
    want = closed_forms.product_interactions(t, edges, orders)
    inside = []
    for run in range(1000):
        found = sampled(
            value_fn, 36, key=jax.random.key(run), orders=orders, pairs=pairs,
            blocks=60, contexts=contexts, block_players=6,
        )  # fmt: skip
        inside.append(np.abs(found.mean - want) < 1.96 * found.stderr)
    coverage = np.mean(inside, axis=0)
    assert (coverage >= 0.93).all() and (coverage <= 0.97).all(), coverage


def test_visibility():
    value_fn, t = closed_forms.product(30)
    means = np.ones(1)
    for r, factor in enumerate(t, start=1):
        k = np.arange(r + 1)
        grown = (r - k) * np.append(means, 0) + k * factor * np.insert(means, 0, 0)
        means = grown / r
    inside = []
    for run in range(1000):
        found = visibility(value_fn, 30, key=jax.random.key(run), permutations=50)
        inside.append(np.abs(found.mean - means) < 1.96 * found.stderr)
    coverage = np.mean(inside, axis=0)[[5, 15, 25]]
    assert (coverage >= 0.93).all() and (coverage <= 0.97).all(), coverage
