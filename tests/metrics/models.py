"""Small models of the tests, in the precision of their parameters."""

import jax
import jax.numpy as jnp


def linear(classes, shape, scale=1.0, seed=0, dtype=jnp.float32):
    size = jnp.zeros(shape).size
    weight_key, bias_key = jax.random.split(jax.random.key(seed))
    weight = scale * jax.random.normal(weight_key, (size, classes), dtype)
    bias = jax.random.normal(bias_key, (classes,), dtype)
    return jax.tree_util.Partial(_linear, weight, bias)


def _linear(weight, bias, x):
    return x.reshape(x.shape[0], -1) @ weight + bias[None]


def smooth(classes, shape, scale=1.0, seed=0, dtype=jnp.float32):
    """One hidden tanh layer: every derivative exists and none vanishes."""
    hidden = linear(16, shape, 1.0, seed, dtype)
    out = linear(classes, (16,), scale, seed + 1, dtype)
    return jax.tree_util.Partial(_smooth, hidden, out)


def _smooth(hidden, out, x):
    return out(jnp.tanh(hidden(x)))


def flax(model, x, scale=1.0):
    """A linen model with parameters drawn, scaled and cast in one compilation."""

    @jax.jit
    def init(x):
        variables = jax.jit(model.init)(jax.random.key(0), x)
        return jax.tree.map(lambda a: (scale * a).astype(x.dtype), variables)

    return jax.tree_util.Partial(model.apply, init(x[:1]))
