"""The KL-metric experiment: verdicts on made-up histories, and the smoke run."""

import dataclasses
import json

import numpy as np
import pytest

from experiments import common, kl_metric
from experiments import kl_metric_report as report
from experiments.kl_metric import Arguments
from robjax import storage

SEEDS, EPOCHS = 3, 6


def curves(final_norm, share, final_robust, norm_rises=True):
    """A history in which accuracy, M and the Fisher part rise over the epochs."""
    seeds = 1 + 0.01 * np.arange(SEEDS)[:, None]
    rising = np.linspace(0.1, 1.0, EPOCHS)[None] * seeds
    values = {name: rising for name in report.FOLLOWED}
    return values | {
        "fisher": final_norm * rising,
        "fisher_share": share * np.ones_like(rising) * seeds,
        "fisher_norm": final_norm * (rising if norm_rises else seeds / rising),
        "robust_accuracy": final_robust * rising,
    }


def as_claimed():
    """A history in which everything is as the paper says."""
    followed = {
        "standard": curves(100.0, 2.0, 0.01),
        "madry": curves(1.0, 0.5, 0.5),
        "fisher": curves(1.0, 0.5, 0.5, norm_rises=False),
    }
    final = {name: {"clean": np.ones(SEEDS)} for name in followed}
    return report.History(followed, final, num_classes=10)


def verdicts(history):
    return {claim.statement: claim.verdict for claim in report.judge(history)}


def test_a_history_as_claimed_holds_everywhere():
    assert set(verdicts(as_claimed()).values()) == {common.HELD}


@pytest.mark.parametrize(
    ("objective", "quantity", "change", "statement"),
    [
        ("standard", "metric", lambda v: -v, "M rises with standard accuracy: stand"),
        ("madry", "metric", lambda v: -v, "M rises with standard accuracy: adv"),
        (
            "standard",
            "fisher",
            lambda v: v[:, ::-1],
            "Standard training raises the mean F",
        ),
        ("standard", "robust_accuracy", lambda v: v + 0.2, "Meanwhile"),
        ("madry", "fisher_norm", lambda v: 20 * v, "adversarial (Madry): ‖F‖_F falls"),
        (
            "madry",
            "fisher_share",
            lambda v: 9 * v,
            "adversarial (Madry): so the Fisher",
        ),
        ("fisher", "fisher", lambda v: 200 + v, "Fisher-regularised: the Fisher part"),
        ("fisher", "robust_accuracy", lambda v: 0 * v, "Fisher-regularised: robust"),
        ("fisher", "fisher_norm", lambda v: v[:, ::-1], "Fisher-regularised: strong"),
    ],
)
def test_each_verdict_turns_on_its_own_numbers(objective, quantity, change, statement):
    history = as_claimed()
    history.followed[objective][quantity] = change(
        history.followed[objective][quantity]
    )
    found = verdicts(history)
    (name,) = (name for name in found if name.startswith(statement))
    assert found[name] == common.FAILED


def test_one_seed_decides_nothing():
    history = as_claimed()
    for values in history.followed.values():
        values.update({name: value[:1] for name, value in values.items()})
    assert set(verdicts(history).values()) == {common.UNTESTABLE}


def test_claims_need_only_the_models_that_were_trained():
    history = as_claimed()
    del history.followed["standard"], history.followed["fisher"]
    (claim,) = report.judge(history)
    assert (
        claim.statement
        == "M rises with standard accuracy: adversarial (Madry) training"
    )


def test_the_command_line_changes_the_plan():
    plan = kl_metric.make_plan(
        Arguments(
            dataset="mnist", model="mlp", epochs=2, seeds=5, objectives=("madry",)
        )
    )
    assert (plan.model, plan.fit.epochs, plan.seeds) == ("mlp", 2, 5)
    assert plan.objectives == ("madry",)
    assert plan.eps == kl_metric.PLANS["mnist"].eps
    default = kl_metric.make_plan(Arguments())
    assert default == kl_metric.PLANS["digits"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (Arguments(seeds=0), "seeds"),
        (Arguments(epochs=0), "epochs"),
        (Arguments(objectives=()), "objectives"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        kl_metric.make_plan(arguments)


def test_smoke_run_leaves_everything_and_resumes(tmp_path, capsys):
    trained = ("standard", "madry")
    arguments = Arguments(smoke=True, results=tmp_path, run="one", objectives=trained)
    folder = kl_metric.main(arguments)
    printed = capsys.readouterr().out
    assert printed.startswith("The KL metric") and "Claim:" in printed
    assert str(folder / "figures") in printed
    config = json.loads((folder / "config.json").read_text())["config"]
    assert config["fit"]["epochs"] == 1 and config["dataset"] == "digits"
    lines = storage.load_json_lines(folder / "metrics.jsonl")
    followed = {(line["objective"], line["seed"], line["epoch"]) for line in lines}
    assert followed == {(o, 0, e) for o in trained for e in (0, 1)}
    for line in lines:
        parts = sum(line[part] for part in report.PARTS)
        assert parts == pytest.approx(line["metric"], rel=1e-4)
        # the smoke model is linear
        assert abs(line["network"]) < 1e-4 * line["metric"]
    assert "not testable" in (folder / "summary.md").read_text()
    assert len(list((folder / "figures").glob("*.png"))) == 4
    with np.load(folder / "madry-0" / "robustness.npz") as table:
        assert table["label"].shape == table["PGD-20/robust"].shape == (40,)

    with pytest.raises(ValueError, match="resume"):
        kl_metric.main(arguments)
    # a model that is lost is trained again, to the same numbers
    (folder / "madry-0" / "robustness.npz").unlink()
    latest = dataclasses.replace(arguments, run=None, resume=True)
    before = (folder / "metrics.jsonl").read_text()
    assert kl_metric.main(latest) == folder
    assert (folder / "metrics.jsonl").read_text() == before


def test_resuming_needs_a_run(tmp_path):
    with pytest.raises(ValueError, match="resume"):
        kl_metric.main(Arguments(smoke=True, results=tmp_path, resume=True))
