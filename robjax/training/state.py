"""The state of a training run, and what it starts from."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from robjax.training.config import FitConfig


class TrainState(NamedTuple):
    """Everything that a step changes.

    Attributes:
      step: int32, steps taken.
      seed: uint32, of every draw; traced, so that seeds share a compiled step.
      variables: {"params": ...} and, with batch norm, {"batch_stats": ...}.
      opt_state: of the optax transformation.
      ema: running mean of `variables`, or None.
    """

    step: jax.Array
    seed: jax.Array
    variables: Any
    opt_state: Any
    ema: Any

    @property
    def weights(self) -> Any:
        """What to evaluate: the running mean if one is kept, else the variables."""
        return self.variables if self.ema is None else self.ema


def learning_rate_schedule(config: FitConfig, steps_per_epoch: int) -> Callable:
    """Learning rate as a function of the number of updates of the weights."""
    steps_per_epoch *= config.replays
    if config.schedule == "cosine":
        total = config.epochs * steps_per_epoch
        return optax.cosine_decay_schedule(config.learning_rate, total)
    if config.schedule == "steps":
        drops = {epoch * steps_per_epoch: 0.1 for epoch in config.milestones}
        return optax.piecewise_constant_schedule(config.learning_rate, drops)
    return optax.constant_schedule(config.learning_rate)


def make_optimizer(
    config: FitConfig, steps_per_epoch: int
) -> optax.GradientTransformation:
    """Clipping, then weight decay and momentum (or AdamW) at the scheduled rate."""
    rate = learning_rate_schedule(config, steps_per_epoch)
    clip = optax.identity()
    if config.clip_norm is not None:
        clip = optax.clip_by_global_norm(config.clip_norm)
    if config.optimizer == "adam":
        return optax.chain(clip, optax.adamw(rate, weight_decay=config.weight_decay))
    decay = optax.add_decayed_weights(config.weight_decay)
    return optax.chain(clip, decay, optax.sgd(rate, momentum=config.momentum))


def split_seed(seed: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Keys for the initial weights and for everything drawn in training.

    >>> weights, draws = split_seed(jnp.uint32(0))
    >>> bool(weights == draws)
    False
    """
    weights, draws = jax.random.split(jax.random.key(seed))
    return weights, draws


@functools.partial(jax.jit, static_argnums=0)
def _initialise(model: nn.Module, seed: jax.Array, images: jax.Array) -> Any:
    return model.init(split_seed(seed)[0], images)


def create_state(
    model: nn.Module,
    images: jax.Array,
    optimizer: optax.GradientTransformation,
    config: FitConfig,
) -> TrainState:
    """The state before the first step; `images` [B, *S] give the input's shape."""
    seed = jnp.uint32(config.seed)
    variables = _initialise(model, seed, images)
    return TrainState(
        step=jnp.int32(0),
        seed=seed,
        variables=variables,
        opt_state=optimizer.init(variables["params"]),
        ema=None if config.ema_decay is None else jax.tree.map(jnp.copy, variables),
    )
