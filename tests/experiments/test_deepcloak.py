"""DeepCloak: verdicts on made-up accuracies, and a smoke run."""

import numpy as np
import pytest

from experiments import common, deepcloak
from experiments.deepcloak import ADAPTIVE, APGD, CLEAN, PGD, PGD_TRANSFER, TRANSFER
from robjax import attacks
from tests.experiments.test_tradeoff import SEEDS, summary, verdicts

SHARES = np.array(deepcloak.SHARES)
NOISE = 1e-4 * np.arange(SEEDS)[:, None]


def accuracies(**slopes):
    """Accuracies that change with the masked share by so many points a per cent."""
    names = dict.fromkeys(deepcloak.IMAGES, 0.0) | slopes
    return {name: 0.5 + slope * SHARES / 100 + NOISE for name, slope in names.items()}


def judged(**slopes):
    chosen = accuracies(**slopes)
    found = {deepcloak.BY_SCORE: chosen, deepcloak.AT_RANDOM: accuracies()}
    return verdicts(deepcloak.judge(found))


def test_everything_holds_where_transfer_gains_and_nothing_else_does():
    found = judged(**{TRANSFER: 11.0, PGD_TRANSFER: 1.0, CLEAN: -1.0})
    assert set(found.values()) == {common.HELD}
    assert len(found) == 9


@pytest.mark.parametrize(
    ("name", "slope", "failing"),
    [
        (TRANSFER, 1.0, ["the paper's gain"]),
        (
            TRANSFER,
            0.0,
            [
                "the paper's gain",
                "5 % masked by",
                "10 % masked by",
                "10 % masked: FGSM",
            ],
        ),
        (PGD_TRANSFER, -1.0, ["10 % masked: PGD"]),
        (CLEAN, 0.1, ["10 % masked: clean"]),
        (ADAPTIVE, 0.1, ["an attack that knows"]),
        (PGD, 0.1, ["an attack that knows"]),
        (APGD, 0.1, ["an attack that knows"]),
    ],
)
def test_each_verdict_has_its_own_numbers(name, slope, failing):
    good = {TRANSFER: 11.0, PGD_TRANSFER: 1.0, CLEAN: -1.0}
    found = judged(**(good | {name: slope}))
    failed = [words for words, verdict in found.items() if verdict == common.FAILED]
    assert len(failed) == len(failing)
    for words, start in zip(failed, failing, strict=True):
        assert words.startswith(start)


@pytest.mark.slow
def test_a_smoke_run_leaves_claims_and_a_figure(tmp_path, monkeypatch):
    monkeypatch.setattr(attacks, "apgd", attacks.fgsm)  # it takes long to compile
    arguments = deepcloak.Arguments(results=tmp_path, seeds=1, smoke=True)
    folder = deepcloak.run(arguments)
    assert set(summary(folder).values()) == {common.UNTESTABLE}
    assert [file.name for file in (folder / "figures").glob("*.png")] == [
        "deepcloak.png"
    ]
