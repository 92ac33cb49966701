"""Noise by region and swaps: against loops in NumPy and models that are known."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from robjax import models
from robjax.metrics import spurious
from robjax.samples import sample_keys
from tests.metrics.models import linear

KEY = jax.random.key(0)
SHAPE = (6, 6, 3)


def images(count=12, seed=0):
    x = jax.random.uniform(
        jax.random.key(seed), (count, *SHAPE), minval=0.2, maxval=0.8
    )
    y = jax.random.randint(jax.random.key(seed + 1), (count,), 0, 3)
    masks = np.zeros((count, *SHAPE[:2]), np.float32)
    masks[:, 1:4, 2:5] = 1
    return x, y, masks


def region_model(weights, x):
    return jnp.einsum("bhwc,hwck->bk", x - 0.5, weights)


def sees(mask):
    """A linear model of the pixels inside the mask alone."""
    weights = jax.random.normal(jax.random.key(5), (*SHAPE, 3)) * mask[..., None, None]
    return jax.tree_util.Partial(region_model, weights)


def test_golden_values():
    pairs = [(0.6, 0.8), (0.9, 0.95), (0.2, 0.5), (0.5, 1), (0, 0.3), (1, 1), (0, 0)]
    expected = [1 / 3, 1 / 3, 0.428571, 1, 1, 0, 0]
    for (foreground, background), value in zip(pairs, expected, strict=True):
        found = spurious.relative_sensitivity(foreground, background)
        assert found == pytest.approx(value, abs=1e-6)
    many = spurious.relative_sensitivity(*np.array(pairs, np.float32).T)
    np.testing.assert_allclose(many, expected, atol=1e-6)


@given(a=st.floats(0, 1), b=st.floats(0, 1))
def test_properties_of_relative_sensitivity(a, b):
    with jax.enable_x64(True):
        rfs = float(spurious.relative_sensitivity(a, b))
        assert -1 <= rfs <= 1
        assert float(spurious.relative_sensitivity(b, a)) == -rfs
        mirrored = float(spurious.relative_sensitivity(1 - a, 1 - b))
        centre = (a + b) / 2
        if 1e-6 < centre < 1 - 1e-6:
            assert mirrored == pytest.approx(-rfs, abs=1e-6)
            # ±1 exactly where no larger gap has this mean
            largest = min(centre, 1 - centre) * 2
            assert rfs == pytest.approx((b - a) / largest, abs=1e-9)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((1.2, 0.5), r"acc_fg_noise must be finite and in \[0, 1\], got 1.2"),
        ((0.2, np.nan), "acc_bg_noise must be finite"),
        (([0.2], [0.5, 0.1]), "acc_bg_noise must have the shape of acc_fg_noise"),
    ],
)
def test_relative_sensitivity_names_what_is_wrong(arguments, message):
    with pytest.raises(ValueError, match=message):
        spurious.relative_sensitivity(*arguments)


def test_all_numbers_against_loops():
    x, y, masks = images(5)
    masks[:, 1, 2] = 0.5  # soft
    model = linear(3, SHAPE, scale=0.3)
    sigmas, lengths, trials = (0.1, 0.4), (2.0,), 3
    found = spurious.noise_sensitivity(
        model, x, y, masks, key=KEY, linf_levels=sigmas, l2_levels=lengths,
        trials=trials, batch_size=2,
    )  # fmt: skip
    keys = sample_keys(KEY, 5)
    for level, region, i in np.ndindex(3, 2, 5):
        mask = masks[i] if region == 0 else 1 - masks[i]
        right, likely = [], []
        for trial in range(trials):
            key = jax.random.fold_in(jax.random.fold_in(keys[i], level), trial)
            noise = np.float64(jax.random.normal(key, SHAPE)) * mask[..., None]
            if level == 2:
                noise /= np.linalg.norm(noise)
            noise *= (*sigmas, *lengths)[level]
            logits = model(jnp.float32(np.clip(x[i] + noise, 0, 1))[None])[0]
            right.append(np.argmax(logits) == y[i])
            likely.append(jax.nn.softmax(logits)[y[i]])
        assert found.correct[level, region, i] == pytest.approx(np.mean(right))
        assert found.probability[level, region, i] == pytest.approx(
            np.mean(likely), abs=1e-5
        )
    np.testing.assert_array_equal(found.clean, model(x).argmax(1) == y)
    np.testing.assert_allclose(found.levels, [0.1, 0.4, 2.0])
    np.testing.assert_allclose(
        found.accuracy.value, np.asarray(found.correct).mean(2), atol=1e-6
    )
    np.testing.assert_allclose(
        found.accuracy.stderr,
        np.asarray(found.correct).std(2, ddof=1) / np.sqrt(5),
        atol=1e-6,
    )
    np.testing.assert_allclose(
        found.per_image,
        spurious.relative_sensitivity(found.probability[:, 0], found.probability[:, 1]),
    )


def test_default_levels_are_those_of_the_authors():
    np.testing.assert_allclose(
        np.array(spurious.LINF_LEVELS) * 255, [30, 60, 90, 120, 150, 180, 210]
    )
    assert spurious.L2_LEVELS == (25, 50, 75, 100, 125, 150, 175, 200)


@pytest.mark.parametrize("blind", [False, True])
def test_who_sees_one_region_alone(blind):
    x, _, masks = images(200)
    visible = 1 - masks[0] if blind else masks[0]
    model = sees(jnp.asarray(visible))
    y = model(x).argmax(1)  # correct without noise
    found = spurious.noise_sensitivity(
        model, x, y, masks, key=KEY, l2_levels=(2.0, 4.0)
    )
    unseen = 0 if blind else 1
    np.testing.assert_array_equal(found.correct[:, unseen], 1)
    assert found.clean_accuracy.value == 1
    rfs = found.relative
    sign = -1 if blind else 1
    assert (sign * rfs.value > 5 * rfs.stderr).all()
    overall = found.mean_relative
    assert sign * overall.value > 5 * overall.stderr

    scenery = jnp.flip(x, 0)
    swap = spurious.background_swap(model, x, y, masks, scenery, batch_size=64)
    np.testing.assert_array_equal(swap.before, True)
    if blind:
        expected = model(scenery).argmax(1) == y
        np.testing.assert_array_equal(swap.after, expected)
        assert swap.gap.value > 5 * swap.gap.stderr
    else:
        np.testing.assert_array_equal(swap.kept, True)
        assert (swap.gap.value, swap.gap.stderr) == (0, 0)


def test_limits_of_the_masks():
    x, y, masks = images(6)
    masks[0], masks[1] = 0, 1
    masks[2] = 0.5  # both regions are the same then
    model = linear(3, SHAPE)
    measure = functools.partial(spurious.noise_sensitivity, model, x, y, key=KEY)
    found = measure(masks)
    np.testing.assert_array_equal(found.excluded, [True, True] + 4 * [False])
    for numbers in (found.correct, found.probability, found.per_image):
        assert np.isnan(numbers[..., :2]).all() and np.isfinite(numbers[..., 2:]).all()
    np.testing.assert_array_equal(
        found.probability[:, 0, 2], found.probability[:, 1, 2]
    )
    np.testing.assert_array_equal(found.per_image[:, 2], 0)
    assert "6 images, 2 left out" in repr(found)
    rest = spurious.noise_sensitivity(
        model, x[2:], y[2:], masks[2:], key=sample_keys(KEY, 6)[2:]
    )
    np.testing.assert_allclose(found.accuracy.value, rest.accuracy.value, atol=1e-6)
    np.testing.assert_allclose(found.relative.stderr, rest.relative.stderr, atol=1e-5)
    # no noise is no noise, on either region
    none = spurious.noise_sensitivity(
        model, x, y, masks, key=KEY, linf_levels=(0.0,), l2_levels=(0.0,)
    )
    clean = np.broadcast_to(none.clean, (2, 2, 6))
    np.testing.assert_array_equal(none.correct, clean)


def test_l2_noise_has_its_length_and_stays_in_its_region():
    x, y, masks = images(3)
    masks[:, 0, 0] = 0.3
    seen = []

    def spy(images):
        jax.debug.callback(lambda v: seen.append(np.asarray(v)), images)
        return images.reshape(len(images), -1)[:, :3]

    spurious.noise_sensitivity(
        spy, x, y, masks, key=KEY, linf_levels=(), l2_levels=(0.5,), bounds=(-9.0, 9.0)
    )
    jax.effects_barrier()
    for region in (masks, 1 - masks):
        noise = [v - np.asarray(x) for v in seen]
        own = [n for n in noise if np.any(n) and not np.any(n[region == 0])]
        assert len(own) == 1
        np.testing.assert_allclose(
            np.linalg.norm(own[0].reshape(3, -1), axis=1), 0.5, rtol=1e-4
        )
    assert len(seen) == 3  # two regions and the clean pass


def test_the_number_of_forward_passes():
    x, y, masks = images(4)
    calls = []

    def counting(images):
        jax.debug.callback(lambda n: calls.append(len(n)), images)
        return images.reshape(len(images), -1)[:, :3]

    spurious.noise_sensitivity(counting, x, y, masks, key=KEY)
    jax.effects_barrier()
    assert calls == [4] * 31


def test_no_number_depends_on_the_batch(usual_compilation):
    x, y, masks = images(23)
    model = models.MLP(3, widths=(8,))
    logits_fn = jax.tree_util.Partial(model.apply, jax.jit(model.init)(KEY, x))
    measure = functools.partial(spurious.noise_sensitivity, logits_fn, trials=2)
    whole = measure(x, y, masks, key=KEY)
    part = measure(x, y, masks, key=KEY, batch_size=5)
    np.testing.assert_array_equal(part.correct, whole.correct)
    np.testing.assert_allclose(part.probability, whole.probability, atol=1e-6)
    rows = np.array([20, 3, 7])
    few = measure(x[rows], y[rows], masks[rows], key=sample_keys(KEY, 23)[rows])
    np.testing.assert_array_equal(few.correct, whole.correct[..., rows])


def test_new_weights_and_levels_compile_nothing():
    x, y, masks = images(4)
    traces = []

    def model(weights, images):
        traces.append(None)
        return images.reshape(len(images), -1) @ weights

    def measure(seed, levels):
        weights = jax.random.normal(jax.random.key(seed), (108, 3))
        bound = jax.tree_util.Partial(model, weights)
        spurious.noise_sensitivity(bound, x, y, masks, key=KEY, linf_levels=levels)
        spurious.background_swap(bound, x, y, masks, x)

    measure(0, (0.1, 0.2))
    before = len(traces)
    measure(1, (0.3, 0.4))
    assert len(traces) == before


def test_logits_that_are_not_finite_are_left_out():
    x, y, masks = images(6)

    def model(images):
        logits = images.reshape(len(images), -1)[:, :3]
        return jnp.where(images[:, 5, 5, :1] == x[2, 5, 5, 0], jnp.nan, logits)

    with pytest.warns(UserWarning, match="1 of 6 images have logits that are not"):
        found = spurious.noise_sensitivity(model, x, y, masks, key=KEY)
    np.testing.assert_array_equal(found.excluded, np.arange(6) == 2)


def test_the_standard_error_of_rfs_is_the_spread_over_samples():
    """200 repetitions with new images and noise: the spread is estimated to 5 %."""
    x, _, masks = images(200 * 30)
    model = linear(3, SHAPE, scale=0.5)
    y = model(x).argmax(1)
    found = spurious.noise_sensitivity(
        model, x, y, masks, key=KEY, linf_levels=(0.6, 0.9), l2_levels=(),
        batch_size=6000,
    )  # fmt: skip
    keep = found.correct.reshape(2, 2, 200, 30)

    @jax.jit
    @functools.partial(jax.vmap, in_axes=2)
    def repeat(correct):
        part = found._replace(correct=correct)
        return part.relative, part.mean_relative

    (values, stated), (means, mean_stated) = jax.tree.map(np.asarray, repeat(keep))
    np.testing.assert_allclose(values.std(0), np.sqrt((stated**2).mean(0)), rtol=0.25)
    np.testing.assert_allclose(means.std(), np.sqrt((mean_stated**2).mean()), rtol=0.25)


def test_rfs_is_averaged_where_accuracies_say_something():
    accuracies = np.array([[0.98, 1.0], [0.5, 0.7], [0.3, 0.2], [0.0, 0.1]])
    correct = (np.arange(50)[None, None] < 50 * accuracies[..., None]).astype(float)
    found = spurious.NoiseSensitivity(
        levels=jnp.arange(4.0),
        clean=jnp.ones(50),
        correct=jnp.asarray(correct, jnp.float32),
        probability=jnp.asarray(correct, jnp.float32),
    )
    inside = spurious.relative_sensitivity(accuracies[1:3, 0], accuracies[1:3, 1])
    assert found.mean_relative.value == pytest.approx(float(inside.mean()), abs=1e-6)
    none = found._replace(correct=jnp.ones((4, 2, 50)))
    assert np.isnan(none.mean_relative.value)
    np.testing.assert_array_equal(none.relative.value, 0)
    assert np.isnan(none.relative.stderr).all()


X, Y, MASKS = images(4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"x": X[0]}, r"x must be images \[B, H, W, C\]"),
        ({"x": X * 255}, r"x must lie inside bounds \(0.0, 1.0\)"),
        ({"masks": MASKS[:3]}, r"masks must be an array \(4, 6, 6\), got \(3, 6, 6\)"),
        ({"masks": MASKS[..., None]}, r"masks must be an array \(4, 6, 6\)"),
        ({"masks": MASKS.astype(np.uint8)}, "masks must be bool or floating"),
        ({"masks": MASKS * 2}, r"masks must be finite and in \[0, 1\]"),
        ({"y": Y + 3}, "y must hold labels 0 to 2"),
        ({"y": Y[:2]}, "y must have shape"),
        ({"key": 3}, "key must be one key"),
        ({"linf_levels": (-0.1,)}, "linf_levels must be finite"),
        ({"l2_levels": 3.0}, r"l2_levels must have shape \[n\], got"),
        ({"linf_levels": (), "l2_levels": ()}, "linf_levels must not be empty"),
        ({"trials": 0}, "trials must be a whole number"),
        ({"batch_size": 0}, "batch_size must be a whole number"),
        ({"bounds": (1, 0)}, "bounds must be finite with low < high"),
    ],
)
def test_noise_names_what_is_wrong(changes, message):
    arguments = {"x": X, "y": Y, "masks": MASKS, "key": KEY} | changes
    with pytest.raises(ValueError, match=message):
        spurious.noise_sensitivity(linear(3, SHAPE), **arguments)


def test_swapped_images():
    x, _, masks = images(3)
    scenery = jnp.zeros_like(x)
    swapped = spurious.swap_backgrounds(x, masks > 0, scenery)
    np.testing.assert_array_equal(swapped, np.asarray(x) * masks[..., None])
    ones = jnp.ones(masks.shape)
    np.testing.assert_array_equal(spurious.swap_backgrounds(x, ones, scenery), x)
    np.testing.assert_array_equal(spurious.swap_backgrounds(x, 0 * ones, scenery), 0)
    with pytest.raises(ValueError, match="scenery must have the shape of x"):
        spurious.swap_backgrounds(x, masks, scenery[:2])


def test_prints_and_traces():
    x, y, masks = images(8)
    model = linear(3, SHAPE)

    @jax.jit
    def inside(x, masks):
        found = spurious.noise_sensitivity(model, x, y, masks, key=KEY)
        swap = spurious.background_swap(model, x, y, masks, x)
        groups = spurious.group_accuracies(found.clean, y, num_groups=3)
        said = [repr(v) for v in (found, swap, groups, found.accuracy)]
        assert all("traced" in words for words in said)
        return found.relative.value, swap.gap.value

    rfs, gap = inside(x, masks)
    outside = spurious.noise_sensitivity(model, x, y, masks, key=KEY)
    np.testing.assert_allclose(rfs, outside.relative.value, atol=1e-5)
    assert gap == 0 and "mean RFS" in repr(outside)
    assert repr(outside.accuracy) == "Estimate([15, 2])"
