"""Slow, plain definitions, with many digits or with explicit matrices."""

import decimal

import jax
import jax.numpy as jnp
import numpy as np


def _log_softmax(logits, context):
    exponentials = [z.exp(context) for z in logits]
    log_partition = sum(exponentials).ln(context)
    return [z - log_partition for z in logits]


def kl(logits_p, logits_q):
    """The textbook sum Σ p (log p − log q) with 60 digits; rows [..., K] -> [...]."""
    logits_p, logits_q = np.asarray(logits_p), np.asarray(logits_q)
    result = np.empty(logits_p.shape[:-1])
    with decimal.localcontext(prec=60) as context:
        for row in np.ndindex(result.shape):
            log_p, log_q = (
                _log_softmax([decimal.Decimal(float(z)) for z in logits[row]], context)
                for logits in (logits_p, logits_q)
            )
            result[row] = sum(
                a.exp(context) * (a - b) for a, b in zip(log_p, log_q, strict=True)
            )
    return result


def fisher_matrix(logits_fn, x):
    """F = Σ_k p_k g_k g_kᵀ, g_k = ∇ log p_k, of one image x [*S]; [d, d]."""

    def log_probabilities(image):
        return jax.nn.log_softmax(logits_fn(image[None])[0])

    g = jax.jacrev(log_probabilities)(x).reshape(-1, x.size)
    p = jnp.exp(log_probabilities(x))
    return sum(p[k] * jnp.outer(g[k], g[k]) for k in range(len(p)))


def kl_parts(logits_fn, x, x_prime):
    """total, fisher, softmax, network of one pair, each by its definition."""
    delta = (x_prime - x).reshape(-1)
    z, z_prime = logits_fn(x[None])[0], logits_fn(x_prime[None])[0]
    jacobian = jax.jacfwd(lambda image: logits_fn(image[None])[0])(x)
    z_lin = z + jacobian.reshape(-1, x.size) @ delta
    fisher = float(delta @ fisher_matrix(logits_fn, x) @ delta) / 2
    total, linear = kl(z, z_prime), kl(z, z_lin)
    return np.array([total, fisher, linear - fisher, total - linear])
