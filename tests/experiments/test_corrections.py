"""Studies of what attacks change and what undoes them: made-up numbers."""

import numpy as np
import pytest
from jax.tree_util import Partial

from experiments import (
    attack_iterations,
    common,
    detection,
    dropout_cutout,
    other_classes,
    rank_reduction,
    recoverability,
)
from experiments.games import ROBUST, STANDARD
from tests.experiments.test_tradeoff import NOISE, verdicts


def test_dropout_against_cutout():
    def rows(*rates):
        names = (*dropout_cutout.DROPOUT.values(), dropout_cutout.CUTOUT)
        return [dict(zip(names, np.add(rates, n), strict=True)) for n in NOISE]

    paper = {STANDARD: rows(0.2, 0.3, 0.4, 0.1), ROBUST: rows(0.2, 0.3, 0.4, 0.3)}
    assert set(verdicts(dropout_cutout.judge(paper)).values()) == {common.HELD}
    other = {STANDARD: rows(0.2, 0.4, 0.3, 0.5), ROBUST: rows(0.3, 0.2, 0.4, 0.3)}
    assert set(verdicts(dropout_cutout.judge(other)).values()) == {common.FAILED}


def test_right_after_is_the_share_of_draws():
    x = np.array([[1.0, 0.0], [0.0, 1.0]])
    flips = iter(range(dropout_cutout.DRAWS))

    def change(x, key):
        return x if next(flips) < 3 else x[:, ::-1]

    identity = Partial(lambda x: x)
    kept = dropout_cutout._right_after(identity, change, x, np.array([0, 0]))
    np.testing.assert_allclose(kept, [0.3, 0.7])


def test_the_way_back_against_the_way_there():
    def rows(there, back):
        return [
            {"attacked": there, "led back": back + n, "returned": 1.0} for n in NOISE
        ]

    paper = {STANDARD: rows(1.0, 1.5), ROBUST: rows(2.0, 1.5)}
    assert set(verdicts(recoverability.judge(paper)).values()) == {common.HELD}
    other = {STANDARD: rows(2.0, 1.5), ROBUST: rows(1.0, 1.5)}
    assert set(verdicts(recoverability.judge(other)).values()) == {common.FAILED}


def test_detection_is_better_than_chance():
    def rows(area):
        return [dict.fromkeys(detection.NAMES, area + n) for n in NOISE]

    found = detection.judge({STANDARD: rows(0.9), ROBUST: rows(0.7)})
    assert set(verdicts(found).values()) == {common.HELD}
    found = detection.judge({STANDARD: rows(0.4), ROBUST: rows(0.45)})
    assert set(verdicts(found).values()) == {common.FAILED}


@pytest.mark.parametrize(
    ("growth", "verdict"),
    [
        ([4.0, 8, 16, 32], common.HELD),
        ([32.0, 16, 8, 4], common.FAILED),
        ([0.0, 0, 0, 0], common.FAILED),
    ],
)
def test_growth_with_the_iterations(growth, verdict):
    change = np.outer(growth, np.ones(15))
    rows = [change * (1 + n) for n in NOISE]
    claims = attack_iterations.judge({STANDARD: rows})
    assert claims[0].verdict == verdict
    pearson = [claim.verdict for claim in claims[1:]]
    constant = not any(growth)
    assert pearson == [common.UNTESTABLE if constant else verdict] * 5


HIGH = np.arange(15) >= 10


@pytest.mark.parametrize(
    ("normal", "adversarial", "verdict"), [(1, 3, common.HELD), (-1, -3, common.FAILED)]
)
def test_what_rank_reduction_adds(normal, adversarial, verdict):
    cut = np.reshape([0, 1, 2], (1, 3, 1))
    added = np.reshape([normal, adversarial], (2, 1, 1)) * cut * HIGH
    rows = [added * (1 + n) for n in NOISE]
    claims = verdicts(rank_reduction.judge({STANDARD: rows}))
    # low orders do not change at all, whatever high orders do
    assert list(claims.values()) == [verdict, verdict, common.HELD] * 2


@pytest.mark.parametrize(
    ("sign", "verdict"), [(1, common.HELD), (-1, common.FAILED), (0, common.FAILED)]
)
def test_signs_for_the_label_and_for_others(sign, verdict):
    names = other_classes.LABEL, other_classes.FOUND, other_classes.OTHERS
    signs = dict(zip(names, (-sign, sign, sign), strict=True))
    rows = [{k: v * HIGH * (1 + n) for k, v in signs.items()} for n in NOISE]
    claims = verdicts(other_classes.judge({STANDARD: rows}))
    assert list(claims.values()) == [verdict] * 3
