"""Robustness against accuracy: verdicts on made-up numbers, and smoke runs."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import (
    common,
    gaussian_tradeoff,
    linear_features,
    mlps,
    sample_size,
    transfer,
)
from experiments.gaussian_tradeoff import RADII, Accuracies
from experiments.transfer import Transfer
from robjax import models
from robjax.balls import L2
from robjax.theory import gaussian
from robjax.training.linear import LinearClassifier

SEEDS = 3
NOISE = 1e-4 * np.arange(SEEDS)
MLP = models.MLP(2, widths=(4,))


def verdicts(claims):
    return {claim.statement: claim.verdict for claim in claims}


def accuracies(**changes):
    """Models as Theorem 2.2 says."""
    shape = SEEDS, len(RADII)
    robust = np.full(shape, 0.95)
    robust[:, : RADII.index(gaussian_tradeoff.ETA)] = 0.001
    values = {
        "standard": np.where(robust > 0.5, 0.95, 0.999),
        "erased": np.full(shape, 0.9),
        "attacked": robust,
        "shifted": robust,
        "slack": np.full(shape, 0.01),
    }
    return Accuracies(**(values | changes))


def test_models_as_the_theorems_say_hold_everywhere():
    weights = np.zeros((SEEDS, len(RADII)), int)
    claims = gaussian_tradeoff.judge(accuracies(), weights, accuracies())
    assert set(verdicts(claims).values()) == {common.HELD}


@pytest.mark.parametrize(
    ("changes", "failing"),
    [
        ({"slack": np.full((SEEDS, len(RADII)), -0.01)}, "Theorem 2.1 binds every MLP"),
        ({"erased": np.full((SEEDS, len(RADII)), 0.96)}, "No model beats p"),
        (
            {"standard": np.full((SEEDS, len(RADII)), 0.95)},
            "MLP, standard training: ac",
        ),
        (
            {"attacked": np.full((SEEDS, len(RADII)), 0.95)},
            "MLP, standard training: be",
        ),
        ({"attacked": np.full((SEEDS, len(RADII)), 0.0)}, "MLP, trained with 2η ≤ ε"),
    ],
)
def test_each_verdict_on_the_gaussian_model_has_its_own_numbers(changes, failing):
    weights = np.zeros((SEEDS, len(RADII)), int)
    good, bad = accuracies(), accuracies(**changes)
    found = verdicts(gaussian_tradeoff.judge(good, weights, bad))
    failed = [name for name, verdict in found.items() if verdict == common.FAILED]
    assert any(name.startswith(failing) for name in failed)
    assert not any(name.startswith("linear") for name in failed)
    # and the same of linear models
    found = verdicts(gaussian_tradeoff.judge(bad, weights + 1, good))
    failed = [name for name, verdict in found.items() if verdict == common.FAILED]
    linear = failing.replace("every MLP", "every linear").replace("MLP,", "linear,")
    assert any(name.startswith(linear) for name in failed)
    assert not any(name.startswith("MLP") for name in failed)
    assert any("all weights are 0" in name for name in failed)


def test_frequencies_of_a_threshold_give_what_theorem_2_1_leaves_it():
    # sign(x_1 + t) of one weak feature: the table of a linear classifier, from samples
    x, y = gaussian.sample(jax.random.key(0), 100_000, d=1, p=0.9, eta=1.0)
    x, y = np.asarray(x, float), np.asarray(y)
    seen, moved = (x[:, 0] + x[:, 1] - shift * y > 0 for shift in (0, 2))
    table = gaussian_tradeoff.frequencies(
        np.stack([np.append(seen, moved), np.ones(2 * y.size, bool)]),
        np.tile(x[:, 0] > 0, 2),
        np.append(y > 0, y < 0),
    )
    exact = gaussian.linear_table(np.ones(2), eta=1.0)
    # each cell sees all samples of one sign of x_1 and y, before or after the shift
    np.testing.assert_allclose(table[0], exact, atol=4 * np.sqrt(0.25 / 50_000))
    np.testing.assert_array_equal(table[1], np.ones((2, 2)))
    standard, shifted = np.mean(seen == (y > 0)), np.mean(moved == (y > 0))
    slack = gaussian.theorem_bound(standard, 0.9) - shifted
    noise = 4 * np.sqrt(100 * 0.25 / y.size)
    assert gaussian.shift_slack(table, 0.9)[0] == pytest.approx(slack, abs=noise)


def test_exact_accuracies_are_in_float64_and_consistent():
    w = np.append(1.0, np.full(gaussian_tradeoff.D, 0.05))
    found = gaussian_tradeoff._exact(w, 0.0)
    bound = gaussian.theorem_bound(found.standard, 0.95)
    np.testing.assert_allclose(bound - found.shifted, found.slack, atol=1e-13)
    assert found.slack > 0
    # every weight has the sign of its feature: the shift is the worst attack
    with jax.enable_x64(True):
        law = {"p": 0.95, "eta": 0.2, "attack_x1": False}
        for eps, value in ((0.2, found.erased), (0.4, found.shifted)):
            worst = gaussian.robust_accuracy(w, eps=eps, **law)
            np.testing.assert_allclose(value, worst, atol=1e-13)


def two_pixels():
    """A test set where looking at both pixels is accurate, at the first one robust."""
    y = np.tile([-1, 1], 50)
    strong = 0.25 * np.ones(100)
    strong[:20], strong[20:40] = -0.25, 0.21
    pixels = 0.5 + y[:, None] * np.stack([strong, 0.06 * np.ones(100)], axis=1)
    return linear_features.Pair(pixels.reshape(100, 2, 1, 1), y)


def classifier(second):
    """w = (1, second), which decides at x = (½, ½)."""
    w = np.array([1.0, second]).reshape(2, 1, 1)
    return LinearClassifier(w, -w.sum() / 2, 0.0, 0.0, 1)


def fits(standard, robust, few):
    radii = (0.05, 0.1, 0.2, 0.3)
    optima = {0.0: classifier(standard)} | {r: classifier(robust) for r in radii[:3]}
    optima[radii[3]] = classifier(0.0)
    seen = {count: classifier(k) for count, k in enumerate(few, 1)}
    correlation = np.array([0.3, 0.15]).reshape(2, 1, 1)
    return linear_features.Fits(radii, optima, classifier(robust), seen, correlation)


def test_linear_features_as_claimed_and_the_other_way_round():
    good = [fits(5.0, 0.1, (0, 1, 2.5, 5))] * SEEDS
    found = linear_features.judge(good, two_pixels(), [True] * SEEDS)
    assert set(verdicts(found).values()) == {common.HELD}
    bad = [fits(0.1, 5.0, (5, 2.5, 1, 0))] * SEEDS
    found = linear_features.judge(bad, two_pixels(), [True, False])
    held = [name for name, verdict in verdicts(found).items() if verdict == common.HELD]
    # the support is that of (1, 5) too, and one pixel less at the largest radius
    assert [name[:16] for name in held] == ["adversarial: no ", "the larger ε, th"]


@pytest.mark.parametrize(
    ("residual", "gap", "verdict"),
    [
        (9e-7, 9e-6, [common.HELD, common.HELD]),
        (2e-6, 9e-6, [common.FAILED, common.HELD]),
        (9e-7, 2e-5, [common.HELD, common.FAILED]),
    ],
)
@pytest.mark.parametrize("place", ["robust", "boxed", "few"])
def test_one_classifier_that_is_not_exact_is_enough(place, residual, gap, verdict):
    good = fits(5.0, 0.1, (0, 1, 2.5, 5))
    rough = classifier(1.0)._replace(residual=residual)
    kept = {"robust": {0.0: rough}, "boxed": rough, "few": {1: rough}}
    bad = good._replace(**{place: kept[place]})
    found = linear_features.certify([good, bad], {"standard": 1e-7, "other": gap})
    assert [claim.verdict for claim in found] == verdict


def test_colours_are_in_proportion_to_the_weights():
    share = np.array([1.0, 0.5, 0.0, -0.25]).reshape(2, 2, 1)
    shown = linear_features.colours(share).reshape(4, 3)
    expected = [[0, 0, 1], [0.5, 0.5, 1], [1, 1, 1], [1, 0.75, 0.75]]
    np.testing.assert_array_equal(shown, expected)


def test_transfer_is_judged_against_noise():
    good = Transfer(0.995 + NOISE, 0.1 + NOISE, 0.9 + NOISE, 0.995 + NOISE)
    images = good._replace(shifted=np.nan * NOISE)
    found = verdicts(transfer.judge({"Gaussian, linear": good, "digits, MLP": images}))
    assert set(found.values()) == {common.HELD}
    bad = good._replace(rates=0.05 + NOISE, shifted=0.98 + NOISE)
    found = verdicts(transfer.judge({"Gaussian, linear": bad, "digits, MLP": bad}))
    assert set(found.values()) == {common.FAILED}
    noisy = good._replace(control=0.999 + NOISE)
    found = verdicts(transfer.judge({"Gaussian, linear": noisy}))
    assert list(found.values()) == [common.HELD, common.FAILED, common.HELD]


def test_the_shift_makes_samples_of_one_class_samples_of_the_other():
    law, count = gaussian_tradeoff.LAW, 2000
    x, signs = gaussian.sample(jax.random.key(0), count, d=20, **law)
    moved = np.asarray(transfer.shift(x, signs))
    np.testing.assert_array_equal(moved[:, 0], x[:, 0])
    # weak features are N(ηy, 1), and then N(−ηy, 1)
    means = np.mean(moved[:, 1:] * np.asarray(signs)[:, None], axis=0)
    np.testing.assert_allclose(means, -law["eta"], atol=5 / np.sqrt(count))
    largest = np.abs(moved - np.asarray(x)).max()
    assert largest == pytest.approx(gaussian_tradeoff.EPS)


@pytest.mark.parametrize(("at", "held"), [(0.3, True), (-0.1, False)])
def test_sample_size_needs_help_at_few_and_harm_at_many(at, held):
    plan = sample_size.PLANS["mnist"]
    falling = np.linspace(at, at - 0.4, len(plan.sizes))  # the gain, in shares
    standard = np.full((SEEDS, len(plan.radii), len(plan.sizes)), 0.5)
    standard += 1e-3 * NOISE[:, None, None]
    for index, radius in enumerate(plan.radii[1:], 1):
        standard[:, index] += falling + 1e-3 * NOISE[:, None] - 0.02 * radius
    robust = np.broadcast_to(np.arange(len(plan.sizes)) / 10, standard.shape)
    found = verdicts(sample_size.judge(plan, standard, robust))
    crossing = next(name for name in found if name.startswith("for some"))
    assert (found[crossing] == common.HELD) == held
    assert found["the larger ε, the earlier it turns, in every seed"] == (
        common.HELD if held else common.FAILED
    )


def test_what_is_kept_of_another_plan_is_not_used(tmp_path, monkeypatch):
    plan = sample_size.PLANS["digits"]._replace(sizes=(50,))
    arguments = sample_size.Arguments(seeds=1)
    done = []

    def of_size(size, seeds, *rest):
        done.append(size)
        return np.zeros((len(seeds), 2, len(plan.radii)))

    monkeypatch.setattr(sample_size, "_of_size", of_size)
    other = plan._replace(tested=plan.radii[1])
    for used, count in ((plan, 1), (plan, 1), (other, 2), (plan, 2)):
        monkeypatch.setitem(sample_size.PLANS, "digits", used)
        sample_size.measure(arguments, tmp_path)
        assert len(done) == count
    name = f"50-0-1000-0_0.2_0.6_1-{plan.tested:g}.npz"
    assert (tmp_path / name).exists()


def test_where_the_gain_turns():
    sizes = (10, 100, 1000)
    turn = sample_size._turn(sizes, np.array([0.1, 0.1, -0.1]))
    assert turn == pytest.approx(np.sqrt(100 * 1000))
    assert sample_size._turn(sizes, np.array([0.1, -0.1, 0.1])) == np.inf
    assert sample_size._turn(sizes, np.array([-0.1, -0.1, -0.1])) == 10
    assert sample_size._falling(np.array([np.inf, np.inf, 50.0, 20.0]))
    assert not sample_size._falling(np.array([50.0, np.inf, 20.0]))
    assert not sample_size._falling(np.array([np.inf, np.inf]))


def test_networks_trained_side_by_side_are_those_trained_alone():
    x = jax.random.uniform(jax.random.key(0), (40, 3, 3, 1))
    y = (x[:, 0, 0, 0] > 0.5).astype(int)
    rows, eps = jnp.arange(40).reshape(2, 20), jnp.array([0.0, 0.3])
    run = {
        "model": MLP,
        "ball": L2,
        "steps": 200,
        "batch_size": 8,
        "learning_rate": 0.05,
    }
    counts = jnp.array([20, 15])
    both = mlps.train(x, y, rows, counts, eps, jnp.array([5, 6]), **run)
    for i in range(2):
        alone = mlps.train(
            x,
            y,
            rows[i : i + 1],
            counts[i : i + 1],
            eps[i : i + 1],
            jnp.array([5 + i]),
            **run,
        )
        for one, many in zip(
            jax.tree.leaves(alone), jax.tree.leaves(both), strict=True
        ):
            np.testing.assert_allclose(one[0], many[i], atol=1e-4)
    # it learns what it sees, and sees only its rows, as many of them as it should
    right = np.asarray(mlps.predictions(both, x, model=MLP)) == np.asarray(y)[None]
    assert right[0, :20].mean() > 0.9
    nowhere = x.at[20:30].set(jnp.nan).at[35:].set(jnp.nan)
    again = mlps.train(nowhere, y, rows, counts, eps, jnp.array([5, 6]), **run)
    assert np.isfinite(jax.tree.leaves(again)[0][0]).all()
    assert any(np.isnan(leaf[1]).any() for leaf in jax.tree.leaves(again))
    unseen = x.at[35:].set(jnp.nan)
    again = mlps.train(unseen, y, rows, counts, eps, jnp.array([5, 6]), **run)
    assert np.isfinite(jax.tree.leaves(again)[0]).all()


def summary(folder):
    claims = json.loads((folder / "claims.json").read_text())["claims"]
    assert (folder / "summary.md").exists()
    assert list((folder / "figures").glob("*.png"))
    return {claim["statement"]: claim["verdict"] for claim in claims}


@pytest.mark.parametrize(
    "experiment",
    [
        gaussian_tradeoff,
        pytest.param(transfer, marks=pytest.mark.slow),
        pytest.param(sample_size, marks=pytest.mark.slow),
    ],
)
def test_smoke(experiment, tmp_path, capsys):
    folder = experiment.main(experiment.Arguments(smoke=True, results=tmp_path))
    assert common.UNTESTABLE in summary(folder).values()
    printed = capsys.readouterr().out
    assert "Claim:" in printed and "Cost:" in printed


@pytest.mark.parametrize(
    "experiment", [gaussian_tradeoff, transfer, sample_size, linear_features]
)
def test_no_seeds_are_named(experiment, tmp_path):
    with pytest.raises(ValueError, match="seeds must be a whole number"):
        experiment.main(experiment.Arguments(seeds=0, results=tmp_path))


def test_smoke_of_linear_features_is_exact(tmp_path):
    arguments = linear_features.Arguments(smoke=True, results=tmp_path)
    found = summary(linear_features.main(arguments))
    assert any(verdict == common.HELD for verdict in found.values())
    table = (
        tmp_path / "smoke" / "linear_features" / "digits" / "summary.md"
    ).read_text()
    assert "PGD-1000" in table
    for words in ("every classifier is the optimum", "the exact worst case"):
        (claim,) = (name for name in found if name.startswith(words))
        assert found[claim] == common.HELD
