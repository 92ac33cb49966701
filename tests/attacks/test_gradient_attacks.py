import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.tree_util import Partial

from robjax import attacks, losses
from robjax.balls import L1, L2, Linf

RNG = np.random.default_rng(0)
W = jnp.asarray(RNG.normal(size=(12, 4)), jnp.float32)
X = jnp.asarray(RNG.uniform(size=(8, 3, 4)), jnp.float32)
KEY = jax.random.key(0)
BALLS = [Linf(0.1), L2(0.4), L1(0.8, density=0.0)]


def linear(w, x):
    return x.reshape(x.shape[0], -1) @ w


Y = jnp.argmax(linear(W, X), axis=1)
MODEL = Partial(linear, W)


class Net(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.max_pool(nn.relu(nn.Conv(6, (3, 3))(x)), (2, 2), (2, 2))
        return nn.Dense(5)(x.reshape(x.shape[0], -1))


@pytest.fixture(scope="module")
def net():
    x = jnp.asarray(RNG.uniform(size=(6, 8, 8, 1)), jnp.float32)
    variables = jax.jit(Net().init)(jax.random.key(1), x)
    model = Partial(Net().apply, variables)
    return model, x, jnp.argmax(model(x), axis=1)


def plain_pgd(model, x, y, ball, steps, step_size):
    """The textbook loop, without jit, box by box."""
    path = [x]
    for _ in range(steps):
        g = jax.grad(lambda v: losses.cross_entropy(model(v), y).sum())(path[-1])
        v = path[-1] + step_size * jnp.sign(g)
        path.append(jnp.clip(jnp.clip(v, x - ball.eps, x + ball.eps), 0, 1))
    return path


def test_pgd_is_the_textbook_loop(net):
    model, x, y = net
    options = {"ball": Linf(0.05), "steps": 6, "step_size": 0.02}
    path = plain_pgd(model, x, y, **options)
    last = attacks.pgd(model, x, y, random_start=False, keep_best=False, **options)
    np.testing.assert_allclose(last.x_adv, path[-1], atol=1e-6)

    wrong = np.stack([np.argmax(model(v), axis=1) != y for v in path])
    loss = np.stack([losses.cross_entropy(model(v), y) for v in path])
    first = np.where(wrong.any(0), wrong.argmax(0), -1)

    best = attacks.pgd(model, x, y, random_start=False, **options)
    chosen = np.where(wrong.any(0), np.where(wrong, loss, -np.inf), loss).argmax(0)
    np.testing.assert_allclose(best.loss, loss[chosen, np.arange(6)], rtol=1e-5)
    np.testing.assert_array_equal(best.success, wrong.any(0))
    np.testing.assert_array_equal(best.first_success, first)
    np.testing.assert_array_equal(best.queries, 7)

    early = attacks.pgd(model, x, y, random_start=False, early_exit=True, **options)
    np.testing.assert_array_equal(early.success, wrong.any(0))
    np.testing.assert_array_equal(early.first_success, first)
    np.testing.assert_array_equal(early.queries, np.where(first < 0, 7, first + 1))
    for i in np.flatnonzero(first >= 0):
        np.testing.assert_allclose(early.x_adv[i], path[first[i]][i], atol=1e-6)


def test_momentum_by_hand():
    # one pixel, logits ±a·x² : g changes sign with x, momentum remembers
    def model(x):
        score = jnp.sum((x - 0.5) ** 2 + 0.3 * x, axis=1)
        return jnp.stack([score, -score], axis=1)

    x, y, ball = jnp.asarray([[0.4, 0.9]]), jnp.array([1]), Linf(0.3)
    velocity, v = jnp.zeros_like(x), x
    for _ in range(4):
        g = jax.grad(lambda u: losses.margin(model(u), y).sum())(v)
        velocity = 0.9 * velocity + g / jnp.mean(jnp.abs(g))
        v = ball.project(v + 0.05 * jnp.sign(velocity), x, (0.0, 1.0))
    out = attacks.pgd(
        model,
        x,
        y,
        ball=ball,
        steps=4,
        step_size=0.05,
        momentum=0.9,
        random_start=False,
        keep_best=False,
        loss=losses.margin,
    )
    np.testing.assert_allclose(out.x_adv, v, atol=1e-6)


@pytest.mark.filterwarnings("ignore:ball.eps is")  # radii beyond the box, too
@settings(max_examples=15)
@given(
    seed=st.integers(0, 2**31),
    which=st.sampled_from(range(3)),
    eps=st.floats(0, 2, width=32),
    targeted=st.booleans(),
)
def test_inside_ball_and_box_and_consistent(seed, which, eps, targeted):
    ball = [Linf, L2, L1][which](eps)
    out = attacks.pgd(
        MODEL, X, Y, key=jax.random.key(seed), ball=ball, steps=5, targeted=targeted
    )
    delta = np.asarray(out.x_adv, np.float64) - np.asarray(X, np.float64)
    order = [np.inf, 2, 1][which]
    distance = np.linalg.norm(delta.reshape(8, -1), ord=order, axis=1)
    slack = 1e-7 if which == 0 else 1e-6 * eps + 1e-7
    assert (distance <= eps + slack).all()
    assert out.x_adv.min() >= 0 and out.x_adv.max() <= 1
    np.testing.assert_allclose(out.distance, distance, atol=1e-6)
    logits = MODEL(out.x_adv)
    hit = jnp.argmax(logits, axis=1) == Y
    np.testing.assert_array_equal(out.success, hit if targeted else ~hit)
    np.testing.assert_allclose(
        out.loss, losses.cross_entropy(logits, Y), rtol=1e-4, atol=1e-5
    )
    assert ((out.first_success >= 0) == out.success).all()


@pytest.mark.parametrize("ball", BALLS, ids=str)
def test_zero_radius_is_the_identity(ball):
    ball = type(ball)(0.0)
    out = attacks.pgd(MODEL, X, Y, key=KEY, ball=ball, steps=3)
    np.testing.assert_array_equal(out.x_adv, X)
    np.testing.assert_array_equal(attacks.fgsm(MODEL, X, Y, ball=ball).x_adv, X)


@pytest.mark.parametrize("early_exit", [False, True])
def test_draws_do_not_depend_on_neighbours_or_order(early_exit):
    run = functools.partial(
        attacks.pgd, MODEL, ball=Linf(0.1), steps=5, restarts=2, early_exit=early_exit
    )
    keys = jax.vmap(lambda i: jax.random.fold_in(KEY, i))(jnp.arange(8))
    together = run(X, Y, key=KEY)
    order = jnp.asarray([5, 2, 7])
    apart = run(X[order], Y[order], key=keys[order])
    for a, b in zip(together, apart, strict=True):
        np.testing.assert_allclose(a[order], b, atol=1e-6)
    again = run(X, Y, key=KEY)
    for a, b in zip(together, again, strict=True):
        np.testing.assert_array_equal(a, b)


def test_restarts_only_help():
    options = {"key": KEY, "ball": Linf(0.08), "steps": 3}
    one = attacks.pgd(MODEL, X, Y, **options)
    many = attacks.pgd(MODEL, X, Y, restarts=5, **options)
    assert (many.success >= one.success).all()
    same = many.success == one.success
    assert (many.loss >= one.loss)[same].all()


def test_each_sample_may_have_its_own_radius_and_step():
    eps = jnp.linspace(0.0, 0.2, 8)
    out = attacks.pgd(MODEL, X, Y, key=KEY, ball=Linf(eps), steps=9, step_size=eps / 3)
    assert (out.distance <= eps + 1e-7).all() and out.distance[-1] > 0.1


def test_targeted_reaches_the_target():
    targets = (Y + 1) % 4
    ball = Linf(1.0)
    out = attacks.pgd(MODEL, X, targets, key=KEY, ball=ball, targeted=True, steps=50)
    reached = jnp.argmax(MODEL(out.x_adv), axis=1) == targets
    np.testing.assert_array_equal(out.success, reached)
    assert out.success.mean() > 0.7


def test_no_retracing_when_weights_radius_or_key_change():
    traces = []

    def model(w, x):
        traces.append(None)
        return linear(w, x)

    def run(w, eps, seed):
        key = jax.random.key(seed)
        model_fn = Partial(model, w)
        attacks.pgd(model_fn, X, Y, key=key, ball=Linf(eps), steps=3)
        attacks.kl_pgd(model_fn, X, key=key, ball=Linf(eps), steps=3)
        attacks.fgsm(model_fn, X, Y, ball=Linf(eps))

    run(W, 0.1, 0)
    before = len(traces)
    run(2 * W, 0.3, 5)
    run(W, jnp.float32(0.2), 6)
    assert len(traces) == before


def test_composes_with_jit_vmap_and_grad():
    run = functools.partial(attacks.pgd, steps=3, keep_best=False)
    plain = run(MODEL, X, Y, key=KEY, ball=Linf(0.1))

    jitted = jax.jit(
        lambda w, eps: run(Partial(linear, w), X, Y, key=KEY, ball=Linf(eps))
    )
    np.testing.assert_allclose(jitted(W, 0.1).x_adv, plain.x_adv, atol=1e-6)

    mapped = jax.vmap(
        lambda w, eps: run(Partial(linear, w), X, Y, key=KEY, ball=Linf(eps))
    )(jnp.stack([W, 2 * W]), jnp.array([0.1, 0.2]))
    np.testing.assert_allclose(mapped.x_adv[0], plain.x_adv, atol=1e-6)
    assert mapped.distance[1].max() > 0.15

    def adversarial_loss(w):
        x_adv = run(Partial(linear, w), X, Y, key=KEY, ball=Linf(0.1)).x_adv
        return losses.cross_entropy(linear(w, x_adv), Y).mean()

    def constant_image_loss(w):
        return losses.cross_entropy(linear(w, plain.x_adv), Y).mean()

    got, expected = jax.grad(adversarial_loss)(W), jax.grad(constant_image_loss)(W)
    np.testing.assert_allclose(got, expected, atol=1e-6)


def test_a_pgd_step_costs_one_gradient():
    # the loop body holds one forward and one backward pass, 2 products each; outside
    # the loop one forward pass judges the last iterate, and one x, if it is not the
    # start and may be returned
    def model(x):
        return jnp.tanh(x.reshape(8, -1) @ W) @ W[:4]

    for options, forward in (
        ({"key": KEY}, 2),
        ({"key": KEY, "keep_best": False}, 1),
        ({"random_start": False}, 1),
    ):
        attack = functools.partial(attacks.pgd, ball=Linf(0.1), steps=7, **options)
        text = str(
            jax.make_jaxpr(lambda x, attack=attack: attack(model, x, Y).x_adv)(X)
        )
        body = text[text.index("body_jaxpr") :]
        assert text.count("dot_general") == 2 + 2 + 2 * forward
        assert "while" in text and "dot_general" in body


def test_the_clean_image_is_among_those_that_pgd_chooses_from():
    """A model that is fooled at x alone, and one whose loss is highest there."""

    def peak(height, x):
        near = jnp.abs(x - X).reshape(8, -1).max(axis=1) < 1e-6
        return jnp.stack([jnp.zeros(8), jnp.where(near, height, -1.0)], axis=1)

    y = jnp.zeros(8, jnp.int32)
    for height, fooled in ((1.0, True), (-0.5, False)):
        run = functools.partial(
            attacks.pgd, Partial(peak, height), X, y, key=KEY, ball=Linf(0.1), steps=3
        )
        out = run()
        np.testing.assert_array_equal(out.x_adv, X)
        np.testing.assert_array_equal(out.success, fooled)
        np.testing.assert_array_equal(out.first_success, 0 if fooled else -1)
        np.testing.assert_array_equal(out.queries, 5)
        early = run(restarts=2, early_exit=True)
        np.testing.assert_array_equal(early.queries, 1 if fooled else 9)
        assert not run(keep_best=False).success.any()


@pytest.mark.parametrize("reference", ["natural", "start"])
def test_kl_pgd_climbs_the_divergence(reference, net):
    model, x, _ = net
    ball = Linf(0.1)
    out = attacks.kl_pgd(model, x, key=KEY, ball=ball, steps=10, reference=reference)
    noise = x + jax.random.uniform(KEY, x.shape, minval=-0.1, maxval=0.1)
    random = losses.kl(model(x), model(jnp.clip(noise, 0, 1)))
    assert (out.loss > 2 * random).all()
    # at the reference, at 10 points of the path and at its end; from "start" 9
    assert (out.queries == (12 if reference == "natural" else 11)).all()
    assert (out.distance <= 0.1 + 1e-7).all()
    if reference == "natural":
        value = losses.kl(model(x), model(out.x_adv))
        np.testing.assert_allclose(out.loss, value, rtol=1e-4)
        changed = jnp.argmax(model(out.x_adv), 1) != jnp.argmax(model(x), 1)
        np.testing.assert_array_equal(out.success, changed)


@pytest.mark.parametrize("gap", [12.0, 17.0, 40.0, 300.0])
def test_confident_models_are_attacked_all_the_same(gap):
    # in float32 softmax is exactly one-hot from a gap of 17 on: no gradient is left in
    # logsumexp z − z_y, but the model is as linear as ever
    w = gap * jnp.asarray([[-1.0, 1.0], [-1.0, 1.0]])
    x, y = jnp.asarray([[0.8, 0.9]]), jnp.asarray([1])

    def model(x):
        return (x - 0.6) @ w

    out = attacks.pgd(model, x, y, ball=Linf(0.3), random_start=False, steps=10)
    assert out.success.all()
    np.testing.assert_allclose(out.loss, losses.cross_entropy(model(out.x_adv), y))


def test_results_are_constants_for_radius_and_step():
    def total(eps):
        return attacks.pgd(MODEL, X, Y, key=KEY, ball=Linf(eps), steps=3).loss.sum()

    def divergence(eps):
        return attacks.kl_pgd(MODEL, X, key=KEY, ball=Linf(eps), steps=3).loss.sum()

    assert jax.grad(total)(0.1) == 0 and jax.grad(divergence)(0.1) == 0


def test_half_precision_models_can_be_attacked():
    def model(x):
        return MODEL(x).astype(jnp.bfloat16)

    assert attacks.pgd(model, X, Y, key=KEY, ball=Linf(0.1), steps=2).success.any()
    assert attacks.kl_pgd(model, X, key=KEY, ball=Linf(0.1), steps=2).loss.max() > 0


BAD = {
    "mean loss": (
        {"loss": lambda z, y: losses.cross_entropy(z, y).mean()},
        "loss must give one value for each sample",
    ),
    "loss by name": ({"loss": "ce"}, r"loss must be a function \(logits, labels"),
    "loss of ints": ({"loss": lambda z, y: y}, "loss must give floating-point values"),
    "loss of targets": ({"loss": losses.targeted_dlr}, "apgd_targeted climbs it"),
    "class": ({"ball": Linf}, "ball must be Linf.* got the class Linf"),
    "last of restarts": ({"restarts": 2, "keep_best": False}, "keep_best must be True"),
    "logits_fn": ({"logits_fn": 3}, "logits_fn must be a callable"),
    "logits": ({"logits_fn": lambda x: x}, "logits_fn must return logits"),
    "integer images": ({"x": (X * 255).astype(jnp.int32)}, "x must be floating"),
    "nan": ({"x": X.at[0, 0, 0].set(jnp.nan)}, "x must be finite"),
    "bounds": ({"x": X * 2}, "x must lie inside bounds"),
    "empty": ({"x": X[:0]}, "x must be a non-empty batch"),
    "label range": ({"y": Y + 4}, "y must hold labels 0 to 3"),
    "label dtype": ({"y": Y.astype(float)}, "y must be integer"),
    "label shape": ({"y": Y[:3]}, "y must have shape"),
    "negative eps": ({"ball": Linf(-0.1)}, "ball.eps must be finite and at least 0"),
    "nan eps": ({"ball": L2(float("nan"))}, "ball.eps must be finite"),
    "ball": ({"ball": 0.3}, "ball must be Linf"),
    "eps shape": ({"ball": L2(jnp.ones(3))}, "ball.eps must have shape"),
    "key": ({"key": 0}, "key must be one key"),
    "no key": ({"key": None}, "key must be one key"),
    "keys": ({"key": jax.random.split(KEY, 3)}, "key must be one key"),
    "steps": ({"steps": 0}, "steps must be a whole number"),
    "restarts": ({"restarts": 1.5}, "restarts must be a whole number"),
    "step_size": ({"step_size": -1.0}, "step_size must be finite"),
    "start": ({"restarts": 2, "random_start": False}, "restarts must be 1"),
    "early": ({"early_exit": True, "keep_best": False}, "keep_best must be True"),
    "bound order": ({"bounds": (1.0, 0.0)}, "bounds must be finite with low < high"),
    "momentum": ({"momentum": -1.0}, "momentum must be finite"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_arguments_are_named(name):
    changes, message = BAD[name]
    good = {"logits_fn": MODEL, "x": X, "y": Y, "key": KEY, "ball": Linf(0.1)}
    arguments = {**good, **changes}
    positional = [arguments.pop(n) for n in ("logits_fn", "x", "y")]
    with pytest.raises(ValueError, match=message):
        attacks.pgd(*positional, **arguments)
