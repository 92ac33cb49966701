import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.tree_util import Partial

from robjax import losses
from robjax.attacks.square import proposals, square
from robjax.balls import L1, L2, Linf
from tests.oracles.linear_attacks import best_margin

RNG = np.random.default_rng(0)
KEY = jax.random.key(0)
SHORT: dict[str, Any] = {
    "queries": 20,
    "restarts": 2,
}  # shared, so that each norm compiles once
NORMS = {"Linf": Linf, "L2": L2, "L1": L1}
RADII = {"Linf": 0.06, "L2": 0.6, "L1": 4.0}
SHAPE = (8, 8, 2)
X = jnp.asarray(RNG.uniform(size=(10, *SHAPE)), jnp.float32)
W = jnp.asarray(RNG.normal(size=(128, 4)), jnp.float32)


def linear(w, x):
    return x.reshape(x.shape[0], -1) @ w


MODEL = Partial(linear, W)
Y = jnp.argmax(MODEL(X), axis=1)


def length(norm, delta):
    order = {"Linf": np.inf, "L2": 2, "L1": 1}[norm]
    delta = np.asarray(delta, np.float64)
    return np.linalg.norm(delta.reshape(len(delta), -1), ord=order, axis=1)


def test_square_approaches_the_worst_case_of_a_linear_model():
    # smooth weights: what squares can see
    w = np.zeros((*SHAPE, 2), np.float32)
    w[:4, ..., 0], w[4:, ..., 0] = 1, -1
    model = Partial(linear, jnp.asarray(w.reshape(128, 2)))
    y = jnp.argmax(model(X), axis=1)
    eps = 0.02
    worst = [
        best_margin(w.reshape(128, 2), x, int(label), "Linf", eps)
        for x, label in zip(X, y, strict=True)
    ]
    out = square(model, X, y, key=KEY, ball=Linf(eps), queries=400)
    held = ~np.asarray(out.success)
    assert 2 <= held.sum() <= 8
    np.testing.assert_array_equal(held, np.array(worst) < 0)
    np.testing.assert_allclose(out.loss[held], np.array(worst)[held], atol=2e-3)


@pytest.mark.parametrize("norm", NORMS)
def test_success_rate_on_a_linear_model(norm):
    radius = 4 * RADII[norm]
    out = square(MODEL, X, Y, key=KEY, ball=NORMS[norm](radius), queries=400)
    assert out.success.mean() >= 0.9


@settings(max_examples=12)
@given(
    seed=st.integers(0, 2**31),
    norm=st.sampled_from(sorted(NORMS)),
    scale=st.floats(0, 3, width=32),
)
def test_inside_ball_and_box_and_consistent(seed, norm, scale):
    key, eps = jax.random.key(seed), scale * RADII[norm]
    y = jax.random.randint(key, (10,), 0, 4)
    out = square(
        MODEL,
        X,
        y,
        key=key,
        ball=NORMS[norm](eps),
        **SHORT,
    )
    distance = length(norm, out.x_adv - X)
    assert (distance <= eps + (1e-7 if norm == "Linf" else 1e-6 * eps + 1e-7)).all()
    assert out.x_adv.min() >= 0 and out.x_adv.max() <= 1
    np.testing.assert_allclose(out.distance, distance, atol=2e-6)
    logits = MODEL(out.x_adv)
    np.testing.assert_array_equal(out.success, jnp.argmax(logits, axis=1) != y)
    np.testing.assert_allclose(out.loss, losses.margin(logits, y), atol=1e-5)
    assert (out.loss >= losses.margin(MODEL(X), y) - 1e-6).all()
    expected = np.where(out.success, np.asarray(out.first_success) + 1, 1 + 2 * 21)
    np.testing.assert_array_equal(out.queries, expected)
    clean = jnp.argmax(MODEL(X), axis=1) != y
    np.testing.assert_array_equal(out.first_success == 0, clean)


@pytest.mark.parametrize("norm", NORMS)
def test_zero_radius_is_the_identity(norm):
    out = square(MODEL, X, Y, key=KEY, ball=NORMS[norm](0.0), **SHORT)
    np.testing.assert_array_equal(out.x_adv, X)
    assert not out.success.any()


@pytest.mark.parametrize("norm", NORMS)
def test_draws_do_not_depend_on_neighbours_or_order(norm):
    ball = NORMS[norm](RADII[norm])
    run = functools.partial(square, MODEL, ball=ball, **SHORT)
    keys = jax.vmap(lambda i: jax.random.fold_in(KEY, i))(jnp.arange(10))
    together = run(X, Y, key=KEY)
    # the same batch shape for all norms, a smaller batch for one of them
    order = jnp.asarray([5, 2, 7] if norm == "L2" else [5, 2, 7, 1, 1, 9, 0, 3, 8, 4])
    for a, b in zip(together, run(X[order], Y[order], key=keys[order]), strict=True):
        np.testing.assert_allclose(a[order], b, atol=1e-5)
    for a, b in zip(together, run(X, Y, key=KEY), strict=True):
        np.testing.assert_array_equal(a, b)


def test_the_quirks_share_the_draws_of_the_first_sample():
    # the same image in every row: shared windows and colours treat all rows alike
    x, y = jnp.repeat(X[:1], 10, axis=0), jnp.repeat(Y[:1], 10)
    keys = jax.random.split(KEY, 10)
    run = functools.partial(proposals.draw_query, keys, x.shape, Linf(0.1))
    assert len(np.unique(run(True).sign, axis=0)) == 1
    assert len(np.unique(run(False).sign, axis=0)) > 1
    out = square(
        MODEL, x, y, key=KEY, ball=Linf(0.02), reference_quirks=True, queries=9
    )
    assert (out.distance <= 0.02 + 1e-7).all() and out.queries.max() <= 11


def test_any_shape_in_linf():
    flat = X[:, :, :, 0].reshape(10, -1)
    row = square(Partial(linear, W[:64]), flat, Y, key=KEY, ball=Linf(0.3), queries=50)
    grey = square(
        Partial(linear, W[:64]), X[..., 0], Y, key=KEY, ball=Linf(0.3), queries=50
    )
    assert row.x_adv.shape == (10, 64) and grey.x_adv.shape == (10, 8, 8)
    assert row.success.any() and grey.success.any()


def test_no_retracing_when_weights_radius_or_key_change():
    traces = []

    def model(w, x):
        traces.append(None)
        return linear(w, x)

    def run(w, eps, seed):
        key = jax.random.key(seed)
        square(Partial(model, w), X, Y, key=key, ball=Linf(eps), queries=3)

    run(W, 0.1, 0)
    before = len(traces)
    run(2 * W, jnp.float32(0.2), 1)
    assert len(traces) == before


BAD = {
    "integer images": ({"x": (X * 255).astype(jnp.int32)}, "x must be floating"),
    "label range": ({"y": Y + 4}, "y must hold labels 0 to 3"),
    "ball": ({"ball": 0.3}, "ball must be Linf"),
    "queries": ({"queries": 0}, "queries must be a whole number"),
    "restarts": ({"restarts": 0}, "restarts must be a whole number"),
    "p_init": ({"p_init": 1.5}, r"p_init must be a number in \(0, 1\]"),
    "no key": ({"key": None}, "key must be one key"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_arguments_are_named(name):
    changes, message = BAD[name]
    good = {"logits_fn": MODEL, "x": X, "y": Y, "key": KEY, "ball": Linf(0.1)}
    arguments = {**good, **changes}
    positional = [arguments.pop(n) for n in ("logits_fn", "x", "y")]
    with pytest.raises(ValueError, match=message):
        square(*positional, **arguments)


def test_where_windows_may_be():
    shape, side = (4000, 6, 9, 1), jnp.asarray([3, 3])
    keys = jax.random.split(KEY, shape[0])
    for reference_quirks, last in ((True, (2, 5)), (False, (3, 6))):
        draws = proposals.draw_query(keys, shape, L2(1.0), reference_quirks)
        if reference_quirks:  # one place for the whole batch
            assert (draws.places == draws.places[:1]).all()
            draws = proposals.draw_query(keys, shape, L2(1.0), False)
        window = proposals.place(draws, side, shape, reference_quirks)
        np.testing.assert_array_equal(window.corner.max(0), last)
        np.testing.assert_array_equal(window.corner.min(0), 0)
        assert (window.first.sum((1, 2, 3)) == 9).all()
        assert (window.second.sum((1, 2, 3)) == 9).all()
        counts = np.bincount(window.corner[:, 0])  # uniform: within five deviations
        share = 1 / (last[0] + 1)
        spread = np.sqrt(4000 * share * (1 - share))
        assert (np.abs(counts - 4000 * share) < 5 * spread).all()


@pytest.mark.parametrize("norm", ["L2", "L1"])
@pytest.mark.parametrize("side", [3, 4, 7])
def test_bumps_are_nested_squares_of_opposite_sign(norm, side):
    power = {"L2": 2, "L1": 4}[norm]
    order = {"L2": 2, "L1": 1}[norm]

    def half(height):
        out = np.zeros((height, side))
        for k in range(max(height // 2, side // 2) + 1):
            rows = slice(max(height // 2 - k, 0), height // 2 + k + 1)
            columns = slice(max(side // 2 - k, 0), side // 2 + k + 1)
            out[rows, columns] += (k + 1.0) ** -power
        return out / np.linalg.norm(out.ravel(), order)

    expected = np.concatenate([half(side // 2), -half(side - side // 2)])
    expected /= np.linalg.norm(expected.ravel(), order)
    ball = NORMS[norm](1.0)
    upright, turned = np.asarray(proposals.bumps(ball, side, (12, 15), (2, 4)))
    np.testing.assert_allclose(upright[2 : 2 + side, 4 : 4 + side], expected, atol=1e-6)
    np.testing.assert_allclose(
        turned[2 : 2 + side, 4 : 4 + side], expected.T, atol=1e-6
    )
    assert np.abs(upright).sum() <= np.abs(expected).sum() * (1 + 1e-5)


def test_windows_that_do_not_fit_keep_their_area():
    sides = proposals.window_sides(Linf(1.0), (1, 1, 100, 1), 60, 0.8, False)
    np.testing.assert_array_equal(sides[0], [1, 80])
    np.testing.assert_array_equal(sides[11], [1, 40])
    np.testing.assert_array_equal(sides[51], [1, 20])
    quirks = proposals.window_sides(Linf(1.0), (1, 1, 100, 1), 60, 0.8, True)
    np.testing.assert_array_equal(quirks, 1)


@pytest.fixture(scope="module")
def peer():
    """The authors' code, fed with known uniform numbers, on a linear PyTorch model."""
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    reason = "pyautoattack is not installed"
    theirs = pytest.importorskip("pyautoattack.square", reason=reason)

    def run(norm, x, y, w, eps, queries):
        candidates, draws = [], []
        flat = torch.from_numpy(np.array(w))

        def model(images):
            images = images.permute(0, 2, 3, 1)
            candidates.append(images.numpy().copy())
            return images.reshape(len(images), -1) @ flat

        attack = theirs.SquareAttack(
            model, norm=norm, eps=eps, n_queries=queries, resc_schedule=False
        )
        attack.init_hyperparam(torch.zeros(1, *x.shape[3:], *x.shape[1:3]))
        generator = torch.Generator().manual_seed(7)

        def rand(*size):
            size = size[0] if len(size) == 1 else size
            drawn = torch.rand(size, generator=generator)
            draws.append(drawn.numpy().copy())
            return drawn

        class Torch:
            def __getattr__(self, name):
                return rand if name == "rand" else getattr(torch, name)

        theirs.torch = Torch()
        try:
            images = torch.from_numpy(np.array(x)).permute(0, 3, 1, 2).contiguous()
            labels = torch.from_numpy(np.array(y, np.int64))
            _, best = attack.attack_single_run(images, labels)
        finally:
            theirs.torch = torch
        return attack, candidates, draws, best.permute(0, 2, 3, 1).numpy()

    return run


@pytest.mark.parametrize("norm", NORMS)
def test_candidates_and_acceptance_are_the_authors(peer, norm):
    # a radius so small that no sample is solved and leaves the batch
    queries, eps = 220, RADII[norm] / 30
    x, y, ball = X[:4], Y[:4], NORMS[norm](eps)
    attack, candidates, uniform, final = peer(norm, x, y, W, eps, queries)
    assert len(candidates) == queries + 1
    uniform, batch, channels = iter(uniform), len(x), SHAPE[-1]

    def sign(drawn):
        return jnp.asarray(np.sign(2 * drawn - 1).reshape(-1, channels), jnp.int32)

    def start():
        if norm == "Linf":
            signs = next(uniform)[:, :, 0].transpose(0, 2, 1)
            draws = proposals.StartDraws(
                jnp.zeros((batch, 8), bool), jnp.where(signs < 0.5, -1, 1)
            )
        else:
            tiles = [(next(uniform), next(uniform)) for _ in range(64)]
            # the last row and column of their grid of 8 × 8 tiles is off the image
            tiles = [tiles[8 * row + column] for row in range(7) for column in range(7)]
            turned = [jnp.full(batch, turn.item() > 0.5) for turn, _ in tiles]
            signs = [sign(signs) for _, signs in tiles]
            draws = proposals.StartDraws(jnp.stack(turned, 1), jnp.stack(signs, 1))
        return proposals.start(draws, x, ball, (0.0, 1.0))

    def draw():
        if norm == "Linf":
            places = [next(uniform).item() for _ in range(2)] + [0, 0]
            signs = jnp.tile(sign(next(uniform)), (batch, 1))
            turned = False
        else:
            places = [next(uniform).item() for _ in range(4)]
            turned = next(uniform).item() > 0.5
            signs = sign(next(uniform))
        places = jnp.tile(jnp.asarray(places).reshape(1, 2, 2), (batch, 1, 1))
        return proposals.Draws(places, jnp.full(batch, turned), signs)

    sides = proposals.window_sides(ball, x.shape, queries, 0.8, True)

    @jax.jit
    def propose(best, draws, side):
        window = proposals.place(draws, side, x.shape, True)
        return proposals.propose(best, x, draws, window, side, ball, (0.0, 1.0))

    best = start()
    np.testing.assert_allclose(best, candidates[0], atol=1e-6)
    loss = losses.margin(MODEL(best), y)
    for i in range(queries):
        side = round(np.sqrt(attack.p_selection(i) * 64))
        if norm != "Linf":
            side = max(side, 3) + 1 - max(side, 3) % 2
        assert (sides[i] == min(side, 8)).all()
        candidate = propose(best, draw(), jnp.asarray(sides[i]))
        np.testing.assert_allclose(candidate, candidates[i + 1], atol=2e-6)
        proposed = losses.margin(MODEL(candidate), y)
        better = proposed > loss
        best = jnp.where(better[:, None, None, None], candidates[i + 1], best)
        loss = jnp.where(better, proposed, loss)
    np.testing.assert_allclose(best, final, atol=2e-6)
    assert next(uniform, None) is None


@pytest.mark.parametrize("norm", NORMS)
def test_double_precision_follows_the_same_path(norm):
    ball, x, w = NORMS[norm](RADII[norm]), np.asarray(X[:3]), np.asarray(W)
    with jax.enable_x64(True):
        out = square(
            Partial(linear, jnp.asarray(w, jnp.float64)),
            jnp.asarray(x, jnp.float64),
            Y[:3],
            key=KEY,
            ball=ball,
            queries=10,
        )
        assert out.x_adv.dtype == jnp.float64 and out.loss.dtype == jnp.float64
        inside = length(norm, out.x_adv - x)
    assert (inside <= RADII[norm] * (1 + 1e-6) + 1e-7).all()
