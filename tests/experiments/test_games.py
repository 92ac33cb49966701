"""The studies of interactions: verdicts on made-up games."""

import numpy as np
import pytest

from experiments import (
    common,
    disentanglement,
    frequencies,
    games,
    interaction_orders,
    utility_by_order,
)
from experiments.games import GAMES, MEAN_IMAGE, ROBUST, STANDARD
from tests.experiments.test_tradeoff import NOISE, verdicts

ORDERS = np.arange(15)


def table(change, spread, agreement=0.5, single=0.01):
    """A network whose interactions fall by `change` [15] in each of two images."""
    change = np.stack([change, change]) * (1 + spread)
    orders = (15 - ORDERS) * change
    value = orders.sum(1) + single
    game = {
        "mean": np.stack([change, 0 * change]),
        "value": value,
        "empty": 0 * value,
        "single": single + 0 * value,
        "orders": orders,
        "ratios": agreement + spread + 0 * change,
        "means": agreement + spread + 0 * change,
    }
    named = {f"{name}/{k}": v for name in GAMES for k, v in game.items()}
    pairs = np.zeros((2, 15, 16, 16))
    images = np.zeros((2, 2, 8, 8, 1))
    return named | {
        "accepted": 0.5, "accepted, targeted": 0.25, "pairs": pairs, "images": images,
        "grid": (4, 4),
    }  # fmt: skip


def as_claimed():
    """Standard networks lose high orders, robust ones low orders."""
    high, low = np.exp(ORDERS - 14.0), np.exp(-ORDERS / 9)
    return {
        STANDARD: [table(high, spread, agreement=0.4) for spread in NOISE],
        ROBUST: [table(low, spread, agreement=0.6) for spread in NOISE],
    }


def swapped():
    found = as_claimed()
    return {STANDARD: found[ROBUST], ROBUST: found[STANDARD]}


def test_the_share_of_high_orders():
    rows = [table(np.arange(1.0, 16), 0.0)]
    # 11 + … + 15 of 1 + … + 15
    assert interaction_orders.high_share(rows, MEAN_IMAGE) == pytest.approx(65 / 120)
    assert np.flatnonzero(games.high_orders(15)).tolist() == [10, 11, 12, 13, 14]
    assert np.flatnonzero(games.low_orders(15)).tolist() == [0, 1, 2, 3, 4]


def test_verdicts_on_orders():
    for found, verdict in ((as_claimed(), common.HELD), (swapped(), common.FAILED)):
        claims = verdicts(interaction_orders.judge(found))
        for game in GAMES:
            name = f"{game}: the share of |ΔI| at high orders is larger for the"
            assert claims[f"{name} standard network"] == verdict
        assert claims[
            f"{STANDARD}: |ΔI| is larger at high orders than at low ones"
        ] == (verdict)


def test_verdicts_on_the_parts_of_the_utility():
    found = as_claimed()
    assert set(verdicts(utility_by_order.judge(found)).values()) == {common.HELD}
    claims = list(verdicts(utility_by_order.judge(swapped())).values())
    assert claims == [common.HELD, common.FAILED, common.HELD, common.HELD]
    low = np.exp(-ORDERS / 9)
    found[ROBUST] = [table(low, spread, single=50.0) for spread in NOISE]
    claims = list(verdicts(utility_by_order.judge(found)).values())
    assert claims == [common.HELD] * 3 + [common.FAILED]
    found[ROBUST][1][f"{MEAN_IMAGE}/single"][1] += 0.1  # of one image
    claims = list(verdicts(utility_by_order.judge(found)).values())
    assert claims == [common.FAILED, common.HELD, common.HELD, common.FAILED]


def test_verdicts_on_disentanglement():
    held = set(verdicts(disentanglement.judge(as_claimed())).values())
    assert held == {common.HELD}
    failed = set(verdicts(disentanglement.judge(swapped())).values())
    assert failed == {common.FAILED}


@pytest.mark.parametrize(
    ("apart", "contrast", "verdict"), [(5, 1, common.HELD), (0, 3, common.FAILED)]
)
def test_verdicts_on_frequencies(apart, contrast, verdict):
    rng = np.random.default_rng(0)
    normal, adversarial = rng.normal(size=(2, 200, 8, 8, 1))
    orders = rng.normal(size=(2, 200, 15)) + np.reshape([apart, 0], (2, 1, 1))
    images = np.stack([normal, contrast * adversarial])
    rows = [{f"{MEAN_IMAGE}/mean": orders, "images": images}] * 2
    claims = verdicts(frequencies.judge({STANDARD: rows}))
    assert list(claims.values()) == [verdict] * 2
    # means that are `apart`, both variances 1
    assert frequencies.by_order(rows).mean() == pytest.approx(
        apart**2 / 2, rel=0.1, abs=0.1
    )


def test_images_must_be_accepted_for_every_network():
    class Attack:
        def __init__(self, *accepted):
            self.accepted = np.array(accepted)

    both = games._matched([Attack(0, 1, 1, 1), Attack(1, 1, 0, 1)], 5)
    assert both.tolist() == [1, 3]
    with pytest.raises(ValueError, match="no image was accepted"):
        games._matched([Attack(0, 1), Attack(1, 0)], 5)
