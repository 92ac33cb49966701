import fractions
import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from robjax import numerics
from tests.oracles import kl as oracle

kl_from_logits = jax.jit(numerics.kl_from_logits, static_argnames="axis")


def _pair(change, scale, classes, count=20):
    """Logits and logits moved by 0.5 to 1 times `change`, signs alternating."""
    rng = np.random.default_rng(0)
    a = (scale * rng.normal(size=(count, classes))).astype(np.float32)
    signs = rng.permuted(np.tile((-1.0) ** np.arange(classes), (count, 1)), axis=1)
    step = change * signs * rng.uniform(0.5, 1, a.shape)
    return a, (a + step).astype(np.float32)


@pytest.mark.parametrize(("classes", "count"), [(2, 40), (10, 20), (1000, 1)])
@pytest.mark.parametrize("scale", [0.1, 1.0, 10.0, 100.0])
def test_kl_is_accurate_in_float32_from_tiny_changes_to_saturation(
    scale, classes, count
):
    for change in [1e-5, 1e-4, 1e-3, 1e-2, 0.1, 0.3, 1, 3, 10, 100, 1e4]:
        a, b = _pair(change, scale, classes, count)
        exact = oracle.kl(a, b)
        value = np.asarray(kl_from_logits(a, b))
        assert value.dtype == np.float32
        assert np.all(value >= 0)
        seen = exact > 1e-30  # below, the smallest p underflows in float32
        error = np.abs(value - exact)[seen] / exact[seen]
        assert error.max(initial=0) <= 1e-4, (change, error.max())


def test_kl_is_accurate_in_float64():
    with jax.enable_x64(True):
        for change in [1e-5, 1e-3, 0.1, 1.0, 30.0]:
            a, b = (z.astype(np.float64) for z in _pair(change, 3.0, 10))
            value = kl_from_logits(a, b)
            np.testing.assert_allclose(value, oracle.kl(a, b), rtol=1e-12)


def test_kl_does_not_see_a_common_shift_of_the_logits():
    # multiples of 2^-8 below 2^12 plus 2^12 are exact in float32
    a, b = (np.round(z * 256) / 256 for z in _pair(0.05, 2.0, 10))
    a, b = a.astype(np.float32), b.astype(np.float32)
    shifted = kl_from_logits(a, b + np.float32(4096))
    np.testing.assert_allclose(shifted, kl_from_logits(a, b), rtol=1e-5)


def _softmax(logits):
    exponentials = np.exp(logits.astype(np.longdouble))
    return exponentials / exponentials.sum(1, keepdims=True)


@pytest.mark.parametrize("change", [1e-4, 1e-2, 1.0, 20.0])
def test_kl_gradients_match_their_closed_form(change):
    a, b = _pair(change, 2.0, 10)
    log_p, log_q = (np.log(_softmax(z)) for z in (a, b))
    p, q, kl = np.exp(log_p), np.exp(log_q), oracle.kl(a, b)[:, None]

    def total(a, b):
        return jnp.sum(kl_from_logits(a, b))

    grad_p, grad_q = jax.jit(jax.grad(total, argnums=(0, 1)))(a, b)
    for got, want in [(grad_q, q - p), (grad_p, p * (log_p - log_q - kl))]:
        scale = np.abs(want).max(1, keepdims=True)
        assert (np.abs(np.asarray(got) - want) / scale).max() < 1e-4


def test_second_derivative_at_equality_is_the_softmax_covariance():
    z = jnp.array([0.3, -1.0, 2.0])
    p = jax.nn.softmax(z)
    hessian = jax.jit(jax.hessian(kl_from_logits, argnums=1))(z, z)
    np.testing.assert_allclose(hessian, jnp.diag(p) - jnp.outer(p, p), atol=1e-6)


_extreme = st.sampled_from([0.0, 1e-5, 0.9, 5.0, 88.0, 1e4, 1e30])
_logits = st.lists(
    st.builds(lambda size, sign: size * sign, _extreme, st.sampled_from([-1, 1])),
    min_size=3,
    max_size=3,
)


@jax.jit
def _derivatives(z):
    def kl(z):
        return kl_from_logits(z[0], z[1])

    return kl(z), jax.grad(kl)(z), jax.hessian(kl)(z)


@given(_logits, _logits)
def test_kl_and_its_derivatives_are_finite_at_extreme_logits(a, b):
    for pair in [(a, b), (a, a)]:
        chex.assert_tree_all_finite(_derivatives(jnp.array(pair, jnp.float32)))


def test_kl_broadcasts_and_takes_any_class_axis():
    a, b = _pair(1.0, 1.0, 5, count=4)
    grid = kl_from_logits(a[:, None], b[None])
    assert grid.shape == (4, 4)
    np.testing.assert_allclose(grid[1, 2], kl_from_logits(a[1], b[2]))
    turned = kl_from_logits(a.T[:, :, None], b.T[:, None], axis=0)
    np.testing.assert_allclose(turned, grid, rtol=1e-5)
    assert kl_from_logits(a.astype(jnp.bfloat16), b).dtype == jnp.float32


@pytest.mark.parametrize("order", [2, 3])
@pytest.mark.parametrize(("dtype", "rtol"), [(jnp.float32, 1e-6), (jnp.float64, 1e-15)])
def test_exp_remainder_has_full_relative_accuracy(order, dtype, rtol):
    with jax.enable_x64(True):
        # powers of two are exact in both precisions
        u = np.concatenate([sign * 2.0 ** -np.arange(21) for sign in (1, -1)])
        exact = []
        for value in map(fractions.Fraction, u):
            terms = [value**n / math.factorial(n) for n in range(order, 30)]
            exact.append(float(sum(terms)))
        got = numerics.exp_remainder(jnp.asarray(u, dtype), order)
        np.testing.assert_allclose(got, exact, rtol=rtol)


def test_safe_norm_is_the_norm_with_a_zero_gradient_at_zero():
    x = jnp.array([[3.0, 4.0], [0.0, 0.0]])
    np.testing.assert_allclose(numerics.safe_norm(x, 1), [5.0, 0.0])
    gradient = jax.grad(lambda x: jnp.sum(numerics.safe_norm(x, 1)))(x)
    np.testing.assert_allclose(gradient, [[0.6, 0.8], [0.0, 0.0]], rtol=1e-6)


@pytest.mark.parametrize("size", [1, 4, 8, 11])
def test_map_batched_equals_the_whole_batch_and_traces_once(size):
    xs = {"a": jnp.arange(3.0 * size).reshape(size, 3), "b": jnp.arange(size)}
    traces = []

    def fn(rows):
        traces.append(rows["b"].shape)
        return jnp.sum(rows["a"], 1) * rows["b"], rows["b"]

    value = jax.jit(lambda xs: numerics.map_batched(fn, xs, 4))(xs)
    chex.assert_trees_all_close(value, fn(xs))
    assert traces == [(min(size, 4),), (size,)]


@given(seed=st.integers(0, 2**31), double=st.booleans())
def test_threshold_is_the_k_th_largest_value(seed, double):
    rng = np.random.default_rng(seed)
    with jax.enable_x64(double):
        values = rng.normal(size=(6, 9)) * 10.0 ** rng.integers(-40, 38, size=(6, 1))
        values = np.where(rng.random((6, 9)) < 0.3, np.round(values), values)  # ties
        values[rng.random((6, 9)) < 0.1] = rng.choice([-np.inf, np.inf, -0.0, 0.0])
        values = values.astype(np.float64 if double else np.float32)
        k = rng.integers(1, 10, size=(6, 1))
        found = numerics.threshold(jnp.asarray(values), numerics.count, k - 1)
        assert found.dtype == values.dtype
        falling = -np.sort(-values, axis=1)
        np.testing.assert_array_equal(found, np.take_along_axis(falling, k - 1, 1))


@given(seed=st.integers(0, 2**31))
def test_threshold_is_the_least_that_is_not_too_much(seed):
    rng = np.random.default_rng(seed)
    values, cost = rng.integers(-3, 4, size=(2, 6, 9)).astype(np.float32)
    cost, budget = abs(cost), rng.integers(-1, 20, size=(6, 1))

    def total(chosen):
        return jnp.sum(jnp.where(chosen, cost, 0), axis=1, keepdims=True)

    found = np.asarray(numerics.threshold(jnp.asarray(values), total, budget))
    for row in range(6):
        fits = [
            v for v in values[row] if cost[row][values[row] > v].sum() <= budget[row]
        ]
        assert found[row, 0] == min(fits, default=values[row].max())
