"""Small perceptrons trained side by side: one program for all radii and seeds."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.tree_util import Partial

from robjax import attacks, losses
from robjax.checks import Bounds


@functools.partial(
    jax.jit,
    static_argnames=(
        *("model", "ball", "bounds", "steps", "batch_size"),
        *("attack_steps", "learning_rate"),
    ),
)
def train(
    x: jax.Array,
    y: jax.Array,
    rows: jax.Array,
    counts: jax.Array,
    eps: jax.Array,
    seeds: jax.Array,
    *,
    model: Any,
    ball: Any,
    bounds: Bounds = (0.0, 1.0),
    steps: int = 1000,
    batch_size: int = 100,
    attack_steps: int = 7,
    learning_rate: float = 1e-3,
) -> Any:
    """Adversarial training of M networks with Adam, vmapped over M.

    Batches are drawn with replacement, so that the number of steps does not depend on
    that of the images.

    Args:
      x: [N, *S] images that all networks draw from.
      y: [N] labels.
      rows: [M, n] which of them each network sees.
      counts: [M] how many of these, the first ones, it sees in fact; sets of all sizes
        then share a compiled program.
      eps: [M] radius in training; 0 is standard training.
      seeds: [M] of initial weights, batches and random starts.
      model: a linen module, static, as are all that follow.
      ball: Linf or L2.
      bounds: lowest and highest value of an image.
      steps: batches.
      batch_size: images in each.
      attack_steps: of PGD, each of 2.5 eps / attack_steps, from a random start.
      learning_rate: of Adam.

    Returns:
      The variables of `model`, every leaf [M, ...].
    """
    optimizer = optax.adam(learning_rate)

    def one(rows, count, eps, seed):
        key = jax.random.key(seed)
        weights = model.init(key, x[:1])

        def step(carry, index):
            weights, state = carry
            draw, start = jax.random.split(jax.random.fold_in(key, index))
            chosen = rows[jax.random.randint(draw, (batch_size,), 0, count)]
            images, labels = x[chosen], y[chosen]
            attacked = attacks.pgd(
                Partial(model.apply, weights),
                images,
                labels,
                key=start,
                ball=ball(eps),
                bounds=bounds,
                steps=attack_steps,
                keep_best=False,
            ).x_adv

            def risk(weights):
                logits = model.apply(weights, attacked)
                return jnp.mean(losses.cross_entropy(logits, labels))

            change, state = optimizer.update(jax.grad(risk)(weights), state)
            return (optax.apply_updates(weights, change), state), None

        start = weights, optimizer.init(weights)
        return jax.lax.scan(step, start, jnp.arange(steps))[0][0]

    return jax.vmap(one)(rows, counts, eps, seeds)


@functools.partial(jax.jit, static_argnames="model")
def predictions(weights: Any, x: jax.Array, *, model: Any) -> jax.Array:
    """The class that each of M networks gives each image, [M, N]."""
    return jax.vmap(lambda w: jnp.argmax(model.apply(w, x), axis=1))(weights)


def select(weights: Any, which: Any) -> Any:
    """The networks with these indices (an integer, a slice or an array)."""
    return jax.tree.map(lambda leaf: leaf[which], weights)
