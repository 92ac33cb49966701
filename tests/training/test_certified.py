"""The objectives `ibp` and `crown_ibp` against their formulas in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from robjax import models
from robjax.balls import Linf
from robjax.training import objectives
from robjax.training.objectives.network import Network

X = np.random.default_rng(0).uniform(0.2, 0.8, size=(4, 3)).astype(np.float32)
Y = np.array([0, 1, 1, 0])
MODEL = models.MLP(2, widths=(5,))
PARAMS = jax.jit(MODEL.init)(jax.random.key(2), X)
NETWORK = Network(MODEL, PARAMS)
EPS = 0.1
KEYS = jax.random.split(jax.random.key(0), 4)


def layers():
    params = jax.device_get(PARAMS["params"])
    return [(params[k]["kernel"], params[k]["bias"]) for k in ("dense1", "logits")]


def worst(eps):
    """Bounds of the one difference z_y − z_i of each image: IBP and CROWN-IBP."""
    (w, b), (w2, b2) = layers()
    sign = np.where(Y == 0, 1, -1)[:, None]
    row, bias = sign * (w2[:, 0] - w2[:, 1])[None], sign[:, 0] * (b2[0] - b2[1])
    centre, radius = X @ w + b, eps * np.abs(w).sum(axis=0)
    l, u = centre - radius, centre + radius
    up, down = np.maximum(row, 0), np.minimum(row, 0)
    by_intervals = (up * np.maximum(l, 0) + down * np.maximum(u, 0)).sum(1) + bias
    chord = np.where(u <= 0, 0, np.where(l >= 0, 1, u / np.where(u > l, u - l, 1)))
    below = np.where(l >= 0, 1, (u > 0) & (u > -l))
    slopes = up * below + down * chord
    offset = -(down * chord * np.where((l < 0) & (u > 0), l, 0)).sum(1)
    back = slopes @ w.T
    linear = (back * X).sum(1) - eps * np.abs(back).sum(1) + slopes @ b + offset + bias
    return by_intervals, linear


def clean():
    (w, b), (w2, b2) = layers()
    z = np.maximum(X @ w + b, 0) @ w2 + b2
    return np.where(Y == 0, 1, -1) * (z[:, 0] - z[:, 1])


@jax.jit
def losses_and_gradient(strength, kappa, beta):
    options = {"keys": KEYS, "strength": strength}
    options |= {"ball": Linf(EPS), "kappa": kappa}

    def of(params, objective, **more):
        network = NETWORK._replace(variables=params)
        values, metrics, _ = objective(network, X, Y, **options, **more)
        return values.sum(), (values, metrics)

    grad = jax.grad(of, has_aux=True)
    first = grad(PARAMS, objectives.ibp)
    return first, grad(PARAMS, objectives.crown_ibp, beta=beta)


@pytest.mark.parametrize(
    ("strength", "kappa", "beta"), [(0, 0.3, 0), (0.4, 0.5, 0.2), (1, 0, 0)]
)
def test_losses_equal_their_formulas(strength, kappa, beta):
    results = losses_and_gradient(float(strength), float(kappa), float(beta))
    by_intervals, by_lines = worst(EPS * strength)
    share = 1 - (1 - beta) * strength
    weight = 1 - (1 - kappa) * strength
    bounds = by_intervals, share * by_lines + (1 - share) * by_intervals
    for (gradient, (values, metrics)), bound in zip(results, bounds, strict=True):
        expected = weight * np.logaddexp(0, -clean()) + (1 - weight) * np.logaddexp(
            0, -bound
        )
        np.testing.assert_allclose(values, expected, atol=1e-4)
        assert metrics["proven"].tolist() == (bound > 0).tolist()
        assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))


def test_the_gradient_is_that_of_the_bound():
    """A small step along it changes the loss by its length squared."""
    (gradient, (values, _)), _ = losses_and_gradient(1.0, 0.0, 0.0)
    square = sum(float(jnp.sum(leaf**2)) for leaf in jax.tree.leaves(gradient))
    step = 1e-3
    moved = jax.tree.map(lambda w, g: w - step * g, PARAMS, gradient)

    def loss(params):
        network = NETWORK._replace(variables=params)
        options = {"strength": 1.0, "ball": Linf(EPS), "kappa": 0.0}
        return objectives.ibp(network, X, Y, keys=KEYS, **options)[0]

    after = jax.jit(loss)(moved)
    change = float(values.sum() - after.sum())
    assert change == pytest.approx(step * square, rel=0.1)
