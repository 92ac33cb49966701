"""Each kind against an oracle: SciPy, Pillow, matplotlib, moments, loops."""

import io
import math

import jax
import jax.numpy as jnp
import matplotlib.colors
import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from robjax import corruptions
from robjax.corruptions import digital, jpeg, resampling, weather
from tests.corruptions.images import KEYS, X

RNG = np.random.default_rng(0)
ROUGH = RNG.uniform(size=(1, 16, 16, 3)).astype(np.float32)
GREY = jnp.full(X.shape, 0.25)


def drawn(kind, severity):
    """What became of 4,608 values of ¼."""
    return np.asarray(kind(GREY, key=KEYS, severity=severity), np.float64).ravel()


@pytest.mark.parametrize(("severity", "sigma"), [(1, 0.04), (3, 0.08)])
def test_gaussian_noise_has_the_deviation_of_the_table(severity, sigma):
    noise = drawn(corruptions.gaussian_noise, severity) - 0.25
    count = noise.size
    assert abs(noise.mean()) < 4 * sigma / math.sqrt(count)
    # the error of a standard deviation is σ/√2n
    assert abs(noise.std() - sigma) < 4 * sigma / math.sqrt(2 * count)


@pytest.mark.parametrize(("severity", "photons"), [(1, 500), (5, 50)])
def test_shot_noise_counts_photons(severity, photons):
    counts = drawn(corruptions.shot_noise, severity) * photons
    np.testing.assert_allclose(counts, counts.round(), atol=1e-4)
    mean = photons / 4
    assert abs(counts.mean() - mean) < 4 * math.sqrt(mean / counts.size)
    # Var of the sample variance of a Poisson law: (2 + 1/λ) λ²/n
    error = mean * math.sqrt((2 + 1 / mean) / counts.size)
    assert abs(counts.var() - mean) < 4 * error


@pytest.mark.parametrize(("severity", "amount"), [(1, 0.01), (5, 0.07)])
def test_impulse_noise_hits_as_many_values(severity, amount):
    values = drawn(corruptions.impulse_noise, severity)
    assert set(values) == {0, 0.25, 1}
    half = amount / 2
    for hit in (0, 1):
        error = math.sqrt(half * (1 - half) / values.size)
        assert abs((values == hit).mean() - half) < 4 * error


def disk(radius, sigma):
    """The kernel of the published code, written with loops."""
    reach, taps = 8, 1 if radius <= 8 else 2
    kernel = np.zeros((2 * reach + 1, 2 * reach + 1))
    weights = [math.exp(-(d**2) / (2 * sigma**2)) for d in range(-taps, taps + 1)]
    for i, j in np.ndindex(kernel.shape):
        for down, a in enumerate(weights, -taps):
            for right, b in enumerate(weights, -taps):
                place = (i + down - reach) ** 2 + (j + right - reach) ** 2
                kernel[i, j] += a * b * (place <= radius**2)
    return kernel / kernel.sum()


@pytest.mark.parametrize(("severity", "row"), [(1, (0.3, 0.4)), (5, (1.5, 0.1))])
def test_defocus_blur_is_the_convolution_of_scipy(severity, row):
    x = np.pad(ROUGH, ((0, 5), (0, 0), (0, 0), (0, 0)), mode="edge")  # a known shape
    found = corruptions.defocus_blur(jnp.asarray(x), severity=severity)[0]
    kernel = disk(*row)[..., None]
    wanted = ndimage.convolve(ROUGH[0].astype(float), kernel, mode="mirror")
    np.testing.assert_allclose(found, wanted, atol=1e-6)


@pytest.mark.parametrize("sigma", [0.05, 0.4, 1.5, 3.2])
def test_the_normal_blur_is_that_of_scipy(sigma):
    found = jax.jit(resampling.gaussian)(ROUGH[0], sigma)
    wanted = ndimage.gaussian_filter(
        ROUGH[0].astype(float), (sigma, sigma, 0), mode="reflect"
    )
    np.testing.assert_allclose(found, wanted, atol=2e-6)


def magnified(image, factor):
    centre = (np.array(image.shape) - 1) / 2
    scale = np.array([1 / factor, 1 / factor, 1])
    offset = centre - scale * centre
    return ndimage.affine_transform(image, scale, offset, order=1, mode="nearest")


def test_zoom_blur_is_the_mean_of_magnified_images():
    image = np.asarray(X[2], float)
    factors = [1 + 0.01 * i for i in range(7)]  # np.arange(1, 1.06, 0.01) has 1.06, too
    wanted = np.mean([image, *(magnified(image, f) for f in factors)], axis=0)
    found = corruptions.zoom_blur(X, severity=1)[2]
    np.testing.assert_allclose(found, wanted, atol=2e-6)


@pytest.mark.parametrize("degrees", [0, 30, -100])
def test_a_streak_is_a_weighted_sum_of_moved_pixels(degrees):
    angle, sigma = math.radians(degrees), 1.5
    found = jax.jit(resampling.streak, static_argnames="most")(
        ROUGH[0], radius=2.5, sigma=sigma, angle=angle, most=5
    )
    weights = [math.exp(-(i**2) / (2 * sigma**2)) for i in range(7)]  # 2 ⌈2.5⌉ + 1
    wanted = np.zeros(ROUGH[0].shape)
    for row, column, channel in np.ndindex(wanted.shape):
        for i, weight in enumerate(weights):
            down = math.ceil(i * math.sin(angle) - 0.5)
            right = math.ceil(i * math.cos(angle) - 0.5)
            at = min(max(row + down, 0), 15), min(max(column + right, 0), 15)
            wanted[row, column, channel] += weight * ROUGH[0][(*at, channel)]
    np.testing.assert_allclose(found, wanted / sum(weights), atol=1e-6)


def test_glass_blur_shows_pixels_from_nearby():
    """Without a normal blur (σ = 0.05 is none) every pixel is one of its neighbours."""
    places = jnp.arange(16.0)
    x = jnp.stack(jnp.broadcast_arrays(places[:, None], places[None], 0 * places), -1)
    found = corruptions.glass_blur(
        jnp.broadcast_to(x / 16, X.shape), key=KEYS, severity=1
    )
    moves = np.asarray(16 * found - x[None])[..., :2]
    np.testing.assert_allclose(moves, moves.round(), atol=1e-4)
    shares = [(moves.round()[:, 1:-1, 1:-1] == d).mean() for d in (-1, 0, 1)]
    error = math.sqrt(2 / 9 / (6 * 14 * 14 * 2))
    np.testing.assert_allclose(shares, 1 / 3, atol=4 * error)


def test_brightness_is_that_of_hsv():
    found = corruptions.brightness(X, severity=4)
    hsv = matplotlib.colors.rgb_to_hsv(np.asarray(X))
    hsv[..., 2] = np.minimum(hsv[..., 2] + 0.2, 1)
    np.testing.assert_allclose(found, matplotlib.colors.hsv_to_rgb(hsv), atol=1e-6)


def test_contrast_shrinks_the_distance_from_the_mean():
    mean = np.asarray(X, float).mean(axis=(1, 2), keepdims=True)
    wanted = np.clip(mean + 0.15 * (X - mean), 0, 1)
    found = corruptions.contrast(X, severity=5)
    np.testing.assert_allclose(found, wanted, atol=1e-6)


@pytest.mark.parametrize("size", [(16, 16), (20, 33), (128, 150)])
@pytest.mark.parametrize("severity", [1, 3, 5])
def test_pixelate_is_pillows_box_filter(size, severity):
    large = min(size) >= 128
    shares = (0.6, 0.4, 0.25) if large else (0.95, 0.85, 0.65)
    share = shares[severity // 2]
    image = RNG.uniform(size=size).astype(np.float32)
    small = [int(side * share) for side in size]
    picture = Image.fromarray(image)
    for height, width in (small, size):
        picture = picture.resize((width, height), Image.Resampling.BOX)
    found = corruptions.pixelate(jnp.asarray(image)[None, ..., None], severity=severity)
    np.testing.assert_allclose(found[0, ..., 0], np.asarray(picture), atol=1e-6)


def through_pillow(levels, quality):
    file = io.BytesIO()
    Image.fromarray(levels).save(file, "JPEG", quality=quality)
    return np.asarray(Image.open(file))


def through_robjax(levels, quality):
    image = jnp.asarray(levels.reshape(*levels.shape[:2], -1) / np.float32(255))
    found = jax.jit(jpeg.compressed)(image, quality)
    return 255 * np.asarray(found, float).reshape(levels.shape)


def clouds(*shape):
    smooth = ndimage.gaussian_filter(
        RNG.normal(size=shape), (1.5, 1.5, 0)[: len(shape)]
    )
    return np.uint8(np.clip(128 + 120 * smooth, 0, 255))


@pytest.mark.parametrize("quality", [7, 40, 80])
def test_jpeg_is_pillows_on_grey_images(quality):
    """Of an image that went through JPEG once, coefficients are multiples of the table.

    So none lies at ½, where the integer transform of libjpeg may round to the other
    side. What is left is the rounding of its inverse, one level.
    """
    levels = through_pillow(clouds(48, 48), quality)
    wanted = through_pillow(levels, quality).astype(float)
    gap = np.abs(through_robjax(levels, quality) - wanted)
    assert gap.max() < 1.01 and gap.mean() < 0.2


@pytest.mark.parametrize("shape", [(48, 48, 3), (19, 21, 3)])
@pytest.mark.parametrize("quality", [7, 40, 80])
def test_jpeg_is_pillows_on_colours(shape, quality):
    """But for the blocks of 16 × 16 with a coefficient that was rounded otherwise."""
    levels = clouds(*shape)
    wanted = through_pillow(levels, quality).astype(float)
    gap = np.abs(through_robjax(levels, quality) - wanted)
    lost = np.abs(wanted - levels).mean()
    assert np.median(gap) < 0.01 and gap.mean() < 0.2 * lost


def test_an_affine_map_takes_three_points_to_three():
    before = jnp.array([[1.0, 2.0], [5.0, 1.0], [2.0, 7.0]])
    after = jnp.array([[0.0, 1.0], [3.0, 3.0], [-1.0, 4.0]])
    rows, columns = digital._affine(before, after, before[None])
    np.testing.assert_allclose(rows[0], after[:, 0], atol=1e-5)
    np.testing.assert_allclose(columns[0], after[:, 1], atol=1e-5)


def test_places_between_pixels_are_those_of_scipy():
    places = RNG.uniform(-20, 36, size=(2, 5, 7)).astype(np.float32)
    found = jax.jit(resampling.look_up)(ROUGH[0], *places)
    for c in range(3):
        wanted = ndimage.map_coordinates(
            ROUGH[0, ..., c].astype(float), places, order=1, mode="mirror"
        )
        np.testing.assert_allclose(found[..., c], wanted, atol=1e-5)


def test_elastic_transform_bends_no_farther_than_its_table():
    """A ramp shows where pixels came from: at severity 5 at most 0.03 of the side."""
    ramp = jnp.broadcast_to(jnp.arange(16.0)[:, None, None] / 15, X.shape[1:])
    x = jnp.broadcast_to(ramp, X.shape)
    found = corruptions.elastic_transform(x, key=KEYS, severity=5)
    came_from = 15 * np.asarray(found - x)[:, 4:12]
    # the corners by 0.48 pixels, which the affine map stretches; the noise by 1.6
    assert 0.1 < np.abs(came_from).max() < 3.5


def test_new_points_of_a_plasma_are_means_of_the_four_around_them():
    grid = RNG.normal(size=(4, 4))
    fine = np.full((8, 8), np.nan)
    fine[::2, ::2] = grid
    at = lambda i, j: fine[i % 8, j % 8]  # noqa: E731
    for i in range(1, 8, 2):
        for j in range(1, 8, 2):
            corners = [at(i + a, j + b) for a in (-1, 1) for b in (-1, 1)]
            fine[i, j] = np.mean(corners)
    for i, j in np.ndindex(8, 8):
        if (i + j) % 2:
            fine[i, j] = np.mean(
                [at(i + 1, j), at(i - 1, j), at(i, j + 1), at(i, j - 1)]
            )
    found = weather._refined(jnp.asarray(grid, jnp.float32), jnp.zeros((3, 4, 4)))
    np.testing.assert_allclose(found, fine, atol=1e-6)


def test_fog_keeps_the_brightest_value_and_its_texture_spans_the_range():
    flat = jnp.broadcast_to(jnp.linspace(0.2, 0.9, 6)[:, None, None, None], X.shape)
    found = np.asarray(corruptions.fog(flat, key=KEYS, severity=3))  # a = 0.75
    brightest = np.linspace(0.2, 0.9, 6)
    highest = found.max(axis=(1, 2, 3))
    np.testing.assert_allclose(highest, brightest, atol=1e-6)
    lowest = found.min(axis=(1, 2, 3))
    np.testing.assert_allclose(
        lowest, brightest**2 / (brightest + 0.75), atol=1e-6
    )  # p = 0: x m / (m + a)


def test_frost_lays_a_texture_in_its_range_over_the_image():
    found = corruptions.frost(X, key=KEYS, severity=4)
    ice = np.asarray(found - 0.85 * X) / 0.4
    free = np.asarray(found) < 1
    assert ice[free].min() > -1e-6 and ice[free].max() < 1 + 1e-6
    assert np.ptp(ice[free]) > 0.8


def test_snow_whitens_and_never_darkens_below_that():
    found = corruptions.snow(X, key=KEYS, severity=1)
    image = np.asarray(X, float)
    grey = image @ np.array([0.299, 0.587, 0.114])
    white = np.maximum(image, 1.5 * grey[..., None] + 0.5)
    whitened = np.clip(0.95 * image + 0.05 * white, 0, 1)
    flakes = np.asarray(found) - whitened
    assert flakes.min() > -1e-6
    # where no flake came by, that is all
    assert 0.2 < (np.abs(flakes) < 1e-6).mean() < 1
    # two layers, one of them turned: flakes on grey are the same turned by 180°
    layer = corruptions.snow(0 * X, key=KEYS, severity=2)
    np.testing.assert_allclose(layer, layer[:, ::-1, ::-1], atol=1e-6)
