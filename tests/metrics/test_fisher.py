import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from robjax import models as flax_models
from robjax.metrics import fisher_spectrum, kl_components
from tests.metrics import models
from tests.oracles import kl as oracle

SHAPE = (3, 4)


def _images(count, shape=SHAPE, dtype=jnp.float32):
    return jax.random.uniform(jax.random.key(9), (count, *shape), dtype)


@pytest.mark.parametrize("scale", [0.1, 1.0, 5.0])
@pytest.mark.parametrize("lanczos_steps", [None, 4])
def test_spectrum_equals_that_of_the_explicit_matrix(scale, lanczos_steps):
    with jax.enable_x64(True):
        fn = models.smooth(5, SHAPE, scale, dtype=jnp.float64)
        x = _images(7, dtype=jnp.float64)
        spectrum = fisher_spectrum(
            fn, x, directions=3, lanczos_steps=lanczos_steps, batch_size=3
        )
        for i, image in enumerate(x):
            matrix = oracle.fisher_matrix(fn, image)
            want = np.linalg.eigvalsh(matrix)[::-1]
            got = spectrum.eigenvalues[i]
            np.testing.assert_allclose(got, want[: len(got)], atol=1e-10 * want[0])
            assert spectrum.spectral[i] == pytest.approx(want[0], rel=1e-10)
            assert spectrum.trace[i] == pytest.approx(np.trace(matrix), rel=1e-10)
            norm = np.linalg.norm(matrix)
            assert spectrum.frobenius[i] == pytest.approx(norm, rel=1e-10)
            v = np.asarray(spectrum.directions[i]).reshape(3, -1)
            np.testing.assert_allclose(
                v @ matrix, want[:3, None] * v, atol=1e-8 * want[0]
            )
            np.testing.assert_allclose(v @ v.T, np.eye(3), atol=1e-8)


def test_trace_is_the_mean_square_of_the_score():
    fn, x = models.smooth(5, SHAPE), _images(4)

    @jax.jit
    @jax.vmap
    def mean_square(image):
        def log_probabilities(image):
            return jax.nn.log_softmax(fn(image[None])[0])

        g = jax.jacfwd(log_probabilities)(image)
        return jnp.sum(jnp.exp(log_probabilities(image)) * jnp.sum(g * g, (1, 2)))

    np.testing.assert_allclose(fisher_spectrum(fn, x).trace, mean_square(x), rtol=1e-5)


def test_kl_along_the_top_direction_grows_as_half_lambda_t_squared():
    with jax.enable_x64(True):
        fn = models.smooth(5, SHAPE, dtype=jnp.float64)
        x = _images(6, dtype=jnp.float64)
        spectrum = fisher_spectrum(fn, x)
        t = 1e-5
        kl = kl_components(fn, x, x + t * spectrum.top_direction).total
        np.testing.assert_allclose(kl / (t**2 * spectrum.spectral / 2), 1, rtol=1e-3)


def test_linear_model_in_closed_form():
    # z = Wᵀx with p uniform at x = 0: F = W (I/K − 11ᵀ/K²) Wᵀ
    weight = jax.random.normal(jax.random.key(2), (6, 3))
    spectrum = fisher_spectrum(lambda x: x @ weight, jnp.zeros((1, 6)))
    centred = weight - weight.mean(1, keepdims=True)
    want = np.linalg.eigvalsh(centred.T @ centred / 3)[::-1]
    np.testing.assert_allclose(spectrum.eigenvalues[0], want, atol=1e-5)


def test_two_classes_have_effective_rank_one():
    spectrum = fisher_spectrum(models.smooth(2, SHAPE), _images(3))
    np.testing.assert_allclose(spectrum.effective_rank, 1, rtol=1e-4)
    np.testing.assert_allclose(spectrum.eigenvalues[:, 1], 0, atol=1e-6)


def test_matrix_free_equals_gram_on_a_convolutional_net():
    model = flax_models.CNN(10, blocks=((4,), (8,)), hidden=16)
    x = _images(3, (8, 8, 1))
    fn = models.flax(model, x)
    # more steps than the rank, 9: the basis runs out
    gram, free = fisher_spectrum(fn, x), fisher_spectrum(fn, x, lanczos_steps=12)
    top = np.asarray(gram.spectral)[:, None]
    np.testing.assert_array_less(
        np.abs(free.eigenvalues[:, :9] - gram.eigenvalues[:, :9]) / top, 1e-4
    )
    np.testing.assert_allclose(free.trace, gram.trace, rtol=1e-4)
    np.testing.assert_allclose(free.frobenius, gram.frobenius, rtol=1e-4)
    overlap = jnp.sum(free.top_direction * gram.top_direction, (1, 2, 3))
    np.testing.assert_allclose(jnp.abs(overlap), 1, rtol=1e-3)


def test_few_lanczos_steps_find_the_top_of_many_classes():
    with jax.enable_x64(True):
        fn = models.smooth(200, SHAPE, 2.0, dtype=jnp.float64)
        x = _images(3, dtype=jnp.float64)
        exact = fisher_spectrum(fn, x)
        free = fisher_spectrum(fn, x, lanczos_steps=12)
        np.testing.assert_allclose(free.spectral, exact.spectral, rtol=1e-6)
        assert np.all(free.trace <= exact.trace * (1 + 1e-9))


@pytest.mark.parametrize("lanczos_steps", [None, 3])
def test_a_constant_model_has_an_empty_spectrum(lanczos_steps):
    spectrum = fisher_spectrum(
        lambda x: jnp.zeros((x.shape[0], 4)) + 0 * x[:, :1],
        _images(2, (5,)),
        lanczos_steps=lanczos_steps,
    )
    chex.assert_trees_all_equal(spectrum, jax.tree.map(jnp.zeros_like, spectrum))
    np.testing.assert_array_equal(spectrum.effective_rank, 0)


def test_saturated_samples_stay_accurate_in_float32():
    narrow = models.linear(4, SHAPE, 8.0)
    x = _images(20)
    got = fisher_spectrum(narrow, x).spectral
    with jax.enable_x64(True):
        wide = jax.tree.map(lambda a: a.astype(jnp.float64), (narrow, x))
        want = np.asarray(fisher_spectrum(*wide).spectral)
    assert want.min() < 1e-6 < want.max()
    np.testing.assert_allclose(got, want, rtol=1e-3)


def test_bad_arguments_are_named():
    fn, x = models.smooth(3, SHAPE), _images(2)
    with pytest.raises(ValueError, match="lanczos_steps must be a whole number"):
        fisher_spectrum(fn, x, lanczos_steps=0)
    with pytest.raises(ValueError, match="x must be finite"):
        fisher_spectrum(fn, x * jnp.inf)
    with pytest.raises(ValueError, match="batch_size must be a whole number"):
        fisher_spectrum(fn, x, batch_size=-1)


@pytest.mark.parametrize("lanczos_steps", [None, 5])
def test_there_is_no_direction_where_the_eigenvalue_is_zero(lanczos_steps):
    fn, x = models.smooth(5, SHAPE), _images(6)
    spectrum = fisher_spectrum(fn, x, directions=5, lanczos_steps=lanczos_steps)
    v = np.asarray(spectrum.directions).reshape(6, 5, -1)
    np.testing.assert_array_equal(v[:, 4], 0)
    np.testing.assert_allclose(np.linalg.norm(v[:, :4], axis=2), 1, rtol=1e-5)


def test_more_directions_than_eigenvalues_are_an_error():
    fn, x = models.smooth(5, SHAPE), _images(2)
    with pytest.raises(ValueError, match="directions must be at most 5, got 6"):
        fisher_spectrum(fn, x, directions=6)
