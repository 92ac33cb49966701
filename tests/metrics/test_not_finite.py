"""Models whose input gradients or logits are not finite at some images."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from robjax import metrics
from robjax.metrics import saliency

# the gradient of the norm is NaN where the first two pixels are 0: images 0 and 3
X = jnp.array(
    [
        [0.0, 0.0, 0.5],
        [0.1, 0.2, 0.3],
        [0.4, 0.1, 0.0],
        [0.0, 0.0, 0.1],
        [0.3, 0.2, 0.9],
        [0.5, 0.5, 0.5],
    ]
)
X_PRIME = X[::-1]
Y = np.array([0, 1, 2, 0, 1, 2])
KEY = jax.random.key(0)
GRADIENTS = "2 of 6 .* have input gradients that are not finite"
LOGITS = "have logits that are not finite"


def norm(x):
    """Logits with the length of the first two pixels among them."""
    length = jnp.linalg.norm(x[:, :2], axis=1)
    return jnp.stack([x[:, 2] - 0.1, length, x[:, 0] * x[:, 1]], axis=1)


def smooth(x):
    """The same function, but for a gradient of the length that is 0 at 0."""
    square = jnp.sum(x[:, :2] ** 2, axis=1)
    length = jnp.where(square > 0, jnp.sqrt(jnp.where(square > 0, square, 1)), 0)
    return jnp.stack([x[:, 2] - 0.1, length, x[:, 0] * x[:, 1]], axis=1)


def lost(x):
    """NaN logits where the first pixel is 0.5: image 5."""
    return smooth(x) * jnp.where(x[:, :1] > 0.45, jnp.nan, 1.0)


def infinite(x):
    """Roots, whose slope at 0 is infinite: no NaN, but an infinite gradient."""
    return jnp.stack([jnp.sqrt(x[:, 0]) + x[:, 2], x[:, 2], x[:, 1]], axis=1)


CALLS = {
    "gram": lambda fn: metrics.fisher_spectrum(fn, X, directions=2),
    "lanczos": lambda fn: metrics.fisher_spectrum(fn, X, directions=2, lanczos_steps=2),
    "components": lambda fn: metrics.kl_components(fn, X, X_PRIME),
    "path": lambda fn: metrics.kl_path(fn, X, X_PRIME, jnp.array([0.5, 1.0])),
    "class means": lambda fn: metrics.kl_to_class_means(fn, X, Y),
    "all pairs": lambda fn: metrics.pairwise_kl(fn, X, Y, batch_size=4),
    "sampled": lambda fn: metrics.pairwise_kl(fn, X, Y, partners=3, key=KEY),
    "class pairs": lambda fn: metrics.class_pair_kl(fn, X, Y).mean,
}


@pytest.mark.parametrize("name", CALLS)
def test_a_gradient_that_is_not_finite_counts_as_0(name):
    with pytest.warns(UserWarning, match=GRADIENTS) as said:
        got = CALLS[name](norm)
    assert len(said) == 1 and said[0].filename == __file__
    want = CALLS[name](smooth)

    def compare(a, b):
        np.testing.assert_allclose(np.abs(a), np.abs(b), rtol=1e-3, atol=1e-6)

    jax.tree.map(compare, got, want)


@pytest.mark.parametrize("name", CALLS)
def test_an_infinite_slope_moves_nothing(name):
    with pytest.warns(UserWarning, match=GRADIENTS):
        got = CALLS[name](infinite)
    leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(got)]
    assert all(np.isfinite(leaf).all() for leaf in leaves)


def test_the_gradients_that_remain_decide():
    def without(x):  # the third pixel alone moves image 0
        return jnp.stack([x[:, 2] - 0.1, 0 * x[:, 2], 0 * x[:, 2]], axis=1)

    with pytest.warns(UserWarning, match="1 of 1 pairs"):
        got = metrics.kl_components(norm, X[:1], X_PRIME[:1])
    want = metrics.kl_components(without, X[:1], X_PRIME[:1] + 0.1)
    assert got.fisher[0] == 0  # the third pixel of both images is the same
    with pytest.warns(UserWarning, match="1 of 1 pairs"):
        got = metrics.kl_components(norm, X[:1], X_PRIME[:1] + 0.1)
    np.testing.assert_allclose(got.fisher, want.fisher, rtol=1e-5)
    exact = metrics.kl_components(smooth, X[:1], X_PRIME[:1] + 0.1)
    np.testing.assert_allclose(got.total, exact.total, rtol=1e-6)


def test_inside_jit_the_parts_are_nan_and_the_total_is_known():
    parts = jax.jit(lambda x, x_prime: metrics.kl_components(norm, x, x_prime))(
        X, X_PRIME
    )
    np.testing.assert_array_equal(np.isnan(parts.fisher), [1, 0, 0, 1, 0, 0])
    assert np.isfinite(parts.total).all()
    spectrum = jax.jit(lambda x: metrics.fisher_spectrum(norm, x))(X)
    assert np.isfinite(spectrum.spectral).all()


@pytest.mark.parametrize("name", ["gram", "lanczos", "components"])
def test_logits_that_are_not_finite_make_that_image_nan_and_no_other(name):
    with pytest.warns(UserWarning, match=LOGITS):
        got = CALLS[name](lost)
    want = CALLS[name](smooth)
    numbers = "spectral" if name != "components" else "total"
    got, want = (np.asarray(getattr(each, numbers)) for each in (got, want))
    gone = np.isnan(got)
    bad = [5] if name != "components" else [0, 5]
    np.testing.assert_array_equal(np.flatnonzero(gone), bad)
    np.testing.assert_allclose(got[~gone], want[~gone], rtol=1e-4)


def test_printed_means_leave_nan_out_and_count_it():
    with pytest.warns(UserWarning, match="1 of 6 images " + LOGITS):
        spectrum = metrics.fisher_spectrum(lost, X)
    assert "6 images, 1 NaN left out, medians" in repr(spectrum)
    with pytest.warns(UserWarning, match="2 of 6 pairs " + LOGITS):
        parts = metrics.kl_components(lost, X, X_PRIME)
    assert "4 pairs, 2 NaN left out, mean" in repr(parts)
    assert "nan" not in repr(spectrum) + repr(parts)


def test_means_over_pairs_leave_images_without_logits_out():
    with pytest.warns(UserWarning, match=f"1 of 6 images {LOGITS}: they are left out"):
        got = metrics.pairwise_kl(lost, X, Y)
    np.testing.assert_allclose(
        got, metrics.pairwise_kl(smooth, X[:5], Y[:5]), rtol=1e-4
    )
    with pytest.warns(UserWarning, match=f"1 of 6 images {LOGITS}: they are left out"):
        table = metrics.class_pair_kl(lost, X, Y)
    rest = metrics.class_pair_kl(smooth, X[:5], Y[:5])
    np.testing.assert_array_equal(table.pairs, rest.pairs)
    np.testing.assert_allclose(table.mean.total, rest.mean.total, rtol=1e-6)
    np.testing.assert_allclose(table.stderr.total, rest.stderr.total, rtol=1e-6)


def test_sampled_pairs_without_logits_leave_the_expectation_alone():
    with pytest.warns(UserWarning, match=f"1 of 6 images {LOGITS}"):
        got = metrics.pairwise_kl(lost, X, Y, partners=3000, key=KEY)
    rest = metrics.pairwise_kl(smooth, X[:5], Y[:5])
    assert got.pairs < 6 * 3000 and np.isfinite(got.stderr)
    assert got.mean == pytest.approx(rest.mean, rel=0.03)
    assert got.fisher == pytest.approx(rest.fisher, rel=0.03)


@pytest.mark.parametrize("sampled", [False, True])
def test_too_few_images_with_logits_are_an_error_that_counts_them(sampled):
    def fn(x):
        return smooth(x) * jnp.where(x[:, 1:2] > 0.05, jnp.nan, 1.0)

    options = {"partners": 2, "key": KEY} if sampled else {}
    with pytest.raises(ValueError, match="not finite for 4 of 6 images"):
        metrics.pairwise_kl(fn, X, Y, **options)
    if not sampled:
        with pytest.raises(ValueError, match="not finite for 4 of 6 images"):
            metrics.class_pair_kl(fn, X, Y)


def pictures(fn, x):
    """The three pixels in the middle row of 3×3 pictures, and a model of these."""
    images = jnp.zeros((len(x), 3, 3, 1)).at[:, 1, :, 0].set(x)
    return lambda v: fn(v[:, 1, :, 0]), images


def test_saliency_counts_gradients_that_are_not_finite_as_0():
    fn, images = pictures(norm, X)
    with pytest.warns(UserWarning, match="2 of 6 images have input gradients"):
        got = saliency.saliency(fn, images, Y, width=1)
    want = saliency.saliency(pictures(smooth, X)[0], images, Y, width=1)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7), got, want
    )
    assert "nan" not in repr(got)


def test_saliency_is_nan_where_the_logits_are():
    fn, images = pictures(lost, X)
    with pytest.warns(UserWarning, match=f"1 of 6 images {LOGITS}"):
        got = saliency.saliency(fn, images, Y, width=1)
    np.testing.assert_array_equal(
        np.isnan(got.alignment), Y * 0 + np.eye(6, dtype=int)[5]
    )
    assert "6 images, 1 NaN left out, means" in repr(got)


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
def test_half_precision_images_are_measured_in_float32(dtype):
    x = X.astype(dtype)
    wide = x.astype(jnp.float32)
    got = metrics.kl_components(smooth, x, x[::-1])
    want = metrics.kl_components(smooth, wide, wide[::-1])
    np.testing.assert_array_equal(got.total, want.total)
    mixed = metrics.kl_components(smooth, x, wide[::-1])
    np.testing.assert_array_equal(mixed.total, want.total)
    assert metrics.pairwise_kl(smooth, x, Y) == metrics.pairwise_kl(smooth, wide, Y)
