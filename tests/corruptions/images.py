"""Smooth images [6, 16, 16, 3] with values of 0 and 1 in them, and their keys."""

import jax
import jax.numpy as jnp
import numpy as np

KEY = jax.random.key(0)
KEYS = jax.random.split(KEY, 6)
WAVES = np.linspace(0, 2, 6)[:, None, None, None] + sum(
    np.sin(np.arange(16.0) / scale).reshape(shape)
    for scale, shape in ((2.5, (1, 16, 1, 1)), (4, (1, 1, 16, 1)))
)
X = np.clip(0.5 + 0.4 * np.sin(WAVES + np.array([0, 1, 2])), 0, 1)
X[0, :4], X[1, 3:6] = 0, 1
X = jnp.asarray(X, jnp.float32)
