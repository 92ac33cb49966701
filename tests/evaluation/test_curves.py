import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

from robjax import attacks
from robjax.balls import L1, L2, Linf
from robjax.evaluation import curves

RNG = np.random.default_rng(0)
KEY = jax.random.key(0)
DEVICE = jax.local_devices()[:1]
W = RNG.normal(size=(12, 2)).astype(np.float32)
# far from the box, so that distances to the boundary have a closed form
X = jnp.asarray(RNG.uniform(0.4, 0.6, size=(21, 3, 4)), jnp.float32)
EPSILONS = [0.0, 0.005, 0.01, 0.02, 0.04, 0.08]
run = functools.partial(
    curves.robust_accuracy_curve, key=KEY, epsilons=EPSILONS, devices=DEVICE
)


def linear(w, x):
    return (x.reshape(x.shape[0], -1) - 0.5) @ w


MODEL = Partial(linear, jnp.asarray(W))
Y = jnp.argmax(MODEL(X), axis=1).at[:3].set(1)


def distances(norm):
    """To the boundary of the linear model; 0 for what is misclassified."""
    gap = (W[:, 1] - W[:, 0]).astype(np.float64)
    score = (np.asarray(X, np.float64).reshape(21, -1) - 0.5) @ gap
    wrong = (score > 0) != (np.asarray(Y) == 1)
    dual = {"Linf": 1, "L2": 2, "L1": np.inf}[norm]
    return np.where(wrong, 0, np.abs(score) / np.linalg.norm(gap, dual))


def check(curve, expected):
    """All fields of a curve follow from the smallest radii."""
    np.testing.assert_array_equal(curve.smallest, expected)
    broken = expected[None] <= curve.epsilons[:, None]
    np.testing.assert_array_equal(curve.broken, broken)
    accuracy = 1 - broken.mean(axis=1)
    np.testing.assert_allclose(curve.accuracy, accuracy)
    np.testing.assert_allclose(
        curve.stderr, np.sqrt(accuracy * (1 - accuracy) / broken.shape[1])
    )


def smallest(exact, epsilons):
    return np.array(
        [min([e for e in epsilons if e >= d], default=np.inf) for d in exact]
    )


def test_curve_of_a_linear_model_is_exact():
    attack = functools.partial(attacks.pgd, steps=5)
    curve = run(MODEL, X, Y, attack, batch_size=8)
    expected = smallest(distances("Linf"), EPSILONS)
    assert len(np.unique(expected)) >= 5  # some at 0, some never
    check(curve, expected)
    np.testing.assert_array_equal(curve.epsilons, EPSILONS)


@pytest.mark.parametrize("norm", ["Linf", "L2", "L1"])
def test_one_run_of_a_nearest_image_attack_gives_the_whole_curve(norm):
    calls = []

    def fab(*args, **options):
        calls.append(None)
        return attacks.fab(*args, steps=5, **options)

    exact = distances(norm)
    grid = np.quantile(exact[exact > 0], [0, 0.2, 0.5, 0.9]) * 1.01
    ball = {"Linf": Linf, "L2": L2, "L1": L1}[norm]
    curve = run(MODEL, X, Y, fab, epsilons=grid, ball=ball, minimal_norm=True)
    check(curve, smallest(exact, grid))
    assert len(calls) == 1  # traced once, run once
    found = attacks.fab(MODEL, X, Y, ball=ball(1e3), steps=5).distance
    by_hand = curves.curve_from_distances(found, grid)
    for a, b in zip(curve, by_hand, strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_distance_that_is_rounded_up_counts_at_the_radius_that_was_attacked():
    """PGD ends on the ball, where float32 rounds distances to more than ε."""
    attack = functools.partial(attacks.pgd, steps=5)
    every = run(MODEL, X, Y, attack, epsilons=[0.1])
    once = run(MODEL, X, Y, attack, epsilons=[0.1], minimal_norm=True)
    np.testing.assert_array_equal(once.broken, every.broken)


def test_compiles_once_for_each_batch_size_and_sees_only_the_robust():
    sizes, traces = [], []

    def attack(logits_fn, x, y, *, key, ball, bounds):
        traces.append(len(x))
        # as text: floats in a list that an attack reads are constants of its program
        jax.debug.callback(lambda eps: sizes.append((f"{eps:.6g}", len(x))), ball.eps)
        return attacks.fgsm(logits_fn, x, y, ball=ball, bounds=bounds)

    run(MODEL, X, Y, attack, batch_size=16)
    jax.effects_barrier()
    assert sorted(traces) == [8, 16]
    expected, exact = [], distances("Linf")
    left = int((exact > 0).sum())
    for eps in EPSILONS[1:]:
        full, rest = divmod(left, 16)
        batches = [16] * (full + (rest > 8)) + [8] * (0 < rest <= 8)
        expected += [(f"{np.float32(eps):.6g}", size) for size in batches]
        left = int((exact > eps).sum())
    assert sorted(sizes) == sorted(expected)


def test_never_rises_even_if_the_attack_gets_worse():
    # an attack that only works in small balls: what it found there still counts
    def fickle(logits_fn, x, y, *, key, ball, bounds):
        out = attacks.fgsm(logits_fn, x, y, ball=ball, bounds=bounds)
        lazy = ball.eps > 0.015
        return out._replace(x_adv=jnp.where(lazy, x, out.x_adv), success=~out.success)

    curve = run(MODEL, X, Y, fickle)
    check(curve, smallest(distances("Linf"), EPSILONS[:3]))
    assert (np.diff(curve.accuracy) <= 0).all()


def test_what_lies_outside_the_ball_or_is_only_claimed_does_not_count():
    def cheat(logits_fn, x, y, *, key, ball, bounds):
        out = attacks.fgsm(logits_fn, x, y, ball=Linf(10 * ball.eps), bounds=bounds)
        return out._replace(success=jnp.ones_like(out.success))

    curve = run(MODEL, X, Y, cheat)
    clean = distances("Linf") == 0
    np.testing.assert_array_equal(np.isfinite(curve.smallest), clean)


def test_draws_do_not_depend_on_the_batches():
    attack = functools.partial(attacks.pgd, steps=1)
    at = functools.partial(run, MODEL, X, Y, attack, epsilons=[0.02])
    one, other = at(batch_size=21), at(batch_size=8)
    np.testing.assert_array_equal(one.smallest, other.smallest)


def test_from_distances():
    curve = curves.curve_from_distances([0.0, 0.2, 0.1, np.inf, 0.3], [0.1, 0.2])
    check(curve, np.array([0.1, 0.2, 0.1, np.inf, np.inf]))
    np.testing.assert_allclose(curve.accuracy, [0.6, 0.4])


BAD = {
    "rising": ({"epsilons": [0.1, 0.1]}, "epsilons must be finite"),
    "negative": ({"epsilons": [-0.1, 0.1]}, "epsilons must be finite"),
    "none": ({"epsilons": []}, "epsilons must not be empty"),
    "text": ({"epsilons": ["a"]}, "epsilons must hold real numbers"),
    "ball": ({"ball": Linf(0.1)}, "ball must be a kind of ball"),
    "attack": ({"attack": 3}, "attack must be callable"),
    "bound ball": (
        {"attack": functools.partial(attacks.pgd, ball=Linf(0.1))},
        "attack must not have a ball of its own",
    ),
    "targeted": (
        {"attack": functools.partial(attacks.pgd, targeted=True)},
        "attack must be untargeted",
    ),
    "option": (
        {"attack": functools.partial(attacks.pgd, steps=0)},
        "steps must be a whole number",
    ),
    "labels": ({"y": Y + 2}, "y must hold labels 0 to 1"),
    "x": ({"x": X * 2}, "x must lie inside bounds"),
    "batch_size": ({"batch_size": 0}, "batch_size must be a whole number"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_arguments_are_named(name):
    changes, message = BAD[name]
    good = {"logits_fn": MODEL, "x": X, "y": Y, "attack": attacks.pgd}
    arguments = {**good, **changes}
    positional = [arguments.pop(n) for n in good]
    with pytest.raises(ValueError, match=message):
        run(*positional, **arguments)


@pytest.mark.parametrize("bad", [[-1.0], [np.nan], [], [[0.1]]])
def test_bad_distances_are_named(bad):
    with pytest.raises(ValueError, match="distances must"):
        curves.curve_from_distances(bad, [0.1])
