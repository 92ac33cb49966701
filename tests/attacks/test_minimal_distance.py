"""Minimal distances that rounding does not decide, and what several attacks reach."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

from benchmarks.confirmed import KINDS, case, count, forward, oracle
from robjax import attacks
from robjax.attacks.minimal_norm.exploration import explore
from robjax.attacks.minimal_norm.search import Search
from robjax.attacks.problem import check_problem
from robjax.balls import L1, L2, Linf
from robjax.samples import sample_keys

KEY = jax.random.key(0)
BALLS = {"Linf": Linf, "L2": L2, "L1": L1}


@pytest.mark.parametrize("norm", ["L2", "L1"])
def test_what_fmn_calls_a_success_is_one_alone_and_in_float64(norm):
    found = []
    for seed in range(20):
        each = case(KINDS["64-60-10"], seed)
        ball = BALLS[norm](1e3)
        found.append(
            count(each, attacks.fmn(each.model, each.x, each.y, ball=ball), ball)
        )
    for name in ("not in float64", "not alone", "outside"):
        assert sum(counts[name] for counts in found) == 0
    assert sum(counts["claimed"] for counts in found) == 160  # it finds something, too


@jax.jit
def measured(model, x, y):
    problem = check_problem(model, x, Linf(1.0), (0.0, 1.0))
    return Search.begin(problem, y, early_exit=False)[0].rounding


def test_the_measured_rounding_covers_that_of_float32():
    for kind in KINDS.values():
        for seed in range(4):
            each = case(kind, seed)
            rounding = np.asarray(measured(each.model, each.x, each.y))
            logits = np.asarray(each.model(each.x), np.float64)
            exact = oracle(kind.tanh, each.weights, np.asarray(each.x))
            rows = np.arange(len(logits))
            error = (logits - logits[rows, each.y][:, None]) - (
                exact - exact[rows, each.y][:, None]
            )
            assert (np.abs(error).max(axis=1) < rounding).all()
            # not much more than needed, either: a thousand roundings of the logits
            size = np.abs(logits).max(axis=1)
            assert (rounding < 1e3 * 1.2e-7 * size).all()


def grid_search(weights, x, y):
    """The least L∞ distance [B] to another class in the unit square, in float64."""
    line = np.linspace(0, 1, 401)
    points = np.stack(np.meshgrid(line, line), -1).reshape(-1, 2)
    classes = oracle(False, weights, points).argmax(axis=1)
    distances = []
    for image, label in zip(x, y, strict=True):
        best = points[classes != label]
        spacing = line[1]
        for _ in range(4):
            best = best[np.argsort(np.abs(best - image).max(axis=1))[:40]]
            side = np.linspace(-spacing, spacing, 21)
            finer = np.stack(np.meshgrid(side, side), -1).reshape(-1, 2)
            best = np.clip((best[:, None] + finer).reshape(-1, 2), 0, 1)
            best = best[oracle(False, weights, best).argmax(axis=1) != label]
            spacing /= 8
        nothing = not len(best)
        distances.append(np.inf if nothing else np.abs(best - image).max(axis=1).min())
    return np.array(distances)


def plane_network(seed):
    """A random network of ReLUs on the unit square, 2-16-16-3."""
    rng = np.random.default_rng(seed)
    gain = np.exp(rng.uniform(0, 1))
    sizes = [2, 16, 16, 3]
    return [
        (
            np.float32(gain * np.sqrt(2 / a) * rng.normal(size=(a, b))),
            np.float32(0.7 * gain * rng.normal(size=b)),
        )
        for a, b in itertools.pairwise(sizes)
    ]


@pytest.mark.slow
def test_it_finds_what_a_grid_search_finds_in_the_plane():
    ratios = []
    single = []
    for seed in range(20):
        weights = plane_network(seed)
        x = np.random.default_rng([seed, 1]).uniform(size=(16, 2)).astype(np.float32)
        y = oracle(False, weights, x).argmax(axis=1)
        if len(set(y)) == 1:
            continue
        best = grid_search(weights, x.astype(np.float64), y)
        model = Partial(functools.partial(forward, False), weights)
        options = {"ball": Linf(2.0), "key": KEY}
        found = attacks.minimal_distance(model, x, y, **options)
        ratios.extend(np.asarray(found.distance) / best)
        single.extend(np.asarray(attacks.fmn(model, x, y, **options).distance) / best)
    assert len(ratios) >= 100
    assert min(ratios) > 0.99  # nothing is nearer than the grid says
    assert np.mean(np.array(ratios) < 1.01) >= 0.99
    assert np.mean(np.array(single) < 1.01) < 0.99  # one attack does not do it


def test_climbs_find_a_small_region_that_walks_miss():
    """Misclassified within 0.06 of (0.8, 0.8); from x the slope leads elsewhere."""

    def model(x):
        hole = 0.06 - jnp.abs(x - 0.8).max(axis=1)
        decoy = -0.1 - jnp.abs(x - 0.1).max(axis=1)
        return jnp.stack([jnp.zeros(len(x)), jnp.maximum(hole, decoy)], axis=1)

    x = jnp.array([[0.2, 0.2]])
    problem = check_problem(model, x, L2(2.0), (0.0, 1.0))
    search, found = Search.begin(problem, jnp.array([0]), early_exit=False)
    found = search.note(found, x, model(x), 0)
    found = explore(search, found, sample_keys(KEY, 1), climbs=8, steps=1)
    exact = np.sqrt(2) * (0.74 - 0.2)
    assert exact < float(found.distance[0]) < 1.3 * exact
