"""Auto-PGD where the cross-entropy saturates, and where it does not."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

from robjax import attacks, losses
from robjax.balls import L1, L2, Linf

KEY = jax.random.key(0)
RNG = np.random.default_rng(0)
W = RNG.normal(size=(9, 2)).astype(np.float32)
# far enough from the bounds for every ball here
X = jnp.asarray(RNG.uniform(0.3, 0.7, size=(16, 3, 3, 1)), jnp.float32)
BALLS = {"Linf": Linf(0.0375), "L2": L2(0.09), "L1": L1(0.11)}
# what a linear function of slope w gains in a ball of radius 1
DUAL_ORDERS = {"Linf": 1, "L2": 2, "L1": np.inf}
bind: Any = functools.partial


def linear(w, x):
    return (x.reshape(x.shape[0], -1) - 0.5) @ w


def mlp(first, second, x):
    return jnp.tanh(x.reshape(x.shape[0], -1) @ first) @ second


def plain_cross_entropy(logits, labels):
    """The same function as losses.cross_entropy, which Auto-PGD does not know."""
    return losses.cross_entropy(logits, labels)


@pytest.mark.parametrize("norm", BALLS)
@pytest.mark.parametrize("scale", [1.0, 1e3, 1e6, 1e30])
def test_confident_linear_models_fall_where_the_closed_form_says(norm, scale):
    y = jnp.argmax(linear(W, X), axis=1)
    slope = W.astype(np.float64) @ [1, -1]
    gap = np.abs((np.asarray(X, np.float64).reshape(16, -1) - 0.5) @ slope)
    worst = BALLS[norm].eps * np.linalg.norm(slope, ord=DUAL_ORDERS[norm])
    clear = np.abs(gap - worst) > 0.02 * worst
    assert clear.sum() > 10 and 4 < (gap < worst)[clear].sum() < clear.sum() - 4
    model = Partial(linear, scale * W)
    for attack in (attacks.apgd, attacks.apgd_targeted):
        out = attack(model, X, y, key=KEY, ball=BALLS[norm], steps=30)
        np.testing.assert_array_equal(out.success[clear], (gap < worst)[clear])
    out = attacks.apgd(model, X, y, key=KEY, ball=BALLS[norm], steps=30)
    with jax.enable_x64(True):
        logits = scale * linear(W.astype(np.float64), np.asarray(out.x_adv, np.float64))
        values = losses.cross_entropy(logits, y)
    np.testing.assert_allclose(out.loss, values, rtol=1e-3, atol=1e-6 * scale)


@pytest.mark.parametrize("loss", [losses.cross_entropy, losses.margin, losses.dlr])
@pytest.mark.parametrize("norm", BALLS)
def test_the_scale_of_the_logits_does_not_change_the_images(norm, loss):
    # a power of two scales every float exactly; of two classes also the log-odds
    classes = 5 if loss is losses.dlr else 2
    rng = np.random.default_rng(1)
    first = jnp.asarray(rng.normal(size=(9, 7)), jnp.float32)
    second = jnp.asarray(rng.normal(size=(7, classes)), jnp.float32)
    y = jnp.argmax(mlp(first, second, X), axis=1)
    run = bind(attacks.apgd, key=KEY, ball=BALLS[norm], loss=loss, steps=20)
    out = run(Partial(mlp, first, second), X, y)
    for power in (12, 40):
        other = run(Partial(mlp, first, second * 2.0**power), X, y)
        np.testing.assert_array_equal(other.x_adv, out.x_adv)
        np.testing.assert_array_equal(other.success, out.success)


def test_targeted_dlr_does_not_depend_on_the_scale_of_the_logits():
    rng = np.random.default_rng(1)
    first = jnp.asarray(rng.normal(size=(9, 7)), jnp.float32)
    second = jnp.asarray(rng.normal(size=(7, 6)), jnp.float32)
    y = jnp.argmax(mlp(first, second, X), axis=1)
    run = bind(attacks.apgd_targeted, key=KEY, ball=Linf(0.1), steps=10, targets=3)
    out = run(Partial(mlp, first, second), X, y)
    assert 0 < out.success.sum() < len(X)
    for power in (10, 40):
        other = run(Partial(mlp, first, second * 2.0**power), X, y)
        np.testing.assert_array_equal(other.x_adv, out.x_adv)


@pytest.mark.parametrize("eot", [None, 3])
@pytest.mark.parametrize("norm", BALLS)
def test_elsewhere_the_steps_are_those_of_the_cross_entropy(norm, eot):
    with jax.enable_x64(True):
        rng = np.random.default_rng(2)
        first = jnp.asarray(rng.normal(size=(9, 7)))
        second = jnp.asarray(rng.normal(size=(7, 5)))
        x = jnp.asarray(rng.uniform(size=(8, 3, 3, 1)))
        model = Partial(mlp, first, second)
        y = jnp.argmax(model(x), axis=1)

        def noisy(x, keys):
            noise = jax.vmap(lambda key: jax.random.normal(key, (5,)))(keys)
            return model(x) * (1 + 0.2 * noise)

        attacked = model if eot is None else noisy
        radius = {"Linf": 0.02, "L2": 0.06, "L1": 0.12}[norm]
        ball = type(BALLS[norm])(radius)
        run = bind(attacks.apgd, attacked, x, y, key=KEY, ball=ball, steps=40, eot=eot)
        out = run()
        plain = run(loss=plain_cross_entropy)
    assert 0 < out.success.sum() < 8
    np.testing.assert_array_equal(out.success, plain.success)
    np.testing.assert_array_equal(out.queries, plain.queries)
    np.testing.assert_allclose(out.x_adv, plain.x_adv, atol=1e-9)
    np.testing.assert_allclose(out.loss, plain.loss, rtol=1e-9)


@pytest.mark.parametrize("attack", [attacks.apgd, attacks.pgd], ids=["apgd", "pgd"])
def test_randomised_models_that_are_confident_fall_too(attack):
    # each draw adds noise to the slope; the mean over draws leads the way
    y = jnp.argmax(linear(W, X), axis=1)

    def noisy(w, x, keys):
        noise = jax.vmap(lambda key: 0.1 * jax.random.normal(key, w.shape))(keys)
        flat = x.reshape(x.shape[0], -1) - 0.5
        return 1e3 * jnp.einsum("bd,bdk->bk", flat, w[None] + noise)

    out = attack(Partial(noisy, W), X, y, key=KEY, ball=Linf(0.2), steps=10, eot=8)
    assert out.success.all()


def test_the_loss_of_unsolved_images_is_the_highest_met():
    # fooled nowhere; the highest loss is at the far corner, where it still rounds to 0
    def model(x):
        rise = jnp.sum(x.reshape(len(x), -1), axis=1)
        return jnp.stack([jnp.full(len(x), 5000.0), rise], axis=1)

    y = jnp.zeros(16, jnp.int32)
    out = attacks.apgd(model, X, y, key=KEY, ball=Linf(0.05), steps=20)
    assert not out.success.any() and (out.loss == 0).all()
    np.testing.assert_allclose(out.x_adv, X + 0.05, atol=1e-6)
