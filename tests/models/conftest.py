"""Weights without the cost of compiling an initialisation."""

import jax
import numpy as np
import pytest


def _random_variables(model, x, low=0.1, high=0.5, seed=1):
    """Variables of `model` for images like `x`, every number drawn from [low, high].

    Float64 NumPy arrays; so zero biases and unit statistics can't hide errors.
    """
    rng = np.random.default_rng(seed)
    shapes = jax.eval_shape(model.init, jax.random.key(0), x)
    return jax.tree.map(lambda leaf: rng.uniform(low, high, leaf.shape), shapes)


@pytest.fixture(scope="session")
def random_variables():
    return _random_variables
