"""Smoke runs of the studies that share networks, which are trained once."""

import json

import numpy as np
import pytest

from experiments import (
    attack_iterations,
    common,
    detection,
    disentanglement,
    dropout_cutout,
    frequencies,
    interaction_orders,
    kl_metric,
    metric_vs_accuracy,
    networks,
    nonlinearity,
    other_classes,
    rank_reduction,
    recoverability,
    saliency,
    study,
    utility_by_order,
)
from robjax.runs import files
from tests.experiments.test_tradeoff import summary


@pytest.fixture(scope="module")
def smoke(tmp_path_factory):
    """The arguments of all runs; a network is trained by the first that needs it."""
    return study.Arguments(smoke=True, results=tmp_path_factory.mktemp("results"))


def test_smoke_runs_leave_everything_and_train_each_network_once(smoke, capsys):
    results = smoke.results / "smoke"
    folder = study.run(kl_metric.STUDY, smoke)
    printed = capsys.readouterr().out
    assert printed.startswith("The KL metric") and "Claim:" in printed
    assert str(folder / "figures") in printed
    assert "not testable" in (folder / "summary.md").read_text()
    assert len(list((folder / "figures").glob("*.png"))) == 9
    claims = json.loads((folder / "claims.json").read_text())
    assert len(claims["networks"]) == 3
    for name in claims["networks"]:
        network = results / "networks" / name
        config = json.loads((network / "config.json").read_text())["config"]
        assert config["fit"]["epochs"] == 1 and config["dataset"] == "digits"
        lines = files.load_json_lines(network / "metrics.jsonl")
        assert [line["epoch"] for line in lines] == [0, 1]
        for line in lines:
            parts = sum(line[part] for part in networks.PARTS)
            assert parts == pytest.approx(line["metric"], rel=1e-4)
            # the smoke model is linear
            assert abs(line["network"]) < 1e-4 * line["metric"]
        table = files.load_npz(network / "robustness.npz")
        assert table["label"].shape == table["PGD-20/robust"].shape == (40,)
        # the linearised margin of a linear model is its distance, but for the box
        samples = files.load_npz(network / "samples.npz")
        right = samples["correct"]
        assert (
            samples["ddn"][right] >= 0.999 * samples["linear_distance"][right]
        ).all()

    # another study finds them, and one that is lost is trained again, to the same
    lost = results / "networks" / claims["networks"][1] / "robustness.npz"
    before = files.load_npz(lost)
    lost.unlink()
    study.run(metric_vs_accuracy.STUDY, smoke)
    printed = capsys.readouterr().out
    assert "of which 1 are still to be trained" in printed
    after = files.load_npz(lost)
    for name, values in before.items():
        np.testing.assert_array_equal(after[name], values)

    folder = study.run(nonlinearity.STUDY, smoke)
    assert (folder / "figures" / "nonlinearity.png").exists()
    assert (folder / "figures" / "parts.png").exists()
    record = json.loads((folder / "claims.json").read_text())
    names = record["networks"]
    assert len(names) == 10 and len(set(names)) == 2  # the smoke model is always linear
    verdicts = [claim["verdict"] for claim in record["claims"]]
    assert verdicts.count(common.HELD) == 2  # no network part, in both trainings
    for name in set(names):
        stored = files.load_npz(results / "networks" / name / "metric.npz")
        parts = sum(stored[part] for part in networks.PARTS)
        assert parts == pytest.approx(stored["metric"], rel=1e-5)
        assert stored["metric"] > 0

    # what is stored is not measured again
    (recipe, *_), *_ = study.recipes(nonlinearity.STUDY, smoke).values()
    stored = recipe.folder(results) / "metric.npz"
    files.save_npz(stored, {"metric": 7.0})
    assert networks.final_metric(recipe, results) == {"metric": 7.0}


def test_smoke_of_the_studies_of_games(smoke, capsys):
    folder = study.run(interaction_orders.STUDY, smoke)
    assert len(summary(folder)) == 8
    assert len(list((folder / "figures").glob("*.png"))) == 5
    assert "Accepted for both" in (folder / "summary.md").read_text()
    assert "played digits-0" in capsys.readouterr().out

    folder = study.run(utility_by_order.STUDY, smoke)
    found = json.loads((folder / "claims.json").read_text())["claims"]
    assert found[0]["verdict"] == common.HELD  # the parts add up, in float32
    folder = study.run(disentanglement.STUDY, smoke)
    assert len(summary(folder)) == 4
    folder = study.run(frequencies.STUDY, smoke)
    assert len(summary(folder)) == 4
    assert len(list((folder / "figures").glob("*.png"))) == 2
    assert "played digits-0" not in capsys.readouterr().out


CLAIMS = {
    rank_reduction: 12,
    other_classes: 6,
    dropout_cutout: 4,
    recoverability: 3,
    detection: 13,
    attack_iterations: 3,  # of 8 players, orders 5 and 6 are high
}


@pytest.mark.slow
def test_smoke_of_corrections(smoke):
    for module, claims in CLAIMS.items():
        folder = study.run(module.STUDY, smoke)
        assert folder.parent.name == module.__name__.split(".")[-1]
        assert len(summary(folder)) == claims
        assert len(list((folder / "figures").glob("*.svg"))) == 1


@pytest.mark.slow
def test_smoke_of_saliency(smoke):
    folder = study.run(saliency.STUDY, smoke)
    assert len(summary(folder)) == 12
    for norm, radius in (("l2", "L2 ε = 1.6"), ("linf", "L∞ ε = 0.3")):
        picture = folder / "figures" / f"large_eps_{norm}.svg"
        assert radius in picture.read_text()
