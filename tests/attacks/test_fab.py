import functools
import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.tree_util import Partial
from scipy.optimize import linprog

from robjax import losses
from robjax.attacks.minimal_norm import hyperplanes
from robjax.attacks.minimal_norm.fab import fab
from robjax.balls import L0, L1, L2, Linf
from tests.attacks.stepwise import fab_path
from tests.oracles import autoattack as reference
from tests.oracles.linear_attacks import best_gain

RNG = np.random.default_rng(0)
KEY = jax.random.key(0)
# shared, so that each norm compiles once
SHORT: dict[str, Any] = {"key": KEY, "steps": 4, "restarts": 2, "targets": 2}
NORMS = {"Linf": Linf, "L2": L2, "L1": L1}
W = jnp.asarray(RNG.normal(size=(12, 4)), jnp.float32)
X = jnp.asarray(RNG.uniform(size=(8, 3, 4)), jnp.float32)


def linear(w, x):
    return x.reshape(x.shape[0], -1) @ w


MODEL = Partial(linear, W)
Y = jnp.argmax(MODEL(X), axis=1)


def length(norm, delta):
    order = {"Linf": np.inf, "L2": 2, "L1": 1}[norm]
    delta = np.asarray(delta, np.float64)
    return np.linalg.norm(delta.reshape(len(delta), -1), ord=order, axis=1)


def smallest(reached):
    """The smallest radius at which `reached` holds, by bisection; at most 100."""
    low, high = 0.0, 100.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (low, middle) if reached(middle) else (middle, high)
    return high


def planes(seed, batch=6, n=9):
    rng = np.random.default_rng(seed)
    t, w = rng.uniform(size=(batch, n)), rng.normal(size=(batch, n))
    t[:, :2] = rng.integers(0, 2, (batch, 2))  # pixels without room on one side
    w[:, 2] = 0
    w[:, 3] = w[:, 4]  # a tie
    most = [
        best_gain(-sign * v, u, "Linf", 1)
        for sign in (1, -1)
        for u, v in zip(t, w, strict=True)
    ]
    sign = np.where(rng.uniform(size=batch) < 0.5, 1, -1)
    most = np.where(sign > 0, most[:batch], most[batch:])
    # what lowering ⟨w, t⟩ by c takes: from nothing to more than the box allows
    return t, w, sign * most * np.linspace(0, 1.2, batch), most


@pytest.mark.parametrize("norm", NORMS)
@given(seed=st.integers(0, 2**31))
@settings(max_examples=6)
def test_shift_is_the_shortest_to_the_hyperplane_in_the_box(norm, seed):
    t, w, c, most = planes(seed)
    with jax.enable_x64(True):
        arrays = jnp.asarray(t), jnp.asarray(w), jnp.asarray(c)
        d = np.asarray(hyperplanes.shift(NORMS[norm](0.0), *arrays, (0.0, 1.0)))
    assert d.dtype == np.float64
    assert (t + d).min() >= -1e-12 and (t + d).max() <= 1 + 1e-12
    reachable = np.sign(c) * np.minimum(np.abs(c), most)
    np.testing.assert_allclose(np.sum(w * d, axis=1), -reachable, atol=1e-10)
    for i in np.flatnonzero(np.abs(c) < most):
        direction = -np.sign(c[i]) * w[i]
        gains = functools.partial(best_gain, direction, t[i], norm)
        shortest = smallest(lambda eps, gains=gains, i=i: gains(eps) >= abs(c[i]))
        np.testing.assert_allclose(length(norm, d[i : i + 1]), shortest, atol=1e-9)
    for i in np.flatnonzero(np.abs(c) >= most):
        ends = np.where(-np.sign(c[i]) * w[i] > 0, 1, 0)
        np.testing.assert_allclose((t + d)[i], np.where(w[i] == 0, t[i], ends))


@pytest.mark.parametrize("norm", ["Linf", "L1"])
def test_shift_agrees_with_linear_programming(norm):
    t, w, c, most = planes(3)
    u, v, e = (jnp.asarray(a, jnp.float32) for a in (t, w, c))
    single = hyperplanes.shift(NORMS[norm](0.0), u, v, e, (0.0, 1.0))
    n, feasible = t.shape[1], np.flatnonzero(np.abs(c) < most)
    for i in feasible:
        # variables: d, then one bound on all |d_i| (Linf) or one on each (L1)
        bound = np.ones((n, 1)) if norm == "Linf" else np.eye(n)
        program = linprog(
            np.r_[np.zeros(n), np.ones(bound.shape[1])],
            A_ub=np.block([[np.eye(n), -bound], [-np.eye(n), -bound]]),
            b_ub=np.zeros(2 * n),
            A_eq=np.r_[w[i], np.zeros(bound.shape[1])][None],
            b_eq=[-c[i]],
            bounds=[(-u, 1 - u) for u in t[i]] + [(0, None)] * bound.shape[1],
        )
        np.testing.assert_allclose(
            length(norm, single[i : i + 1]), program.fun, atol=1e-5
        )


@given(seed=st.integers(0, 2**31))
@settings(max_examples=6)
def test_shift_in_l0_changes_the_fewest_coordinates(seed):
    t, w, c, most = planes(seed, n=6)
    u, v, e = (jnp.asarray(a, jnp.float32) for a in (t, w, c))
    d = np.asarray(hyperplanes.shift(L0(0), u, v, e, (0.0, 1.0)))
    assert (t + d).min() >= -1e-6 and (t + d).max() <= 1 + 1e-6
    for i in np.flatnonzero((c != 0) & (np.abs(c) < 0.99 * most)):
        direction = -np.sign(c[i]) * w[i]
        gains = np.where(direction > 0, direction * (1 - t[i]), -direction * t[i])
        subsets = np.array(list(itertools.product([False, True], repeat=6)))
        enough = subsets @ gains >= abs(c[i]) + 1e-5
        assert np.count_nonzero(d[i]) <= subsets[enough].sum(axis=1).min()
        assert direction @ d[i] >= abs(c[i]) - 1e-5


def test_shift_survives_useless_gradients():
    t, bounds = jnp.full((3, 4), 0.5), (0.0, 1.0)
    w = jnp.asarray([[0.0] * 4, [1e-30] * 4, [jnp.nan] * 4])
    for ball in (Linf(0.0), L2(0.0), L1(0.0)):
        d = hyperplanes.shift(ball, t, w, jnp.ones(3), bounds)
        np.testing.assert_array_equal(d[0], 0)
        np.testing.assert_allclose(d[1], -0.5)


@settings(max_examples=12)
@given(
    seed=st.integers(0, 2**31),
    norm=st.sampled_from(sorted(NORMS)),
    eps=st.floats(0, 1, width=32),
)
def test_inside_ball_and_box_and_consistent(seed, norm, eps):
    y = jax.random.randint(jax.random.key(seed), (8,), 0, 4)
    out = fab(MODEL, X, y, ball=NORMS[norm](eps), early_exit=norm == "L2", **SHORT)
    distance = length(norm, out.x_adv - X)
    assert (distance <= eps + (1e-7 if norm == "Linf" else 1e-6 * eps + 1e-7)).all()
    assert out.x_adv.min() >= 0 and out.x_adv.max() <= 1
    np.testing.assert_array_equal(out.success, jnp.argmax(MODEL(out.x_adv), 1) != y)
    np.testing.assert_array_equal(out.success, out.first_success >= 0)
    np.testing.assert_array_equal(out.success, out.distance <= eps)
    np.testing.assert_allclose(
        np.where(out.success, out.distance, 0), distance, atol=1e-6
    )
    np.testing.assert_allclose(out.loss, losses.margin(MODEL(out.x_adv), y), atol=1e-5)
    clean = jnp.argmax(MODEL(X), axis=1) != y
    np.testing.assert_array_equal(out.first_success == 0, clean)
    np.testing.assert_array_equal(out.queries[clean], 8 + 1)


@pytest.mark.parametrize("norm", NORMS)
def test_zero_radius_is_the_identity(norm):
    early_exit = norm == "L2"
    out = fab(MODEL, X, Y, ball=NORMS[norm](0.0), early_exit=early_exit, **SHORT)
    np.testing.assert_array_equal(out.x_adv, X)
    assert not out.success.any() and (out.distance > 0).all()


def test_calls_and_early_exit():
    far = fab(MODEL, X, Y, ball=Linf(1e-6), steps=5, targets=9, restarts=2, key=KEY)
    np.testing.assert_array_equal(far.queries, 9 + 2 * (5 * 3 * 2 + 10))
    near = fab(MODEL, X, Y, ball=Linf(1.0), steps=5, targets=3, early_exit=True)
    np.testing.assert_array_equal(near.queries, 9 + 2 * near.first_success)
    assert near.success.all() and (near.first_success <= 5).all()


def test_draws_do_not_depend_on_neighbours_or_order():
    run = functools.partial(fab, MODEL, **{**SHORT, "ball": Linf(0.05)})
    keys = jax.vmap(lambda i: jax.random.fold_in(KEY, i))(jnp.arange(8))
    together = run(X, Y, key=KEY)
    order = jnp.asarray([5, 2, 7])
    for a, b in zip(together, run(X[order], Y[order], key=keys[order]), strict=True):
        np.testing.assert_allclose(a[order], b, atol=1e-6)
    for a, b in zip(together, run(X, Y, key=KEY), strict=True):
        np.testing.assert_array_equal(a, b)


def test_two_classes():
    model = Partial(linear, W[:, :2])
    y = jnp.argmax(model(X), axis=1)
    out = fab(model, X, y, ball=L2(10.0), steps=10, targets=9)
    same = fab(model, X, y, ball=L2(10.0), steps=10)
    assert out.success.all()
    np.testing.assert_allclose(out.distance, same.distance, rtol=1e-4)


def test_no_retracing_when_weights_radius_or_constants_change():
    traces = []

    def model(w, x):
        traces.append(None)
        return linear(w, x)

    def run(w, eps, eta):
        fab(Partial(model, w), X, Y, ball=Linf(eps), steps=2, targets=2, eta=eta)

    run(W, 0.1, 1.05)
    before = len(traces)
    run(2 * W, jnp.float32(0.2), 1.01)
    assert len(traces) == before


BAD = {
    "label range": ({"y": Y + 4}, "y must hold labels 0 to 3"),
    "ball": ({"ball": 0.3}, "ball must be Linf"),
    "steps": ({"steps": 0}, "steps must be a whole number"),
    "targets": ({"targets": 0}, "targets must be a whole number"),
    "restarts": ({"restarts": 0}, "restarts must be a whole number"),
    "no key": ({"restarts": 2}, "key must be one key"),
    "eta": ({"eta": float("nan")}, "eta must be finite"),
    "beta": ({"beta": -1}, "beta must be finite"),
    "alpha": ({"alpha_max": "big"}, "alpha_max must be a real number"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_arguments_are_named(name):
    changes, message = BAD[name]
    arguments = {"logits_fn": MODEL, "x": X, "y": Y, "ball": Linf(0.1), **changes}
    positional = [arguments.pop(n) for n in ("logits_fn", "x", "y")]
    with pytest.raises(ValueError, match=message):
        fab(*positional, **arguments)


def dense_net(weights, x):
    hidden = jnp.tanh(x.reshape(x.shape[0], -1) @ weights[0])
    return jnp.tanh(hidden @ weights[1]) @ weights[2]


@pytest.fixture(scope="module")
def peer():
    """The authors' code on a PyTorch twin of `dense_net`, and what both attack."""
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    reason = "pyautoattack is not installed"
    fab_pt = pytest.importorskip("pyautoattack.fab_pt", reason=reason)
    rng = np.random.default_rng(5)
    weights = [
        (rng.normal(size=size) / np.sqrt(size[0])).astype(np.float32)
        for size in ((30, 20), (20, 16), (16, 6))
    ]
    x = rng.uniform(0.1, 0.9, size=(7, 30)).astype(np.float32)

    def twin(images):
        first, second, third = map(torch.from_numpy, weights)
        return torch.tanh(torch.tanh(images @ first) @ second) @ third

    def attack(norm, eps, **options):
        return fab_pt.FABAttack_PT(
            twin, norm=norm, eps=eps, device=torch.device("cpu"), **options
        )

    model = Partial(dense_net, [jnp.asarray(w) for w in weights])
    return torch, attack, model, x, np.array(jnp.argmax(model(jnp.asarray(x)), axis=1))


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("rank", [2, 4])
def test_targeted_steps_are_the_authors(peer, norm, rank):
    _, attack, model, x, y = peer
    path, _ = reference.run_fab(attack(norm, 1.0, n_iter=40), rank, x, y)
    classes = np.argsort(-np.asarray(model(jnp.asarray(x))), axis=1)[:, rank - 1]
    (single, whole), clear = fab_path(model, x, y, classes, NORMS[norm](1.0), path)
    clear, same_way = clear[0], np.cumprod(clear[1], axis=0, dtype=bool)
    np.testing.assert_allclose(single[clear], path[1:][clear], atol=1e-4)
    np.testing.assert_allclose(whole[same_way], path[1:][same_way], atol=1e-4)
    assert same_way[-1].sum() >= len(x) - 1


CASES = [("Linf", True), ("L2", True), ("L1", True), ("L2", False)]


@pytest.mark.parametrize(("norm", "targeted"), CASES)
def test_distances_and_verdicts_are_the_authors(peer, norm, targeted):
    torch, attack, model, x, y = peer
    images, labels = torch.from_numpy(x), torch.from_numpy(y)
    run = functools.partial(fab, model, jnp.asarray(x), jnp.asarray(y), steps=25)
    far = attack(norm, 100.0, n_iter=25, n_target_classes=1, targeted=targeted)
    targets = 1 if targeted else None
    theirs = far.perturb(images, labels).numpy()
    ours = run(ball=NORMS[norm](100.0), targets=targets, reference_quirks=True)
    np.testing.assert_allclose(ours.distance, length(norm, theirs - x), rtol=1e-4)
    np.testing.assert_allclose(ours.x_adv, theirs, atol=1e-4)

    eps = float(np.median(ours.distance))
    near = attack(norm, eps * 1.001, n_iter=25, n_target_classes=5, targeted=targeted)
    theirs = near.perturb(images, labels).numpy()
    options = {"targets": 5 if targeted else None, "early_exit": True}
    ours = run(ball=NORMS[norm](eps * 1.001), reference_quirks=True, **options)
    np.testing.assert_array_equal(ours.success, (theirs != x).any(axis=1))
