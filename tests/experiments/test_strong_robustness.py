"""Unnecessary features and the four cases: verdicts on made-up numbers, smoke runs."""

import numpy as np
import pytest
import scipy.stats

from experiments import common, feature_space_cases, unnecessary_feature
from experiments.feature_space_cases import Case, Network
from experiments.unnecessary_feature import IGNORED, MEAN, RADII, Row
from tests.experiments.test_tradeoff import NOISE, summary, verdicts

EXACT = scipy.stats.norm.cdf(MEAN - np.array(RADII))


def toy(used=0.0, flipped=0.0):
    """Rows as claimed, but for the worst case of the used and flips of the unused."""
    agreement = np.full(len(IGNORED), 0.995)
    unused = [Row(EXACT[0] + n, EXACT, agreement, 0.0, np.nan, flipped) for n in NOISE]
    worst = np.full(len(RADII), used)
    ruined = [Row(EXACT[0], worst, agreement, 1e-7, 3.0, 1.0) for _ in NOISE]
    return {0.0: unused, 0.1: ruined}


def trained(slope=1.0, flipped=1.0):
    return {
        (n, 1): [Row(0.97, EXACT[:1], (), 1e-7, n**slope + e, flipped) for e in NOISE]
        for n in unnecessary_feature.SIZES
    }


@pytest.mark.parametrize(
    ("changes", "failing"),
    [
        ({}, ["the features alone decide", "random pairs"]),
        ({"used": 0.1}, ["with it the worst-case", "the features", "random pairs"]),
        ({"flipped": 0.1}, ["with the feature there", "the features", "random pairs"]),
        ({"slope": -1.0}, ["the features", "random pairs", "with 1 noise"]),
        ({"share": 0.9}, ["the features", "random pairs", "logistic"]),
    ],
)
def test_an_unnecessary_feature_is_judged_by_its_own_numbers(changes, failing):
    rows = toy(changes.get("used", 0.0), changes.get("flipped", 0.0))
    fits = trained(changes.get("slope", 1.0), changes.get("share", 1.0))
    found = verdicts(unnecessary_feature.judge(rows, fits, 2000))
    failed = [claim for claim, verdict in found.items() if verdict == common.FAILED]
    assert len(failed) == len(failing)
    for claim, start in zip(failed, failing, strict=True):
        assert claim.startswith(start)


def cases(**changes):
    flips = {"I": 1.0, "II": 1.0, "III": 0.0, "IV": 0.0} | changes
    right = {"I": 0.7, "II": 1.0, "III": 1.0, "IV": 0.7}
    return {
        name: [Case(name, right[name], (0.0, 0.0), share, 0.0) for _ in NOISE]
        for name, share in flips.items()
    }


def networks(distance=1e-7, seen=0.0, random=0.9):
    every = [
        Network(0.97 + n, (0.1, 0.0), 0.9, distance, 2.0, random - n, 0.6 + n, {})
        for n in NOISE
    ]
    blind = [
        Network(0.965, (0.9, 0.5 + n), seen, 0.0, 0.0, 1.0, 0.0, {}) for n in NOISE
    ]
    return dict(zip(feature_space_cases.TITLES, (every, blind), strict=True))


@pytest.mark.parametrize(
    ("table", "found", "failing"),
    [
        (cases(), networks(), []),
        (cases(II=0.5), networks(), ["case II:"]),
        (cases(IV=0.1), networks(), ["case IV:"]),
        (cases(), networks(distance=1e-5), ["d₂' of these flips"]),
        (cases(), networks(seen=0.1), ["network on the oracle's"]),
        (cases(), networks(random=0.995), ["random pairs"]),
    ],
)
def test_cases_and_networks_are_judged_by_their_own_numbers(table, found, failing):
    claims = verdicts(feature_space_cases.judge(table, found, 0.3))
    failed = [claim for claim, verdict in claims.items() if verdict == common.FAILED]
    wrong = [claim for claim in failed if not claim.startswith("in cases I and II")]
    assert len(wrong) == len(failing) and len(failed) == len(failing) + 1
    for claim, start in zip(wrong, failing, strict=True):
        assert claim.startswith(start)


def test_smoke_of_the_unnecessary_feature(tmp_path):
    arguments = unnecessary_feature.Arguments(smoke=True, seeds=2, results=tmp_path)
    found = summary(unnecessary_feature.main(arguments))
    assert len(found) == 8
    exact = [claim for claim in found if "weight 0, nothing" in claim or "at every" in
             claim or "logistic" in claim]  # fmt: skip
    assert {found[claim] for claim in exact} == {common.HELD} and len(exact) == 3


@pytest.mark.slow
def test_smoke_of_the_cases(tmp_path):
    arguments = feature_space_cases.Arguments(smoke=True, seeds=1, results=tmp_path)
    folder = feature_space_cases.main(arguments)
    found = summary(folder)
    held = [claim for claim, verdict in found.items() if verdict == common.HELD]
    assert {f"case {name}" for name in feature_space_cases.MAPS} == {
        claim.partition(":")[0] for claim in held if claim.startswith("case")
    }
    assert found[next(claim for claim in found if claim.startswith("network on the"))] \
        == common.HELD  # fmt: skip
    assert (folder / "figures" / "directions.png").exists()
