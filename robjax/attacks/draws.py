"""Models that draw random numbers, and their gradients.

With ``eot=n`` (expectation over transformations, Athalye et al., ICML 2018) a model is
called as ``logits_fn(images, keys)``, keys [B] one for each image, and everything known
about a point is a mean over n fresh draws. With ``eot=None`` it is called as
``logits_fn(images)``.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from robjax import inputs, lowering


def mean_logits(
    logits_fn: Any, x: jax.Array, keys: jax.Array, eot: int | None
) -> jax.Array:
    """Logits [B, K]; a mean over `eot` draws."""
    if eot is None:
        return logits_fn(x)
    draws = lax.map(lambda i: logits_fn(x, fold(keys, i)), jnp.arange(eot))
    return jnp.mean(draws, axis=0)


def fold(keys: jax.Array, data: Any) -> jax.Array:
    """`fold_in` of the same number into each of [B] keys."""
    return jax.vmap(jax.random.fold_in, in_axes=(0, None))(keys, data)


def count_classes(model: inputs.LogitsFn, x: jax.Array, keys, eot: int | None) -> int:
    """K, without compiling; ValueError if the model does not take what it will get."""
    if eot is None:
        return inputs.count_classes(model, x)
    try:
        return inputs.count_classes(model, x, keys)
    except TypeError as error:
        raise ValueError(
            f"logits_fn must take (images, keys [B]) when eot is given: {error}"
        ) from error


def evaluation(logits_fn, loss, eot: int | None, reference_quirks: bool):
    """(x, keys) -> gradient [B, *S], (loss [B], logits [B, K]).

    `loss` maps logits to losses [B]. With `eot` all three are means over the same
    draws; `reference_quirks` takes losses and logits from the last draw alone.
    Components of the gradient that are not finite are 0.
    """

    def total(v, keys):
        logits = logits_fn(v) if eot is None else logits_fn(v, keys)
        value = loss(logits)
        return jnp.sum(value), (value, logits)

    gradient = lowering.fast(jax.grad(total, has_aux=True))

    def mean(v, keys):
        def draw(i, carry):
            now = gradient(v, fold(keys, i))
            return jax.tree.map(jnp.add, carry[0], now), now

        zero = jax.tree.map(
            lambda leaf: jnp.zeros(leaf.shape, leaf.dtype),
            jax.eval_shape(gradient, v, keys),
        )
        sums, last = lax.fori_loop(0, eot, draw, (zero, zero))
        g, outputs = jax.tree.map(lambda leaf: leaf / eot, sums)
        return g, last[1] if reference_quirks else outputs

    def evaluate(v, keys):
        g, outputs = gradient(v, keys) if eot is None else mean(v, keys)
        return jnp.where(jnp.isfinite(g), g, 0), outputs

    return evaluate
