"""Studies of backgrounds and groups: verdicts on made-up numbers, and a smoke run."""

import functools

import jax.numpy as jnp
import numpy as np
import pytest

from experiments import (
    background_reliance,
    common,
    group_robustness,
    preserved_correlation,
    regression_spurious,
    scene_networks,
    scenes,
)
from robjax import data
from robjax.data import backgrounds
from robjax.reporting import figures
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
        ("L2", 0.4, True): correlated,
        ("L2", 0.4, False): chance,
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


@pytest.mark.slow
def test_a_network_is_measured_once(tmp_path, monkeypatch):
    arguments = scenes.Arguments(smoke=True, results=tmp_path)
    preserved_correlation.run(arguments)
    folder = tmp_path / "smoke" / "preserved_correlation" / "digits"
    assert len(summary(folder)) == 2
    assert len(list((folder / "figures").glob("*.png"))) == 1
    assert len(list((tmp_path / "smoke" / "scenes").glob("*.json"))) == 2
    monkeypatch.setattr(scenes, "train", None)  # nothing is left to train
    preserved_correlation.run(arguments)


def test_groups_and_splits_of_a_recipe():
    recipe = scenes.base(scenes.Arguments(), amplitude=0.5, correlation=0.9)(0)
    split = scenes.split_of(recipe, "decorrelated")
    assert split.images.shape[1:] == (16, 16, 3)
    assert np.unique(split.groups).tolist() == list(range(16))


def test_perceptrons_are_trained_together_each_on_its_own_images(monkeypatch):
    base = functools.partial(
        scenes.base, scenes.Arguments(smoke=True), model="mlp", correlation=0.9
    )
    recipes = [
        base(amplitude=amplitude, norm=norm, eps=eps)(seed)
        for amplitude, norm, eps, seed in [
            (0.2, "L2", 0.5, 0), (0.7, "L2", 1.0, 1), (0.2, "none", 0.0, 0),
            (0.2, "L2", 0.25, 0), (0.7, "Linf", 0.1, 1),
        ]
    ]  # fmt: skip
    calls = {}

    def train(x, y, rows, counts, eps, seeds, *, model, ball, steps, **_):
        calls[ball.__name__] = [x, y, rows, counts, eps, seeds]
        assert (model.num_classes, steps) == (4, 1)
        return jnp.arange(len(rows))

    monkeypatch.setattr(scene_networks.mlps, "train", train)
    found = scene_networks.train_together(recipes)
    assert found.keys() == set(recipes)
    assert len(calls["L2"][0]) == 2 * 64  # two sets of images for four networks
    for recipe in recipes:
        # one call for each norm; standard training is a radius of 0
        x, y, rows, counts, eps, seeds = calls[recipe.norm.replace("none", "L2")]
        index = int(found[recipe].args[0])
        assert (eps[index], seeds[index]) == pytest.approx((recipe.eps, recipe.seed))
        own = rows[index, : counts[index]]
        expected = scene_networks.training_images(recipe)
        images = data.to_float(expected.images, expected.scale)
        np.testing.assert_array_equal(x[own], images)
        np.testing.assert_array_equal(y[own], expected.labels)


def test_perceptrons_show_in_a_report_of_their_own(tmp_path, monkeypatch):
    monkeypatch.setattr(figures, "save", lambda _, path: [path, path])
    made = background_reliance.Arguments(model="mlp", smoke=True, results=tmp_path)
    monkeypatch.setattr(scenes, "_measure", lambda recipe, _: rows(
        gap=recipe.eps, minority=0.5, relative=0.0)[0])  # fmt: skip
    background_reliance.run(made)
    folder = tmp_path / "smoke" / "background_reliance" / "digits-mlp"
    assert "MLP on digits, 4 classes" in (folder / "summary.md").read_text()


def test_test_images_stand_before_test_scenery(monkeypatch):
    def scenery(name, split):
        assert name == "cifar10"
        value = {"train": 0.0, "test": 1.0}[split]

        def background(categories, *, image_size, **_):
            return np.full((len(categories), image_size, image_size, 3), value)

        return background

    monkeypatch.setattr(backgrounds, "scenery", scenery)
    scene_networks._background.cache_clear()
    arguments = scenes.Arguments(scenery="cifar10", smoke=True)
    recipe = scenes.base(arguments, amplitude=1.0, correlation=0.9)(0)
    for split, value in (("train", 0), ("in_domain", 255)):
        scene = scenes.split_of(recipe, split)
        np.testing.assert_array_equal(scene.images[~scene.masks], value)
    scene_networks._background.cache_clear()


@pytest.mark.slow
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
