"""The one step that changes the state of a training run.

The step is a pure function of (state, batch): the epoch, the learning rate, the
strength of the attack and every random draw follow from `state.step`, so a run that
goes on from a saved state repeats what the uninterrupted run does. Sample i of the
data set draws from fold_in(fold_in(key(seed), epoch), i), whatever its batch,
position or device.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from robjax import data, lowering
from robjax.training import parallel
from robjax.training.config import FitConfig
from robjax.training.objectives import Network, Objective
from robjax.training.state import TrainState, split_seed

Metrics = Mapping[str, jax.Array]

StepFn = Callable[..., tuple[TrainState, Metrics]]
"""(state, images, labels, indices) -> the next state, and the means of the metrics."""


def attack_strength(
    step: jax.Array | int, config: FitConfig, steps_per_epoch: int
) -> jax.Array:
    """Share of ε in step `step` (from 0): up by 1/W each step, W = warm-up steps."""
    warmup_steps = max(config.warmup_epochs * steps_per_epoch, 1.0)
    return jnp.minimum((step + 1) / warmup_steps, 1.0)


def update_mean(mean: Any, new: Any, decay: float) -> Any:
    """γ mean + (1 − γ) new, leaf by leaf."""
    return jax.tree.map(lambda m, n: decay * m + (1 - decay) * n, mean, new)


class Batch(NamedTuple):
    """One device's rows of a batch, ready for the objective.

    Attributes:
      images: [b, *S] floating, augmented.
      labels: [b].
      keys: [b] of what the objective draws.
      strength: share of ε, see `attack_strength`.
    """

    images: jax.Array
    labels: jax.Array
    keys: jax.Array
    strength: jax.Array


def make_step(
    model: nn.Module,
    objective: Objective,
    optimizer: optax.GradientTransformation,
    config: FitConfig,
    *,
    steps_per_epoch: int,
    scale: float,
) -> StepFn:
    """Builds the step of one device: (state, images, labels, indices) -> state, metrics.

    It takes this device's rows: images uint8 [b, *S], to be divided by `scale`, labels
    [b], and indices [b] in the data set. Gradients and metrics are averaged over the
    device axis, which `parallel.data_parallel` provides.
    """

    def step(state, images, labels, indices):
        batch = prepare(state, images, labels, indices)
        replays = config.replays > 1 or config.replay_eps > 0
        state, metrics = (replay if replays else update)(state, batch)
        return state._replace(step=state.step + 1), metrics

    def prepare(state, images, labels, indices) -> Batch:
        epoch = state.step // steps_per_epoch
        epoch_key = jax.random.fold_in(split_seed(state.seed)[1], epoch)
        own_keys = jax.vmap(lambda i: jax.random.fold_in(epoch_key, i))(indices)
        keys = jax.vmap(jax.random.split)(own_keys)
        x = data.to_float(images, scale)
        if config.pad or config.flip:
            x = data.augment(x, keys[:, 0], pad=config.pad, flip=config.flip)
        return Batch(
            images=x,
            labels=labels,
            keys=keys[:, 1],
            strength=attack_strength(state.step, config, steps_per_epoch),
        )

    def mean_loss_on(batch: Batch):
        """The function that is differentiated, and what comes out of it besides."""

        def mean_loss(params, images, variables):
            network = Network(model, {**variables, "params": params}, parallel.AXIS)
            losses, metrics, network = objective(
                network,
                images,
                batch.labels,
                keys=batch.keys,
                strength=batch.strength,
            )
            chex.assert_shape([losses, *metrics.values()], batch.labels.shape)
            means = {name: jnp.mean(values) for name, values in metrics.items()}
            return jnp.mean(losses), (means, network.variables)

        return mean_loss

    def update(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        """One step along the gradient for the weights."""
        differentiate = lowering.fast(
            jax.value_and_grad(mean_loss_on(batch), has_aux=True)
        )
        (loss, (metrics, variables)), gradient = differentiate(
            state.variables["params"], batch.images, state.variables
        )
        return finish(state, loss, metrics, variables, gradient)

    def replay(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        """FreeAT: several steps, each moving weights and images by one backward pass."""
        x = batch.images
        eps = config.replay_eps * batch.strength
        differentiate = lowering.fast(
            jax.value_and_grad(mean_loss_on(batch), argnums=(0, 1), has_aux=True)
        )

        def once(carry, _):
            state, delta = carry
            moved = jnp.clip(x + delta, 0, 1)
            (loss, (metrics, variables)), (gradient, slope) = differentiate(
                state.variables["params"], moved, state.variables
            )
            state, metrics = finish(state, loss, metrics, variables, gradient)
            slope = jnp.where(moved == x + delta, slope, 0)
            delta = jnp.clip(delta + eps * jnp.sign(slope), -eps, eps)
            return (state, delta), metrics

        draw = functools.partial(jax.random.uniform, minval=-1, maxval=1)
        start = eps * jax.vmap(lambda key: draw(key, x.shape[1:]))(batch.keys)
        (state, _), metrics = jax.lax.scan(once, (state, start), length=config.replays)
        return state, jax.tree.map(lambda values: values.mean(), metrics)

    def finish(
        state: TrainState, loss, metrics, variables, gradient
    ) -> tuple[TrainState, Metrics]:
        """Averages over the devices and applies the optimiser."""
        loss, metrics, gradient = jax.lax.pmean(
            (loss, metrics, gradient), parallel.AXIS
        )
        metrics = {**metrics, "loss": loss, "grad_norm": optax.tree.norm(gradient)}
        params = state.variables["params"]
        updates, opt_state = optimizer.update(gradient, state.opt_state, params)
        variables = {**variables, "params": optax.apply_updates(params, updates)}
        ema = state.ema
        if config.ema_decay is not None:
            ema = update_mean(ema, variables, config.ema_decay)
        state = state._replace(variables=variables, opt_state=opt_state, ema=ema)
        return state, metrics

    return step
