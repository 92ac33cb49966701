"""Moduli of pairs and unnecessary directions against linear algebra."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from robjax.metrics import strong_robustness as sr
from robjax.theory import feature_spaces

RNG = np.random.default_rng(0)
X = RNG.normal(size=(200, 3)).astype(np.float32)


def test_ratios_of_linear_maps_stay_below_their_modulus_and_come_near():
    a1, a2 = RNG.normal(size=(2, 2)) @ np.eye(2, 3), np.eye(2, 3) + 0.5
    a2[:, 2] = 0
    pairs = X + 0.1 * RNG.normal(size=X.shape).astype(np.float32)
    found = sr.modulus(lambda x: x @ a1.T.astype(np.float32), X, pairs,
                       oracle=sr.linear(a2))  # fmt: skip
    bound = feature_spaces.modulus(a1, a2)
    assert 0.95 * bound < found.ratio.max() <= bound * (1 + 1e-4)


def test_scaled_features_have_the_same_normalised_ratios():
    moved = X + 0.1 * RNG.normal(size=X.shape).astype(np.float32)
    oracle = sr.identity()
    plain, scaled, tiny = (
        sr.modulus(jax.tree_util.Partial(lambda s, x: s * x**2 + s, jnp.float32(s)),
                   X, moved, oracle=oracle)
        for s in (1.0, 1e-2, 1e-8)
    )  # fmt: skip
    np.testing.assert_allclose(scaled.ratio, plain.ratio * 1e-2, rtol=1e-3)
    np.testing.assert_allclose(scaled.normalised, plain.normalised, rtol=1e-3)
    np.testing.assert_allclose(tiny.normalised, plain.normalised, rtol=1e-3)
    # what the oracle sees may be as small
    first = [sr.modulus(lambda x: x, X, moved, oracle=sr.linear([[s, 0, 0]]))
             for s in (1.0, 1e-8)]  # fmt: skip
    np.testing.assert_allclose(*(f.normalised for f in first), rtol=1e-3)


def test_pairs_that_the_oracle_takes_for_one_are_counted_and_equal_pairs_are_not():
    moved = X.copy()
    moved[:50, 2] += 1
    moved[50:120, 0] += 0.5
    found = sr.modulus(lambda x: x, X, moved, oracle=sr.linear([[1.0, 0, 0]]))
    assert int(jnp.isinf(found.ratio).sum()) == 50
    assert int(jnp.isnan(found.ratio).sum()) == 80
    assert found.quantile(0.5).value == pytest.approx(float(found.scale), rel=1e-3)
    assert found.quantile(0.9).value == np.inf
    assert "50 infinite" in repr(found)


@pytest.mark.parametrize("share", [0.5, 0.9])
def test_intervals_of_quantiles_cover(share):
    covered = 0
    for seed in range(400):
        draws = np.random.default_rng(seed).exponential(size=60)
        found = sr.Modulus(draws, np.ones(())).quantile(share)
        covered += found.low <= stats.expon.ppf(share) <= found.high
        assert found.low <= found.value <= found.high
    assert covered >= 0.95 * 400 - 3 * np.sqrt(400 * 0.95 * 0.05)
    few = sr.Modulus(jnp.ones(3), jnp.asarray(1.0)).quantile(0.99)
    assert few.high == np.inf


def quadratic(x):
    """Uses x₀ and, by an amount that varies, x₁; ignores x₂."""
    s = x[:, 0] + x[:, 1] ** 2
    return jnp.stack([s, -s, jnp.zeros_like(s)], axis=1) + 7 * x[:, 2:]


@pytest.mark.parametrize("oracle", [sr.linear([[3.0, 0, 0]]), lambda x: 3 * x[:, :1]])
def test_directions_are_those_of_the_singular_values_of_the_gradients(oracle):
    found = sr.unnecessary_directions(quadratic, X, oracle=oracle, count=2)
    # by hand: ∂z = ±(1, 2x₁, 0) after centring, which takes off 7x₂
    square = 2 * np.mean(4 * X[:, 1].astype(float) ** 2)
    np.testing.assert_allclose(found.strength, [square, 0], rtol=1e-5)
    np.testing.assert_allclose(np.abs(found.directions[0]), [0, 1, 0], atol=1e-6)
    assert not found.directions[1].any()
    assert found.ignored == pytest.approx(square / (square + 2), rel=1e-5)
    assert found.share[0] == pytest.approx(found.ignored, rel=1e-5)


def test_an_oracle_that_sees_all_ignores_nothing():
    found = sr.unnecessary_directions(quadratic, X, oracle=sr.identity(), count=1)
    assert found.ignored == 0 and not found.strength.any()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: sr.unnecessary_directions(
                quadratic, X, oracle=sr.identity(), count=4
            ),
            "count must be at most 3, got 4",
        ),
        (
            lambda: sr.modulus(quadratic, X, X[:2], oracle=sr.identity()),
            "x_prime must have the shape of x",
        ),
        (
            lambda: sr.modulus(lambda x: 0 * x, X, X, oracle=sr.identity()),
            "x must be images whose features vary",
        ),
    ],
)
def test_bad_arguments_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
