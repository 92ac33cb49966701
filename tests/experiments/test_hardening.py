"""Hardening studies: verdicts on made-up numbers, the curve of a known model."""

import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

from experiments import arc_table, common, hardened, hardening
from robjax import attacks
from tests.experiments.test_tradeoff import NOISE, verdicts


def accuracies(fgsm, strong, clean=0.95):
    """Rows of `hardening.measure` with these accuracies at the radius of training."""
    of = {hardening.FAST: fgsm, "PGD-40": strong + 0.01, "AutoAttack": strong}
    at = {k: np.array([clean, v, v, v]) for k, v in of.items()}
    sizes = dict.fromkeys(("features", "moved", "relative", "head"), np.array(1.0))
    return [{k: v + n for k, v in (at | sizes).items()} for n in NOISE]


@pytest.mark.parametrize(
    ("gain", "siamese"), [(0.3, common.HELD), (-0.05, common.FAILED)]
)
def test_hardening_is_judged_under_strong_attacks(gain, siamese):
    found = {
        hardened.STANDARD: accuracies(0.3, 0.05),
        hardened.NOISE: accuracies(0.5, 0.1),
        hardened.SIAMESE: accuracies(0.9, 0.1 + gain, clean=0.92),
    }
    claims = verdicts(hardening.judge(found))
    assert claims["Siamese keeps the clean accuracy within 1 point"] == common.FAILED
    for attack in hardening.STRONG:
        words = f"Siamese training beats noise augmentation under {attack}, ε = 0.1"
        assert claims[words] == siamese
        words = f"noise augmentation beats standard training under {attack}, ε = 0.1"
        assert claims[words] == common.HELD
    words = "standard: FGSM shows more than AutoAttack leaves, ε = 0.1"
    assert claims[words] == common.HELD
    # the best under AutoAttack stands first
    best = hardened.SIAMESE if gain > 0 else hardened.NOISE
    assert hardening.table(found).splitlines()[4].startswith(f"| {best} ")
    assert list(hardening.draw(found)) == ["hardening"]


def distances(search, grid):
    correct = np.array([True, True, False])
    rows = ({"search": np.full(3, search + n), "FGSM grid": np.full(3, grid + n)}
            for n in NOISE)  # fmt: skip
    return [row | {"correct": correct} for row in rows]


@pytest.mark.parametrize(("grid", "never"), [(0.1, common.HELD), (0.04, common.FAILED)])
def test_arc_table_compares_both_searches(grid, never):
    found = {
        hardened.STANDARD: distances(0.02, 0.03),
        hardened.NOISE: distances(0.04, 0.06),
        hardened.SIAMESE: distances(0.06, grid),
    }
    claims = verdicts(arc_table.judge(found))
    assert claims["The FGSM grid never gives a lower ARC than the search"] == never
    assert claims["Siamese: the FGSM grid overstates"] == never
    words = "Siamese training raises ARC/δ₂ more than noise augmentation"
    assert claims[words] == common.HELD
    np.testing.assert_allclose(
        arc_table.arcas(found[hardened.NOISE], "search"),
        2 / 3 * (0.04 + np.array(NOISE)) / arc_table.DELTA,
        rtol=1e-5,
    )
    assert "| Siamese | 66.7 " in arc_table.table(found)
    assert list(arc_table.draw(found)) == ["arc_table"]


def test_curve_and_grid_of_a_model_with_known_distances():
    # The logits are the pixels, which tie where both have moved by half the gap.
    gaps = np.array([0.05, 0.12, 0.15, 0.3, 0.7, -0.2])
    x = np.stack([0.5 + gaps / 2, 0.5 - gaps / 2], axis=1).astype(np.float32)
    network = Partial(jnp.add, jnp.zeros((1, 2)))
    found = hardening.curve(
        network,
        x,
        np.zeros(6, int),
        attacks.fgsm,
    )
    expected = [(gaps / 2 > eps).mean() for eps in hardening.EPSILONS]
    np.testing.assert_allclose(found, expected)


def test_a_network_is_trained_and_measured_once(tmp_path, monkeypatch):
    monkeypatch.setattr(hardened, "SMOKE_TRAININGS", ("FGSM training",))
    arguments = hardened.Arguments(smoke=True, results=tmp_path)

    def measure(recipe, network, x, y):
        return {"features": hardened.features_of(network)(x), "labels": y}

    found = hardened.measure_all(arguments, "fake", measure)
    (row,) = found["FGSM training"]
    assert row["features"].shape == (20, 100)
    monkeypatch.setattr(hardened, "obtain", None)  # nothing is left to do
    again = hardened.measure_all(arguments, "fake", measure)
    np.testing.assert_array_equal(
        again["FGSM training"][0]["features"], row["features"]
    )
