"""Attacks to one class, on a linear model of four, where that distance is exact."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

from robjax import attacks
from robjax.balls import L2, Linf
from robjax.evaluation import evaluate
from robjax.evaluation.attack import uses_gradients
from tests.oracles.linear_attacks import to_class

KEY = jax.random.key(0)
RNG = np.random.default_rng(0)
X = RNG.uniform(size=(8, 12)).astype(np.float32)
W = RNG.normal(size=(12, 4)).astype(np.float32)
BIAS = np.zeros(4, np.float32)
Y = np.argmax(X @ W, axis=1)
TARGET = (Y + 1 + np.arange(8) % 3) % 4
to_target = attacks.to_target


def linear(w, bias, x):
    return x @ w + bias[None]


MODEL = Partial(linear, W, BIAS)


def classes(images):
    return np.argmax(np.asarray(images, np.float64) @ W, axis=1)


@pytest.mark.parametrize(
    ("attack", "norm"),
    [
        (attacks.fmn, "Linf"),
        (attacks.deepfool, "Linf"),
        (attacks.deepfool, "L2"),
        (attacks.ddn, "L2"),
    ],
)
def test_the_minimal_distance_to_a_class(attack, norm):
    exact = to_class(W, BIAS, X, TARGET, norm)
    nearest = functools.partial(attack, ball={"L2": L2, "Linf": Linf}[norm](9.0))
    aimed = to_target(nearest, TARGET)
    out = aimed(MODEL, X, Y)
    assert out.success.all()
    np.testing.assert_array_equal(classes(out.x_adv), TARGET)
    assert (out.distance >= exact * (1 - 1e-5)).all()
    np.testing.assert_allclose(out.distance, exact, rtol=1e-4, atol=1e-5)
    assert uses_gradients(aimed)


def test_the_minimal_distance_to_a_class_under_a_mask():
    """The held pixels are a bias of each sample."""
    free = np.arange(12) % 3 > 0
    biases = X[:, ~free] @ W[~free]
    exact = np.concatenate(
        [
            to_class(W[free], biases[i], X[[i]][:, free], TARGET[[i]], "L2")
            for i in range(8)
        ]
    )
    aimed = to_target(functools.partial(attacks.ddn, ball=L2(9.0)), TARGET)
    out = aimed(MODEL, X, Y, bounds=attacks.limits(X, mask=free))
    np.testing.assert_array_equal(out.x_adv[:, ~free], X[:, ~free])
    np.testing.assert_allclose(out.distance, exact, rtol=1e-4, atol=1e-5)


def test_verdicts_of_apgd_are_exact_and_failures_give_back_x():
    exact = to_class(W, BIAS, X, TARGET, "Linf")
    eps = exact * np.where(np.arange(8) % 2, 0.99, 1.01)
    target = np.where(np.arange(8) == 4, Y, TARGET)  # one has nothing to reach
    run = to_target(
        functools.partial(attacks.apgd, ball=Linf(jnp.asarray(eps, jnp.float32))),
        target,
    )
    out = run(MODEL, X, Y, key=KEY)
    wanted = (np.arange(8) % 2 == 0) & (target != Y)
    np.testing.assert_array_equal(out.success, wanted)
    np.testing.assert_array_equal(classes(out.x_adv), np.where(wanted, target, Y))
    np.testing.assert_array_equal(out.x_adv[~wanted], X[~wanted])
    np.testing.assert_array_equal(out.first_success >= 0, wanted)
    moved = np.abs(out.x_adv - X).max(axis=1)
    np.testing.assert_allclose(out.distance, np.where(target == Y, np.inf, moved), 1e-5)


def test_evaluations_count_one_class_and_resume(tmp_path):
    """In one dimension: class c is nearest to (c + ½) / 4."""

    def model(x):
        return -((x[:, :1] - (jnp.arange(4)[None] + 0.5) / 4) ** 2)

    x = np.float32([[0.3], [0.45], [0.6], [0.9]])
    y = np.array([1, 1, 2, 3])
    fgsm = functools.partial(attacks.fgsm, ball=Linf(0.12))
    named = {f"to {c}": to_target(fgsm, c) for c in (2, 3)}
    named["likeliest"] = to_target(fgsm, attacks.likeliest)
    options = {"key": KEY, "devices": jax.devices()[:1], "run_dir": tmp_path}
    once = evaluate(model, (x, y), named, **options)
    robust = {name: table.robust.tolist() for name, table in once.attacks.items()}
    assert robust == {
        "to 2": [True, False, True, True],
        "to 3": [True, True, True, True],
        "likeliest": [False, False, False, True],
    }
    again = evaluate(model, (x, y), named, resume=True, **options)
    for name, table in once.attacks.items():
        for one, other in zip(table, again.attacks[name], strict=True):
            np.testing.assert_array_equal(one, other)


def test_arguments():
    assert not uses_gradients(to_target(attacks.square, 1))
    fgsm = functools.partial(attacks.fgsm, ball=Linf(0.1))
    with pytest.raises(ValueError, match="attack must be callable, got None"):
        to_target(None, 1)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="target must be a class, one for each sam"):
        to_target(fgsm, 0.5)
    with pytest.raises(ValueError, match="target must hold labels 0 to 3, got values"):
        to_target(fgsm, 4)(MODEL, X, Y)
    with pytest.raises(ValueError, match=r"target must have shape \(8,\), one label"):
        to_target(fgsm, TARGET[:3])(MODEL, X, Y)
