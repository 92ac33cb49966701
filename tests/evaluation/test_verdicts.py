"""What counts as fooled: judged in which precision, and how far out is outside."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

from robjax import attacks
from robjax.balls import L1, L2, Linf
from robjax.evaluation import evaluate, verdicts
from robjax.model import as_logits_fn, rounded_to
from tests.evaluation.test_loop import KEY, MODEL, W, X, Y, tanh_layer


def precisions(jaxpr):
    """Of all matrix products and convolutions, those in loops and calls too."""
    found = set()
    for equation in jaxpr.eqns:
        if equation.primitive.name in ("dot_general", "conv_general_dilated"):
            found.add(equation.params["precision"])
        for param in jax.tree.leaves(equation.params):
            if hasattr(param, "eqns") or hasattr(param, "jaxpr"):
                found |= precisions(getattr(param, "jaxpr", param))
    return found


EXACT = (jax.lax.Precision.HIGHEST,) * 2


def convolved(w, x):
    """A convolution, and a product in a jitted part that the attacks trace, too."""
    x = jax.lax.conv(x[:, None, :, :, 0], jnp.ones((1, 1, 1, 1)), (1, 1), "SAME")
    return jax.jit(tanh_layer)(w, x)


def test_verdicts_are_given_in_float32_on_accelerators_too():
    """Where float32 products are rounded unless a precision is asked for."""
    model = as_logits_fn(Partial(convolved, jnp.asarray(W)))
    mesh = jax.sharding.Mesh(np.asarray(jax.devices()[:1]), ("batch",))
    x, y, keys = X[:4], Y[:4], jax.random.split(KEY, 4)
    assert precisions(jax.make_jaxpr(model)(x).jaxpr) == {None}
    judge = functools.partial(verdicts._judge, eot=None, mesh=mesh)
    assert precisions(jax.make_jaxpr(judge)(model, x, y, keys).jaxpr) == {EXACT}

    def noisy(model, x, keys):
        return model(x + jax.vmap(jax.random.uniform)(keys)[:, None, None, None])

    judge = functools.partial(verdicts._judge, eot=3, mesh=mesh)
    closed = jax.make_jaxpr(judge)(Partial(noisy, model), x, y, keys)
    assert precisions(closed.jaxpr) == {EXACT}


@pytest.mark.parametrize(
    "attack",
    [attacks.fab, attacks.deepfool, attacks.fmn, attacks.ddn, attacks.carlini_wagner],
)
def test_so_are_those_of_the_attacks_that_look_for_the_nearest(attack):
    model, x, y = Partial(convolved, jnp.asarray(W)), jnp.asarray(X[:4]), Y[:4]
    attack = functools.partial(attack, model, ball=L2(0.5), steps=3)
    assert precisions(jax.make_jaxpr(attack)(x, y).jaxpr) == {None, EXACT}


def test_attacks_compute_in_bfloat16_and_verdicts_in_float32():
    seen = []

    def model(w, x):
        seen.append((w.dtype.name, x.dtype.name))
        return tanh_layer(w, x)

    def ask(logits_fn, x, y, *, key, bounds):
        """Moves nothing, and reports what the logits are to it."""
        logits = logits_fn(x)
        assert logits.dtype == jnp.float32
        zero = jnp.zeros(len(x), jnp.int32)
        wrong = jnp.argmax(logits, axis=1) != y
        return attacks.AttackResult(x, wrong, logits[:, 0], zero, logits[:, 0], zero)

    out = evaluate(
        Partial(model, jnp.asarray(W)), (X, Y), {"ask": ask}, key=KEY, dtype="bfloat16",
        devices=jax.devices()[:1],
    )  # fmt: skip
    assert {name for pair in seen for name in pair} == {"float32", "bfloat16"}
    assert all(w == x for w, x in seen)
    low = tanh_layer(jnp.asarray(W, jnp.bfloat16), jnp.asarray(X, jnp.bfloat16))
    expected = low[:, 0].astype(jnp.float32)
    np.testing.assert_allclose(out.attacks["ask"].distance, expected, rtol=1e-2)
    logits = np.sort(np.asarray(MODEL(jnp.asarray(X))), axis=1)
    margin = logits[:, -2] - logits[:, -1]
    np.testing.assert_allclose(out.attacks["ask"].margin, margin, atol=1e-5)
    with pytest.raises(ValueError, match="dtype must be a floating-point type"):
        rounded_to(jnp.int8, MODEL)


def test_what_only_bfloat16_is_fooled_by_is_attacked_again_in_float32(tmp_path):
    def model(slope, x):
        """Of class 1 below ½ on average, by a margin that bfloat16 rounds to 0."""
        score = slope * (0.5 - x.mean(axis=(1, 2, 3)))
        return jnp.stack([jnp.ones_like(score), 1 + score], axis=1)

    x = np.full((5, 2, 2, 1), 0.4, np.float32)
    x[3] = 0.1  # too far from ½ for the ball, near enough for bfloat16
    options = {"ball": Linf(0.2), "steps": 5, "random_start": False, "early_exit": True}
    attack = {"pgd": functools.partial(attacks.pgd, **options)}
    given = Partial(model, jnp.float32(0.005)), (x, np.ones(5, int)), attack
    run_ = functools.partial(evaluate, *given, key=KEY, devices=jax.devices()[:1])
    exact, rounded = run_(), run_(dtype="bfloat16", run_dir=tmp_path)
    assert exact.correct.all()
    np.testing.assert_array_equal(exact.robust, np.arange(5) == 3)
    np.testing.assert_array_equal(rounded.robust, exact.robust)
    one, two = exact.attacks["pgd"], rounded.attacks["pgd"]
    np.testing.assert_array_equal(two.first_success, one.first_success)
    # x, which seemed to fool, and the verdict that denied it come on top
    np.testing.assert_array_equal(two.queries, one.queries + 2)
    np.testing.assert_allclose(two.margin, one.margin, atol=1e-6)
    assert rounded.warnings == ()


@pytest.mark.parametrize(
    ("ball", "slack"),
    [
        (Linf(0.25), 1e-7),
        (L2(0.25), 1e-6 * 0.25 + 1e-7),
        (L1(0.25), 1e-6 * 0.25 + 1e-7),
    ],
    ids=["Linf", "L2", "L1"],
)
def test_an_image_is_allowed_up_to_the_documented_slack(ball, slack):
    x = np.full((2, 5), 0.5)
    x_adv = x.copy()
    x_adv[:, 2] += ball.eps + np.array([0.9, 1.1]) * slack
    outside, distance = verdicts.measure(x_adv, x, ball, (0.0, 1.0))
    np.testing.assert_array_equal(outside, [False, True])
    np.testing.assert_allclose(distance, ball.eps, atol=1e-5)


def test_the_box_has_no_slack():
    x = np.full((4, 5), 0.999999, np.float32)
    x_adv = x.copy()
    x_adv[:, 0] = [1, np.nextafter(np.float32(1), np.float32(2)), -1e-12, np.nan]
    outside, _ = verdicts.measure(x_adv, x, Linf(1.0), (0.0, 1.0))
    np.testing.assert_array_equal(outside, [False, True, True, True])


@pytest.mark.parametrize("bounds", [(0.0, 0.1), (0.7, 1.0), (-2.1179, 2.64)])
def test_an_image_at_the_rounded_bounds_is_inside(bounds):
    """float32(0.1) > 0.1 and float32(0.7) < 0.7."""
    x = np.array([[bounds[0]], [bounds[1]]], np.float32)
    for box in (bounds, tuple(np.full_like(x, end) for end in bounds)):
        outside, _ = verdicts.measure(x, x, Linf(1.0), box)
        np.testing.assert_array_equal(outside, [False, False])
    beyond = np.nextafter(x, np.float32([[-9], [9]]))
    outside, _ = verdicts.measure(beyond, x, Linf(1.0), bounds)
    np.testing.assert_array_equal(outside, [True, True])


def nan_above_half(label, x):
    """z_y − z_i is 0.6 − pixel 0, until that pixel is above ½."""
    pixel = x.reshape(len(x), -1)[:, :1]
    z = jnp.where(jnp.arange(2)[None] == label, 0.6 - pixel, 0)
    return jnp.where(pixel > 0.5, jnp.nan, z)


@pytest.mark.parametrize("label", [0, 1])
@pytest.mark.parametrize(
    "attack",
    [
        functools.partial(attacks.pgd, steps=4),
        functools.partial(attacks.apgd, steps=4, restarts=3),
        functools.partial(attacks.square, queries=20),
        functools.partial(attacks.fab, steps=10),
        functools.partial(attacks.fmn, steps=10),
    ],
)
def test_logits_that_are_nan_fool_whatever_the_label(attack, label):
    """The argmax of NaN is 0, which is no reason to call label 0 right."""
    x = np.full((8, 1, 4, 1), 0.8, np.float32)
    x[:, 0, 0] = 0.46
    model = Partial(nan_above_half, jnp.int32(label))
    attack = functools.partial(attack, ball=Linf(0.1))
    found = evaluate(model, (x, np.full(8, label)), {"a": attack}, key=KEY)
    assert found.correct.all()
    assert found.attacks["a"].robust.mean() < 0.5


class _More(NamedTuple):
    x_adv: jax.Array
    success: jax.Array
    first_success: jax.Array
    queries: jax.Array
    steps: jax.Array


def with_more(*args, **keywords):
    r = attacks.fgsm(*args, **keywords)
    return _More(r.x_adv, r.success, r.first_success, r.queries, jnp.int32(1))


@pytest.mark.parametrize("devices", [1, 2])
def test_an_attack_may_return_more_than_one_value_for_each_sample(devices):
    run_ = functools.partial(evaluate, MODEL, (X, Y), key=KEY)
    run_ = functools.partial(run_, devices=jax.devices()[:devices])
    one, other = (
        run_({"a": functools.partial(attack, ball=Linf(0.1))})
        for attack in (attacks.fgsm, with_more)
    )
    np.testing.assert_array_equal(one.attacks["a"].robust, other.attacks["a"].robust)
