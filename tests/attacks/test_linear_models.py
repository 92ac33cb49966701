"""What every attack reaches on linear models, where float64 knows the best answer.

    WORST      the largest margin over ball ∩ box
    one step   fgsm and mi_fgsm: the very image. In L2 and L1 where the box is far: what
               the box takes off a step they do not spend elsewhere.
    kl_pgd     the largest divergence, at one of the two ends of the score
    NEAREST    the least distance to another class

Not here: `square` in L2 and L1, which stays away from the worst case (see there).
Of the images, most have a third of their pixels at the ends of the box, some all.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

from robjax import attacks, losses
from robjax.balls import L0, L1, L2, Linf
from tests.oracles.linear_attacks import best_margin, shortest

KEY = jax.random.key(0)
BALLS = {"Linf": Linf, "L2": L2, "L1": L1, "L0": L0}
EVERY = ["Linf", "L2", "L1"]


def images(shape, seed=0):
    """[12, *shape]: grey with a third of the pixels black or white, then only those."""
    rng = np.random.default_rng(seed)
    x = rng.uniform(size=(12, *shape))
    extreme = rng.uniform(size=x.shape) < np.where(np.arange(12) < 8, 1 / 3, 1).reshape(
        -1, *[1] * len(shape)
    )
    return jnp.asarray(np.where(extreme, np.round(x), x), jnp.float32)


WIDE, SMALL = images((6, 6, 2)), images((3, 4))
SHORT_OR_ENOUGH = np.where(np.arange(12) % 2, 0.999, 1.001)


def linear(w, bias, x):
    return x.reshape(x.shape[0], -1) @ w + bias[None]


def margins(w, bias, x, y):
    """max_{c≠y} z_c − z_y in float64 [B]."""
    args = (np.asarray(a, np.float64) for a in (w, bias, x))
    z, rows = linear(*args), np.arange(len(x))
    others = z.copy()
    others[rows, y] = -np.inf
    return others.max(axis=1) - z[rows, y]


@functools.cache
def problem(seed, classes, outputs):
    """Weights, biases, labels; classes beyond the first few are out of reach."""
    rng = np.random.default_rng(seed)
    w, bias = rng.normal(size=(12, outputs)), rng.normal(size=outputs)
    bias[classes:] -= 100
    w, bias = jnp.asarray(w, jnp.float32), jnp.asarray(bias, jnp.float32)
    return w, bias, np.argmax(linear(w, bias, SMALL), axis=1)


@functools.cache
def nearest(norm, *arguments):
    return shortest(*problem(*arguments)[:2], SMALL, problem(*arguments)[2], norm)


def long(attack):
    """200 steps of ε/4, in L2 ε: near the optimum only their way along it counts."""

    def run(*args, ball, **options):
        size = ball.eps / (1 if isinstance(ball, L2) else 4)
        return attack(*args, ball=ball, steps=200, step_size=size, **options)

    return run


def towards(attack):
    """A targeted attack as an untargeted one on two classes."""
    return lambda model, x, y, **options: attack(
        model, x, 1 - y, targeted=True, **options
    )


def square_queries(model, x, y, **options):
    w, bias = map(np.asarray, model.args)  # NumPy compiles nothing
    return attacks.square_queries(
        lambda shown: linear(w, bias, shown), x, y, queries=3000, **options
    )


# name: attack, its norms
WORST: dict[str, tuple[Any, list[str]]] = {
    "fgsm": (attacks.fgsm, ["Linf"]),
    "mi_fgsm": (attacks.mi_fgsm, ["Linf"]),
    "pgd": (long(attacks.pgd), EVERY),
    "targeted pgd": (towards(long(attacks.pgd)), ["Linf"]),
    "apgd": (attacks.apgd, EVERY),
    "apgd, DLR": (functools.partial(attacks.apgd, loss=losses.dlr), EVERY),
    "apgd_targeted": (attacks.apgd_targeted, EVERY),
    "large_reps": (functools.partial(attacks.apgd_targeted, large_reps=True), ["L1"]),
    "square": (attacks.square, ["Linf"]),
    "square_queries": (square_queries, ["Linf"]),
}
GOES_ON = ("fgsm", "mi_fgsm", "pgd", "targeted pgd")  # after the first success


@pytest.mark.parametrize(
    ("name", "norm"), [(name, norm) for name in WORST for norm in WORST[name][1]]
)
def test_the_worst_case(name, norm):
    w = 0.3 * np.random.default_rng(1).normal(size=(72, 2))
    # the boundary runs through the middle of the images
    bias = [np.median(margins(w, np.zeros(2), WIDE, np.zeros(12, int))), 0]
    w, bias = jnp.asarray(w, jnp.float32), jnp.asarray(bias, jnp.float32)
    y = np.argmax(linear(w, bias, WIDE), axis=1)
    eps = {"Linf": 0.05, "L2": 0.4, "L1": 1.3}[norm]
    worst = np.asarray(bias, np.float64)[1 - y] - np.asarray(bias, np.float64)[y]
    worst += [best_margin(w, x, t, norm, eps) for x, t in zip(WIDE, y, strict=True)]
    assert 3 <= (worst > 0).sum() <= 9 and np.abs(worst).min() > 1e-3
    out = WORST[name][0](
        Partial(linear, w, bias), WIDE, jnp.asarray(y), key=KEY, ball=BALLS[norm](eps)
    )
    np.testing.assert_array_equal(out.success, worst > 0)
    reached = margins(w, bias, out.x_adv, y)
    end = (worst < 0) | (name in GOES_ON)
    np.testing.assert_allclose(reached[end], worst[end], atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("classes", "norm"), [(3, "Linf"), (10, "Linf"), (10, "L2"), (10, "L1")]
)
def test_verdicts_with_several_classes(classes, norm):
    w, bias, y = problem(2, classes, classes)
    eps = nearest(norm, 2, classes, classes) * SHORT_OR_ENOUGH
    out = attacks.apgd_targeted(
        Partial(linear, w, bias),
        *(SMALL, jnp.asarray(y)),
        key=KEY,
        ball=BALLS[norm](jnp.asarray(eps, jnp.float32)),
    )
    np.testing.assert_array_equal(out.success, SHORT_OR_ENOUGH > 1)


@pytest.mark.parametrize("attack", [attacks.fgsm, attacks.mi_fgsm])
@pytest.mark.parametrize("norm", ["Linf", "L2", "L1", "L1, density 0"])
@pytest.mark.parametrize("eps", [0.01, 0.1, 0.25])
def test_the_step_of_length_eps(attack, norm, eps):
    """L∞: every pixel to its end. L2: along w/‖w‖₂. L1: the pixel of largest |w|."""
    w = np.random.default_rng(3).normal(size=12).astype(np.float32)
    x, norm, *sparse = SMALL, *norm.split(", ")
    x = x if norm == "Linf" else 0.5 + 0.4 * (x - 0.5)
    y = np.arange(12) % 2
    logits = jnp.stack([jnp.zeros(12), jnp.asarray(w)], axis=1)
    ball = L1(eps, density=0.0) if sparse else BALLS[norm](eps)
    out = attack(Partial(linear, logits, jnp.zeros(2)), x, y, ball=ball)

    v, up = np.asarray(x, np.float64).reshape(12, -1), w.astype(np.float64)
    step = {
        "Linf": np.sign(up),
        "L2": up / np.sqrt(up @ up),
        "L1": np.sign(up) * (np.arange(12) == np.abs(up).argmax()),
    }[norm]
    expected = np.clip(v + eps * np.where(y == 0, 1, -1)[:, None] * step, 0, 1)
    np.testing.assert_allclose(out.x_adv.reshape(12, -1), expected, atol=1e-6, rtol=0)
    worst = [best_margin(logits, u, t, norm, eps) for u, t in zip(x, y, strict=True)]
    reached = margins(logits, jnp.zeros(2), expected, y)
    np.testing.assert_allclose(reached, worst, atol=1e-12)
    assert np.abs(worst).min() > 1e-4
    np.testing.assert_array_equal(out.success, reached > 0)
    assert (out.queries == (2 if attack is attacks.fgsm else 11)).all()


def divergence(z, v):
    """KL of two classes with log-odds z and v, float64."""
    log = lambda odds: -np.logaddexp(0, -odds)  # noqa: E731
    p = 1 / (1 + np.exp(-z))
    return p * (log(z) - log(v)) + (1 - p) * (log(-z) - log(-v))


@pytest.mark.parametrize("norm", EVERY)
def test_kl_pgd_ends_where_the_score_does(norm):
    """The divergence rises with the distance of the score to that of x, on either side.

    So a run ends at one of two points, and from several starts at the better one.
    """
    w = jnp.asarray(np.random.default_rng(4).normal(size=(12, 2)), jnp.float32)
    eps, starts, bias = {"Linf": 0.1, "L2": 0.4, "L1": 0.9}[norm], 8, jnp.zeros(2)
    low, clean, high = (
        np.array([sign * best_margin(w, u, t, norm, radius) for u in SMALL])
        for sign, t, radius in ((-1, 1, eps), (1, 0, 0.0), (1, 0, eps))
    )
    out = long(attacks.kl_pgd)(
        Partial(linear, w, bias),
        jnp.repeat(SMALL, starts, axis=0),
        key=KEY,
        ball=BALLS[norm](eps),
    )
    reached = margins(w, bias, out.x_adv, np.zeros(12 * starts, int))
    reached = reached.reshape(12, starts)
    low, clean, high = (a[:, None] for a in (low, clean, high))
    up = reached > clean
    assert up.any() and not up.all()
    end = np.where(up, high, low)
    np.testing.assert_allclose(reached, end, atol=1e-4, rtol=0)
    assert np.abs(end).min() > 1e-3
    np.testing.assert_array_equal(
        out.success.reshape(12, starts), (end > 0) != (clean > 0)
    )
    most = np.maximum(divergence(clean, low), divergence(clean, high))[:, 0]
    found = out.loss.reshape(12, starts).max(axis=1)
    np.testing.assert_allclose(found, most, atol=1e-4, rtol=0)


# name: attack, its norms
NEAREST: dict[str, tuple[Any, list[str]]] = {
    "fab": (functools.partial(attacks.fab, steps=10), EVERY),
    "targeted fab": (functools.partial(attacks.fab, steps=10, targets=9), EVERY),
    "deepfool": (functools.partial(attacks.deepfool, steps=10), EVERY),
    "ddn": (functools.partial(attacks.ddn, steps=20), ["L2"]),
    "fmn": (functools.partial(attacks.fmn, steps=20), [*EVERY, "L0"]),
    "carlini_wagner": (
        functools.partial(
            attacks.carlini_wagner, steps=20, searches=3, init_weight=1.0
        ),
        ["L2"],
    ),
}


@pytest.mark.parametrize(
    ("name", "norm"), [(name, norm) for name in NEAREST for norm in NEAREST[name][1]]
)
def test_the_minimal_distance(name, norm):
    for seed, classes in enumerate([2, 3, 10, 10]):
        w, bias, y = problem(seed, classes, 10)
        expected = nearest(norm, seed, classes, 10)
        ball = BALLS[norm](jnp.asarray(expected * SHORT_OR_ENOUGH, jnp.float32))
        model = Partial(linear, w, bias)
        out = NEAREST[name][0](model, SMALL, jnp.asarray(y), ball=ball)
        tolerance = 0 if norm == "L0" else 1e-4
        np.testing.assert_allclose(out.distance, expected, atol=tolerance, rtol=0)
        np.testing.assert_array_equal(out.success, SHORT_OR_ENOUGH > 1)
