"""Gradients with NaN or infinite components: they move nothing and poison nothing."""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from robjax import attacks
from robjax.attacks.ascent import ascend
from robjax.attacks.problem import check_problem
from robjax.attacks.result import Best
from robjax.balls import L1, L2, Linf
from robjax.training import objectives
from robjax.training.objectives import Network

KEY = jax.random.key(0)
BALLS = {"Linf": Linf(0.3), "L2": L2(0.3), "L1": L1(0.3, density=0.0)}
bind: Any = functools.partial


def unlabelled(attack):
    return lambda logits_fn, x, y, **options: attack(logits_fn, x, **options)


ATTACKS = {
    "fgsm": attacks.fgsm,
    "mi_fgsm": bind(attacks.mi_fgsm, steps=4),
    "pgd": bind(attacks.pgd, random_start=False),
    "pgd, random start": attacks.pgd,
    "pgd, last": bind(attacks.pgd, random_start=False, keep_best=False),
    "pgd, momentum": bind(attacks.pgd, random_start=False, momentum=0.9),
    "kl_pgd": unlabelled(attacks.kl_pgd),
    "apgd": bind(attacks.apgd, steps=20),
    "apgd, from x": bind(attacks.apgd, steps=20),
    "apgd_targeted": bind(attacks.apgd_targeted, steps=20),
}
LENGTHS = {
    "Linf": lambda delta: np.abs(delta).max(axis=1),
    "L2": lambda delta: np.sqrt((delta**2).sum(axis=1)),
    "L1": lambda delta: np.abs(delta).sum(axis=1),
}


def model(x):
    """x_2 − 0.1 against ‖(x_0, x_1)‖ + √x_3.

    Where x_0 = x_1 = 0 the norm has the slope NaN, and where x_3 = 0 the root an
    infinite one.
    """
    rest = jnp.linalg.norm(x[:, :2], axis=1) + jnp.sqrt(x[:, 3])
    return jnp.stack([x[:, 2] - 0.1, rest], axis=1)


@pytest.mark.parametrize("norm", BALLS)
@pytest.mark.parametrize("name", ATTACKS)
def test_images_are_finite_and_the_verdict_is_that_of_a_forward_pass(name, norm):
    x = jnp.array(
        [[0, 0, 0.5, 0], [0, 0, 0.15, 0], [0.2, 0.1, 0.6, 0], [0, 0, 0.9, 0.01]]
    )
    y = jnp.zeros(4, jnp.int32)
    start = {"start": x} if name == "apgd, from x" else {}
    out = ATTACKS[name](model, x, y, key=KEY, ball=BALLS[norm], **start)
    x_adv = np.asarray(out.x_adv, np.float64)
    assert np.isfinite(x_adv).all() and np.isfinite(out.loss).all()
    distance = LENGTHS[norm](x_adv - np.asarray(x, np.float64))
    assert (distance <= 0.3 * (1 + 1e-6)).all() and x_adv.min() >= 0
    np.testing.assert_allclose(out.distance, distance, atol=1e-6)
    wrong = np.asarray(model(out.x_adv)).argmax(axis=1) != 0
    if name != "kl_pgd":
        np.testing.assert_array_equal(out.success, wrong)


@pytest.mark.parametrize("norm", BALLS)
@pytest.mark.parametrize("name", ["fgsm", "mi_fgsm", "pgd", "pgd, momentum"])
def test_the_components_that_are_finite_move_as_if_they_were_alone(name, norm):
    # of the first image only x_2 has a slope, and all of ε is spent on it; the second
    # moves as it does beside a copy of itself
    x = jnp.array([[0, 0, 0.5, 0], [0.2, 0.1, 0.5, 0.1]])
    y = jnp.zeros(2, jnp.int32)
    run = bind(ATTACKS[name], model, y=y, key=KEY, ball=BALLS[norm])
    out = run(x)
    np.testing.assert_allclose(out.x_adv[0], [0, 0, 0.2, 0], atol=1e-6)
    assert not out.success[0]
    np.testing.assert_array_equal(out.x_adv[1], run(x[jnp.array([1, 1])]).x_adv[1])


@pytest.mark.parametrize("name", ["fgsm", "mi_fgsm", "pgd", "apgd"])
def test_a_gradient_that_is_all_nan_leaves_the_image(name):
    def constant(x):
        nothing = 0 * jnp.sqrt(jnp.sum(0 * x, axis=1))
        return jnp.stack([0.5 + nothing, 0.25 + nothing], axis=1)

    x = jnp.full((2, 3), 0.5)
    out = ATTACKS[name](constant, x, jnp.array([0, 1]), key=KEY, ball=Linf(0.1))
    assert out.success.tolist() == [False, True]
    assert jnp.isfinite(out.x_adv).all() and jnp.isfinite(out.loss).all()
    if name in ("fgsm", "mi_fgsm"):
        np.testing.assert_array_equal(out.x_adv, x)


def late_slope(x):
    """x_1 rises; the slope for x_0 is NaN until x_1 is above ½, then positive."""
    above = jax.nn.relu(jax.lax.stop_gradient(x[:, 1]) - 0.5)
    return jnp.stack([jnp.full(len(x), 5.0), x[:, 1] + jnp.sqrt(above * x[:, 0])], 1)


def test_momentum_forgets_what_was_nan():
    # steps of ε/4: x_1 takes all four, x_0 the last three
    x = jnp.array([[0.25, 0.5]])
    y = jnp.zeros(1, jnp.int32)
    out = attacks.mi_fgsm(late_slope, x, y, ball=Linf(0.25), steps=4)
    np.testing.assert_allclose(out.x_adv, [[0.4375, 0.75]], atol=1e-6)


@pytest.mark.parametrize("scale", [1e-36, 1.0, 1e37])
def test_momentum_neither_overflows_nor_underflows(scale):
    # the sum of 400 slopes of 1e37 is infinite
    slopes = jnp.linspace(0.5, 1.0, 400)

    def steep(x):
        rise = (x - 0.5) @ (scale * slopes)
        return jnp.stack([-rise, rise], axis=1)

    x = jnp.full((1, 400), 0.5)
    y = jnp.zeros(1, jnp.int32)
    out = attacks.mi_fgsm(steep, x, y, ball=Linf(0.001), steps=4)
    np.testing.assert_allclose(out.x_adv, 0.501, atol=1e-6)
    grows = bind(attacks.pgd, momentum=1e3, random_start=False, keep_best=False)
    out = grows(steep, x, y, ball=Linf(0.001), steps=30, step_size=0.001)
    np.testing.assert_allclose(out.x_adv, 0.501, atol=1e-6)


def test_a_velocity_that_overflows_is_no_nan_image():
    x = jnp.full((1, 2), 0.5)
    problem = check_problem(lambda x: x, x, L2(0.1), (0.0, 1.0))
    best = ascend(
        problem,
        lambda z: (z[:, 0] + z[:, 1], z[:, 0] > 2),
        x,
        Best.none(x, x.dtype),
        step_size=jnp.float32(0.01),
        steps=60,
        momentum=1e10,
        keep_best=False,
    )
    np.testing.assert_allclose(best.x_adv, 0.5 + 0.1 / np.sqrt(2), atol=1e-6)


# ---------------------------------------------------------------- adversarial training


class Norms(nn.Module):
    """Norms of the halves of an image: at 0 the slope is NaN for the image alone."""

    @nn.compact
    def __call__(self, x, train=False):
        del train
        halves = x.reshape(len(x), 2, -1)
        return nn.Dense(2)(jnp.linalg.norm(halves, axis=2))


def training_problem(module, x):
    variables = jax.jit(module.init)(jax.random.key(1), x)
    network = Network(module, variables)
    return network, jax.random.split(KEY, len(x)), jnp.arange(len(x)) % 2


@pytest.mark.parametrize("name", ["adversarial", "trades", "mart", "n_fgsm", "awp"])
def test_objectives_are_finite_where_input_gradients_are_nan(name):
    x = jnp.concatenate([jnp.zeros((2, 2, 2, 1)), jnp.full((2, 2, 2, 1), 0.5)])
    network, keys, y = training_problem(Norms(), x)
    options = {"ball": L2(0.3)} if name in ("adversarial", "mart", "awp") else {}
    options |= {"noise": 0.0} if name == "n_fgsm" else {}

    def risk(params, strength):
        moved = network._replace(variables={"params": params})
        values, _, _ = getattr(objectives, name)(
            moved, x, y, keys=keys, strength=strength, **options
        )
        return values.mean()

    values = jax.value_and_grad(risk)(network.variables["params"], 1.0)
    assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(values))


class NormOfWeights(nn.Module):
    """Its kernel is 0, where the norm has the slope NaN."""

    @nn.compact
    def __call__(self, x, train=False):
        del train
        kernel = self.param("kernel", nn.initializers.zeros, (4, 2))
        other = self.param("other", nn.initializers.ones, (4, 2))
        flat = x.reshape(len(x), -1)
        return flat @ other * jnp.arange(2.0)[None] + jnp.linalg.norm(kernel)


def test_awp_leaves_weights_whose_gradient_is_nan():
    x = jnp.full((2, 2, 2, 1), 0.5)
    network, keys, y = training_problem(NormOfWeights(), x)
    run = bind(objectives.awp, network, x, y, keys=keys, strength=0.0)
    np.testing.assert_allclose(run()[0], np.log1p(np.exp([2.0, -2.0])), rtol=1e-5)
    moved = objectives.awp(network, x, y, keys=keys, strength=1.0, gamma=0.1)[0]
    still = objectives.adversarial(network, x, y, keys=keys, strength=1.0)[0]
    assert jnp.isfinite(moved).all() and moved.mean() > still.mean()
