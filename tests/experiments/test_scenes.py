"""Studies of backgrounds and groups: verdicts on made-up numbers, and a smoke run."""

import numpy as np
import pytest

from experiments import (
    background_reliance,
    common,
    group_robustness,
    preserved_correlation,
    regression_spurious,
    scenes,
)
from tests.experiments.test_tradeoff import NOISE, summary, verdicts


def rows(**numbers):
    return [{name: value + n for name, value in numbers.items()} for n in NOISE]


@pytest.mark.parametrize(("sign", "verdict"), [(1, common.HELD), (-1, common.FAILED)])
def test_reliance_is_that_of_the_largest_radius(sign, verdict):
    found = {
        ("none", 0.0, 0.4): rows(gap=0.3, minority=0.6, relative=0.1),
        ("L2", 0.5, 0.4): rows(gap=0.3 + sign, minority=0.6 - sign, relative=-sign),
        ("L2", 0.25, 0.4): rows(gap=0.3, minority=0.6, relative=0.1),
    }
    claims = verdicts(background_reliance.judge(found))
    assert list(claims.values()) == [verdict] * 3


@pytest.mark.parametrize(("gain", "verdict"), [(0.2, common.HELD), (0, common.FAILED)])
def test_the_correlation_with_and_without(gain, verdict):
    chance = rows(robust_in_domain=0.6, robust_decorrelated=0.6)
    correlated = rows(robust_in_domain=0.6 + gain, robust_decorrelated=0.6 - gain)
    found = {
        ("L2", 0.4, preserved_correlation.CORRELATION): correlated,
        ("L2", 0.4, preserved_correlation.CHANCE): chance,
    }
    claims = verdicts(preserved_correlation.judge(found))
    assert list(claims.values()) == [verdict] * 2


@pytest.mark.parametrize(("sign", "verdict"), [(1, common.HELD), (-1, common.FAILED)])
def test_adversarial_training_and_group_dro_move_the_worst_group_apart(sign, verdict):
    found = {title: rows(worst_group=0.5 - 0.2 * sign) for title in
             group_robustness.TRAININGS}  # fmt: skip
    found[group_robustness.STANDARD] = rows(worst_group=0.5)
    found[group_robustness.DRO] = rows(worst_group=0.5 + 0.2 * sign)
    claims = verdicts(group_robustness.judge(found))
    assert list(claims.values()) == [verdict] * 3


def test_a_network_is_measured_once(tmp_path, monkeypatch):
    arguments = scenes.Arguments(smoke=True, results=tmp_path)
    preserved_correlation.run(arguments)
    folder = tmp_path / "smoke" / "preserved_correlation" / "digits"
    assert len(summary(folder)) == 2
    assert len(list((folder / "figures").glob("*.png"))) == 1
    assert len(list((tmp_path / "smoke" / "scenes").glob("*.json"))) == 2
    monkeypatch.setattr(scenes, "_train", None)  # nothing is left to train
    preserved_correlation.run(arguments)


def test_groups_and_splits_of_a_recipe():
    recipe = scenes.base(scenes.Arguments(), amplitude=0.5, correlation=0.9)(0)
    split = scenes.split_of(recipe, "decorrelated")
    assert split.images.shape[1:] == (16, 16, 3)
    assert np.unique(split.groups).tolist() == list(range(16))


def test_exact_regression_contradicts_the_claims_where_it_should(tmp_path):
    regression_spurious.run(regression_spurious.Arguments(results=tmp_path))
    found = summary(tmp_path / "regression_spurious")
    wrong = [claim for claim, verdict in found.items() if verdict == common.FAILED]
    assert wrong == [
        "L1 attacks: there is no radius at which they are not used",
        "L∞ attacks use no spurious feature of a smaller scale (0.8)",
        "any radius above 0 changes the weights, also without noise",
    ]
    assert set(found.values()) == {common.HELD, common.FAILED}
