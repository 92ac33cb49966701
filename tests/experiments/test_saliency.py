"""Saliency: verdicts on made-up numbers, and votes on the way."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import common, saliency
from experiments.saliency import Measured
from robjax import data
from tests.experiments.test_tradeoff import NOISE, SEEDS, verdicts


def measured(border, alignment, smoothness, agreement, rise):
    numbers = dict(zip(saliency.NUMBERS, (border, alignment, smoothness), strict=True))
    both = {"L2": agreement, "Linf": agreement}
    return Measured(numbers, both, np.zeros(saliency.POINTS), rise, {}, {})


def test_saliency_compares_within_each_family():
    before = [measured(0.5 + n, 0.1, 0.3, 0.3, 0.2) for n in NOISE]
    after = [measured(0.1, 0.3, 0.5, 0.9, 0.8) for _ in NOISE]
    rows = (before, after, after, before)
    titles = [title for family in saliency.FAMILIES.values() for title in family]
    found = verdicts(saliency.judge(dict(zip(titles, rows, strict=True))))
    for name, verdict in found.items():
        expected = common.HELD if name.startswith("MLP") else common.FAILED
        assert verdict == expected, name


@jax.jit
def stubborn(x):
    """Zeros and ones by the first pixel, by the last one where that is not grey.

    An attack by gradients sees the first one only.
    """
    sure = jax.lax.stop_gradient(jnp.round(x[:, -1, -1, 0] - 0.5, 1))
    score = x[:, 0, 0, 0] - 0.5 + 100 * sure
    return jnp.stack([-score, score, *[jnp.full(len(x), -1e3)] * 8], axis=1)


def digits_of(stuck):
    """Images of noise on which `stubborn` is right; the stuck ones it never leaves."""
    random = np.random.default_rng(0)
    images = random.uniform(0, 0.4, (len(stuck), 8, 8, 1)).astype(np.float32)
    labels = random.integers(0, 2, len(stuck))
    images[:, 0, 0, 0] = np.where(labels == 1, 0.6, 0.4)
    images[:, -1, -1, 0] = np.where(stuck, labels, 0.5)
    return data.from_arrays(images, labels, num_classes=10)


def test_votes_are_those_on_the_way_of_the_images_that_the_attack_turns():
    stuck = np.arange(40) % 4 == 0
    tracked = digits_of(stuck)
    turned = tracked._replace(
        images=tracked.images[~stuck], labels=tracked.labels[~stuck]
    )
    every, some = (
        saliency.measure(stubborn, "digits", (tracked, tracked, rows))
        for rows in (tracked, turned)
    )
    np.testing.assert_allclose(every.votes, some.votes, atol=1e-6)
    assert every.rise == pytest.approx(some.rise)
    assert every.votes[0] < every.votes[-1]


def test_where_the_attack_turns_nothing_there_are_no_votes():
    tracked = digits_of(np.ones(40, bool))
    none = saliency.measure(stubborn, "digits", (tracked, tracked, tracked))
    assert np.isnan(none.votes).all() and np.isnan(none.rise)
    assert none.agreement == {"L2": 0, "Linf": 0}
    titles = [title for family in saliency.FAMILIES.values() for title in family]
    found = saliency.judge({title: [none] * SEEDS for title in titles})
    steady = [claim.verdict for claim in found if "more steadily" in claim.statement]
    assert steady == [common.UNTESTABLE] * 2
