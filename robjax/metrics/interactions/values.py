"""What a game pays: one number from the logits of an image and a class y.

    log_softmax        log p_y               = h_y − log Σ_k e^{h_k}
    log_odds           log p_y / (1 − p_y)   = h_y − log Σ_{k≠y} e^{h_k}
    logit              h_y
    other_categories   log Σ_{k≠y} e^{h_k}

Ren et al., "A Unified Game-Theoretic Interpretation of Adversarial Robustness", arXiv
2103.07364, sections 3 and 4, where it is `log_softmax`. Later papers of the same group
take `log_odds`.
"""

import jax
import jax.numpy as jnp


def log_softmax(logits: jax.Array, y: jax.Array) -> jax.Array:
    """The log-probability of the class y.

    >>> log_softmax(jnp.zeros((1, 4)), 2).tolist() == [-jnp.log(4)]
    True

    Args:
      logits: [M, K].
      y: a class.

    Returns:
      [M], in nats.
    """
    return logit(jax.nn.log_softmax(logits), y)


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
    return logits[:, y]


def other_categories(logits: jax.Array, y: jax.Array) -> jax.Array:
    """The log of the sum of all classes but y, before normalisation.

    >>> other_categories(jnp.array([[1.0, 3.0]]), 1).tolist()
    [1.0]

    Args:
      logits, y: as in `log_softmax`.
    """
    other = jnp.arange(logits.shape[1]) != y
    return jax.nn.logsumexp(jnp.where(other[None], logits, -jnp.inf), axis=1)
