import functools

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.tree_util import Partial

from robjax.checks import (
    check_bounds,
    check_count,
    check_images,
    check_labels,
    check_number,
)
from robjax.model import as_logits_fn, count_classes
from robjax.samples import sample_keys

X = jnp.asarray(np.random.default_rng(0).uniform(size=(4, 6)), jnp.float32)
W = jnp.asarray(np.random.default_rng(1).normal(size=(6, 3)), jnp.float32)


def linear(weights, x, scale=1.0, flip=False):
    return (-1 if flip else 1) * scale * (x @ weights)


class Linen(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(3, use_bias=False)(x)


class Nnx(nnx.Module):
    def __init__(self):
        self.dense = nnx.Linear(6, 3, rngs=nnx.Rngs(0))
        self.dropout = nnx.Dropout(0.5, rngs=nnx.Rngs(1))

    def __call__(self, x):
        return self.dropout(self.dense(x))


def models():
    variables = Linen().init(jax.random.key(0), X)
    module = Nnx()
    module.eval()
    return {
        "plain function": lambda x: x @ W,
        "tree_util.Partial": Partial(linear, W),
        "functools.partial": functools.partial(linear, W, scale=2.0, flip=True),
        "linen Partial": Partial(Linen().apply, variables),
        "linen bound": Linen().bind(variables),
        "equinox": jax.vmap(eqx.nn.Linear(6, 3, key=jax.random.key(0))),
        "equinox module": eqx.filter_vmap(
            eqx.nn.MLP(6, 3, 8, 1, key=jax.random.key(0))
        ),
        "nnx": module,
    }


@pytest.mark.parametrize("name", models())
def test_any_callable_keeps_its_meaning_under_jit(name):
    model = models()[name]
    wrapped = as_logits_fn(model)
    assert as_logits_fn(wrapped) is wrapped
    expected = model(X)
    got = jax.jit(lambda fn, x: fn(x))(wrapped, X)
    np.testing.assert_allclose(got, expected, rtol=1e-6)


def test_new_weights_do_not_retrace_and_flags_stay_static():
    traces = []

    def model(weights, x, *, train):
        assert train is False  # a tracer would not be the object False
        traces.append(None)
        return x @ weights

    @jax.jit
    def run(fn, x):
        return fn(x)

    for factor in (1.0, 2.0, 3.0):
        fn = as_logits_fn(functools.partial(model, factor * W, train=False))
        np.testing.assert_allclose(run(fn, X), factor * X @ W, rtol=1e-6)
    assert len(traces) == 1


def test_bound_linen_modules_with_new_weights_do_not_retrace():
    @jax.jit
    def run(fn, x):
        return fn(x)

    for seed in range(3):
        bound = Linen().bind(Linen().init(jax.random.key(seed), X))
        run(as_logits_fn(bound), X)
    assert run._cache_size() == 1


def test_equal_numbers_of_different_types_are_different_models():
    def model(weights, flag, x):
        return x @ weights if flag is True else -x @ weights

    run = jax.jit(lambda fn, x: fn(x))
    one = run(as_logits_fn(Partial(model, W, 1)), X)
    true = run(as_logits_fn(Partial(model, W, True)), X)
    np.testing.assert_array_equal(one, -true)


def test_models_that_cannot_be_right_are_named():
    with pytest.raises(ValueError, match=r"train mode.*dropout"):
        as_logits_fn(Nnx())
    with pytest.raises(ValueError, match="without weights"):
        as_logits_fn(Linen())
    with pytest.raises(ValueError, match="callable"):
        as_logits_fn(W)
    with pytest.raises(ValueError, match="hashable"):
        as_logits_fn(Partial(lambda s, x: x @ W, {"a", "b"}))


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ([[0.5]], "be an array"),
        (X[0], "non-empty batch"),
        (X[:0], "non-empty batch"),
        ((255 * X).astype(jnp.uint8), "floating point, got uint8.*x / 255"),
        (X.at[1, 2].set(jnp.nan), "finite"),
        (X.at[1, 2].set(jnp.inf), "finite"),
        (np.full((2, 3), 1.001), "inside bounds"),
        (X - 1, "inside bounds"),
    ],
)
def test_bad_images(bad, message):
    with pytest.raises(ValueError, match=f"images must.*{message}"):
        check_images(bad, bounds=(0.0, 1.0), name="images")


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (np.zeros(4), "integer class labels, got dtype float64"),
        (np.array([0, 1, 2, 3]), "0 to 2, got values from 0 to 3"),
        (np.array([0, -1, 2, 1]), "0 to 2, got values from -1"),
        (np.zeros(3, int), r"shape \(4,\)"),
        (np.zeros((4, 1), int), r"shape \(4,\)"),
        (np.zeros(4, bool), "integer class labels"),
        ("0123", "integer array"),
    ],
)
def test_bad_labels(bad, message):
    with pytest.raises(ValueError, match=f"y must.*{message}"):
        check_labels(bad, 4, num_classes=3)


@pytest.mark.parametrize("bad", [-0.1, np.nan, np.inf, "1", None, 1j, [0.1, 0.2], True])
def test_bad_numbers(bad):
    with pytest.raises(ValueError, match="eps must"):
        check_number("eps", bad, minimum=0)


@pytest.mark.parametrize("bad", [0, -1, 2.0, True, "3", None])
def test_bad_counts(bad):
    with pytest.raises(ValueError, match="steps must be a whole number of at least 1"):
        check_count("steps", bad)


@pytest.mark.parametrize("bad", [(1.0, 0.0), (0.0, np.nan), 3, (0.0,), "ab", None])
def test_bad_bounds(bad):
    with pytest.raises(ValueError, match="bounds must"):
        check_bounds(bad)


@pytest.mark.parametrize(
    "logits", [X[:, 0], X[:3], X[:, :1], (255 * X).astype(jnp.int32), X[None]]
)
def test_bad_logits_are_found_before_anything_compiles(logits):
    with pytest.raises(ValueError, match="logits_fn must return"):
        count_classes(as_logits_fn(lambda x: logits), X)


@pytest.mark.parametrize(
    "bad",
    [None, 0, jnp.arange(3), jax.random.split(jax.random.key(0), 3), jnp.zeros(2), X],
)
def test_bad_keys(bad):
    with pytest.raises(ValueError, match="key must be one key"):
        sample_keys(bad, 4)


def test_a_sample_keeps_its_key_in_any_batch():
    key = jax.random.key(3)
    keys = sample_keys(key, 5)
    np.testing.assert_array_equal(
        jax.random.key_data(keys[3]), jax.random.key_data(jax.random.fold_in(key, 3))
    )
    np.testing.assert_array_equal(
        jax.random.key_data(sample_keys(keys, 5)), jax.random.key_data(keys)
    )
    old = sample_keys(jax.random.PRNGKey(3), 5)
    np.testing.assert_array_equal(jax.random.key_data(old), jax.random.key_data(keys))


def test_values_of_tracers_are_not_looked_at():
    @jax.jit
    def run(x, y, eps):
        check_images(x, bounds=(0.0, 1.0))
        check_labels(y, 4, num_classes=3)
        check_number("eps", eps, minimum=0)
        return x

    run(X + 7, jnp.full(4, 9), -1.0)

    with pytest.raises(ValueError, match="shape"):  # shapes are static, so they are
        jax.jit(lambda y: check_labels(y, 3))(jnp.zeros(4, jnp.int32))
