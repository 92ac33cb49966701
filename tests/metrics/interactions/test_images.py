"""Rank reduction, pixel dropout, cutout, Fourier rings, Fisher ratio."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.signal

from robjax.metrics.interactions import (
    cutout,
    fisher_ratio,
    fourier_magnitudes,
    pixel_dropout,
    reduce_rank,
)

X = jax.random.uniform(jax.random.key(0), (3, 8, 6, 2))
KEY = jax.random.key(1)


@pytest.mark.parametrize("rank", [1, 3, 6])
def test_rank_and_eckart_young(rank):
    with jax.enable_x64(True):
        x = np.asarray(X, np.float64)
        low = np.asarray(reduce_rank(jnp.asarray(x), rank))
    for image, few in zip(x, low, strict=True):
        for channel in range(2):
            assert np.linalg.matrix_rank(few[..., channel], tol=1e-10) == rank
            # the error is what the singular values beyond k leave
            values = np.linalg.svd(image[..., channel], compute_uv=False)
            error = np.linalg.norm(image[..., channel] - few[..., channel])
            assert error == pytest.approx(np.linalg.norm(values[rank:]), abs=1e-12)


def test_dropped_pixels_are_the_mean_of_their_surroundings():
    x = np.asarray(X, np.float64)
    ring = np.ones((3, 3))
    ring[1, 1] = 0
    mean = np.stack(
        [
            [
                scipy.signal.convolve2d(image[..., c], ring, mode="same")
                / scipy.signal.convolve2d(np.ones((8, 6)), ring, mode="same")
                for c in range(2)
            ]
            for image in x
        ]
    ).transpose(0, 2, 3, 1)
    every = pixel_dropout(X, key=KEY, share=1.0)
    np.testing.assert_allclose(every, mean, atol=1e-6)
    np.testing.assert_array_equal(pixel_dropout(X, key=KEY, share=0.0), X)
    some = np.asarray(pixel_dropout(X, key=KEY, share=0.5))
    dropped = ~np.isclose(some, x, atol=1e-7)
    np.testing.assert_allclose(some, np.where(dropped, mean, x), atol=1e-6)
    assert (dropped[..., 0] == dropped[..., 1]).all()


def test_the_share_of_dropped_pixels():
    x = jax.random.uniform(KEY, (50, 20, 20, 1))
    dropped = np.asarray(pixel_dropout(x, key=KEY, share=0.3) != x)
    # 20,000 pixels, so the standard error is 0.0032
    assert abs(dropped.mean() - 0.3) < 4 * 0.0033


@pytest.mark.parametrize("transform", ["dropout", "cutout"])
def test_an_image_keeps_its_draw_in_any_batch(transform):
    def change(x, key):
        if transform == "dropout":
            return pixel_dropout(x, key=key, share=0.4)
        return cutout(x, key=key)

    keys = jax.random.split(KEY, 3)
    np.testing.assert_array_equal(change(X, keys)[1:2], change(X[1:2], keys[1:2]))


def test_cutout_is_one_square_anywhere_inside():
    x = jnp.zeros((400, 4, 6, 2))
    found = np.asarray(cutout(x, key=KEY, share=0.25, fill=jnp.array([0.5, 1.0])))
    filled = found[..., 0] == 0.5
    np.testing.assert_array_equal(found[..., 1], filled)
    np.testing.assert_array_equal(found[..., 0], 0.5 * filled)
    corners = set()
    for mask in filled:
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        assert len(rows) == 2 and len(columns) == 3 and mask.sum() == 6
        assert np.ptp(rows) == 1 and np.ptp(columns) == 2
        corners.add((int(rows[0]), int(columns[0])))
    assert corners == {(row, column) for row in range(3) for column in range(4)}


def test_a_wave_lies_on_its_ring():
    place = np.arange(8)
    for h, w in ((0, 2), (3, 0), (2, 2)):
        wave = np.cos(2 * np.pi * (h * place[:, None] + w * place[None]) / 8)
        found = np.asarray(fourier_magnitudes(jnp.asarray(wave)[None, ..., None]))[0]
        ring = round(np.hypot(h, w))
        assert found.argmax() == ring
        # the wave's square sums to 32
        np.testing.assert_allclose(found[ring], np.sqrt(32), rtol=1e-5)
        np.testing.assert_allclose(np.delete(found, ring), 0, atol=1e-5)


def test_parseval():
    # all frequencies of a 2×2 image are on rings 0 and 1: round(√2) = 1
    x = jax.random.normal(KEY, (5, 2, 2, 3))
    total = np.sum(np.asarray(fourier_magnitudes(x)) ** 2, axis=1)
    np.testing.assert_allclose(total, np.sum(np.asarray(x) ** 2, (1, 2, 3)), rtol=1e-5)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_rank_reduction_in_half_precision(dtype):
    x = X.astype(dtype)
    found = reduce_rank(x, 2)
    assert found.dtype == dtype
    whole = reduce_rank(x.astype(jnp.float32), 2)
    np.testing.assert_array_equal(found, whole.astype(dtype))


def test_fisher_ratio_by_hand():
    a, b = np.array([[1.0, 2], [3, 2]]), np.array([[5.0, 2], [5, 2], [8, 2]])
    # means 2 and 6, variances 1 and 2; then no spread and no difference
    np.testing.assert_allclose(fisher_ratio(a, b), [16 / 3, np.nan])
    assert fisher_ratio([1.0, 1.0], [2.0, 2.0]) == np.inf
    assert fisher_ratio(3 * a + 1, 3 * b + 1)[0] == pytest.approx(16 / 3)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: reduce_rank(X, 7), "rank must be 1 to 6, got 7"),
        (lambda: reduce_rank(X, 0), "rank must be a whole number"),
        (lambda: reduce_rank(X[0], 1), r"x must be images \[B, H, W, C\]"),
        (
            lambda: pixel_dropout(X, key=KEY, share=1.5),
            r"share must be .*in \[0, 1\], got 1.5",
        ),
        (lambda: pixel_dropout(X, key=KEY, share=-0.1), r"share must be .*got -0.1"),
        (lambda: cutout(X, key=KEY, share=jnp.array(2.0)), "share must be .*got .*2"),
        (
            lambda: cutout(X, key=KEY, fill=jnp.ones(4)),
            "fill must be a number or one for",
        ),
        (lambda: cutout(X, key=KEY, fill=np.nan), "fill must be finite"),
        (lambda: pixel_dropout(X[:, :1, :1], key=KEY, share=0.1), "several pixels"),
        (lambda: fisher_ratio([], [1.0]), "a must not be empty"),
        (lambda: fisher_ratio([[1.0]], [1.0]), "of one shape"),
    ],
)
def test_bad_arguments_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
