"""The Fisher spectrum where the softmax is saturated, or gradients tiny or large."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from robjax.metrics import fisher_spectrum
from tests.metrics import models

SHAPE = (3, 4)
WAYS = [None, 5]


def confident(fn, gap, slope=1.0):
    """A model whose class 2 is ahead of the others by about `gap`."""
    ahead = jnp.zeros(6).at[2].set(gap).at[4].set(0.3)
    return jax.tree_util.Partial(_ahead, fn, ahead, jnp.asarray(slope))


def _ahead(fn, ahead, slope, x):
    return slope * fn(x) + ahead.astype(x.dtype)[None]


def in_float64(fn, x, **options):
    """Of the same weights, as float64 on the host."""
    with jax.enable_x64(True):
        wide = jax.tree.map(lambda a: jnp.asarray(a, jnp.float64), (fn, x))
        return jax.device_get(fisher_spectrum(*wide, **options))


def images(count=6):
    return jax.random.uniform(jax.random.key(1), (count, *SHAPE))


@pytest.mark.parametrize("lanczos_steps", WAYS)
@pytest.mark.parametrize("gap", [0.0, 17.0, 30.0, 46.0, 60.0, 80.0])
def test_every_number_is_that_of_float64(gap, lanczos_steps):
    fn = confident(models.smooth(6, SHAPE, 0.3), gap)
    x = images()
    got = fisher_spectrum(fn, x, directions=2, lanczos_steps=lanczos_steps)
    want = in_float64(fn, x, directions=2, lanczos_steps=5)
    for name in ("spectral", "trace", "frobenius", "effective_rank"):
        np.testing.assert_allclose(
            getattr(got, name), getattr(want, name), rtol=1e-4, err_msg=name
        )
    cosine = np.sum(np.asarray(got.directions) * want.directions, axis=(2, 3))
    np.testing.assert_allclose(np.abs(cosine), 1, atol=1e-3)


def test_a_case_by_hand():
    # p = (1 − q, q) with q = e^−46 to 1e-20: F = q (1, −1)(1, −1)ᵀ, so λ = 2q
    x = jnp.array([[46.0, 0.0]])
    for lanczos_steps in (None, 1):
        spectrum = fisher_spectrum(lambda x: x, x, lanczos_steps=lanczos_steps)
        for number in (spectrum.spectral, spectrum.trace, spectrum.frobenius):
            assert number[0] == pytest.approx(2 * np.exp(-46.0), rel=1e-5, abs=0)
        assert spectrum.effective_rank[0] == pytest.approx(1, rel=1e-5)
        direction = np.asarray(spectrum.top_direction[0])
        assert np.abs(direction) == pytest.approx(np.sqrt(0.5))
        assert direction.sum() == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("lanczos_steps", WAYS)
@pytest.mark.parametrize("gap", [100.0, 250.0, 3000.0])
def test_rank_and_directions_are_known_where_float32_has_no_eigenvalue(
    gap, lanczos_steps
):
    fn = confident(models.smooth(6, SHAPE, 0.3), gap)
    x = images()
    got = fisher_spectrum(fn, x, lanczos_steps=lanczos_steps)
    # a common factor of all p_k but the first leaves both as they are
    want = in_float64(confident(models.smooth(6, SHAPE, 0.3), 60.0), x, lanczos_steps=5)
    assert (np.asarray(got.spectral) < 1e-37).all()
    np.testing.assert_allclose(got.effective_rank, want.effective_rank, rtol=1e-3)
    cosine = np.sum(np.asarray(got.top_direction) * want.top_direction, axis=(1, 2))
    np.testing.assert_allclose(np.abs(cosine), 1, atol=1e-3)


@pytest.mark.parametrize("lanczos_steps", WAYS)
@pytest.mark.parametrize("slope", [1e-15, 1e-12, 1e10, 1e15])
def test_squares_of_tiny_and_large_gradients_are_no_trouble(slope, lanczos_steps):
    # x − x₀ is 0, so the logits are the same whatever the slope
    weight = jax.random.normal(jax.random.key(3), (12, 6))
    x = jnp.zeros((2, 12))
    numbers = []
    for factor in (slope, 1.0):
        fn = jax.tree_util.Partial(_linear, factor * weight)
        numbers.append(fisher_spectrum(fn, x, lanczos_steps=lanczos_steps))
    got, want = numbers
    for name in ("spectral", "trace", "frobenius"):
        number = np.asarray(getattr(got, name), float) / slope**2
        np.testing.assert_allclose(number, getattr(want, name), rtol=1e-4)
    np.testing.assert_allclose(got.effective_rank, want.effective_rank, rtol=1e-4)


def _linear(weight, x):
    return x @ weight


@pytest.mark.parametrize("lanczos_steps", [None, 4])
def test_classes_that_are_ruled_out_change_nothing(lanczos_steps):
    fn = models.smooth(5, SHAPE)

    def masked(x):
        return jnp.concatenate([fn(x), jnp.full((len(x), 1), -jnp.inf)], axis=1)

    want = fisher_spectrum(fn, images(), lanczos_steps=lanczos_steps)
    steps = lanczos_steps and lanczos_steps + 1  # one more null vector to find
    got = fisher_spectrum(masked, images(), lanczos_steps=steps)
    for name in ("spectral", "trace", "frobenius", "effective_rank"):
        np.testing.assert_allclose(getattr(got, name), getattr(want, name), rtol=1e-3)


@pytest.mark.parametrize("lanczos_steps", [None, 3])
@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
def test_half_precision_is_measured_in_float32(dtype, lanczos_steps):
    fn = models.smooth(4, SHAPE)
    x = images().astype(dtype)
    want = fisher_spectrum(fn, x.astype(jnp.float32), lanczos_steps=lanczos_steps)
    got = fisher_spectrum(fn, x, lanczos_steps=lanczos_steps)
    np.testing.assert_allclose(got.spectral, want.spectral, rtol=1e-5)
    rounded = fisher_spectrum(
        lambda v: fn(v).astype(dtype), x, lanczos_steps=lanczos_steps
    )
    assert rounded.spectral.dtype == jnp.float32
    np.testing.assert_allclose(rounded.spectral, want.spectral, rtol=0.1)
