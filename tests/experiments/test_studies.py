"""The studies of the KL metric: verdicts on made-up histories."""

import dataclasses

import numpy as np
import pytest

from experiments import (
    common,
    fisher_vs_robustness,
    kl_metric,
    networks,
    nonlinearity,
    study,
)
from experiments.history import History
from experiments.study import Arguments

SEEDS, EPOCHS = 3, 6
STANDARD, MADRY, FISHER = networks.TITLES.values()


def curves(final_norm, share, final_robust, norm_rises=True):
    """A history in which accuracy, M and the Fisher part rise over the epochs."""
    seeds = 1 + 0.01 * np.arange(SEEDS)[:, None]
    rising = np.linspace(0.1, 1.0, EPOCHS)[None] * seeds
    values = {name: rising for name in networks.FOLLOWED}
    return values | {
        "fisher": final_norm * rising,
        "fisher_share": share * np.ones_like(rising) * seeds,
        "fisher_norm": final_norm * (rising if norm_rises else seeds / rising),
        "robust_accuracy": final_robust * rising,
    }


def samples():
    """Images whose distances fall as their sensitivity rises."""
    count = np.arange(1.0, 20.0)
    falling = {name: 1 / count for name in ("linear_distance", "ddn", "fmn")}
    return {"spectral": count, "correct": count > 0, **falling}


def as_claimed():
    """A history in which everything is as the paper says."""
    followed = {
        STANDARD: curves(100.0, 2.0, 0.01),
        MADRY: curves(1.0, 0.5, 0.5),
        FISHER: curves(1.0, 0.5, 0.5, norm_rises=False),
    }
    tables = {title: [samples() for _ in range(SEEDS)] for title in followed}
    return History(followed, {}, tables, {}, num_classes=10)


def verdicts(history):
    return {c.statement: c.verdict for c in kl_metric.STUDY.judge(history)}


def test_a_history_as_claimed_holds_everywhere():
    assert set(verdicts(as_claimed()).values()) == {common.HELD}


@pytest.mark.parametrize(
    ("title", "quantity", "change", "statement"),
    [
        (STANDARD, "metric", lambda v: -v, "M rises with standard accuracy: stand"),
        (MADRY, "metric", lambda v: -v, "M rises with standard accuracy: adv"),
        (STANDARD, "fisher", lambda v: v[:, ::-1], "Standard training raises the mean"),
        (STANDARD, "robust_accuracy", lambda v: v + 0.2, "Meanwhile"),
        (MADRY, "fisher_norm", lambda v: 20 * v, "adversarial (Madry): ‖F‖_F falls"),
        (MADRY, "fisher_share", lambda v: 9 * v, "adversarial (Madry): so the Fisher"),
        (FISHER, "fisher", lambda v: 200 + v, "Fisher-regularised: the Fisher part"),
        (FISHER, "robust_accuracy", lambda v: 0 * v, "Fisher-regularised: robust"),
        (FISHER, "fisher_norm", lambda v: v[:, ::-1], "Fisher-regularised: strong"),
    ],
)
def test_each_verdict_turns_on_its_own_numbers(title, quantity, change, statement):
    history = as_claimed()
    history.followed[title][quantity] = change(history.followed[title][quantity])
    found = verdicts(history)
    name = next(name for name in found if name.startswith(statement))
    assert found[name] == common.FAILED


@pytest.mark.parametrize("attack", ["ddn", "fmn"])
def test_the_prediction_turns_on_the_distances_of_what_is_right(attack):
    history = as_claimed()
    for table in history.samples[MADRY]:
        table[attack] = table[attack][::-1]
    found = [c for c in kl_metric.STUDY.judge(history) if c.verdict == common.FAILED]
    assert len(found) == 1 and attack.upper() in found[0].statement
    table = samples() | {"correct": np.arange(19) < 10}
    table[attack] = np.where(np.arange(19) < 10, table[attack], np.inf)
    rho = fisher_vs_robustness.predicted(table, np.negative(table["spectral"]), attack)
    assert rho == pytest.approx(1)


def test_one_seed_decides_nothing():
    history = as_claimed()
    for values in history.followed.values():
        values.update({name: value[:1] for name, value in values.items()})
    for title in history.samples:
        history.samples[title] = [samples()]
    assert set(verdicts(history).values()) == {common.UNTESTABLE}


def from_linear_to_wide():
    """Networks whose accuracy and network part rise, and PGD-20 accuracy falls."""
    spread, accuracies, metric = 0.01 * np.arange(SEEDS), {}, {}
    for i, name in enumerate(nonlinearity.SMALL):
        accuracies[f"{name}, {MADRY}"] = {
            "clean": 0.5 + 0.1 * i + spread,
            "PGD-20": np.full(SEEDS, 0.5 - 0.1 * i),
        }
        network = i + i * spread
        parts = {"fisher": 1 + spread, "softmax": -0.1 - spread, "network": network}
        metric[f"{name}, {MADRY}"] = {**parts, "metric": 0.9 + network}
    return History({}, accuracies, {}, {}, 10, metric)


def test_accuracies_and_network_part_against_the_order_of_the_architectures():
    recorded = from_linear_to_wide()
    found = [claim.verdict for claim in nonlinearity.judge(recorded)]
    assert found == [common.HELD, common.FAILED, common.HELD, common.HELD]
    figures = nonlinearity.draw(recorded)
    assert set(figures) == {"nonlinearity", "parts"}


def test_the_network_part_of_a_purely_linear_network_is_0_in_every_seed():
    recorded = from_linear_to_wide()
    linear = recorded.metric[f"VGG-4 pure linear, {MADRY}"]
    linear["network"][:] = [0.0, -8e-5, 0.0]
    assert nonlinearity.judge(recorded)[-1].verdict == common.HELD
    linear["network"][1] = -1e-3
    assert nonlinearity.judge(recorded)[-1].verdict == common.FAILED
    for values in linear.values():  # a constant network: rounding alone is left
        values[:] = 1e-10
    assert nonlinearity.judge(recorded)[-1].verdict == common.HELD


def test_the_command_line_changes_the_recipes():
    arguments = Arguments(dataset="mnist", epochs=2, seeds=5, train_images=300)
    chosen = study.recipes(kl_metric.STUDY, arguments)
    assert list(chosen) == [STANDARD, MADRY, FISHER]
    recipe = chosen[MADRY][4]
    assert (recipe.fit.epochs, recipe.fit.seed, recipe.train_images) == (2, 4, 300)
    assert recipe.objective == "madry"
    assert recipe.eps == networks.RECIPES["mnist"].eps
    (default, *_) = study.recipes(kl_metric.STUDY, Arguments())[STANDARD]
    assert default == networks.RECIPES["digits"]
    paper = study.recipes(nonlinearity.STUDY, Arguments(dataset="cifar10"))
    assert {row[0].model for row in paper.values()} == set(nonlinearity.PAPER.values())
    assert {row[0].fit.epochs for row in paper.values()} == {10}


def test_the_full_schedule_of_the_paper():
    arguments = Arguments(dataset="cifar10", full=True)
    for row in study.recipes(nonlinearity.STUDY, arguments).values():
        for seed, recipe in enumerate(row):
            fit = recipe.fit
            assert (fit.seed, fit.epochs, fit.batch_size) == (seed, 200, 128)
            rate = fit.optimizer, fit.learning_rate, fit.schedule, fit.milestones
            assert rate == ("sgd", 0.1, "steps", (80, 120))
            assert (fit.momentum, fit.weight_decay) == (0.9, 1e-4)
            assert (fit.pad, fit.flip) == (4, True)
            assert (recipe.dataset, recipe.eps) == ("cifar10", 8 / 255)
            assert recipe.train_images is recipe.test_images is None
    shorter = dataclasses.replace(arguments, epochs=3)
    ((first, *_), *_) = study.recipes(nonlinearity.STUDY, shorter).values()
    assert (first.fit.epochs, first.fit.learning_rate) == (3, 0.1)


def test_studies_share_networks_and_other_recipes_do_not(tmp_path):
    def folders(chosen, arguments):
        rows = study.recipes(chosen, arguments).values()
        return {recipe.folder(tmp_path) for row in rows for recipe in row}

    everything = folders(kl_metric.STUDY, Arguments())
    for part in kl_metric.PARTS:
        assert folders(part, Arguments()) <= everything
    assert not folders(kl_metric.STUDY, Arguments(epochs=3)) & everything


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (Arguments(seeds=0), "seeds"),
        (Arguments(epochs=0), "epochs"),
        (Arguments(full=True), "full must be False.*digits"),
        (Arguments(dataset="mnist", full=True), "full must be False.*mnist"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        study.recipes(kl_metric.STUDY, arguments)
