"""A box for each pixel: masks, ε for each pixel, ranges of features.

On linear models float64 knows what is best inside ball and boxes. Of the pixels of
`BOX` a third are held, a third may move a little, and a third leave [0, 1].
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

from robjax import attacks, masking
from robjax.balls import L1, L2, Linf
from robjax.boxes import check_box
from tests.oracles.linear_attacks import best_gain, least_eps

KEY = jax.random.key(0)
BALLS = {"Linf": Linf, "L2": L2, "L1": L1}
RNG = np.random.default_rng(0)
X: Any = RNG.uniform(size=(8, 5, 3)).astype(np.float32)
W = RNG.normal(size=(15, 2)).astype(np.float32)
KIND: Any = RNG.permuted(np.resize([0, 1, 2], (8, 15)), axis=1).reshape(X.shape)
ROOM = np.choose(KIND, [0, 0.02, 1.5]) * RNG.uniform(size=(2, *X.shape))
BOX = (X - ROOM[0].astype(np.float32), X + ROOM[1].astype(np.float32))
bind: Any = functools.partial


def linear(w, x):
    return x.reshape(x.shape[0], -1) @ w


MODEL = Partial(linear, W)
Y = np.argmax(linear(W, X), axis=1)
ROWS = range(len(X))


def up(i):
    """The slope of image i's margin, and what the margin lacks."""
    slope = np.float64(W[:, 1 - Y[i]]) - W[:, Y[i]]
    return slope, -slope @ X[i].ravel()


def shifted(amount):
    """The model with this much [8] added to the margins."""
    bias = np.zeros((8, 2), np.float32)
    bias[ROWS, 1 - Y] = amount
    return Partial(lambda w, b, x: linear(w, x) + b, W, bias)


def check_inside(x_adv, norm, eps, box=BOX):
    x_adv = np.asarray(x_adv)
    assert ((box[0] <= x_adv) & (x_adv <= box[1])).all()  # held: the same bits
    delta = np.float64(x_adv).reshape(8, -1) - X.reshape(8, -1)
    order = {"Linf": np.inf, "L2": 2, "L1": 1}[norm]
    assert (np.linalg.norm(delta, order, axis=1) <= eps * (1 + 1e-6) + 1e-7).all()


WORST: dict[tuple[str, str], Any] = {
    ("fgsm", "Linf"): attacks.fgsm,
    ("pgd", "L2"): bind(attacks.pgd, steps=100, step_size=0.4),
    ("apgd", "Linf"): bind(attacks.apgd, steps=20),
    ("apgd", "L2"): attacks.apgd,
    ("apgd", "L1"): attacks.apgd,
    ("square", "Linf"): bind(attacks.square, queries=1000),
}
RADII = {"Linf": 0.3, "L2": 0.4, "L1": 1.0}


@pytest.mark.parametrize(("name", "norm"), WORST)
def test_the_worst_case(name, norm):
    eps = RADII[norm]
    gain = [best_gain(up(i)[0], X[i], norm, eps, BOX[0][i], BOX[1][i]) for i in ROWS]
    worst = np.array(gain) - [up(i)[1] for i in ROWS]
    # boundaries that half of the images cannot reach, since attacks stop at success
    model = shifted(np.where(np.arange(8) % 2, 1e-2, -1e-2) - worst)
    out = WORST[name, norm](model, X, Y, key=KEY, ball=BALLS[norm](eps), bounds=BOX)
    np.testing.assert_array_equal(out.success, np.arange(8) % 2 == 1)
    check_inside(out.x_adv, norm, eps)
    delta = np.float64(out.x_adv) - X
    reached = np.array([up(i)[0] @ delta[i].ravel() for i in ROWS])
    np.testing.assert_allclose(reached[::2], np.array(gain)[::2], atol=1e-3)
    if name in ("fgsm", "pgd"):
        np.testing.assert_allclose(reached, gain, atol=1e-4)


NEAREST: dict[tuple[str, str], Any] = {
    ("fab", "Linf"): bind(attacks.fab, steps=5),
    ("deepfool", "L1"): bind(attacks.deepfool, steps=5),
    ("fmn", "Linf"): bind(attacks.fmn, steps=10),
    ("ddn", "L2"): bind(attacks.ddn, steps=10),
    ("carlini_wagner", "L2"): bind(
        attacks.carlini_wagner, steps=10, searches=2, init_weight=1.0
    ),
}


@pytest.mark.parametrize(("name", "norm"), NEAREST)
def test_the_minimal_distance(name, norm):
    exact = [least_eps(*up(i), X[i], norm, BOX[0][i], BOX[1][i]) for i in ROWS]
    assert 2 <= np.isfinite(exact).sum() <= 7  # the boxes of some hold no other class
    ball = BALLS[norm](9.0)
    out = NEAREST[name, norm](MODEL, X, Y, key=KEY, ball=ball, bounds=BOX)
    np.testing.assert_allclose(out.distance, exact, rtol=1e-4, atol=1e-5)
    check_inside(out.x_adv, norm, np.where(out.success, out.distance, 0))


@pytest.mark.parametrize("attack", [attacks.hop_skip_jump, attacks.boundary_attack])
def test_attacks_on_labels_come_within_five_percent(attack):
    wide = attacks.limits(X, mask=KIND > 0, bounds=(-1, 2))
    box = low, high = jax.device_get(wide)
    need = 0.3 * np.linalg.norm(W[:, 0] - W[:, 1])
    exact = [least_eps(up(i)[0], need, X[i], "L2", low[i], high[i]) for i in ROWS]
    model = shifted([up(i)[1] - need for i in ROWS])
    options = {"bounds": box, "starts": X[:2]}  # moved into the boxes
    out = attack(model, X, Y, key=KEY, ball=L2(9.0), **options)
    check_inside(out.x_adv, "L2", 9.0, box)
    ratio = np.asarray(out.distance) / exact
    assert (ratio >= 1 - 1e-5).all() and (ratio <= 1.05).all()


@pytest.mark.parametrize("norm", ["L2", "L1"])
def test_square_and_kl_pgd_stay_inside(norm):
    ball = BALLS[norm](1.0)
    run = {"key": KEY, "ball": ball, "bounds": BOX}
    for out in (
        attacks.square(MODEL, X, Y, queries=500, **run),
        attacks.kl_pgd(MODEL, X, steps=3, reference="start", **run),
    ):
        check_inside(out.x_adv, norm, 1.0)
        assert (np.asarray(out.x_adv) != X).any(axis=(1, 2)).all()


def test_square_queries_takes_the_boxes_of_the_samples_left():
    options = {"key": KEY, "ball": Linf(1.0), "queries": 40, "bounds": BOX}
    one = attacks.square(MODEL, X, Y, **options)
    two = attacks.square_queries(functools.partial(linear, W), X, Y, **options)
    assert 2 <= one.success.sum() <= 7
    np.testing.assert_array_equal(one.success, two.success)
    np.testing.assert_allclose(one.x_adv, two.x_adv, atol=1e-6)
    check_inside(two.x_adv, "Linf", 1.0)


SEEING: dict[str, tuple[Any, Any]] = {
    "mi_fgsm": (bind(attacks.mi_fgsm, steps=4), L2(0.3)),
    "pgd": (bind(attacks.pgd, steps=4, random_start=False), L1(0.8, density=0.3)),
    "apgd": (bind(attacks.apgd, steps=10), L1(0.5)),
    "fmn": (bind(attacks.fmn, steps=6, reference_quirks=True), Linf(9.0)),
}


@pytest.mark.parametrize("name", SEEING)
def test_held_pixels_are_as_if_the_model_did_not_see_them(name):
    """The other model has their part of the score as its bias."""
    attack, ball = SEEING[name]
    mask = np.arange(15).reshape(5, 3) % 3 > 0
    free = mask.ravel()
    flat = X.reshape(8, -1)
    v = (1 + np.arange(15)[:, None]) * W / 20

    def model(w, bias, x):
        return jnp.tanh(x.reshape(x.shape[0], -1) @ w + bias)

    given = {"start": X} if name == "apgd" else {}
    box = attacks.limits(X, mask=mask)
    bias = np.zeros((8, 2), np.float32)
    whole = Partial(model, np.float32(v), bias)
    y = np.argmax(whole(X), axis=1)
    one = attack(whole, X, y, key=KEY, ball=ball, bounds=box, **given)
    part = Partial(model, np.float32(v[free]), np.float32(flat[:, ~free] @ v[~free]))
    x = flat[:, free]
    given = {"start": x} if name == "apgd" else {}
    two = attack(part, x, y, key=KEY, ball=ball, **given)
    moved = np.asarray(one.x_adv).reshape(8, -1)
    np.testing.assert_array_equal(moved[:, ~free], flat[:, ~free])
    np.testing.assert_allclose(moved[:, free], two.x_adv, atol=2e-5)
    assert np.abs(moved - flat).max() > 0.05


def test_another_mask_and_other_bounds_compile_nothing():
    traces = []

    def model(w, x):
        traces.append(None)
        return linear(w, x)

    run = bind(attacks.fgsm, Partial(model, W), X, Y, ball=Linf(0.1))
    run(bounds=BOX)
    first = len(traces)
    run(bounds=attacks.limits(X, mask=X > 0.5))
    run(bounds=(np.zeros((5, 3)), np.ones(3)))
    assert len(traces) == first


def test_limits_of_masks_and_eps():
    x = jnp.asarray(RNG.uniform(size=(2, 4, 4, 3)), jnp.float32)
    mask = RNG.uniform(size=(2, 4, 4)) < 0.5
    wanted = np.broadcast_to(mask[..., None], x.shape)
    for one in (mask, mask[..., None], wanted, mask.astype(int)):
        low, high = attacks.limits(x, mask=one)
        np.testing.assert_array_equal(low, np.where(wanted, 0, x))
        np.testing.assert_array_equal(high, np.where(wanted, 1, x))
    for one in (mask[0], mask[0, ..., None], mask[:1, ..., None], wanted[0]):
        low, _ = attacks.limits(x, mask=one)
        np.testing.assert_array_equal(low, np.where(wanted[:1], 0, x))
    eps = np.array([0.1, 0.2, 0.7], np.float32)
    low, high = attacks.limits(x, eps=eps, bounds=(-0.5, np.arange(1, 4)))
    np.testing.assert_array_equal(low, np.maximum(np.asarray(x) - eps, -0.5))
    np.testing.assert_allclose(high, np.minimum(np.asarray(x) + eps, [1, 2, 3]))
    inside = jax.jit(lambda x: attacks.limits(x, mask=mask))(x)
    np.testing.assert_array_equal(inside[0], attacks.limits(x, mask=mask)[0])


def test_half_precision_images_fit_their_limits():
    x = jnp.asarray(X, jnp.bfloat16)
    checked, box = check_box(x, attacks.limits(x, mask=X > 0.5))
    np.testing.assert_array_equal(checked, x.astype(jnp.float32))
    assert box[0].dtype == checked.dtype == jnp.float32


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mask": X > 0.5, "bounds": (0.6, 1)}, r"x must lie inside bounds \(0.6, 1"),
        ({"mask": X[0, :2] > 0.5}, r"mask must have shape \(5, 3\) or \(8, 5, 3\)"),
        ({"mask": X}, "mask must be bool, or hold 0 and 1 alone"),
        ({"mask": "left"}, "mask must be an array of numbers, got 'left'"),
        ({"eps": -X}, "eps must be finite and at least 0"),
        ({"bounds": (np.ones(3), 0)}, "bounds must be finite with low <= high"),
        ({"bounds": (np.ones(4), 0)}, r"bounds must be two numbers, or two arrays \(5"),
        ({"bounds": (0, X - 1)}, r"bounds must be finite with low <= high"),
    ],
)
def test_arguments_of_limits(options, message):
    with pytest.raises(ValueError, match=message):
        attacks.limits(X, **options)


def test_other_messages():
    square = jnp.zeros((3, 3, 3, 3))
    with pytest.raises(ValueError, match=r"mask must say what its axes are, for \(3"):
        attacks.limits(square, mask=np.ones((3, 3, 3), bool))
    moved = (X + np.float32(0.25), X + 1)
    with pytest.raises(
        ValueError, match=r"120 values .* x\[0, 0, 0\] = 0.63.* of this x"
    ):
        attacks.fgsm(MODEL, X, Y, ball=Linf(0.1), bounds=moved)
    with pytest.raises(ValueError, match="two numbers here, got arrays: a box for eac"):
        masking.check(MODEL, X, Y, key=KEY, ball=Linf(0.1), bounds=BOX)
