"""Accuracies of groups, gaps and mapped classes, against NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from robjax.metrics import spurious

GROUPS = st.lists(
    st.tuples(st.booleans(), st.integers(0, 3)), min_size=1, max_size=40
).map(lambda rows: tuple(np.array(column) for column in zip(*rows, strict=True)))


@settings(max_examples=8)
@given(GROUPS)
def test_group_accuracies_recompose_to_the_mean(rows):
    correct, groups = rows
    found = spurious.group_accuracies(correct, groups, num_groups=4)
    for group in range(4):
        own = correct[groups == group]
        assert found.images[group] == len(own)
        if len(own):
            assert found.accuracy[group] == pytest.approx(own.mean(), abs=1e-6)
        if len(own) > 1:
            stderr = own.std(ddof=1) / np.sqrt(len(own))
            assert found.stderr[group] == pytest.approx(stderr, abs=1e-6)
    average = spurious.reweighted_accuracy(correct, groups, found.images)
    assert average.value == pytest.approx(correct.mean(), abs=1e-6)
    worst = spurious.worst_group_accuracy(correct, groups, num_groups=4)
    assert worst.value == np.nanmin(found.accuracy)


def test_reweighting_by_hand():
    correct = [1, 1, 0, 1, 0, 0]
    groups = [0, 0, 0, 1, 1, 2]
    found = spurious.reweighted_accuracy(correct, groups, [0.6, 0.4, 0.0])
    assert found.value == pytest.approx(0.6 * 2 / 3 + 0.4 / 2, abs=1e-6)
    parts = np.hypot(0.6 * np.sqrt(2 / 9 / 2), 0.4 * np.sqrt(1 / 4))
    assert found.stderr == pytest.approx(parts, abs=1e-6)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: spurious.group_accuracies([[1]], [0]), "correct must have"),
        (lambda: spurious.group_accuracies([2], [0]), "correct must be finite and in"),
        (lambda: spurious.group_accuracies([1], [-1]), "groups must hold labels"),
        (lambda: spurious.group_accuracies([1], [0, 1]), "groups must have shape"),
        (lambda: spurious.group_accuracies([1], [2], num_groups=2), "groups must hold"),
        (lambda: spurious.reweighted_accuracy([1], [0], [1, 1]), "no images in groups"),
        (lambda: spurious.reweighted_accuracy([1], [0], [0.0]), "shares must be pos"),
        (lambda: spurious.reweighted_accuracy([1], [0], [-1.0]), "shares must be fin"),
        (lambda: spurious.reweighted_accuracy([1], [0], 1.0), r"shares .* shape \[G\]"),
        (lambda: spurious.background_gap([1], [2]), "rand must be finite and in"),
        (
            lambda: spurious.background_gap([1], [1, 0], paired=True),
            r"rand must have the shape of same, \[1\], if paired, got \[2\]",
        ),
        (lambda: spurious.map_classes(lambda x: x, [0.5]), "table must hold whole"),
        (lambda: spurious.map_classes(lambda x: x, [-2]), "table must hold classes"),
        (
            lambda: spurious.map_classes(lambda x: x, [0, 1])(jnp.ones((1, 3))),
            "table must have an entry for each of the 3 outputs",
        ),
    ],
)
def test_groups_and_gaps_name_what_is_wrong(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_the_gap_and_its_standard_errors():
    rng = np.random.default_rng(0)
    same, rand = rng.random(300) < 0.9, rng.random(200) < 0.7
    gap = spurious.background_gap(same, rand)
    assert gap.value == pytest.approx(same.mean() - rand.mean(), abs=1e-6)
    variances = [v.var(ddof=1) / len(v) for v in (same, rand)]
    assert gap.stderr == pytest.approx(np.sqrt(sum(variances)), rel=1e-4)
    paired = spurious.background_gap(same[:200], rand, paired=True)
    difference = same[:200].astype(float) - rand
    assert paired.stderr == pytest.approx(
        difference.std(ddof=1) / np.sqrt(200), rel=1e-4
    )
    assert np.isnan(spurious.background_gap(0.9, 0.8).stderr)


def test_mapped_models_through_the_table():
    table = np.array([2, -1, 0, 0, 1, 2, -1])
    logits = jax.random.normal(jax.random.key(0), (50, 7))
    mapped = spurious.map_classes(lambda x: x, table)(logits)
    assert mapped.shape == (50, 4)
    expected = np.where(table < 0, 3, table)[np.argmax(logits, 1)]
    np.testing.assert_array_equal(np.argmax(mapped, 1), expected)
