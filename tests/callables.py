"""A model's weights and a compiled function of models, for tests of callables."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from robjax.model import as_logits_fn, count_classes

X = jnp.asarray(np.random.default_rng(0).uniform(size=(4, 6)), jnp.float32)


def weights(seed):
    values = np.random.default_rng(seed).normal(size=(6, 3))
    return jnp.asarray(values, jnp.float32)


class Runner:
    """One compiled function of a model, which counts how often it is traced."""

    def __init__(self):
        self.traces = 0

        def run(fn, x):
            self.traces += 1
            return fn(x)

        self.run = jax.jit(run)

    def __call__(self, model):
        """The logits of a model as robjax's own programs find them."""
        wrapped = as_logits_fn(model)
        assert count_classes(wrapped, X) == 3
        return self.run(wrapped, X)


class Nnx(nnx.Module):
    def __init__(self, w):
        self.w = nnx.Param(w)

    def __call__(self, x):
        return x @ self.w[...]
