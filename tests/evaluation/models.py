"""Attacks whose effect is known, and what the tests of evaluations share."""

import functools

import jax
import jax.numpy as jnp

from robjax import attacks
from robjax.balls import Linf

KEY = jax.random.key(0)
COUNT, SHAPE = 45, (3, 3, 1)


def linear(weights, x):
    return x.reshape(x.shape[0], -1) @ weights


def centred(weights, x):
    return linear(weights, x - 0.5)


def pgd(eps, steps=10, **options):
    return functools.partial(attacks.pgd, ball=Linf(eps), steps=steps, **options)


def moved(x, x_adv, success):
    """The result of moving x to x_adv and claiming `success` [B]."""
    count = x.shape[0]
    size = jnp.max(jnp.abs(x_adv - x).reshape(count, -1), axis=1)
    zeros = jnp.zeros(count, jnp.int32)
    return attacks.AttackResult(x_adv, success, size, zeros, size, zeros)
