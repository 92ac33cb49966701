"""The embedded digits, own arrays and subsets."""

import numpy as np
import pytest
from sklearn.datasets import load_digits

from robjax import data


def multiset(images, labels):
    flat = np.concatenate([images.reshape(len(labels), -1), labels[:, None]], axis=1)
    return flat[np.lexsort(flat.T)]


def test_digits_are_those_of_scikit_learn():
    train, test = data.load("digits", "train"), data.load("digits", "test")
    assert train.images.shape == (1437, 8, 8, 1) and test.images.shape == (360, 8, 8, 1)
    assert train.images.dtype == np.uint8 and train.labels.dtype == np.int32
    assert (train.num_classes, train.scale, train.name) == (10, 16.0, "digits")
    pixels, labels = load_digits(return_X_y=True)
    ours = multiset(
        np.concatenate([train.images, test.images]),
        np.concatenate([train.labels, test.labels]),
    )
    np.testing.assert_array_equal(ours, multiset(pixels, labels))


def test_digits_are_shuffled_stratified_and_repeatable():
    train, test = data.load("digits", "train"), data.load("digits", "test")
    totals = np.bincount(np.concatenate([train.labels, test.labels]))
    for split, share in ((train, 1437 / 1797), (test, 360 / 1797)):
        assert np.abs(np.bincount(split.labels) - share * totals).max() < 1.5
        # In a random order a neighbour has the same label one time in ten.
        same = (split.labels[1:] == split.labels[:-1]).mean()
        assert abs(same - 0.1) < 5 * np.sqrt(0.09 / len(split.labels))
    again = data.load("digits", "test")
    np.testing.assert_array_equal(again.images, test.images)
    np.testing.assert_array_equal(again.labels, test.labels)


def test_digits_has_two_splits():
    with pytest.raises(ValueError, match="split of digits .*'validation'"):
        data.load("digits", "validation")


BYTES = np.arange(4 * 3 * 2 * 1, dtype=np.uint8).reshape(4, 3, 2, 1)
LABELS = np.array([0, 2, 1, 2])


def test_from_arrays_keeps_bytes_and_their_order():
    ours = data.from_arrays(BYTES, LABELS)
    np.testing.assert_array_equal(ours.images, BYTES)
    np.testing.assert_array_equal(ours.labels, LABELS)
    assert ours.images.dtype == np.uint8 and ours.labels.dtype == np.int32
    assert (ours.num_classes, ours.scale) == (3, 255.0)


def test_from_arrays_takes_floats_as_they_are():
    ours = data.from_arrays(BYTES / 23.0, LABELS, num_classes=5)
    assert ours.images.dtype == np.float32
    assert (ours.num_classes, ours.scale) == (5, 1.0)
    np.testing.assert_allclose(
        data.to_float(ours.images, ours.scale), BYTES / 23.0, rtol=1e-6
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"images": BYTES[..., 0]}, "images must be non-empty"),
        ({"images": BYTES[:0], "labels": LABELS[:0]}, "images must be non-empty"),
        ({"images": BYTES.astype(np.int32)}, "images must be uint8 or floating"),
        ({"images": BYTES / 10.0}, "images must lie in"),
        ({"images": BYTES / 23.0 - 0.1}, "images must lie in"),
        ({"images": np.where(BYTES == 3, np.nan, 0.5)}, "images must lie in"),
        ({"scale": 16.0}, "images must lie in"),
        ({"labels": LABELS[:3]}, "labels must be integers of shape"),
        ({"labels": LABELS / 1.0}, "labels must be integers of shape"),
        ({"labels": LABELS - 1}, "labels must lie in 0..1"),
        ({"num_classes": 2}, "labels must lie in 0..1"),
        ({"labels": LABELS * 0}, "num_classes"),
    ],
)
def test_from_arrays_names_what_is_wrong(arguments, message):
    with pytest.raises(ValueError, match=message):
        data.from_arrays(**({"images": BYTES, "labels": LABELS} | arguments))


def test_subset_draws_without_replacement_in_proportion():
    whole = data.load("digits", "train")
    part = data.subset(whole, 100, seed=1)
    assert part.images.shape == (100, 8, 8, 1)
    assert (part.num_classes, part.scale, part.name) == (10, 16.0, "digits")
    shares = 100 * np.bincount(whole.labels) / len(whole.labels)
    assert np.abs(np.bincount(part.labels) - shares).max() < 1.5
    rows = {
        image.tobytes() + bytes([label])
        for image, label in zip(whole.images, whole.labels, strict=True)
    }
    assert len(rows) == len(whole.labels)
    drawn = [
        image.tobytes() + bytes([label])
        for image, label in zip(part.images, part.labels, strict=True)
    ]
    assert len(set(drawn)) == 100 and set(drawn) <= rows
    other = data.subset(whole, 100, seed=2)
    assert not np.array_equal(other.images, part.images)


@pytest.mark.parametrize("size", [0, 361, 2.5])
def test_subset_size_is_checked(size):
    with pytest.raises(ValueError, match="size must be"):
        data.subset(data.load("digits", "test"), size)
