"""DeepCloak against closed forms of linear models and loops in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax.tree_util import Partial

from robjax import attacks
from robjax.balls import Linf
from robjax.metrics import deepcloak

EPS = 0.1
RNG = np.random.default_rng(0)
FEATURES = RNG.normal(size=(6, 4)).astype(np.float32)
HEAD = RNG.normal(size=(4, 3)).astype(np.float32)
X = RNG.uniform(EPS, 1 - EPS, size=(5, 6)).astype(np.float32)  # no step is clipped
Y = np.array([0, 1, 2, 0, 1])


def times(w, x):
    return x @ w


def relu(w, x):
    return jax.nn.relu(x @ w)


def linear(mask=(True,) * 4, features=FEATURES, head=HEAD):
    """Linear features and a linear classifier on them."""
    parts = Partial(times, jnp.asarray(features)), Partial(times, jnp.asarray(head))
    return deepcloak.masked(*parts, np.array(mask))


def test_scores_of_linear_features_are_in_closed_form():
    moved = attacks.fgsm(linear(), X, Y, ball=Linf(EPS)).x_adv
    logits = X.astype(float) @ FEATURES @ HEAD
    p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    slope = (p - np.eye(3)[Y]) @ (FEATURES @ HEAD).T
    wanted = EPS * np.abs(np.sign(slope) @ FEATURES).sum(axis=0)
    features_fn = Partial(times, jnp.asarray(FEATURES))
    for batch_size in (256, 2):
        found = deepcloak.feature_scores(features_fn, X, moved, batch_size=batch_size)
        np.testing.assert_allclose(found, wanted, rtol=1e-5)


def test_scores_add_up_and_follow_the_features():
    moved = X + RNG.normal(size=X.shape).astype(np.float32)

    def scores(rows, columns):
        features_fn = Partial(relu, jnp.asarray(FEATURES[:, columns]))
        return deepcloak.feature_scores(features_fn, X[rows], moved[rows])

    everything = scores(range(5), range(4))
    parts = scores(range(3), range(4)) + scores(range(3, 5), range(4))
    np.testing.assert_allclose(parts, everything, rtol=1e-6)
    order = [2, 0, 3, 1]
    np.testing.assert_allclose(scores(range(5), order), everything[np.array(order)])


def test_a_dead_relu_has_the_score_0():
    dead = np.abs(FEATURES)
    dead[:, 1] *= -1  # images are positive
    features_fn = Partial(relu, jnp.asarray(dead))
    found = np.asarray(deepcloak.feature_scores(features_fn, X, 1 - X))
    assert found[1] == 0 and (np.delete(found, 1) > 0).all()
    np.testing.assert_array_equal(deepcloak.feature_scores(features_fn, X, X), 0)


@given(st.integers(0, 60), st.integers(0, 10**6), st.booleans())
def test_masks_are_the_top_of_a_sort(count, seed, ties):
    rng = np.random.default_rng(seed)
    scores = rng.integers(0, 4, 60) if ties else rng.permutation(60)
    mask = np.asarray(deepcloak.mask_of(scores.astype(np.float32), 100 * count / 60))
    top = sorted(range(60), key=lambda j: (-scores[j], j))[:count]
    assert np.flatnonzero(~mask).tolist() == sorted(top)


def test_the_number_of_masked_features_is_exact():
    for size in (1, 7, 50, 93, 100, 640):
        for percent in (0, 1, 5, 29, 57, 58, 100):
            assert deepcloak._count(size, percent) == size * percent // 100
    for size in (7, 49, 93):  # 100 k/F masks k, though it is rounded
        for k in range(size):
            assert deepcloak._count(size, 100 * k / size) == k
    assert deepcloak.mask_of(np.arange(50.0), 1).all()  # fewer than 100: none at 1 %


def test_random_masks_are_of_the_same_size_and_even():
    masks = jax.vmap(lambda key: deepcloak.random_mask(key, 20, 30))(
        jax.random.split(jax.random.key(0), 2000)
    )
    np.testing.assert_array_equal((~masks).sum(axis=1), 6)
    spread = np.sqrt(0.3 * 0.7 / 2000)
    assert np.abs((~masks).mean(axis=0) - 0.3).max() < 4 * spread


def test_masking_a_feature_is_zeroing_its_row_of_the_head():
    everything = linear()(X)
    np.testing.assert_allclose(everything, X @ FEATURES @ HEAD, rtol=1e-4, atol=1e-5)
    none = deepcloak.mask_of(np.arange(4.0), 0)
    np.testing.assert_array_equal(linear(none)(X), everything)
    for j in range(4):
        mask = np.arange(4) != j
        logits = linear(mask)(X)
        without = np.where(mask[:, None], HEAD, 0)
        np.testing.assert_array_equal(logits, linear(head=without)(X))
        change = np.outer(X @ FEATURES[:, j], HEAD[j])
        np.testing.assert_allclose(everything - logits, change, atol=1e-5)


def test_an_attack_through_the_mask_sees_the_masked_network():
    mask = np.array([True, False, True, False])
    zeroed = linear(features=np.where(mask, FEATURES, 0))
    found, wanted = (
        jax.grad(lambda x, fn=fn: jnp.sum(jax.nn.log_softmax(fn(x))[:, 0]))(X)
        for fn in (linear(mask), zeroed)
    )
    np.testing.assert_allclose(found, wanted, atol=1e-6)
    other = jax.grad(lambda x: jnp.sum(jax.nn.log_softmax(linear()(x))[:, 0]))(X)
    assert np.abs(found - other).max() > 0.1


def test_another_mask_or_other_weights_compile_nothing():
    traces = []

    def features_fn(w, x):
        traces.append(1)
        return x @ w

    def attack(mask, scale):
        part = Partial(features_fn, scale * jnp.asarray(FEATURES))
        logits_fn = deepcloak.masked(part, Partial(times, jnp.asarray(HEAD)), mask)
        deepcloak.feature_scores(part, X, X)
        return attacks.fgsm(logits_fn, X, Y, ball=Linf(EPS))

    attack(np.array([True, True, False, True]), 1.0)
    before = len(traces)
    attack(np.array([False, True, True, False]), 2.0)
    assert len(traces) == before


def test_functions_that_read_their_closures_and_half_precision():
    w = FEATURES
    found = deepcloak.feature_scores(lambda x: x @ np.exp(w), X, X + 1)
    np.testing.assert_allclose(found, 5 * np.abs(np.exp(w).sum(0)), rtol=1e-4)
    images = jnp.asarray(X, jnp.bfloat16)
    found = deepcloak.feature_scores(lambda x: x.astype(jnp.bfloat16), images, images)
    assert found.dtype == jnp.float32


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: deepcloak.feature_scores(3, X, X),
            "features_fn must be callable, got 3",
        ),
        (
            lambda: deepcloak.feature_scores(lambda x: x, X, X[:2]),
            r"x_adv must have the shape of x, \(5, 6\), got \(2, 6\)",
        ),
        (
            lambda: deepcloak.feature_scores(lambda x: x, X, np.nan * X),
            "x_adv must be finite",
        ),
        (
            lambda: deepcloak.feature_scores(lambda x: x[:, :, None], X, X),
            r"must return features \[5, F\] for a batch of 5, got shape \(5, 6, 1\)",
        ),
        (
            lambda: deepcloak.feature_scores(lambda x: (x, x), X, X),
            "features_fn must return one array, got tuple",
        ),
        (
            lambda: deepcloak.feature_scores(lambda x: x > 0, X, X),
            "floating-point features, got bool",
        ),
        (
            lambda: deepcloak.feature_scores(lambda x: x, X, X, batch_size=0),
            "batch_size must be",
        ),
        (lambda: deepcloak.mask_of([[1.0]], 5), r"scores must be non-empty \[F\]"),
        (lambda: deepcloak.mask_of([1.0, np.nan], 5), "scores must be finite"),
        (lambda: deepcloak.mask_of([1.0], 101), "percent must be finite and in"),
        (lambda: deepcloak.mask_of([1.0], [5, 6]), "percent must be a real number"),
        (
            lambda: deepcloak.random_mask(jax.random.key(0), 0, 5),
            "num_features must be",
        ),
        (lambda: deepcloak.random_mask(0, 5, 5), "key must be one key"),
        (lambda: deepcloak.random_mask(jax.random.key(0), 5, -1), "percent must be"),
        (lambda: linear((1, 0, 1, 1)), "mask must be bool"),
        (lambda: linear((True,) * 3)(X), "each of 4 features, got 3"),
        (lambda: deepcloak.masked(len, None, [True]), "head_fn must be callable"),
    ],
)
def test_bad_arguments_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
