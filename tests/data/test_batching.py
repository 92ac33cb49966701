"""Orders, splits and batches."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from robjax import data
from robjax.data.batching import random_order, stratified_split

SEEDS = st.integers(0, 2**31)


@given(size=st.integers(1, 200), batch=st.integers(1, 200), seed=SEEDS, epoch=SEEDS)
def test_an_epoch_visits_every_example_at_most_once(size, batch, seed, epoch):
    batch = min(batch, size)
    rows = data.batch_indices(size, batch, seed=seed, epoch=epoch)
    assert rows.shape == (size // batch, batch)
    assert rows.min() >= 0 and rows.max() < size
    assert len(np.unique(rows)) == rows.size
    again = data.batch_indices(size, batch, seed=seed, epoch=epoch)
    np.testing.assert_array_equal(rows, again)


def test_epochs_and_seeds_have_orders_of_their_own():
    orders = [
        data.batch_indices(1000, 1000, seed=seed, epoch=epoch)[0]
        for seed, epoch in [(0, 0), (0, 1), (1, 0), (1, 1)]
    ]
    for i, first in enumerate(orders):
        for second in orders[:i]:
            # Two random permutations agree in one place on average (Poisson).
            assert (first == second).sum() < 10


def test_random_order_is_uniform():
    """Each of 24 orders of 4 things has probability 1/24: chi-square, 23 d.o.f."""
    draws = 4800
    orders = [tuple(random_order(4, seed=seed)) for seed in range(draws)]
    _, counts = np.unique(orders, axis=0, return_counts=True)
    assert len(counts) == 24
    expected = draws / 24
    # Mean 23, standard deviation √46.
    assert ((counts - expected) ** 2 / expected).sum() < 23 + 5 * np.sqrt(46)


@given(
    labels=st.lists(st.integers(0, 4), min_size=1, max_size=60).map(np.array),
    fraction=st.floats(0, 1),
    seed=SEEDS,
)
def test_stratified_split_keeps_proportions(labels, fraction, seed):
    size = int(fraction * len(labels))
    first, rest = stratified_split(labels, size, seed=seed)
    assert len(first) == size
    both = np.sort(np.concatenate([first, rest]))
    np.testing.assert_array_equal(both, np.arange(len(labels)))
    classes, totals = np.unique(labels, return_counts=True)
    for label, total in zip(classes, totals, strict=True):
        share = total / len(labels)
        count = (labels[first] == label).sum()
        # At the quantile t of the cut, |count − t·total| <= ½ for every class; the
        # sum over classes bounds |size − t·N|.
        assert abs(count - size * share) <= 0.5 + 0.5 * len(classes) * share + 1e-9


def test_stratified_split_of_equal_classes_is_exact():
    labels = np.repeat(np.arange(10), 30)
    first, rest = stratified_split(labels, 100, seed=3)
    np.testing.assert_array_equal(np.bincount(labels[first]), [10] * 10)
    np.testing.assert_array_equal(np.bincount(labels[rest]), [20] * 10)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": 11}, "batch_size must be 1 to 10"),
        ({"batch_size": 0}, "batch_size"),
        ({"num_examples": 0}, "num_examples"),
        ({"seed": -1}, "seed"),
        ({"epoch": 1.5}, "epoch"),
    ],
)
def test_bad_arguments_are_named(changes, message):
    arguments = {"num_examples": 10, "batch_size": 2, "seed": 0, "epoch": 0} | changes
    with pytest.raises(ValueError, match=message):
        data.batch_indices(**arguments)


@pytest.mark.parametrize("scale", [16.0, 255.0])
def test_to_float_covers_the_unit_interval(scale):
    pixels = np.arange(int(scale) + 1, dtype=np.uint8)
    exact = pixels / scale
    for convert in (data.to_float, jax.jit(data.to_float, static_argnums=1)):
        scaled = convert(pixels, scale)
        assert scaled.dtype == jnp.float32
        assert scaled.min() == 0 and scaled.max() == 1
        np.testing.assert_allclose(scaled, exact, rtol=2e-7)


@given(
    sizes=st.lists(st.integers(1, 30), min_size=2, max_size=5),
    batch_size=st.integers(1, 8),
    seed=st.integers(0, 5),
    epoch=st.integers(0, 5),
)
def test_balanced_epochs(sizes, batch_size, seed, epoch):
    """Classes are equally frequent, and so are the examples of each."""
    labels = np.repeat(np.arange(len(sizes)) * 2, sizes)  # every other label is absent
    count = len(labels)
    batch_size = min(batch_size, count)
    options = {"seed": seed, "epoch": epoch}
    rows = data.balanced_indices(labels, batch_size, **options)
    np.testing.assert_array_equal(
        rows, data.balanced_indices(labels, batch_size, **options)
    )
    assert rows.shape == (count // batch_size, batch_size)
    whole = data.balanced_indices(labels, 1, **options)[:, 0]
    times = np.bincount(whole, minlength=count)
    for label in np.unique(labels):
        drawn = times[labels == label]
        assert count // len(sizes) <= drawn.sum() <= -(-count // len(sizes))
        assert np.ptp(drawn) <= 1


def test_balanced_epochs_differ():
    labels = np.array([0] * 20 + [1] * 4)
    first, second = (
        data.balanced_indices(labels, 24, seed=0, epoch=epoch)[0] for epoch in (0, 1)
    )
    large = [set(rows[labels[rows] == 0].tolist()) for rows in (first, second)]
    assert large[0] != large[1] and first.tolist() != second.tolist()
