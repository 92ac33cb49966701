"""The Fisher penalties against the explicit matrix and finite differences."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from robjax.models import MLP, Linear
from robjax.training import objectives
from tests.training.by_hand import (
    CLASSES,
    cross_entropy,
    linear_logits,
    log_softmax,
    problem,
)


def explicit_fisher(network, x):
    """F [B, d, d] of a linear network, by its definition."""
    kernel = np.asarray(network.variables["params"]["logits"]["kernel"], np.float64)
    p = np.exp(log_softmax(linear_logits(network, x)))
    slopes = kernel.T[None] - (p @ kernel.T)[:, None, :]  # ∇_x log p_k [B, K, d]
    return np.einsum("bk,bki,bkj->bij", p, slopes, slopes)


PENALTIES = {
    "trace": (
        functools.partial(objectives.fisher_trace, weight=0.3),
        lambda f: 0.3 * 0.5 * np.trace(f, axis1=1, axis2=2),
    ),
    "spectral": (
        functools.partial(objectives.fisher_spectral, eps=0.8, weight=3.0),
        lambda f: 3.0 * 0.4**2 / 2 * np.linalg.eigvalsh(f)[:, -1],
    ),
    "power iteration": (
        functools.partial(
            objectives.fisher_spectral, eps=0.8, weight=3.0, power_steps=60
        ),
        lambda f: 3.0 * 0.4**2 / 2 * np.linalg.eigvalsh(f)[:, -1],
    ),
}


@pytest.mark.parametrize("name", PENALTIES)
def test_fisher_penalties_are_those_of_the_explicit_matrix(name):
    objective, penalty = PENALTIES[name]
    network, x, y, keys = problem(Linear(CLASSES))
    losses, _, _ = objective(network, x, y, keys=keys, strength=0.5)
    expected = penalty(explicit_fisher(network, x))
    expected += cross_entropy(linear_logits(network, x), y)
    np.testing.assert_allclose(losses, expected, rtol=1e-4)


@pytest.mark.parametrize("name", PENALTIES)
def test_gradients_stay_finite_where_a_probability_underflows(name):
    network, x, y, keys = problem(Linear(CLASSES))
    layer = network.variables["params"]["logits"]
    layer = {**layer, "bias": jnp.array([120.0, 0.0, 119.0])}

    def loss(layer):
        here = network._replace(variables={"params": {"logits": layer}})
        return PENALTIES[name][0](here, x, y, keys=keys, strength=1.0)[0].mean()

    for leaf in jax.tree.leaves(jax.grad(loss)(layer)):
        assert np.isfinite(leaf).all()


@pytest.mark.parametrize("name", PENALTIES)
def test_gradient_of_a_fisher_penalty_against_finite_differences(name):
    with jax.enable_x64(True):
        network, x, y, keys = problem(MLP(CLASSES, widths=(5,)), jnp.float64)
        flat, unravel = ravel_pytree(network.variables["params"])

        @jax.jit
        def loss(weights):
            here = network._replace(variables={"params": unravel(weights)})
            return PENALTIES[name][0](here, x, y, keys=keys, strength=1.0)[0].mean()

        gradient = jax.grad(loss)(flat)
        directions = jax.random.normal(jax.random.key(1), (8, len(flat)), jnp.float64)
        steps = [loss(flat + 1e-5 * d) - loss(flat - 1e-5 * d) for d in directions]
        np.testing.assert_allclose(
            directions @ gradient, np.array(steps) / 2e-5, rtol=1e-5, atol=1e-7
        )
