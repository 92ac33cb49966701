"""What holds for all fifteen kinds, on 16×16 images of three channels."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from robjax import corruptions
from robjax.corruptions import levels
from tests.corruptions.images import KEY, KEYS, X


@pytest.mark.parametrize("name", corruptions.ALL)
def test_images_stay_images_and_each_depends_on_its_own_key(name):
    kind = corruptions.ALL[name]
    programs = levels._corrupt._cache_size()
    moved = []
    for severity in range(1, 6):
        found = kind(X, key=KEYS, severity=severity)
        assert found.shape == X.shape and found.dtype == jnp.float32
        assert float(found.min()) >= 0 and float(found.max()) <= 1
        moved.append(float(jnp.abs(found - X).mean()))
    assert min(moved) > 1e-3
    turned = kind(X[::-1], key=KEYS[::-1], severity=5)
    np.testing.assert_array_equal(turned[::-1], found)
    assert levels._corrupt._cache_size() == programs + 1  # one for five severities
    others = kind(X, key=jax.random.split(jax.random.key(1), 6), severity=5)
    drawn = name not in {
        "defocus blur",
        "zoom blur",
        "brightness",
        "contrast",
        "pixelate",
        "jpeg compression",
    }
    assert bool(jnp.any(others != found)) == drawn
    # the tables of the others are not in order, or their steps too fine for 16 pixels
    unordered = {"glass blur", "snow", "frost", "elastic transform"}
    if name not in unordered:
        assert (np.diff(moved) > -0.01 * np.array(moved[1:])).all(), moved
        assert moved[4] > 1.5 * moved[0]


def test_one_key_is_folded_with_the_number_of_the_image():
    keys = jax.vmap(lambda i: jax.random.fold_in(KEY, i))(jnp.arange(6))
    one = corruptions.gaussian_noise(X, key=KEY, severity=3)
    np.testing.assert_array_equal(
        one, corruptions.gaussian_noise(X, key=keys, severity=3)
    )


def test_each_image_may_have_a_severity_of_its_own():
    mixed = corruptions.contrast(X, severity=jnp.array([1, 2, 3, 4, 5, 5]))
    for i in range(5):
        alone = corruptions.contrast(X, severity=i + 1)[i]
        np.testing.assert_allclose(mixed[i], alone, atol=1e-6)


@pytest.mark.parametrize("channels", [1, 5])
def test_any_number_of_channels_and_any_sides(channels):
    x = jnp.full((1, 9, 12, channels), 0.25)
    cheap = ("brightness", "contrast", "pixelate", "jpeg compression", "defocus blur")
    for name in cheap:
        found = corruptions.ALL[name](x, key=KEY, severity=5)
        assert found.shape == x.shape
        # flat images stay flat, and the channels alike
        assert float(jnp.ptp(found)) < 1e-6


def test_lengths_follow_the_size():
    severity = jnp.int32(1)
    units = [levels.Level(severity, side).unit for side in (8, 32, 64, 224, 448)]
    assert units == [1, 1, 2, 1, 2]
    rows = ([1, 1, 1, 1, 1], [2, 2, 2, 2, 2])
    tables = [levels.Level(severity, side).table(*rows)[0] for side in (127, 128)]
    assert tables == [1, 2]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"severity": 0}, "severity must be a whole number from 1 to 5"),
        ({"severity": 6}, "severity must be a whole number from 1 to 5"),
        ({"severity": 2.5}, "severity must be a whole number from 1 to 5"),
        ({"severity": jnp.array([1, 2])}, "or one for each image"),
        ({"key": None}, "key must be one key"),
        ({"x": X[0]}, "x must be [B, H, W, C] with H and W at least 8"),
        ({"x": X[:, :7]}, "x must be [B, H, W, C] with H and W at least 8"),
        ({"x": 2 * X}, "x must lie inside bounds (0.0, 1.0)"),
        ({"x": (255 * X).astype(jnp.uint8)}, "x must be floating point"),
    ],
)
def test_bad_input_is_named(change, message):
    given = {"x": X, "key": KEY, "severity": 1} | change
    with pytest.raises(ValueError) as caught:
        corruptions.fog(given.pop("x"), **given)
    assert message in str(caught.value)
