"""The losses against NumPy, their gradients against finite differences."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from robjax.balls import L2, Linf
from robjax.models import MLP, Linear
from robjax.training import objectives
from robjax.training.objectives import Network
from tests.training.by_hand import (
    BATCH,
    CLASSES,
    attack_that_returns,
    cross_entropy,
    kl,
    linear_logits,
    log_softmax,
    problem,
    softmax,
)


def test_standard_is_the_cross_entropy():
    network, x, y, keys = problem(Linear(CLASSES))
    losses, metrics, _ = objectives.standard(network, x, y, keys=keys, strength=1.0)
    z = linear_logits(network, x)
    np.testing.assert_allclose(losses, cross_entropy(z, y), rtol=1e-5)
    np.testing.assert_array_equal(metrics["accuracy"], np.argmax(z, 1) == y)


def test_adversarial_is_the_loss_at_the_worst_corner_of_a_linear_model():
    # With two classes the gradient of the loss has the constant direction
    # ±(w_1 − w_0), so ascent by signs ends in the corner x + ε sign(·) of the ball.
    network, x, y, keys = problem(Linear(2))
    eps = 0.1
    losses, metrics, _ = objectives.adversarial(
        network, x, y, keys=keys, strength=1.0, ball=Linf(eps), steps=5, step_size=0.05
    )
    kernel = np.asarray(network.variables["params"]["logits"]["kernel"])
    up = np.sign(kernel[:, 1] - kernel[:, 0]).reshape(1, 2, 2, 1)
    towards_wrong = np.where(np.asarray(y) == 0, 1.0, -1.0)[:, None, None, None]
    z = linear_logits(network, np.asarray(x) + eps * towards_wrong * up)
    np.testing.assert_allclose(losses, cross_entropy(z, y), rtol=1e-5)
    np.testing.assert_array_equal(metrics["adversarial_accuracy"], np.argmax(z, 1) == y)


def test_adversarial_at_strength_zero_is_the_standard_loss():
    network, x, y, keys = problem(MLP(CLASSES, widths=(5,)))
    arguments = {"keys": keys, "strength": 0.0}
    losses = objectives.adversarial(network, x, y, **arguments)[0]
    expected = objectives.standard(network, x, y, **arguments)[0]
    np.testing.assert_allclose(losses, expected, rtol=1e-6)


def test_trades_reaches_an_end_of_the_segment_of_a_linear_model():
    # KL(p(x) ‖ p(·)) of a two-class linear model is convex along w_1 − w_0 with its
    # minimum at x: ascent ends in one of two corners.
    network, x, y, keys = problem(Linear(2))
    eps, beta = 0.1, 3.0
    losses, metrics, _ = objectives.trades(
        network,
        x,
        y,
        keys=keys,
        strength=1.0,
        ball=Linf(eps),
        beta=beta,
        steps=8,
        step_size=0.05,
    )
    kernel = np.asarray(network.variables["params"]["logits"]["kernel"])
    up = eps * np.sign(kernel[:, 1] - kernel[:, 0]).reshape(1, 2, 2, 1)
    z = linear_logits(network, x)
    ends = [kl(z, linear_logits(network, np.asarray(x) + s * up)) for s in (1, -1)]
    divergence = np.asarray(metrics["divergence"])
    gap = np.min([np.abs(divergence - end) / end for end in ends], axis=0)
    assert np.max(gap) < 1e-4
    np.testing.assert_allclose(
        losses, cross_entropy(z, y) + beta * divergence, rtol=1e-5
    )


def test_trades_formula_with_a_known_attack(monkeypatch):
    network, x, y, keys = problem(Linear(CLASSES))
    attack_that_returns(monkeypatch, "kl_pgd", lambda f, x: x + 0.07)
    losses, metrics, _ = objectives.trades(
        network, x, y, keys=keys, strength=1.0, beta=5.0
    )
    z, z_moved = linear_logits(network, x), linear_logits(network, np.asarray(x) + 0.07)
    np.testing.assert_allclose(metrics["divergence"], kl(z, z_moved), rtol=1e-3)
    np.testing.assert_allclose(
        losses, cross_entropy(z, y) + 5.0 * kl(z, z_moved), rtol=1e-4
    )


@pytest.mark.parametrize("reference", ["natural", "start"])
def test_trades_of_a_linear_model_against_the_whole_ascent_in_numpy(reference):
    # ∇ KL(p(x_ref) ‖ p(·)) = W (p(·) − p(x_ref)); where the reference is the start it
    # vanishes there, and the first step is drawn.
    network, x, y, keys = problem(Linear(CLASSES))
    eps, beta, size, steps = 0.1, 3.0, 0.03, 4
    losses, metrics, _ = objectives.trades(
        network,
        x,
        y,
        keys=keys,
        strength=0.5,
        ball=Linf(2 * eps),
        beta=beta,
        steps=steps,
        step_size=2 * size,
        reference=reference,
    )
    kernel = np.asarray(network.variables["params"]["logits"]["kernel"], np.float64)
    first, second = jnp.swapaxes(jax.vmap(jax.random.split)(keys), 0, 1)
    natural = np.asarray(x, np.float64)
    start = natural + np.asarray(Linf(eps).sample(first, x))
    drawn = jax.vmap(lambda key: jax.random.normal(key, x.shape[1:]))(second)
    p = softmax(linear_logits(network, natural if reference == "natural" else start))

    moved = start
    for step in range(steps):
        slope = (softmax(linear_logits(network, moved)) - p) @ kernel.T
        if reference == "start" and step == 0:
            slope = np.asarray(drawn)
        there = moved + size * np.sign(slope).reshape(x.shape)
        moved = np.clip(there, natural - eps, natural + eps)
    z, z_moved = linear_logits(network, natural), linear_logits(network, moved)
    # the loss is taken from x itself, whatever the attack took as its reference
    np.testing.assert_allclose(metrics["divergence"], kl(z, z_moved), rtol=1e-3)
    expected = cross_entropy(z, y) + beta * kl(z, z_moved)
    np.testing.assert_allclose(losses, expected, rtol=1e-4)


def differences(loss, weights, directions, step=1e-6):
    """Slopes of loss along each direction, by central differences."""
    pairs = [(loss(weights + step * d), loss(weights - step * d)) for d in directions]
    return np.array([up - down for up, down in pairs]) / (2 * step)


def mean_losses(monkeypatch, objective, move=None):
    """(loss of the weights, the weights, directions) of a small smooth network.

    The attacks return move(logits_fn, images); None leaves them as they are.
    """
    network, x, y, keys = problem(MLP(CLASSES, widths=(5,)), jnp.float64)
    flat, unravel = ravel_pytree(network.variables["params"])
    directions = jax.random.normal(jax.random.key(1), (8, len(flat)), jnp.float64)

    def loss(weights):
        if move is not None:
            attack_that_returns(monkeypatch, "pgd", move)
            attack_that_returns(monkeypatch, "kl_pgd", move)
        here = network._replace(variables={"params": unravel(weights)})
        return objective(here, x, y, keys=keys, strength=1.0)[0].mean()

    return loss, flat, directions


def move_with_the_weights(logits_fn, x):
    """A fake attack that depends strongly on the weights.

    Were the attacked images not constant, the gradient would differ from that of the
    loss at fixed images.
    """
    return x + 0.1 * jnp.tanh(logits_fn(x)).sum(1)[:, None, None, None]


def held_images():
    """Where `move_with_the_weights` moves the images of `mean_losses`."""
    network, x, _, _ = problem(MLP(CLASSES, widths=(5,)), jnp.float64)
    moved = move_with_the_weights(network.logits_fn("eval"), x)
    return lambda logits_fn, x: moved


FROM_START = functools.partial(objectives.trades, reference="start")


@pytest.mark.parametrize(
    "objective",
    [
        objectives.standard,
        objectives.adversarial,
        objectives.trades,
        FROM_START,
        objectives.mart,
    ],
)
def test_gradient_is_that_of_the_loss_with_the_attacked_images_held(
    monkeypatch, objective
):
    with jax.enable_x64(True):
        loss, weights, along = mean_losses(
            monkeypatch, objective, move_with_the_weights
        )
        gradient = jax.grad(loss)(weights)
        at_fixed_images, _, _ = mean_losses(monkeypatch, objective, held_images())
        expected = differences(jax.jit(at_fixed_images), weights, along)
        np.testing.assert_allclose(along @ gradient, expected, atol=1e-7)


@pytest.mark.parametrize("objective", [FROM_START, objectives.n_fgsm])
def test_gradient_with_an_attack_whose_signs_do_not_turn(monkeypatch, objective):
    # Ascent by signs is piecewise constant in the weights: nothing need be held.
    with jax.enable_x64(True):
        loss, weights, along = mean_losses(monkeypatch, objective)
        expected = differences(jax.jit(loss), weights, along)
        np.testing.assert_allclose(along @ jax.grad(loss)(weights), expected, atol=1e-7)


def test_gradient_of_awp_is_that_of_the_loss_with_the_perturbation_held(monkeypatch):
    gamma = 0.2
    objective = functools.partial(objectives.awp, gamma=gamma)
    with jax.enable_x64(True):
        loss, weights, along = mean_losses(
            monkeypatch, objective, move_with_the_weights
        )
        value, gradient = jax.value_and_grad(loss)(weights)
        at_fixed_images = jax.jit(
            mean_losses(monkeypatch, objectives.adversarial, held_images())[0]
        )
        slope = differences(at_fixed_images, weights, jnp.eye(len(weights)))
        params = problem(MLP(CLASSES, widths=(5,)), jnp.float64)[0].variables["params"]
        _, unravel = ravel_pytree(params)

        def perturbation(weights, slope):
            if weights.ndim < 2:
                return 0 * weights
            return gamma * np.linalg.norm(weights) * slope / np.linalg.norm(slope)

        held, _ = ravel_pytree(
            jax.tree.map(perturbation, unravel(weights), unravel(jnp.asarray(slope)))
        )
        np.testing.assert_allclose(value, at_fixed_images(weights + held), rtol=1e-9)
        expected = differences(at_fixed_images, weights + held, along)
        np.testing.assert_allclose(along @ gradient, expected, atol=1e-7)


def test_mart_formula_with_a_known_attack(monkeypatch):
    network, x, y, keys = problem(Linear(CLASSES))
    attack_that_returns(monkeypatch, "pgd", lambda f, x: x + 0.07)
    losses, metrics, _ = objectives.mart(
        network, x, y, keys=keys, strength=1.0, beta=6.0
    )
    z, z_moved = linear_logits(network, x), linear_logits(network, np.asarray(x) + 0.07)
    p, moved = np.exp(log_softmax(z)), np.exp(log_softmax(z_moved))
    rows, others = np.arange(BATCH), moved.copy()
    others[rows, y] = 0
    boosted = -np.log(moved[rows, y]) - np.log(1 - others.max(axis=1))
    expected = boosted + 6.0 * kl(z, z_moved) * (1 - p[rows, y])
    np.testing.assert_allclose(losses, expected, rtol=1e-4)
    np.testing.assert_array_equal(metrics["adversarial_accuracy"], moved.argmax(1) == y)


def test_n_fgsm_is_the_loss_one_step_from_the_noisy_image():
    # With two classes the sign of the gradient is known, so x̃ − x − η is as well.
    network, x, y, keys = problem(Linear(2))
    x = x.at[:, 0].set(0.0).at[:, 1, 0].set(1.0)
    eps, seen = 0.05, []
    kernel = np.asarray(network.variables["params"]["logits"]["kernel"])
    up = np.sign(kernel[:, 1] - kernel[:, 0]).reshape(1, 2, 2, 1)
    corner = eps * np.where(np.asarray(y) == 0, 1, -1)[:, None, None, None] * up

    class Spy(Linear):
        def apply(self, variables, images, **options):
            seen.append(jax.lax.stop_gradient(images))
            return super().apply(variables, images, **options)

    def check(noise, expected):
        spied = Network(Spy(2), network.variables)
        options = {"ball": Linf(2 * eps), "noise": noise}
        with jax.disable_jit():
            losses, metrics, _ = objectives.n_fgsm(
                spied, x, y, keys=keys, strength=0.5, **options
            )
        np.testing.assert_allclose(seen[-1], expected, atol=1e-6)
        z = linear_logits(network, expected)
        np.testing.assert_allclose(losses, cross_entropy(z, y), rtol=1e-5)
        right = np.argmax(z, 1) == y
        np.testing.assert_array_equal(metrics["adversarial_accuracy"], right)

    check(0.0, np.clip(x + corner, 0, 1))
    draws = jax.vmap(lambda k: jax.random.uniform(k, (2, 2, 1), minval=-1))(keys)
    start = np.clip(x + 2 * eps * draws, 0, 1)  # clipped before the step, too
    check(2.0, np.clip(start + corner, 0, 1))
    with pytest.raises(ValueError, match="ball must be Linf"):
        objectives.n_fgsm(network, x, y, keys=keys, strength=1.0, ball=L2(0.1))  # pyright: ignore[reportArgumentType]


def test_awp_is_the_loss_at_weights_moved_up_the_gradient(monkeypatch):
    network, x, y, keys = problem(Linear(CLASSES))
    attack_that_returns(monkeypatch, "pgd", lambda f, x: x + 0.07)

    def loss(weights):
        here = network._replace(variables={"params": {"logits": weights}})
        return objectives.awp(here, x, y, keys=keys, strength=0.5, gamma=0.2)[0].mean()

    layer = network.variables["params"]["logits"]
    moved = np.asarray(x, np.float64).reshape(BATCH, -1) + 0.07

    def by_hand(kernel):
        error = np.exp(log_softmax(moved @ kernel + np.asarray(layer["bias"])))
        error[np.arange(BATCH), y] -= 1
        return moved.T @ error / BATCH

    kernel = np.asarray(layer["kernel"], np.float64)
    slope = by_hand(kernel)
    there = kernel + 0.1 * np.linalg.norm(kernel) * slope / np.linalg.norm(slope)
    z = moved @ there + np.asarray(layer["bias"])
    value, gradient = jax.value_and_grad(loss)(layer)
    np.testing.assert_allclose(value, cross_entropy(z, y).mean(), rtol=1e-5)
    np.testing.assert_allclose(gradient["kernel"], by_hand(there), rtol=1e-4, atol=1e-6)
    _, _, after = objectives.awp(network, x, y, keys=keys, strength=1.0)
    np.testing.assert_array_equal(
        after.variables["params"]["logits"]["kernel"], layer["kernel"]
    )
