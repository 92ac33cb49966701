"""Slow, plain definitions, with many digits or with explicit matrices."""

import decimal

import jax
import jax.numpy as jnp
import numpy as np


def _log_softmax(logits, context):
    partition = sum((z.exp(context) for z in logits), decimal.Decimal(0))
    log_partition = partition.ln(context)
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


@jax.jit
def fisher_matrix(logits_fn, x):
    """F = Σ_k p_k g_k g_kᵀ, g_k = ∇ log p_k, of one image x [*S]; [d, d]."""

    def log_probabilities(image):
        return jax.nn.log_softmax(logits_fn(image[None])[0])

    g = jax.jacrev(log_probabilities)(x).reshape(-1, x.size)
    p = jnp.exp(log_probabilities(x))
    return jnp.einsum("k,ki,kj->ij", p, g, g)


@jax.jit
def _logits(logits_fn, x, x_prime):
    def of_one(image):
        return logits_fn(image[None])[0]

    change = jnp.tensordot(jax.jacfwd(of_one)(x), x_prime - x, x.ndim)
    return of_one(x), of_one(x) + change, of_one(x_prime)


def kl_parts(logits_fn, x, x_prime):
    """total, fisher, softmax, network of one pair, each by its definition."""
    delta = (x_prime - x).reshape(-1)
    z, z_lin, z_prime = _logits(logits_fn, x, x_prime)
    fisher = float(delta @ fisher_matrix(logits_fn, x) @ delta) / 2
    total, linear = kl(z, z_prime), kl(z, z_lin)
    return np.array([total, fisher, linear - fisher, total - linear])
