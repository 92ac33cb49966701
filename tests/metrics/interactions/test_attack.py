"""Attacks stopped at equal utility: closed forms, the window, neighbours, compiling."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax.tree_util import Partial

from robjax import models
from robjax.balls import L2, Linf
from robjax.metrics.interactions import utility_attack

NETWORK = models.MLP(4, widths=(16,))
X = jax.random.uniform(jax.random.key(0), (12, 3, 3, 1), minval=0.2, maxval=0.8)
WEIGHTS = jax.tree.map(lambda w: 4 * w, jax.jit(NETWORK.init)(jax.random.key(1), X))
LOGITS_FN = Partial(NETWORK.apply, WEIGHTS)
Y = jnp.argmax(LOGITS_FN(X), axis=1)


def two_logits(x):
    return x


@pytest.mark.parametrize("ball", [Linf(0.4), L2(0.4 * np.sqrt(2))])
def test_halving_reaches_any_window_of_a_linear_model(ball):
    # one step of α takes α from the first pixel and adds it to the second, which is
    # a step of α √2 in L2
    scale = np.sqrt(2) if isinstance(ball, L2) else 1
    x = jnp.array([[0.6, 0.5], [0.55, 0.5], [0.9, 0.5], [0.5, 0.6]])
    found = utility_attack(
        two_logits,
        x,
        jnp.zeros(4, int),
        ball=ball,
        utility=jnp.array([0.21, 0.11, 0.1, 0.11]),
        tolerance=0.02,
        step_size=0.1 * scale,
    )
    # 0.1, not 0.2 and halved: 0.15 is above the second window, 0.125 is in it; the
    # third window leaves a margin of 0.4 as good as whole; the last x was wrong before
    utility = np.asarray(found.utility)
    np.testing.assert_allclose(utility[[0, 1, 3]], [0.225, 0.125, 0.125], atol=1e-6)
    assert found.reached.tolist() == [True] * 4
    assert found.success.tolist() == [True, True, False, False]
    assert found.accepted.tolist() == [True, True, False, False]


def test_targeted_utility_counts_both_logits():
    x = jnp.array([[0.6, 0.5, 0.9], [0.9, 0.1, 0.0]])
    found = utility_attack(
        two_logits,
        x,
        jnp.array([2, 0]),
        target=jnp.array([1, 1]),
        ball=Linf(0.3),
        utility=0.45,
        tolerance=0.1,
        step_size=0.25,
    )
    # h_t − h_y gains 0.5 in the first step. That is enough for the first image, whose
    # margin was 0.4; the second one climbs to the top of the window in vain.
    np.testing.assert_allclose(found.utility, [0.5, 0.55], atol=1e-6)
    assert found.success.tolist() == [True, False]
    np.testing.assert_allclose(found.x_adv[0], [0.6, 0.75, 0.65], atol=1e-6)


def test_a_window_that_the_ball_does_not_reach():
    x = jnp.array([[0.6, 0.5]])
    y = jnp.array([0])
    found = utility_attack(two_logits, x, y, ball=Linf(0.1), utility=0.3)
    assert found.utility[0] == pytest.approx(0.1)
    assert not found.reached[0] and found.success[0] and not found.accepted[0]


@given(utility=st.floats(0.05, 3), tolerance=st.floats(0.02, 1), targeted=st.booleans())
def test_what_is_accepted(utility, tolerance, targeted):
    target = (Y + 1) % 4 if targeted else None
    found = utility_attack(
        LOGITS_FN,
        X,
        Y,
        ball=Linf(0.2),
        utility=utility,
        tolerance=tolerance,
        target=target,
    )
    before, after = np.asarray(LOGITS_FN(X)), np.asarray(LOGITS_FN(found.x_adv))
    row = np.arange(len(Y))
    gained = before[row, Y] - after[row, Y]
    if target is not None:
        gained += after[row, target] - before[row, target]
    np.testing.assert_allclose(found.utility, gained, atol=1e-5)
    assert np.abs(found.x_adv - X).max() <= 0.2 + 1e-6
    assert found.x_adv.min() >= 0 and found.x_adv.max() <= 1
    said = after.argmax(1)
    hit = said != Y if target is None else said == target
    np.testing.assert_array_equal(found.success, hit)
    window = (gained > utility) & (gained <= utility + tolerance)
    edge = np.minimum(abs(gained - utility), abs(gained - utility - tolerance)) < 1e-5
    np.testing.assert_array_equal(np.asarray(found.reached)[~edge], window[~edge])
    assert (gained <= utility + tolerance + 1e-5).all()


def test_neighbours_do_not_matter():
    options = {"ball": Linf(0.2), "utility": 0.5}
    every = utility_attack(LOGITS_FN, X, Y, **options)
    alone = utility_attack(LOGITS_FN, X[3:4], Y[3:4], **options)
    np.testing.assert_allclose(every.x_adv[3:4], alone.x_adv, atol=1e-6)
    assert 0 < np.mean(every.accepted) <= 1


def test_other_weights_and_windows_do_not_compile_anew():
    traces = []

    def logits_fn(weights, x):
        traces.append(1)
        return NETWORK.apply(weights, x)

    def attack(scale):
        weights = jax.tree.map(lambda w: scale * w, WEIGHTS)
        model = Partial(logits_fn, weights)
        utility_attack(model, X, Y, ball=Linf(0.1 * scale), utility=scale)
        return len(traces)

    assert attack(1.0) == attack(2.0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"utility": -1.0}, "utility must be finite and at least 0, got -1"),
        ({"utility": np.ones(2)}, r"utility must have shape .*\(12,\)"),
        ({"tolerance": np.nan}, "tolerance must be finite"),
        ({"target": Y}, "target must differ from y in every image"),
        ({"target": jnp.full(12, 4)}, "target must hold labels 0 to 3"),
        ({"steps": 0}, "steps must be a whole number"),
        ({"ball": None}, "ball must be"),
        ({"y": Y[:3]}, r"y must have shape \(12,\)"),
    ],
)
def test_bad_arguments_are_named(change, message):
    arguments = {"y": Y, "ball": Linf(0.1), "utility": 0.5, **change}
    with pytest.raises(ValueError, match=message):
        utility_attack(LOGITS_FN, X, arguments.pop("y"), **arguments)


def test_a_slope_that_is_not_finite_moves_nothing():
    """The length of the first two pixels has no slope at 1/2, where they are."""

    def model(x):
        length = jnp.linalg.norm(x[:, :2] - 0.5, axis=1)
        return jnp.stack([length + x[:, 2], 0.6 + 0 * length], axis=1)

    x = jnp.array([[0.5, 0.5, 0.7], [0.5, 0.5, 0.9]])
    found = utility_attack(
        model, x, jnp.zeros(2, int), ball=Linf(0.4), utility=0.15, tolerance=0.1
    )
    assert jnp.isfinite(found.x_adv).all() and jnp.isfinite(found.utility).all()
    np.testing.assert_array_equal(found.x_adv[:, :2], 0.5)
    assert found.accepted.tolist() == [True, False]  # 0.9 − 0.25 is still right
