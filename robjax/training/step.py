"""The one step that changes the state of a training run.

The step is a pure function of (state, batch). The epoch, the learning rate, the
strength of the attack and every random draw follow from `state.step`. So a run that
goes on from a saved state repeats what the uninterrupted run does. Sample i of the data
set draws from fold_in(fold_in(key(seed), epoch), i), whatever its batch, position or
device.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax

from robjax import data, lowering
from robjax.training import parallel
from robjax.training.config import FitConfig
from robjax.training.objectives import Network, Objective
from robjax.training.state import TrainState, model_key, split_seed
from robjax.training.trainable import Trainable, rounded, trainable

Metrics = Mapping[str, jax.Array]
"""Means over the whole batch, by name."""

StepFn = Callable[..., tuple[TrainState, Metrics]]
"""(state, images, labels, indices, *groups) -> the next state, means of the metrics."""


def attack_strength(
    step: jax.Array | int, config: FitConfig, steps_per_epoch: int
) -> jax.Array:
    """Share of ε in step `step` (from 0): up by 1/W each step, W = warm-up steps.

    >>> config = FitConfig(warmup_epochs=2.0)
    >>> [float(attack_strength(step, config, 2)) for step in (0, 1, 3, 9)]
    [0.25, 0.5, 1.0, 1.0]
    """
    warmup_steps = max(config.warmup_epochs * steps_per_epoch, 1.0)
    return jnp.minimum((step + 1) / warmup_steps, 1.0)


def update_mean(mean: Any, new: Any, decay: float) -> Any:
    """A running mean after one more value: γ mean + (1 − γ) new, leaf by leaf.

    >>> update_mean({"w": 1.0}, {"w": 3.0}, decay=0.5)
    {'w': 2.0}
    """
    return jax.tree.map(lambda m, n: decay * m + (1 - decay) * n, mean, new)


class Batch(NamedTuple):
    """One device's rows of a batch, ready for the objective.

    Attributes:
      images: [b, *S] floating, augmented.
      labels: [b].
      keys: [b] of what the objective draws.
      strength: share of ε, see `attack_strength`.
      model_key: of what the model draws, other on each device.
      groups: [b] for objectives that take groups, else None.
    """

    images: jax.Array
    labels: jax.Array
    keys: jax.Array
    strength: jax.Array
    model_key: jax.Array
    groups: jax.Array | None = None


def make_step(
    model: Any,
    objective: Objective,
    optimizer: optax.GradientTransformation,
    config: FitConfig,
    *,
    steps_per_epoch: int,
    scale: float,
) -> StepFn:
    """Builds the step of one device: (state, images, labels, indices) -> state, means.

    It takes this device's rows: images uint8 [b, *S], to be divided by `scale`, labels
    [b], indices [b] in the data set, and groups [b] if the objective takes groups.
    Gradients and metrics are averaged over the
    device axis, which `parallel.data_parallel` provides.

    >>> from robjax.models import Linear
    >>> from robjax.training import objectives, state
    >>> sgd = optax.sgd(0.1)
    >>> options = {"steps_per_epoch": 1, "scale": 255.0}
    >>> step = make_step(Linear(10), objectives.standard, sgd, FitConfig(), **options)
    >>> start = state.create_state(Linear(10), jnp.ones((1, 64)), sgd, FitConfig())
    >>> rows = jnp.zeros((1, 4), jnp.int32)
    >>> step = parallel.data_parallel(step, jax.devices()[:1])
    >>> step(start, jnp.ones((1, 4, 64)), rows, rows)[0]
    TrainState(step 1, 650 weights)
    """
    one = _OneStep(
        model=rounded(trainable(model), config.dtype),
        objective=objective,
        optimizer=optimizer,
        config=config,
        steps_per_epoch=steps_per_epoch,
        scale=scale,
    )

    def step(
        state: TrainState,
        images: jax.Array,
        labels: jax.Array,
        indices: jax.Array,
        groups: jax.Array | None = None,
    ) -> tuple[TrainState, Metrics]:
        batch = one.prepare(state, images, labels, indices)._replace(groups=groups)
        replays = config.replays > 1 or config.replay_eps > 0
        state, metrics = (one.replay if replays else one.update)(state, batch)
        return state._replace(step=state.step + 1), metrics

    return step


class _Loss(NamedTuple):
    """What comes out of a pass besides the gradient; means over this device's rows."""

    loss: jax.Array
    metrics: Metrics
    variables: Mapping[str, Any]


@dataclasses.dataclass(frozen=True, eq=False)
class _OneStep:
    """The parts of a step, and what they are compiled for; see `make_step`."""

    model: Trainable
    objective: Objective
    optimizer: optax.GradientTransformation
    config: FitConfig
    steps_per_epoch: int
    scale: float

    def prepare(
        self,
        state: TrainState,
        images: jax.Array,
        labels: jax.Array,
        indices: jax.Array,
    ) -> Batch:
        """Scales and augments the images and draws the keys."""
        config = self.config
        epoch = state.step // self.steps_per_epoch
        epoch_key = jax.random.fold_in(split_seed(state.seed)[1], epoch)
        own_keys = jax.vmap(lambda i: jax.random.fold_in(epoch_key, i))(indices)
        keys = jax.vmap(jax.random.split)(own_keys)
        x = data.to_float(images, self.scale)
        if config.pad or config.flip:
            x = data.augment(x, keys[:, 0], pad=config.pad, flip=config.flip)
        return Batch(
            images=x,
            labels=labels,
            keys=keys[:, 1],
            strength=attack_strength(state.step, config, self.steps_per_epoch),
            model_key=jax.random.fold_in(
                model_key(state.seed, state.step), jax.lax.axis_index(parallel.AXIS)
            ),
        )

    def update(self, state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        """One step along the gradient for the weights."""
        differentiate = lowering.fast(
            jax.value_and_grad(self.mean_loss(batch), has_aux=True)
        )
        (loss, (metrics, variables)), gradient = differentiate(
            state.variables["params"], batch.images, state.variables, batch.model_key
        )
        return self.finish(state, _Loss(loss, metrics, variables), gradient)

    def replay(self, state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        """FreeAT: several steps that move weights and images by one backward pass."""
        x = batch.images
        eps = self.config.replay_eps * batch.strength
        differentiate = lowering.fast(
            jax.value_and_grad(self.mean_loss(batch), argnums=(0, 1), has_aux=True)
        )

        def once(carry, number):
            state, delta = carry
            key = jax.random.fold_in(batch.model_key, number)
            moved = jnp.clip(x + delta, 0, 1)
            (loss, (metrics, variables)), (gradient, slope) = differentiate(
                state.variables["params"], moved, state.variables, key
            )
            state, metrics = self.finish(
                state, _Loss(loss, metrics, variables), gradient
            )
            slope = jnp.where(moved == x + delta, slope, 0)
            delta = jnp.clip(delta + eps * jnp.sign(slope), -eps, eps)
            return (state, delta), metrics

        draw = functools.partial(jax.random.uniform, minval=-1, maxval=1)
        start = eps * jax.vmap(lambda key: draw(key, x.shape[1:]))(batch.keys)
        (state, _), metrics = jax.lax.scan(
            once, (state, start), jnp.arange(self.config.replays)
        )
        return state, jax.tree.map(lambda values: values.mean(), metrics)

    def mean_loss(self, batch: Batch) -> Callable[..., tuple[jax.Array, Any]]:
        """The function that is differentiated, and what comes out of it besides.

        (params, images, variables, key) -> loss, (metrics, the new variables)
        """

        def loss_of(params, images, variables, key):
            network = Network(
                self.model, {**variables, "params": params}, parallel.AXIS, key
            )
            grouped = {} if batch.groups is None else {"groups": batch.groups}
            losses, metrics, network = self.objective(
                network,
                images,
                batch.labels,
                keys=batch.keys,
                strength=batch.strength,
                **grouped,
            )
            chex.assert_shape([losses, *metrics.values()], batch.labels.shape)
            means = {name: jnp.mean(values) for name, values in metrics.items()}
            return jnp.mean(losses), (means, network.variables)

        return loss_of

    def finish(
        self, state: TrainState, local: _Loss, gradient: Any
    ) -> tuple[TrainState, Metrics]:
        """Averages over the devices and applies the optimiser."""
        loss, metrics, gradient = jax.lax.pmean(
            (local.loss, local.metrics, gradient), parallel.AXIS
        )
        metrics = {**metrics, "loss": loss, "grad_norm": optax.tree.norm(gradient)}
        params = state.variables["params"]
        updates, opt_state = self.optimizer.update(gradient, state.opt_state, params)
        params = optax.apply_updates(params, updates)
        variables = {**local.variables, "params": params}
        ema = state.ema
        if self.config.ema_decay is not None:
            ema = update_mean(ema, variables, self.config.ema_decay)
        state = state._replace(variables=variables, opt_state=opt_state, ema=ema)
        return state, metrics
