"""The attack inside an oracle's ball against closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from robjax.metrics import strong_robustness as sr
from robjax.theory import feature_spaces

KEY = jax.random.key(0)
WIDE = (-1e4, 1e4)
RNG = np.random.default_rng(0)
X = RNG.normal(size=(24, 4)).astype(np.float32)
A2 = np.array([[1.0, 0, 0, 0], [1.0, 2.0, 0, 0]])
TRACES = []


def score(weights, x):
    TRACES.append(x.shape)
    s = x @ weights
    return jnp.stack([-s / 2, s / 2], axis=1)


def attack(weights, delta, oracle, **changes):
    model = jax.tree_util.Partial(score, jnp.asarray(weights, jnp.float32))
    arguments = dict(oracle=oracle, delta=delta, key=KEY, bounds=WIDE, steps=25)
    return sr.worst_case_agreement(model, X, **(arguments | changes))


def verified(found, weights, oracle, delta):
    """Checks in float64 what is said of flips."""
    flipped = np.asarray(found.success)
    x_adv = np.asarray(found.x_adv, float)
    before, after = (np.asarray(v, float) @ weights > 0 for v in (X, x_adv))
    np.testing.assert_array_equal(before != after, flipped)
    np.testing.assert_array_equal(np.asarray(found.label), after)
    move = (x_adv - X) @ oracle.matrix.T
    d = np.linalg.norm(move, oracle.norm, axis=1)
    np.testing.assert_allclose(found.distance, d, atol=1e-7)
    assert (d <= delta + 1e-6).all()
    return flipped


@pytest.mark.parametrize("c", [1e-3, 0.1, -2.0])
def test_every_sample_flips_at_distance_0_by_a_direction_that_the_oracle_ignores(c):
    oracle = sr.linear(np.eye(4)[[0, 3]])
    weights = np.array([1.0, c, 0, 0])
    assert verified(attack(weights, 0.0, oracle), weights, oracle, 0).all()


def test_no_sample_flips_by_a_direction_that_the_classifier_leaves_alone():
    oracle = sr.linear(np.eye(4)[[0, 3]])
    assert not attack(np.array([1.0, 0, 0, 0]), 0.0, oracle).success.any()
    # nor where the gradient in the kernel is rounding
    weights = RNG.normal(size=2) @ A2
    assert not attack(weights, 0.0, sr.linear(A2)).success.any()
    constant = attack(np.zeros(4), 3.0, sr.linear(A2))
    assert float(constant.agreement) == 1
    assert repr(constant) == "WorstCase(0 of 24 flipped)"


@pytest.mark.parametrize("norm", [2, np.inf])
def test_within_the_row_space_exactly_the_samples_that_theory_says_flip(norm):
    oracle = sr.linear(A2, norm=norm)
    weights = np.array([0.4, -1.0]) @ A2
    dual = {2: 2, np.inf: 1}[norm]
    exact = np.abs(X @ weights) / np.linalg.norm([0.4, -1.0], dual)
    if norm == 2:
        peer = feature_spaces.minimal_flip_distance(weights, 0.0, X, A2)
        np.testing.assert_allclose(exact, peer, rtol=1e-5)
    before = len(TRACES)
    for delta in (0.5, 1.5):
        flipped = verified(attack(weights, delta, oracle), weights, oracle, delta)
        clear = np.abs(exact - delta) > 0.02 * delta
        np.testing.assert_array_equal(flipped[clear], (exact < delta)[clear])
        if delta == 0.5:
            before = len(TRACES)
    assert len(TRACES) == before  # a new δ₂ is no new program


def test_inside_a_box_it_flips_what_the_best_point_of_the_box_flips():
    oracle = sr.linear([[1.0, 1.0, 0, 0], [0, 0, 1.0, -1.0]])
    weights = np.array([1.3, 0.7, 0.3, -0.1])
    box = (-2.5, 2.5)
    found = attack(weights, 0.0, oracle, bounds=box)
    flipped = verified(found, weights, oracle, 0)
    # r = (a, −a, b, b): a linear program in two variables, each on its own
    sign = np.sign(X @ weights)
    slopes = np.array([0.6, 0.2])
    pairs = [(X[:, 0], -X[:, 1]), (X[:, 2], X[:, 3])]
    reach = 0
    for slope, pair in zip(slopes, pairs, strict=True):
        low = np.maximum(*(-2.5 - v for v in pair))
        high = np.minimum(*(2.5 - v for v in pair))
        reach = reach + slope * np.where(sign > 0, low, high) * sign
    margin = sign * (X @ weights) + reach
    assert 0 < (margin < 0).sum() < len(X)
    clear = np.abs(margin) > 0.02
    np.testing.assert_array_equal(flipped[clear], (margin < 0)[clear])
    assert np.abs(found.x_adv).max() <= 2.5


def test_it_flips_from_a_corner_of_the_box_where_few_pixels_can_move():
    # by linear programming this point has a flip at the distance 0, of margin −2.8
    a2 = [[0, 0, 3, 0, -1, 0, 1, -1], [-1, 0, -3, -1, 1, -1, -2, 2],
          [-1, -1, 0, 0, 0, 0, 0, 0]]  # fmt: skip
    weights = jnp.array([0.0933, -2.3789, 0.4411, -1.4045, -2.1667, 1.3813, -1.2855,
                         0.1799])  # fmt: skip
    x = np.array([[0, 1, 0, 1, 1, 1, 1, 0]], np.float32)

    def model(x):
        s = x @ weights + 2.7673
        return jnp.stack([-s, s], axis=1)

    for scale in (1.0, 1e4):  # of the oracle's unit
        found = sr.worst_case_agreement(
            model,
            x,
            oracle=sr.linear(scale * np.array(a2, float)),
            delta=0.0,
            key=KEY,
            tolerance=1e-6 * scale,
        )
        assert found.success.all()


def test_an_oracle_that_is_a_function_is_pulled_back():
    def radius(x):  # ignores angles
        return jnp.stack([x[:, 0] ** 2 + x[:, 1] ** 2, x[:, 2]], axis=1)

    weights = np.array([1.0, 0.3, 0.5, 0])
    found = attack(weights, 0.05, radius, bounds=(-9.0, 9.0), steps=40)
    # on the circle the score swings by r‖(1, 0.3)‖ about 0.5 x₂
    swing = np.hypot(1, 0.3) * np.hypot(X[:, 0], X[:, 1])
    sign = np.sign(X @ weights)
    can = swing - 0.5 * sign * X[:, 2]
    flipped = np.asarray(found.success)
    move = radius(np.asarray(found.x_adv, float)) - radius(X.astype(float))
    assert (np.linalg.norm(move, axis=1) <= 0.05 + 1e-5).all()
    # a search: it finds most of what there is, and nothing else
    assert flipped[can > 0.2].mean() > 0.6 and not flipped[can < -0.2].any()


def test_the_identity_is_a_ball_of_the_input():
    weights = np.array([1.0, -2.0, 0.5, 0])
    found = attack(weights, 0.2, sr.identity(norm=np.inf), bounds=(-5.0, 5.0), steps=10)
    exact = np.abs(X @ weights) / np.abs(weights).sum()
    clear = np.abs(exact - 0.2) > 0.01
    flipped = np.asarray(found.success)
    np.testing.assert_array_equal(flipped[clear], (exact < 0.2)[clear])
    assert found.distance.max() <= 0.2 + 1e-6


def test_the_worst_case_is_at_most_the_average():
    oracle = sr.linear(A2)
    for weights in ([1.0, 0.3, 0.1, 0], np.array([1.0, 0.2]) @ A2):
        worst = attack(weights, 0.5, oracle)
        model = jax.tree_util.Partial(score, jnp.asarray(weights, jnp.float32))
        average = sr.pair_agreement(
            model, X, oracle=oracle, delta=0.5, ignored=1.0, pairs=20, key=KEY
        )
        kept = np.asarray(1.0 - worst.success)
        assert (kept <= np.asarray(average.share) + 1e-6).all()


def test_logits_that_are_not_finite_are_told_of():
    oracle = sr.linear(A2)
    with pytest.warns(UserWarning, match="24 of 24 images .* count as not flipped"):
        assert not attack(np.full(4, np.nan), 0.5, oracle).success.any()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"delta": -0.1}, "delta must be finite and at least 0"),
        ({"steps": 0}, "steps must be a whole number"),
        ({"bounds": (0, 1)}, "x must lie inside bounds"),
        ({"oracle": sr.linear([[1.0]])}, "a matrix of 4 columns"),
        ({"tolerance": -1}, "tolerance must be"),
    ],
)
def test_bad_arguments_are_named(changes, message):
    arguments = dict(delta=0.1, oracle=sr.linear(A2)) | changes
    with pytest.raises(ValueError, match=message):
        attack(np.ones(4), **arguments)


def test_inside_jit_it_says_that_it_cannot():
    oracle = sr.linear(A2)
    with pytest.raises(ValueError, match="outside jax.jit"):
        jax.jit(
            lambda x: sr.worst_case_agreement(
                lambda v: v, x, oracle=oracle, delta=0.0, key=KEY, bounds=WIDE
            )
        )(X)
