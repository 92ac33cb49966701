"""What a game pays: one number from the logits of an image and a class y.

    log_softmax        log p_y               = h_y − log Σ_k e^{h_k}
    log_odds           log p_y / (1 − p_y)   = h_y − log Σ_{k≠y} e^{h_k}
    logit              h_y
    other_categories   log Σ_{k≠y} e^{h_k}

Ren et al., "A Unified Game-Theoretic Interpretation of Adversarial Robustness", arXiv
2103.07364, sections 3 and 4, where it is `log_softmax`. Later papers of the same group
take `log_odds`.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from robjax.arrays import check_array


def _check(logits: Any, y: Any) -> jax.Array:
    """Logits [M, K]; values are not looked at. Checks that y is one of the classes."""
    logits = check_array("logits", logits, "[M, K]", finite=False)
    classes = logits.shape[1]
    dtype = getattr(y, "dtype", np.asarray(0).dtype if type(y) is int else None)
    whole = dtype is not None and jnp.issubdtype(dtype, jnp.integer)
    if not whole or np.ndim(y) or (type(y) is int and not 0 <= y < classes):
        raise ValueError(f"y must be a class from 0 to {classes - 1}, got {y!r}")
    return jnp.asarray(logits)


def log_softmax(logits: jax.Array, y: jax.Array) -> jax.Array:
    """The log-probability of the class y.

    >>> log_softmax(jnp.zeros((1, 4)), 2).tolist() == [-jnp.log(4)]
    True

    Args:
      logits: [M, K].
      y: a class.

    Returns:
      [M], in nats.

    Raises:
      ValueError: `logits` are not [M, K], or y is none of the K classes.
    """
    return logit(jax.nn.log_softmax(_check(logits, y)), y)


def log_odds(logits: jax.Array, y: jax.Array) -> jax.Array:
    """The log-odds of the class y; unlike its log-probability it does not saturate.

    >>> log_odds(jnp.array([[1.0, 0.0]]), 0).tolist()
    [1.0]

    Args:
      logits, y: as in `log_softmax`.
    """
    return logit(logits, y) - other_categories(logits, y)


def logit(logits: jax.Array, y: jax.Array) -> jax.Array:
    """The logit of the class y.

    >>> logit(jnp.array([[1.0, 3.0]]), 1).tolist()
    [3.0]

    Args:
      logits, y: as in `log_softmax`.
    """
    return _check(logits, y)[:, y]


def other_categories(logits: jax.Array, y: jax.Array) -> jax.Array:
    """The log of the sum of all classes but y, before normalisation.

    >>> other_categories(jnp.array([[1.0, 3.0]]), 1).tolist()
    [1.0]

    Args:
      logits, y: as in `log_softmax`.
    """
    logits = _check(logits, y)
    other = jnp.arange(logits.shape[1]) != y
    return jax.nn.logsumexp(jnp.where(other[None], logits, -jnp.inf), axis=1)
