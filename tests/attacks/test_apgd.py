import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.tree_util import Partial

from robjax import losses
from robjax.attacks.apgd import apgd, apgd_targeted, step_rule, step_rule_l1
from robjax.attacks.apgd.plan import Options, Phase, make_plan
from robjax.attacks.problem import check_problem
from robjax.balls import L1, L2, Linf
from robjax.model import as_logits_fn, loss_gradient

RNG = np.random.default_rng(0)
W = jnp.asarray(RNG.normal(size=(12, 5)), jnp.float32)
X = jnp.asarray(RNG.uniform(size=(8, 3, 4)), jnp.float32)
KEY = jax.random.key(0)
BALLS = {"Linf": Linf, "L2": L2, "L1": L1}
DLR = functools.partial(apgd, loss=losses.dlr)
CASES = [(apgd, "Linf"), (apgd_targeted, "L2"), (DLR, "L1")]
LARGE = functools.partial(apgd, large_reps=True)


def linear(w, x):
    return x.reshape(x.shape[0], -1) @ w


Y = jnp.argmax(linear(W, X), axis=1)
MODEL = Partial(linear, W)


@pytest.mark.parametrize(
    ("steps", "expected"),
    [(100, [22, 41, 57, 70, 80, 87, 93, 99]), (50, [11, 21, 30, 38, 45])],
)
def test_checkpoints_of_the_paper(steps, expected):
    windows = step_rule.checkpoint_windows(steps)
    assert np.cumsum(windows).tolist() == expected
    plan = make_plan([Phase(1.0, windows, steps)])
    assert np.flatnonzero(plan.window).tolist() == expected
    assert plan.first.sum() == 1 and plan.first[0] and plan.counts.all()


def test_large_radii_schedule_of_100_steps():
    plan = make_plan(step_rule_l1.phases(Options(losses.margin, large_reps=True)))
    np.testing.assert_array_equal(np.flatnonzero(plan.first), [0, 31, 62])
    np.testing.assert_array_equal(np.flatnonzero(plan.hop), [30, 61])
    # the point made at row i lies in the ball of that row, a hop's in the next one
    np.testing.assert_array_equal(np.bincount(plan.scale.astype(int)), [0, 42, 31, 30])
    np.testing.assert_array_equal(np.flatnonzero(plan.counts), np.arange(62, 103))
    assert (plan.window[1:31] == 1).all() and not plan.window[plan.first].any()
    np.testing.assert_array_equal(np.flatnonzero(plan.last), [101])


@pytest.mark.parametrize("loss_sign", [1, -1])
@pytest.mark.parametrize("quirks", [False, True])
def test_first_window_counts_the_first_step_against_the_start(loss_sign, quirks):
    # 22 steps: the first falls below the start, 16 of the other 21 rise; 17 would do
    rises = np.array([False] + [True] * 16 + [False] * 5)
    steps = np.where(rises, 1, -1).cumsum()
    loss = np.concatenate([[0], steps]) + loss_sign * 100.0
    x = jnp.full((1, 2), 0.5)
    problem = check_problem(lambda x: x, x, Linf(0.1), (0.0, 1.0))
    options = Options(losses.margin, reference_quirks=quirks)
    climb = step_rule.begin(x, problem, jnp.asarray(False), jnp.float32)
    plan = make_plan(step_rule.phases(options))
    for i, value in enumerate(loss):
        climb = step_rule.advance(
            climb,
            jnp.ones_like(x),
            jnp.asarray([value], jnp.float32),
            jax.tree.map(lambda column, i=i: column[i], plan),
            problem,
            options,
        )
    # the reference compares with 0 instead: a rise if the loss is positive
    kept = quirks and loss_sign > 0
    np.testing.assert_allclose(climb.step_size, [0.2 if kept else 0.1])


# --- against the reference implementation -------------------------------------------


@pytest.mark.filterwarnings("ignore:ball.eps is")  # radii beyond the box, too
@settings(max_examples=25)
@given(
    seed=st.integers(0, 2**31),
    case=st.sampled_from(CASES),
    eps=st.floats(0, 2, width=32),
)
def test_inside_ball_and_box_and_never_worse_than_clean(seed, case, eps):
    attack, norm = case
    y = (Y + (jnp.arange(8) == 3)) % 5  # one sample is misclassified
    out = attack(MODEL, X, y, key=jax.random.key(seed), ball=BALLS[norm](eps), steps=6)
    delta = np.asarray(out.x_adv, np.float64) - np.asarray(X, np.float64)
    order = {"Linf": np.inf, "L2": 2, "L1": 1}[norm]
    distance = np.linalg.norm(delta.reshape(8, -1), ord=order, axis=1)
    slack = 1e-7 if norm == "Linf" else 1e-6 * eps + 1e-7
    assert (distance <= eps + slack).all()
    assert out.x_adv.min() >= 0 and out.x_adv.max() <= 1
    np.testing.assert_allclose(out.distance, distance, atol=1e-6)
    logits = MODEL(out.x_adv)
    np.testing.assert_array_equal(out.success, jnp.argmax(logits, axis=1) != y)
    report = {apgd: losses.cross_entropy, DLR: losses.dlr}.get(attack, losses.margin)
    np.testing.assert_allclose(out.loss, report(logits, y), rtol=1e-4, atol=1e-4)
    assert ((out.first_success >= 0) == out.success).all()
    assert out.first_success[3] == 0 and out.queries[3] == 1
    unsolved = ~np.asarray(out.success)
    assert (out.loss >= report(MODEL(X), y) - 1e-5)[unsolved].all()


@pytest.mark.parametrize(("attack", "norm"), CASES)
def test_zero_radius_is_the_identity(attack, norm):
    out = attack(MODEL, X, Y, key=KEY, ball=BALLS[norm](0.0), steps=6)
    np.testing.assert_array_equal(out.x_adv, X)


@pytest.mark.parametrize(
    ("attack", "ball"),
    [
        (functools.partial(apgd, restarts=2), Linf(0.06)),
        (LARGE, L1(jnp.linspace(0.2, 0.6, 8))),
    ],
)
def test_draws_do_not_depend_on_neighbours_or_order(attack, ball):
    run = functools.partial(attack, MODEL, steps=12)
    together = run(X, Y, key=KEY, ball=ball)
    order = jnp.asarray([5, 2, 7])
    keys = jax.vmap(lambda i: jax.random.fold_in(KEY, i))(order)
    eps = jnp.broadcast_to(jnp.asarray(ball.eps), (8,))
    apart = run(X[order], Y[order], key=keys, ball=type(ball)(eps[order]))
    for a, b in zip(together, apart, strict=True):
        np.testing.assert_allclose(a[order], b, atol=1e-6)
    again = run(X, Y, key=KEY, ball=ball)
    for a, b in zip(together, again, strict=True):
        np.testing.assert_array_equal(a, b)
    assert 0 < together.success.sum() < 8


def test_each_target_may_be_run_alone():
    options = {"key": KEY, "ball": Linf(0.05), "steps": 8}
    every = apgd_targeted(MODEL, X, Y, **options)
    alone = [apgd_targeted(MODEL, X, Y, targets=[r], **options) for r in (1, 2, 3, 4)]
    np.testing.assert_array_equal(
        every.success, np.any([out.success for out in alone], axis=0)
    )


def test_longer_runs_aim_at_the_class_that_is_likeliest_at_the_best_point():
    """All runs begin at the same point, so that a run alone repeats the longer one."""

    def confident(x):
        return linear(W, x) + 20.0 * jax.nn.one_hot(Y, 5)

    options = {"key": KEY, "ball": Linf(0.5), "start": X[::-1]}
    both = apgd_targeted(
        confident, X, Y, targets=[4], steps=3, longer=(1, 7), **options
    )
    short = apgd_targeted(confident, X, Y, targets=[4], steps=3, **options)
    assert not both.success.any()
    np.testing.assert_array_equal(both.queries, short.queries + 1 + 8)

    likeliest = np.argmax(
        np.where(jax.nn.one_hot(Y, 5) > 0, -np.inf, linear(W, short.x_adv)), 1
    )
    clean = np.where(jax.nn.one_hot(Y, 5) > 0, -np.inf, linear(W, X))
    rank = np.argmax(np.argsort(-clean, axis=1) == likeliest[:, None], axis=1) + 1
    assert len(set(rank.tolist())) > 1
    alone = [
        apgd_targeted(confident, X, Y, targets=[r], steps=7, **options).loss
        for r in (1, 2, 3, 4)
    ]
    aimed = np.stack(alone)[rank - 1, np.arange(8)]
    np.testing.assert_allclose(both.loss, np.maximum(short.loss, aimed), rtol=1e-6)


def test_model_calls_are_counted_and_stop_at_success():
    calls = []

    def model(x):
        jax.debug.callback(lambda: calls.append(None))
        return linear(jnp.tile(W, 2), x)  # ten classes

    def count(attack, **options):
        calls.clear()
        out = attack(model, X, Y, key=KEY, **options)
        jax.effects_barrier()
        return len(calls), np.asarray(out.queries)

    # the first row of logits is repeated, so z_y ties and argmax stays y
    robust = Linf(1e-4)
    total, queries = count(apgd, ball=robust)
    assert total == 102 and (queries == 102).all()
    total, queries = count(apgd_targeted, ball=robust)
    assert total == 1 + 9 * 101 and (queries == total).all()
    total, queries = count(apgd, ball=Linf(1.0))
    assert total == queries.max() < 20
    total, queries = count(apgd, ball=Linf(1.0), reference_quirks=True)
    assert total == 102 and (queries == 102).all()


# --- randomised models --------------------------------------------------------------


def noisy(w, x, keys):
    noise = jax.vmap(lambda key: jax.random.normal(key, (12, 5)))(keys)
    flat = jnp.tanh(x.reshape(x.shape[0], -1))
    return jnp.einsum("bd,bdk->bk", flat, w[None] + noise)


@pytest.mark.parametrize("quirks", [False, True])
def test_eot_averages_gradient_loss_and_logits_of_the_same_draws(quirks):
    model, keys = Partial(noisy, W), jax.random.split(KEY, 8)
    evaluate = loss_gradient(
        as_logits_fn(model),
        lambda z: losses.cross_entropy(z, Y),
        eot=4,
        last_draw_only=quirks,
    )
    g, (loss, logits) = evaluate(X, keys)

    def one(i):
        draw = jax.vmap(lambda key: jax.random.fold_in(key, i))(keys)
        z = model(X, draw)
        gradient = jax.grad(lambda v: losses.cross_entropy(model(v, draw), Y).sum())(X)
        return gradient, losses.cross_entropy(z, Y), z

    each = [one(i) for i in range(4)]
    gs, values, zs = (np.stack(parts) for parts in zip(*each, strict=True))
    np.testing.assert_allclose(g, gs.mean(0), atol=1e-5)
    np.testing.assert_allclose(
        loss, values[-1] if quirks else values.mean(0), rtol=1e-5
    )
    np.testing.assert_allclose(logits, zs[-1] if quirks else zs.mean(0), atol=1e-5)


def test_eot_attacks_a_randomised_model():
    model = Partial(noisy, 4 * W)
    y = jnp.argmax(jnp.tanh(X.reshape(8, -1)) @ W, axis=1)
    run = functools.partial(apgd, model, key=KEY, eot=6, steps=10)
    out = run(X, y, ball=Linf(0.15))
    assert out.success.sum() > 0
    assert (np.asarray(out.queries) % 6 == 0).all() and out.queries.max() <= 6 * 12
    keys = jax.vmap(lambda i: jax.random.fold_in(KEY, i))(jnp.arange(8))
    apart = run(X[4:], y[4:], key=keys[4:], ball=Linf(0.15))
    np.testing.assert_allclose(out.x_adv[4:], apart.x_adv, atol=1e-6)
    with pytest.raises(ValueError, match=r"logits_fn must take \(images, keys"):
        apgd(MODEL, X, Y, key=KEY, ball=Linf(0.1), eot=2)


# --- compilation and bad input ------------------------------------------------------


def test_no_retracing_when_weights_radius_key_or_target_change():
    traces = []

    def model(w, x):
        traces.append(None)
        return linear(w, x)

    def run(w, eps, seed, rank):
        key = jax.random.key(seed)
        model_fn = Partial(model, w)
        apgd_targeted(model_fn, X, Y, key=key, ball=L2(eps), steps=3, targets=[rank])
        apgd(model_fn, X, Y, key=key, ball=L1(eps), steps=3)

    run(W, 0.1, 0, 1)
    before = len(traces)
    run(2 * W, 0.3, 5, 2)
    run(W, jnp.float32(0.2), 6, 4)
    assert len(traces) == before


def test_a_nan_gradient_leaves_finite_images():
    def model(x):
        return linear(W, x) + jnp.where(x[:, :1, 0] > 2, jnp.sqrt(x[:, :1, 0] - 2), 0)

    out = apgd(model, X, Y, key=KEY, ball=Linf(0.05), steps=5)
    assert jnp.isfinite(out.x_adv).all()


BAD = {
    "steps": ({"steps": 0}, "steps must be a whole number"),
    "restarts": ({"restarts": 0}, "restarts must be a whole number"),
    "rho": ({"rho": -1.0}, "rho must be finite"),
    "eot": ({"eot": 0}, "eot must be a whole number"),
    "large_reps": ({"large_reps": True}, "large_reps must be False unless"),
    "few steps": ({"large_reps": True, "ball": L1(1.0), "steps": 5}, "at least 10"),
    "start": ({"start": X[:2]}, "start must have the shape of x"),
    "start range": ({"start": X + 1}, "start must lie inside bounds"),
    "ball": ({"ball": 0.1}, "ball must be Linf"),
    "eps": ({"ball": Linf(-1.0)}, "ball.eps must be finite and at least 0"),
    "key": ({"key": None}, "key must be one key"),
    "labels": ({"y": Y + 5}, "y must hold labels"),
    "images": ({"x": X * 2}, "x must lie inside bounds"),
    "model": ({"logits_fn": 3}, "logits_fn must be a callable"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_arguments_are_named(name):
    changes, message = BAD[name]
    arguments = {"logits_fn": MODEL, "x": X, "y": Y, "key": KEY, "ball": Linf(0.1)}
    arguments |= changes
    positional = [arguments.pop(n) for n in ("logits_fn", "x", "y")]
    for attack in (apgd, apgd_targeted):
        with pytest.raises(ValueError, match=message):
            attack(*positional, **arguments)


def test_bad_losses_are_named():
    for loss, message in (
        ("ce", r"loss must be a function \(logits, labels"),
        (lambda z, y: losses.margin(z, y).mean(), "loss must give one value for each"),
        (lambda z, y: y, "loss must give floating-point values"),
        (losses.targeted_dlr, "apgd_targeted climbs it"),
    ):
        with pytest.raises(ValueError, match=message):
            apgd(MODEL, X, Y, key=KEY, ball=Linf(0.1), loss=loss)


def test_bad_longer_runs_are_named():
    for longer, ball, words in (
        (3, Linf(0.1), r"longer must be \(targets, steps\) or None, got 3"),
        ((1, 0), Linf(0.1), "longer must be a whole number"),
        ((1, 9), L1(0.1), "longer must be a whole number .*at least 10"),
    ):
        options = {"ball": ball, "longer": longer, "large_reps": isinstance(ball, L1)}
        with pytest.raises(ValueError, match=words):
            apgd_targeted(MODEL, X, Y, key=KEY, **options)


def test_bad_targets_are_named():
    for targets in (0, [0], [5], []):
        with pytest.raises(ValueError, match="targets must be"):
            apgd_targeted(MODEL, X, Y, key=KEY, ball=Linf(0.1), targets=targets)
