"""Square beyond images of squares: tall and flat ones, vectors, half precision, NaN."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.tree_util import Partial

from robjax import losses
from robjax.attacks import autoattack, square, square_queries
from robjax.attacks.autoattack import suite
from robjax.attacks.square import proposals, search
from robjax.balls import L1, L2, Linf
from tests.oracles.linear_attacks import best_gain, best_margin

KEY = jax.random.key(0)
PROPOSE = jax.jit(search.propose)
UPDATE = jax.jit(search.update)
NORMS = {"Linf": Linf, "L2": L2, "L1": L1}
ORDERS = {"Linf": np.inf, "L2": 2, "L1": 1}
SLACK = {"Linf": 1e-7, "L2": 2e-6, "L1": 2e-6}  # `robjax.balls`, and that of a sum


def radius(norm, size):
    return {"Linf": 0.1, "L2": 0.1 * math.sqrt(size), "L1": 0.05 * size}[norm]


def outside(norm, delta, eps):
    """By how much each change is longer than ε."""
    flat = np.asarray(delta, np.float64).reshape(len(delta), -1)
    return np.linalg.norm(flat, ord=ORDERS[norm], axis=1) - np.asarray(eps)


def linear(weights, x):
    return x.reshape(x.shape[0], -1) @ weights


def held(weights, x):
    """Its margin is ⟨w_i, x_i⟩ − 1000, so the search never ends early."""
    z = jnp.sum(weights * x.reshape(x.shape[0], -1), axis=1)
    return jnp.stack([jnp.full_like(z, 1000), z], axis=1)


# ------------------------------------------------------------------ any shape


@pytest.mark.parametrize("norm", ["L2", "L1"])
@pytest.mark.parametrize(
    ("shape", "share"),
    [
        ((14, 3, 1), 0.8),
        ((12,), 0.8),
        ((2, 3, 2, 4), 0.8),
        ((1, 2, 1), 0.9),
        ((1, 1), 0.999),
    ],
    ids=str,
)
def test_reaches_a_share_of_the_largest_rise(shape, share, norm):
    rng = np.random.default_rng(0)
    size = math.prod(shape)
    x = rng.uniform(size=(16, *shape)).astype(np.float32)
    weights = rng.normal(size=(16, size)).astype(np.float32)
    eps = radius(norm, size)
    out = square(
        Partial(held, jnp.asarray(weights)),
        jnp.asarray(x),
        jnp.zeros(16, int),
        key=KEY,
        ball=NORMS[norm](eps),
        queries=3000,
    )
    assert out.x_adv.shape == x.shape
    delta = np.asarray(out.x_adv, np.float64) - x
    assert (outside(norm, delta, eps) <= SLACK[norm] * max(eps, 1)).all()
    assert out.x_adv.min() >= 0 and out.x_adv.max() <= 1
    rise = np.sum(weights * delta.reshape(16, -1), axis=1)
    best = [best_gain(w, v, norm, eps) for w, v in zip(weights, x, strict=True)]
    assert (rise / best).min() > share


@settings(max_examples=15)
@given(
    seed=st.integers(0, 2**31),
    shape=st.sampled_from([(1, 1, 1), (2, 9), (14, 3, 2), (7,)]),
    norm=st.sampled_from(sorted(NORMS)),
    scale=st.sampled_from([0.0, 1.0, 4.0]),
)
def test_every_proposal_is_inside_ball_and_box(seed, shape, norm, scale):
    keys = jax.random.split(jax.random.key(seed), 3)
    eps = scale * radius(norm, math.prod(shape))
    ball = NORMS[norm](jnp.float32(eps))
    x = jax.random.uniform(keys[0], (3, *shape))
    x = jnp.where(x < 0.2, 0, x)  # some have no room
    space = search.search_space(x, keys, ball, (0.0, 1.0), queries=9)
    state = search.begin(space, jnp.float32)
    state = UPDATE(state, space, space.x, jnp.zeros(3), jnp.zeros(3, bool))
    for number in range(9):
        images = PROPOSE(state, space)
        assert images.shape == space.x.shape and np.isfinite(images).all()
        assert images.min() >= 0 and images.max() <= 1
        far = outside(norm, np.asarray(images, np.float64) - space.x, eps)
        assert (far <= SLACK[norm] * max(eps, 1)).all()
        assert number or eps == 0 or (images != space.x).any()
        # always taken over
        loss = jnp.full(3, number + 1.0)
        state = UPDATE(state, space, images, loss, jnp.zeros(3, bool))


def test_what_has_no_room_for_squares_is_a_row():
    numbers = jnp.arange(48.0).reshape(2, 24)
    row = numbers.reshape(2, 1, 24, 1)
    images = [(1, 24, 1), (24, 1), (1, 8, 3), (2, 4, 3), (12, 2), (6, 1, 4)]
    assert search.as_image(jnp.ones((2, 14, 3, 5)), L2(1.0)).shape == (2, 1, 210, 1)
    for shape in [(24,), (2, 2, 2, 3), *images]:
        found = search.as_image(numbers.reshape(2, *shape), L1(1.0))
        np.testing.assert_array_equal(found, row)
    for shape in images:  # what Linf has always done
        found = search.as_image(numbers.reshape(2, *shape), Linf(1.0))
        assert found.shape == (2, *shape, *[1] * (3 - len(shape)))
    for ball in (Linf(1.0), L2(1.0)):
        assert search.as_image(jnp.ones((2, 3, 8)), ball).shape == (2, 3, 8, 1)
        assert search.as_image(jnp.ones((2, 8, 3, 5)), ball).shape == (2, 8, 3, 5)


@pytest.mark.parametrize("size", [1, 2, 3, 12, 784])
def test_windows_of_a_row_are_intervals_and_every_third_is_one_pixel(size):
    shape = (200, 1, size, 1)
    sides = proposals.window_sides(L2(1.0), shape, 99, 0.8, False)
    assert (sides[:, 0] == 1).all() and (sides[2::3] == 1).all()
    longest = min(max(round(math.sqrt(0.8 * size)) // 2 * 2 + 1, 3), size)
    assert sides[0, 1] == longest and sides[:, 1].max() == longest
    keys = jax.random.split(KEY, shape[0])
    draws = proposals.draw_query(keys, shape, L2(1.0), False)
    window = proposals.place(draws, jnp.asarray(sides[0]), shape, False)
    for mask in (window.first, window.second):
        covered = np.asarray(mask)[:, 0, :, 0].astype(int)
        assert (covered.sum(axis=1) == longest).all()
        edges = np.abs(np.diff(np.pad(covered, ((0, 0), (1, 1))), axis=1))
        assert (edges.sum(axis=1) == 2).all()  # in one piece
        assert size > 100 or covered.any(axis=0).all()


@pytest.mark.parametrize("norm", ["L2", "L1"])
@pytest.mark.parametrize("size", [1, 2, 3, 5, 9])
def test_bumps_of_an_interval_are_one_pyramid_or_two(norm, size):
    power = {"L2": 2, "L1": 4}[norm]

    def pyramid(length, squares):
        values = np.zeros(length)
        for k in range(squares):
            values[max(length // 2 - k, 0) : length // 2 + k + 1] += (k + 1.0) ** -power
        return values / np.linalg.norm(values, ORDERS[norm])

    one = -pyramid(size, size // 2 + 1)
    squares = max(size - size // 2, 1) // 2 + 1
    two = -pyramid(size - size // 2, squares)
    if size > 1:
        two = np.concatenate([pyramid(size // 2, squares), two])
    two /= np.linalg.norm(two, ORDERS[norm])
    side = jnp.array([1, size])
    found = np.asarray(proposals.bumps(NORMS[norm](1.0), side, (2, 40), (1, 4)))
    np.testing.assert_allclose(found[:, 1, 4 : 4 + size], [one, two], atol=1e-6)
    assert np.abs(found).sum() <= np.abs([one, two]).sum() * (1 + 1e-5)


def test_a_long_row_needs_no_large_tables():
    ball = L2(jnp.ones(()))
    x = jax.ShapeDtypeStruct((1, 150_528), jnp.float32)
    keys = jax.eval_shape(lambda: jax.random.split(KEY, 1))

    def first(x, keys):
        space = search.search_space(x, keys, ball, (0.0, 1.0), queries=9)
        return search.propose(search.begin(space, jnp.float32), space)

    jaxpr = jax.make_jaxpr(first)(x, keys)
    assert max(constant.size for constant in jaxpr.consts) <= 4 * 150_528


def test_squares_wherever_the_tiles_of_the_start_fit():
    for height in range(1, 40):
        for width in range(1, 40):
            grid = proposals._grid(height, width)
            room = proposals.has_room(height, width)
            assert room == (grid.columns > 0 and min(height, width) > 2)
            assert room or min(height, width) < 3 or height > 4.5 * width
            assert not room or grid.offset + grid.columns * grid.side <= width


def test_a_row_compiles_once_for_all_radii_and_weights():
    traces = []
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.uniform(size=(3, 7)), jnp.float32)

    def model(weights, x):
        traces.append(None)
        return x @ weights

    def run(eps):
        weights = jnp.asarray(rng.normal(size=(7, 3)), jnp.float32)
        square(Partial(model, weights), x, [0, 1, 2], key=KEY, ball=L1(eps), queries=12)

    run(0.1)
    before = len(traces)
    run(0.2)
    assert len(traces) == before


@pytest.mark.parametrize("norm", ["L2", pytest.param("L1", marks=pytest.mark.slow)])
def test_autoattack_on_vectors(norm):
    rng = np.random.default_rng(3)
    x = rng.uniform(size=(12, 10)).astype(np.float32)
    weights = rng.normal(size=(10, 4)).astype(np.float32)
    y = (x @ weights).argmax(axis=1)
    eps = {"L2": 0.15, "L1": 0.25}[norm]
    ball = NORMS[norm](eps)
    named = {
        name: functools.partial(
            attack, **({"queries": 300} if name == "square" else {"steps": 10})
        )
        for name, attack in suite("standard", ball).items()
    }
    out = autoattack(
        Partial(linear, jnp.asarray(weights)), x, y, key=KEY, ball=ball,
        version="custom", attacks=named, devices=jax.devices()[:1],
    )  # fmt: skip
    best = np.array(
        [
            best_margin(weights, image, label, norm, eps)
            for image, label in zip(x, y, strict=True)
        ]
    )
    assert out.attacks[-1] == "square" and 2 < out.success.sum() < 10
    np.testing.assert_array_equal(out.success[np.abs(best) > 0.02],
                                  best[np.abs(best) > 0.02] > 0)  # fmt: skip
    assert not out.warnings
    alone = square(
        Partial(linear, jnp.asarray(weights)), x, y, key=KEY, ball=ball, queries=1000
    )
    assert not alone.success[best < 0].any() and alone.success[best > 0.1].all()
    np.testing.assert_array_less(alone.loss, best + 1e-4)


# ------------------------------------------------------------------ precision


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
def test_half_precision_images_are_searched_in_float32(dtype):
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.uniform(size=(6, 12)), dtype)
    weights = jnp.asarray(rng.normal(size=(12, 3)), jnp.float32)
    seen = []

    def model(weights, x):
        seen.append(x.dtype)
        return (x @ weights).astype(dtype)

    y = jnp.argmax(model(weights, x.astype(jnp.float32)), axis=1)
    options = {"key": KEY, "ball": L2(0.3), "queries": 30}
    out = square(Partial(model, weights), x, y, **options)
    wide = square(Partial(model, weights), x.astype(jnp.float32), y, **options)
    black = square_queries(functools.partial(model, weights), x, y, **options)
    for found in (out, black):
        assert found.x_adv.dtype == found.loss.dtype == jnp.float32
        assert (outside("L2", found.x_adv - x.astype(jnp.float32), 0.3) <= 1e-6).all()
        verdict = losses.misclassified(model(weights, found.x_adv), y)
        np.testing.assert_array_equal(found.success, verdict)
    np.testing.assert_array_equal(out.x_adv, wide.x_adv)
    assert out.success.any() and set(seen) == {jnp.dtype(jnp.float32)}


@pytest.mark.parametrize("images", ["float32", "float64"])
def test_images_and_logits_of_two_precisions(images):
    logits = {"float32": "float64", "float64": "float32"}[images]
    rng = np.random.default_rng(0)
    with jax.enable_x64(True):
        x = jnp.asarray(rng.uniform(size=(4, 5)), images)
        weights = jnp.asarray(rng.normal(size=(5, 3)), logits)

        def model(x):
            return x.astype(logits) @ weights

        y = jnp.argmax(model(x), axis=1)
        for attack in (square, square_queries):
            out = attack(model, x, y, key=KEY, ball=L1(0.2), queries=20)
            assert out.x_adv.dtype == images and out.loss.dtype == logits
            assert (outside("L1", out.x_adv - x, 0.2) <= 1e-6).all()


# ------------------------------------------------------------------ not finite

SPIKES = jnp.asarray(np.random.default_rng(0).uniform(0.2, 0.8, size=(4, 6, 6, 1)))
SPIKES = SPIKES.astype(jnp.float32).at[3].set(0.9)  # no finite logits


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("place", [0, 1, None])
def test_logits_that_are_not_finite_count_as_fooled(value, place):
    def model(x, np=jnp):
        """Not finite where a pixel is above 0.85; class 0 everywhere else."""
        z = np.ones((len(x), 1)) * np.asarray([[5.0, 0.0, 0.0]])
        high = (x > 0.85).any(axis=(1, 2, 3))[:, None]
        column = np.arange(3)[None] == (np.arange(3)[None] if place is None else place)
        return np.where(high & column, value, z).astype(np.float32)

    y = jnp.zeros(4, int)
    options = {"key": KEY, "ball": Linf(0.3), "queries": 40}
    inside = square(model, SPIKES, y, **options)
    with pytest.warns(UserWarning, match="4 of 4 images count as fooled because"):
        outside = square_queries(functools.partial(model, np=np), SPIKES, y, **options)
    for found in (inside, outside):
        assert found.success.all() and found.first_success[3] == 0
        assert (found.first_success[:3] > 0).all()
        np.testing.assert_array_equal(found.x_adv[3], SPIKES[3])
    for one, other in zip(inside, outside, strict=True):
        np.testing.assert_array_equal(one, other)


class Output(dict):
    pass


BAD = {
    "dict": (lambda x: {"logits": x[:, :3]}, r"predict.*\['logits'\]"),
    "subclass": (lambda x: Output(logits=x[:, :3]), r"predict.*\['logits'\]"),
    "state": (lambda x: (x[:, :3], {"mean": x[0]}), r"predict .*\[0\]"),
    "one score": (lambda x: x[:, 0], r"one score z of two classes is \[0, z\]"),
    "one column": (lambda x: x[:, :1], r"one score z of two classes is \[0, z\]"),
    "classes": (lambda x: x.argmax(axis=1), "score of every class, not the class"),
    "object": (lambda x: object(), "floating scores, got object"),
    "ragged": (lambda x: [[1.0], [1.0, 2.0]], "np.asarray takes, got list"),
    "ruled out": (lambda x: np.full((4, 3), -np.inf), "got -inf for every class"),
    "all lost": (lambda x: np.full((4, 3), np.nan), "for the first of 4 clean images"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_predict_returns_is_refused_in_words(name):
    predict, message = BAD[name]
    x = np.full((4, 5), 0.5, np.float32)
    with pytest.raises(ValueError, match=message):
        square_queries(predict, x, np.zeros(4, int), key=KEY, ball=Linf(0.1))


def test_a_ball_wider_than_the_box_is_warned_of():
    x = np.full((2, 3), 0.5, np.float32)
    for attack in (square, square_queries):
        with pytest.warns(UserWarning, match="ball.eps is 8.*8/255"):
            attack(lambda x: x, x, [0, 0], key=KEY, ball=Linf(8), queries=2)


@pytest.mark.parametrize("attack", [square, square_queries])
def test_a_class_is_no_ball(attack):
    x = np.full((2, 3), 0.5, np.float32)
    with pytest.raises(ValueError, match=r"ball must be Linf\(eps\), L2\(eps\) or L1"):
        attack(lambda x: x, x, [0, 0], key=KEY, ball=L2)
    out = attack(
        lambda x: x, x, [0, 0], key=KEY, ball=L2(0.2), queries=9,
        p_init=np.float32(0.5),
    )  # fmt: skip
    assert out.success.all()


def test_opposite_changes_of_a_pixel_stay_in_the_ball():
    # a window of one pixel often gets the opposite of the change that it has; what is
    # left depends on the compiler, so XLA's defaults matter here
    def logits_fn(x):
        return jnp.stack([jnp.full(len(x), 5.0), x[:, 0]], 1)

    x = jnp.array([[0.0, 0.0, 0.5]])
    label = jnp.zeros(1, int)
    key = jax.random.key(1)
    result = square(logits_fn, x, label, key=key, ball=L2(0.5), queries=10)
    assert float(result.distance[0]) <= 0.5 * (1 + 1e-6)


@pytest.mark.parametrize("kind", [L2, L1])
def test_opposite_changes_of_a_pixel_cancel(kind):
    """Also where a rounding of 1e-6 is left over: it has no direction."""
    x = jnp.full((1, 1, 2, 1), 0.5)
    change = jnp.array([0.1, 1e-6]).reshape(x.shape)  # its unit is 1 − 1e-6
    side = jnp.array([1, 1])
    places = jnp.array([[[0.0, 0.9], [0.0, 0.9]]])
    for sign in (1, -1):
        draws = proposals.Draws(places, jnp.array([False]), jnp.array([[sign]]))
        window = proposals.place(draws, side, x.shape, False)
        ball = kind(0.1)
        after = proposals.propose(x + change, x, draws, window, side, ball, (0.0, 1.0))
        cancels = np.asarray(after - x).ravel()[1] == 0
        assert cancels == (sign == 1), (sign, after)
