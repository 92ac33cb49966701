"""A small problem for the training losses, and their formulas in NumPy."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from robjax import attacks
from robjax.training.objectives import Network

BATCH, CLASSES = 6, 3


@functools.partial(jax.jit, static_argnums=0)
def initial(model, key, x):
    return model.init(key, x)


def problem(model, dtype=jnp.float32, seed=0):
    """A network, images in [.2, .8], labels and keys."""
    keys = jax.random.split(jax.random.key(seed), 3)
    x = jax.random.uniform(keys[0], (BATCH, 2, 2, 1), dtype, 0.2, 0.8)
    y = jax.random.randint(keys[1], (BATCH,), 0, model.num_classes)
    variables = jax.tree.map(lambda a: a.astype(dtype), initial(model, keys[2], x))
    return Network(model, variables), x, y, jax.random.split(keys[0], BATCH)


def log_softmax(z):
    z = np.asarray(z, np.float64)
    return z - np.log(np.sum(np.exp(z), axis=1, keepdims=True))


def softmax(z):
    return np.exp(log_softmax(z))


def linear_logits(network, x):
    layer = network.variables["params"]["logits"]
    weights = np.asarray(layer["kernel"], np.float64), np.asarray(layer["bias"])
    return np.asarray(x, np.float64).reshape(len(x), -1) @ weights[0] + weights[1]


def cross_entropy(z, y):
    return -log_softmax(z)[np.arange(len(y)), y]


def kl(z, z_moved):
    p = np.exp(log_softmax(z))
    return np.sum(p * (log_softmax(z) - log_softmax(z_moved)), axis=1)


def attack_that_returns(monkeypatch, name, move):
    """Makes attacks.<name> return move(logits_fn, images); returns its calls."""
    calls = []

    def fake(logits_fn, x, *labels, **options):
        calls.append({"logits_fn": logits_fn, **options})
        moved = move(logits_fn, x)
        empty = jnp.zeros(len(x), jnp.int32)
        zeros = jnp.zeros(len(x))
        return attacks.AttackResult(moved, empty > 0, zeros, empty, zeros, empty)

    monkeypatch.setattr(attacks, name, fake)
    return calls
