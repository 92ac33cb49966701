"""Generated scenes: exact masks, shares, splits, and what they make of the data."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from robjax import data
from robjax.data import backgrounds
from robjax.data.backgrounds import SPLITS, make
from robjax.metrics import spurious

SMALL = functools.partial(make, image_size=12, limit=60)


@pytest.mark.parametrize("split", SPLITS)
def test_every_split_has_the_form_that_it_says(split):
    scenes = make(split, image_size=12, classes=5)
    count = len(scenes.labels)
    assert scenes.images.shape == (count, 12, 12, 3)
    assert scenes.images.dtype == np.uint8
    assert scenes.masks.shape == (count, 12, 12) and scenes.masks.dtype == bool
    assert scenes.backgrounds.shape == (count,)
    source = data.load("digits", "train" if split == "train" else "test")
    np.testing.assert_array_equal(scenes.labels, source.labels[source.labels < 5])
    again = make(split, image_size=12, classes=5)
    np.testing.assert_array_equal(again.images, scenes.images)
    other = make(split, image_size=12, classes=5, seed=1)
    assert (other.images != scenes.images).any()


@pytest.mark.parametrize("background", [backgrounds.stripes, backgrounds.tints])
def test_outside_the_mask_there_is_the_background_alone(background):
    flat = np.full((60, 12, 12, 3), 0.5)

    def known(categories, *, classes, image_size, seed):
        made = background(categories, classes=classes, image_size=image_size, seed=seed)
        assert made.min() >= 0 and made.max() <= 1
        flat[:] = made
        return made

    scenes = SMALL("in_domain", background=known, amplitude=0.6)
    outside = ~scenes.masks
    expected = np.round(255 * np.float32(0.6) * flat.astype(np.float32))
    np.testing.assert_array_equal(scenes.images[outside], expected[outside])
    # inside there is at least a little white: never darker than the background
    assert (scenes.images[scenes.masks] >= expected[scenes.masks] - 1).all()
    assert 0.05 < scenes.masks.mean() < 0.6


def test_the_digit_inside_the_mask_is_the_sources():
    alone = make("only_foreground", image_size=11)  # 3/4 of 11 are the source's 8
    np.testing.assert_array_equal(alone.images.max(-1) > 0, alone.masks)
    np.testing.assert_array_equal(alone.images.min(-1), alone.images.max(-1))
    source = data.load("digits", "test")
    digits = source.images[source.labels < 4, ..., 0] / source.scale
    for image, digit in zip(alone.images[..., 0], digits, strict=True):
        windows = np.lib.stride_tricks.sliding_window_view(image, (8, 8))
        ink = np.round(255 * np.where(digit < 0.2, 0, digit))
        places = (windows == ink).all((2, 3))
        assert places.any() and image.sum() == ink.sum()
    assert not SMALL("only_background").masks.any()


def test_test_splits_show_the_same_digits_at_the_same_places():
    chosen = [s for s in SPLITS if s not in ("train", "only_background")]
    masks = [SMALL(split).masks for split in chosen]
    for mask in masks[1:]:
        np.testing.assert_array_equal(mask, masks[0])


@settings(max_examples=10)
@given(
    correlation=st.floats(0, 1),
    classes=st.integers(2, 10),
    seed=st.integers(0, 2**31),
    split=st.sampled_from(SPLITS[:-1]),
)
def test_categories_have_the_shares_of_the_table(correlation, classes, seed, split):
    labels = np.repeat(np.arange(classes), 50)
    found = backgrounds._categories(split, labels, correlation, classes, seed)
    own = {"mixed_same": 1.0, "mixed_rand": 1 / classes, "decorrelated": 1 / classes}
    share = own.get(split, correlation)
    for label in range(classes):
        expected = np.full(classes, 50 * (1 - share) / (classes - 1))
        expected[label] = 50 * share
        if split == "reversed":
            expected = np.roll(expected, 1)
        counts = np.bincount(found[labels == label], minlength=classes)
        # the rounding of quantiles to images, at both ends of a share
        assert np.abs(counts - expected).max() <= 1 + 1e-9


def test_two_sources_of_draws_are_independent():
    same = SMALL("decorrelated").backgrounds == SMALL("mixed_rand").backgrounds
    assert abs(same.mean() - 0.25) < 5 * np.sqrt(0.25 * 0.75 / 60)


def test_amplitude_is_the_scale_of_the_background():
    full, half, none = (SMALL("in_domain", amplitude=a) for a in (1.0, 0.5, 0.0))
    outside = ~full.masks
    np.testing.assert_allclose(
        half.images[outside], full.images[outside] / 2, atol=0.5 + 0.25
    )
    alone = SMALL("only_foreground").images
    np.testing.assert_array_equal(none.images, alone)


@pytest.mark.parametrize("background", [backgrounds.stripes, backgrounds.tints])
def test_the_category_can_be_seen(background):
    # The mean colour at the rim tells the hue of any two neighbouring categories.
    scenes = SMALL("only_background", background=background, classes=4)
    colours = scenes.images.mean((1, 2))
    colours /= np.linalg.norm(colours, axis=1, keepdims=True)
    centres = np.stack([colours[scenes.backgrounds == k].mean(0) for k in range(4)])
    np.testing.assert_array_equal(
        np.argmax(colours @ centres.T, axis=1), scenes.backgrounds
    )


def test_groups_and_data_sets():
    scenes = SMALL("in_domain")
    groups = 4 * scenes.labels + scenes.backgrounds
    np.testing.assert_array_equal(scenes.groups, groups)
    dataset = scenes.dataset()
    np.testing.assert_array_equal(dataset.images, scenes.images)
    np.testing.assert_array_equal(dataset.groups, groups)
    assert (dataset.num_classes, dataset.num_groups) == (4, 16)
    part = data.subset(dataset, 20)
    taken = np.array([row.tobytes() for row in part.images])
    whole = np.array([row.tobytes() for row in dataset.images])
    rows = [int(np.flatnonzero(whole == row)[0]) for row in taken]
    np.testing.assert_array_equal(part.groups, groups[rows])
    few = scenes.take(np.array([5, 2]))
    np.testing.assert_array_equal(few.groups, groups[[5, 2]])
    np.testing.assert_array_equal(few.masks, scenes.masks[[5, 2]])

    alone = SMALL("only_foreground")
    assert alone.dataset().groups is None
    with pytest.raises(ValueError, match="scenes must know the background"):
        _ = alone.groups


def test_a_model_of_the_hue_shows_in_every_measure():
    """It is right exactly where the background agrees with the label."""
    tinted = functools.partial(SMALL, background=backgrounds.tints)
    same, rand = tinted("mixed_same"), tinted("mixed_rand")
    hues = np.float32(backgrounds._hues(np.arange(4), 4)[:, 0, 0])
    hues /= np.linalg.norm(hues, axis=1, keepdims=True)

    def by_hue(x):
        # the darkest channel is the digit's white, without it only the tint is left
        tint = x.mean((1, 2)) - x.min(3, keepdims=True).mean((1, 2))
        return tint @ hues.T

    def correct(scenes):
        x = data.to_float(scenes.images, 255.0)
        return np.asarray(by_hue(x).argmax(1)) == scenes.labels

    np.testing.assert_array_equal(correct(same), True)
    np.testing.assert_array_equal(correct(rand), rand.backgrounds == rand.labels)
    gap = spurious.background_gap(correct(same), correct(rand))
    assert abs(gap.value - 0.75) < 0.05
    swap = spurious.background_swap(
        by_hue,
        data.to_float(same.images, 255.0),
        same.labels,
        np.asarray(same.masks),
        data.to_float(tinted("only_background", correlation=0.0).images, 255.0),
    )
    assert swap.gap.value > 0.9 and jnp.mean(swap.kept) < 0.1
    assert isinstance(swap.before, jax.Array)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"split": "test"}, "split must be one of train, .*, got 'test'"),
        ({"correlation": 1.1}, r"correlation must be finite and in \[0, 1\], got 1.1"),
        ({"correlation": [0.5]}, "correlation must be a real number"),
        ({"amplitude": -0.1}, r"amplitude must be finite and in \[0, 1\], got -0.1"),
        ({"image_size": 7}, "image_size must be a whole number of at least 8, got 7"),
        ({"classes": 1}, "classes must be a whole number of at least 2, got 1"),
        ({"classes": 11}, "classes must be at most the 10 of digits, got 11"),
        ({"limit": 1000}, "limit must be 1 to 145, got 1000"),
        ({"seed": -1}, "seed must be a whole number"),
        ({"source": "no_such"}, "'no_such' is unknown or not prepared"),
        (
            {"background": lambda c, **_: np.ones((len(c), 3, 3, 3))},
            r"background must return images \[145, 16, 16, 3\]",
        ),
    ],
)
def test_bad_arguments_are_named(changes, message, tmp_path):
    arguments = {"split": "in_domain", "data_dir": tmp_path} | changes
    with pytest.raises(ValueError, match=message):
        make(**arguments)


def test_grey_images_are_no_scenery():
    with pytest.raises(ValueError, match="name must be a set of colour images"):
        backgrounds.scenery("digits")


@pytest.mark.slow
def test_real_digits_on_real_scenery():
    try:
        background = backgrounds.scenery("cifar10")
        scenes = make(
            "in_domain",
            source="mnist",
            background=background,
            image_size=32,
            limit=200,
            amplitude=1.0,
        )
    except data.NotPreparedError as error:
        pytest.skip(f"mnist or cifar10 is not prepared: {error}")
    source = data.load("cifar10", "test")
    known = {image.tobytes(): label for image, label in zip(*source[:2], strict=True)}
    alone = make(
        "only_background",
        source="mnist",
        background=background,
        image_size=32,
        limit=200,
        amplitude=1.0,
    )
    shown = [known[image.tobytes()] for image in alone.images]
    np.testing.assert_array_equal(shown, alone.backgrounds)
    assert scenes.masks.any((1, 2)).all() and not scenes.masks.all((1, 2)).any()
