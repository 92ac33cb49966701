"""Crops and flips."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from robjax import data

IMAGES = np.random.default_rng(0).integers(1, 256, (6, 5, 7, 2), dtype=np.uint8)


def candidates(image, pad, flip):
    """All images that augmentation may give, by brute force."""
    height, width, _ = image.shape
    padded = np.pad(image, ((pad, pad), (pad, pad), (0, 0)))
    crops = [
        padded[row : row + height, column : column + width]
        for row in range(2 * pad + 1)
        for column in range(2 * pad + 1)
    ]
    return crops + [crop[:, ::-1] for crop in crops] if flip else crops


@pytest.mark.parametrize(("pad", "flip"), [(2, True), (2, False), (0, True)])
def test_every_outcome_is_allowed_and_occurs(pad, flip):
    allowed = [c.tobytes() for c in candidates(IMAGES[0], pad, flip)]
    draws = 40 * len(allowed)
    out = data.augment(
        np.repeat(IMAGES[:1], draws, axis=0), jax.random.key(0), pad=pad, flip=flip
    )
    assert out.dtype == jnp.uint8
    seen = [image.tobytes() for image in np.asarray(out)]
    counts = np.array([seen.count(outcome) for outcome in allowed])
    assert counts.sum() == draws
    # Uniform: mean 40 each, binomial; six standard deviations.
    assert np.abs(counts - 40).max() < 6 * np.sqrt(40)


def test_nothing_to_do():
    out = data.augment(IMAGES, jax.random.key(0), pad=0, flip=False)
    np.testing.assert_array_equal(out, IMAGES)


@given(
    seed=st.integers(0, 2**31),
    rows=st.permutations(range(6)),
    size=st.sampled_from([1, 4]),
)
def test_a_sample_depends_on_its_own_key_only(seed, rows, size):
    keys = jax.random.split(jax.random.key(seed), 6)
    rows = np.array(rows[:size])
    augment = jax.jit(data.augment)
    whole = augment(IMAGES, keys)
    np.testing.assert_array_equal(
        augment(IMAGES[rows], keys[rows]), np.asarray(whole)[rows]
    )


def test_one_key_is_folded_by_position():
    key = jax.random.key(7)
    whole = data.augment(IMAGES, key, pad=2)
    np.testing.assert_array_equal(data.augment(IMAGES[:2], key, pad=2), whole[:2])


def test_float_images_move_as_their_integers():
    key = jax.random.key(1)
    moved = data.augment(data.to_float(IMAGES, 255.0), key)
    expected = data.to_float(data.augment(IMAGES, key), 255.0)
    np.testing.assert_array_equal(moved, expected)


def test_bad_arguments_are_named():
    key = jax.random.key(0)
    with pytest.raises(ValueError, match="images must have shape"):
        data.augment(IMAGES[0], key)
    with pytest.raises(ValueError, match="pad"):
        data.augment(IMAGES, key, pad=-1)
    with pytest.raises(ValueError, match="key"):
        data.augment(IMAGES, jax.random.split(key, 3))
