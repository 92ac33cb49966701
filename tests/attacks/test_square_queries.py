"""Square on a Python function: the search of `square`, image by image counted."""

import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

from robjax import attacks
from robjax.balls import L1, L2, Linf

RNG = np.random.default_rng(0)
KEY = jax.random.key(0)
W = RNG.normal(size=(84, 4)).astype(np.float32)
MANY = RNG.uniform(size=(90, 6, 7, 2)).astype(np.float32)
BALLS = {"Linf": Linf(0.03), "L2": L2(0.1), "L1": L1(0.5)}


def logits(w, x):
    return x.reshape(x.shape[0], -1) @ w


MODEL = Partial(logits, jnp.asarray(W))
# those nearest to a boundary, so that the search comes to something soon
TOP = np.sort(logits(W, MANY), axis=1)
X = jnp.asarray(MANY[np.argsort(TOP[:, -1] - TOP[:, -2])][4:14])
Y = jnp.argmax(MODEL(X), axis=1)
COMPILED = jax.jit(lambda x: logits(jnp.asarray(W), x))


def predict(images):
    """The same model, always on ten images: sums in the same order as in a batch."""
    padded = np.concatenate([images, np.zeros((10 - len(images), *images.shape[1:]))])
    return np.asarray(COMPILED(jnp.asarray(padded, jnp.float32)))[: len(images)]


@pytest.mark.parametrize(
    ("norm", "restarts"), [("Linf", 1), ("Linf", 2), ("L2", 2), ("L1", 1)]
)
def test_finds_what_square_finds(norm, restarts):
    options = {"key": KEY, "ball": BALLS[norm], "queries": 12, "restarts": restarts}
    # two samples are misclassified as they are
    y = Y.at[:2].set((Y[:2] + 1) % 4)
    inside, outside = (
        attacks.square(MODEL, X, y, **options),
        attacks.square_queries(predict, X, y, **options),
    )
    assert 3 <= inside.success.sum() <= 9
    for name in ("success", "first_success", "queries"):
        np.testing.assert_array_equal(getattr(outside, name), getattr(inside, name))
    exact = norm == "Linf"  # the lengths of L2 and L1 are sums
    for name in ("x_adv", "loss", "distance"):
        np.testing.assert_allclose(
            getattr(outside, name), getattr(inside, name), atol=0 if exact else 1e-5
        )
    assert type(outside) is type(inside)


def test_shows_only_unsolved_samples_and_counts_them():
    shown = []

    def count(images):
        assert images.flags.writeable and images.dtype == np.float32
        shown.append(len(images))
        scores = predict(images)
        images[:] = 0  # what predict does to its copy is its own business
        return scores

    out = attacks.square_queries(count, X, Y, key=KEY, ball=Linf(0.03), queries=12)
    assert sum(shown) == out.queries.sum() and max(shown) == shown[0] == 10
    assert shown == sorted(shown, reverse=True) and len(shown) == out.queries.max()
    first = np.asarray(out.first_success)
    for step, size in enumerate(shown):
        assert size == ((first < 0) | (first >= step)).sum()
    assert (out.queries <= 1 + 13).all() and out.queries.min() < 8
    np.testing.assert_array_equal(out.queries[out.success], first[out.success] + 1)


def test_ends_when_all_are_solved_and_batches_are_limited():
    sizes = []

    def count(images):
        sizes.append(len(images))
        return predict(images)

    options = {"key": KEY, "ball": Linf(0.03), "queries": 12}
    out = attacks.square_queries(count, X, Y, **options, batch_size=4)
    whole = attacks.square_queries(predict, X, Y, **options)
    assert sizes[:3] == [4, 4, 2]
    np.testing.assert_array_equal(out.x_adv, whole.x_adv)
    sizes.clear()
    out = attacks.square_queries(count, X, (Y + 1) % 4, **options)
    assert sizes == [10] and out.success.all() and (out.queries == 1).all()
    np.testing.assert_array_equal(out.x_adv, X)


def test_compiles_once_for_each_power_of_two():
    module = importlib.import_module("robjax.attacks.square.queries")
    before = module._propose._cache_size()
    x = MANY[np.argsort(TOP[:, -1] - TOP[:, -2])][:23]
    y = np.argmax(logits(W, x), axis=1)
    for eps in (0.15, 0.2):
        out = attacks.square_queries(
            lambda images: logits(W, images), x, y, key=KEY, ball=Linf(eps), queries=12
        )
    assert out.success.sum() > 17
    assert module._propose._cache_size() - before <= 4  # 23, at most 4, 1


def test_any_shape_per_sample_radii_and_any_scores():
    flat = np.asarray(X).reshape(10, -1)

    def half(images):
        assert images.shape[1:] == (84,)
        z = logits(W, images.astype(np.float16))
        return z.astype(np.float16)

    y = np.argmax(half(flat), axis=1)
    eps = jnp.linspace(0, 0.3, 10)
    out = attacks.square_queries(half, flat, y, key=KEY, ball=Linf(eps), queries=12)
    assert out.x_adv.shape == (10, 84) and out.loss.dtype == jnp.float32
    assert (out.distance <= eps + 1e-7).all() and out.success[-1]
    verdict = np.argmax(half(np.asarray(out.x_adv)), axis=1) != y
    np.testing.assert_array_equal(out.success, verdict)

    def log_probabilities(images):  # of classes that are ruled out: −∞
        scores = logits(W, images.reshape(len(images), -1)).astype(np.float64)
        scores[:, 3] = -np.inf
        return scores

    y = np.argmax(log_probabilities(flat), axis=1)
    out = attacks.square_queries(
        log_probabilities, flat, y, key=KEY, ball=Linf(eps), queries=12
    )
    assert out.success.any() and np.isfinite(out.loss).all()


def test_success_rate_against_the_number_of_images():
    first = jnp.asarray([0, 3, -1, 7])
    rate = attacks.success_rate(first, [0, 1, 3, 4, 8, 100])
    np.testing.assert_allclose(rate, [0, 0.25, 0.25, 0.5, 0.75, 0.75])


def later(wrong):
    """The right scores for the clean images, then something else."""
    calls = []

    def predict_then(images):
        calls.append(None)
        return predict(images) if len(calls) == 1 else wrong(images)

    return predict_then


BAD = {
    "not callable": ({"predict": 3}, "predict must be a function"),
    "vector": ({"predict": lambda v: v[:, 0, 0, 0]}, r"scores \[10, K ≥ 2\] for 10"),
    "one class": ({"predict": lambda v: predict(v)[:, :1]}, r"got shape \(10, 1\)"),
    "too few": ({"predict": lambda v: predict(v)[1:]}, r"got shape \(9, 4\)"),
    "integers": ({"predict": lambda v: predict(v).astype(int)}, "floating scores"),
    "nan": ({"predict": lambda v: predict(v) * np.nan}, "is finite, got nan"),
    "infinite": ({"predict": lambda v: abs(predict(v)) / 0}, "is finite, got inf"),
    "other K": (
        {"predict": later(lambda v: predict(v)[:, :3])},
        r"scores \[10, 4\] for 10 images, got shape \(10, 3\)",
    ),
    "labels": ({"y": Y + 4}, "y must hold labels 0 to 3"),
    "negative labels": ({"y": Y - 9}, "y must hold labels 0 or more"),
    "x": ({"x": X * 2}, "x must lie inside bounds"),
    "ball": ({"ball": 0.3}, "ball must be Linf"),
    "queries": ({"queries": 0}, "queries must be a whole number"),
    "batch_size": ({"batch_size": 0}, "batch_size must be a whole number"),
    "p_init": ({"p_init": 0}, "p_init must be a number"),
    "key": ({"key": 3}, "key must be one key"),
}


@pytest.mark.filterwarnings("ignore:divide by zero")
@pytest.mark.parametrize("name", BAD)
def test_bad_arguments_and_bad_scores_are_named(name):
    changes, message = BAD[name]
    good = {"predict": predict, "x": X, "y": Y, "key": KEY, "ball": Linf(0.01)}
    arguments = {**good, "queries": 3, **changes}
    positional = [arguments.pop(n) for n in ("predict", "x", "y")]
    with pytest.raises(ValueError, match=message):
        attacks.square_queries(*positional, **arguments)
