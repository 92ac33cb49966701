"""Universal perturbations of linear models, where the best ones are known."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

from robjax import attacks, evaluation
from robjax.balls import L1, L2, Linf

RNG = np.random.default_rng(0)
KEY = jax.random.key(0)
W = jnp.asarray(RNG.normal(size=(6, 3)), jnp.float32)
X = jnp.asarray(RNG.uniform(0.4, 0.6, size=(20, 6)), jnp.float32)
TRACES = []


def linear(w, x):
    TRACES.append(None)
    return (x - 0.5) @ w


def best_step(gap, ball):
    """The δ of largest ⟨gap, δ⟩ in the ball."""
    if isinstance(ball, Linf):
        return ball.eps * np.sign(gap)
    if isinstance(ball, L2):
        return ball.eps * gap / np.linalg.norm(gap)
    largest = np.abs(gap) == np.abs(gap).max()
    return ball.eps * np.sign(gap) * largest


@pytest.mark.parametrize("ball", [Linf(0.05), L2(0.1), L1(0.2, density=0)])
@pytest.mark.parametrize("batch_size", [20, 7])
def test_images_of_one_class_all_move_the_same_way(ball, batch_size):
    """Two classes, labels all 0: the loss of every image rises with ⟨w₁ − w₀, δ⟩."""
    w = W[:, :2]
    found = attacks.universal(
        Partial(linear, w), X, jnp.zeros(20, int),
        key=KEY, ball=ball, steps=60, batch_size=batch_size,
    )  # fmt: skip
    wanted = best_step(np.asarray(w[:, 1] - w[:, 0], np.float64), ball)
    np.testing.assert_allclose(found.delta, wanted, atol=1e-6)
    z = linear(w, X + found.delta[None])
    np.testing.assert_array_equal(found.fooled, z[:, 1] >= z[:, 0])
    np.testing.assert_array_equal(found.counted, linear(w, X).argmax(1) == 0)


def test_the_share_fooled_is_that_of_brute_force_in_the_plane():
    """Three classes in the plane, every δ of a fine polar grid tried."""
    angles = np.array([0.3, 2.2, 4.6])
    w = np.stack([np.cos(angles), np.sin(angles)])
    x = RNG.uniform(0.2, 0.8, size=(200, 2))
    y = ((x - 0.5) @ w).argmax(1)
    keep = (y == 0) | (RNG.random(200) < 0.4)  # so that one direction is best
    x, y = x[keep], y[keep]
    best = 0.0
    for angle in np.linspace(0, 2 * math.pi, 720, endpoint=False):
        for radius in np.linspace(0, 0.15, 16):
            moved = x + radius * np.array([math.cos(angle), math.sin(angle)])
            best = max(best, (((moved - 0.5) @ w).argmax(1) != y).mean())
    found = attacks.universal(
        Partial(linear, jnp.asarray(40 * w, jnp.float32)),
        jnp.asarray(x, jnp.float32), jnp.asarray(y), key=KEY, ball=L2(0.15), steps=200,
    )  # fmt: skip
    assert found.counted.all()
    assert best > found.rate.mean > 0.9 * best or found.rate.mean >= best
    assert float(jnp.linalg.norm(found.delta)) <= 0.15 + 1e-6


def test_an_evaluation_finds_the_same_on_the_same_images():
    y = jnp.asarray(RNG.integers(3, size=20))
    ball = Linf(0.05)
    model = Partial(linear, W)
    found = attacks.universal(model, X, y, key=KEY, ball=ball, steps=30)
    added = functools.partial(attacks.perturbed, delta=found.delta, ball=ball)
    table = evaluation.evaluate(model, (X, y), {"universal": added}, key=KEY)
    robust = np.asarray(found.counted) & ~np.asarray(found.fooled)
    np.testing.assert_array_equal(table.robust, robust)
    assert not any("outside" in text for text in table.warnings)
    kept = np.asarray(found.fooled)[np.asarray(found.counted)]
    assert found.rate.mean == kept.mean()
    assert found.rate.stderr == pytest.approx(kept.std(ddof=1) / math.sqrt(len(kept)))


def test_a_target_is_reached_and_nothing_compiles_anew():
    y = jnp.asarray(RNG.integers(3, size=20))

    def toward(target, eps, w):
        return attacks.universal(
            Partial(linear, w), X, y, key=KEY, ball=Linf(eps), steps=30, target=target
        )

    found = toward(1, 0.3, W)
    before = len(TRACES)
    z = np.asarray(linear(W, jnp.clip(X + found.delta[None], 0, 1)))
    np.testing.assert_array_equal(found.fooled, z.argmax(1) == 1)
    np.testing.assert_array_equal(found.counted, y != 1)
    assert found.rate.mean > 0.9
    before = len(TRACES)
    other = toward(2, 0.2, 2 * W)
    assert len(TRACES) == before
    assert float(jnp.abs(other.delta).max()) == pytest.approx(0.2)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"target": 3}, "target must be a class from 0 to 2"),
        ({"cap": -1.0}, "cap must be finite and at least 0"),
        ({"batch_size": 0}, "batch_size must be a whole number of at least 1"),
        ({"ball": Linf(jnp.full(20, 0.1))}, "ball.eps must have shape [()]"),
        ({"steps": 0}, "steps must be a whole number"),
        ({"bounds": (0 * X, 0 * X + 1)}, "bounds must be two numbers"),
    ],
)
def test_bad_input_is_named(change, message):
    given = {"key": KEY, "ball": Linf(0.1)} | change
    with pytest.raises(ValueError) as caught:
        attacks.universal(Partial(linear, W), X, jnp.zeros(20, int), **given)
    assert message in str(caught.value)


def test_a_given_perturbation_spares_pixels_that_are_held():
    ball = Linf(0.05)
    low, high = attacks.limits(X, mask=jnp.arange(6) < 2)
    moved = attacks.perturbed(
        Partial(linear, W), X, jnp.zeros(20, int),
        ball=ball, bounds=(low, high), delta=jnp.full(6, 0.05),
    ).x_adv  # fmt: skip
    np.testing.assert_array_equal(moved[:, 2:], X[:, 2:])
    np.testing.assert_allclose(moved[:, :2], X[:, :2] + 0.05, atol=1e-6)


def test_a_perturbation_of_another_shape_is_refused():
    with pytest.raises(ValueError, match="delta must have shape"):
        attacks.perturbed(
            Partial(linear, W), X, jnp.zeros(20, int), ball=Linf(0.1), delta=X
        )
