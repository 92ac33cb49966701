"""The state of a training run and the one step that changes it.

The step is a pure function of (state, batch): the epoch, the learning rate, the
strength of the attack and every random draw follow from `state.step`, so a run that
goes on from a saved state repeats what the uninterrupted run does. Sample i of the
data set draws from fold_in(fold_in(key(seed), epoch), i), whatever its batch,
position or device.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from robjax import data, lowering
from robjax.training import parallel
from robjax.training.objectives import Network, Objective


@dataclasses.dataclass(frozen=True)
class FitConfig:
    """How to train. The defaults are `FULL`.

    Attributes:
      epochs: passes over the data set.
      batch_size: samples in a step, over all devices. An epoch drops the ragged rest
        of its own shuffled order.
      optimizer: "sgd" (weight decay added to the gradient, then momentum) or "adam"
        (decoupled weight decay, AdamW).
      learning_rate: at the start.
      momentum: of "sgd".
      weight_decay: coefficient of the L2 pull on all weights.
      schedule: of the learning rate: "constant", divided by 10 at "steps", or "cosine"
        down to 0 at the end.
      milestones: epochs after which the schedule "steps" divides.
      clip_norm: largest norm of the whole gradient; None for no limit.
      ema_decay: γ of the running mean of the weights, ema ← γ ema + (1 − γ) weights,
        after every update; None to keep none.
      warmup_epochs: over these the strength of the attack grows linearly up to 1.
      replays: steps taken on each batch, m of FreeAT (Shafahi et al., "Adversarial
        training for free!", NeurIPS 2019, algorithm 1, with objective `standard`). Each
        moves the weights along the gradient and the images by replay_eps against it,
        both from one backward pass. Paper: epochs / m. (Here the perturbation starts
        uniformly at random in each batch; theirs runs on from the last one.)
      replay_eps: L∞ radius and step of that perturbation; images stay in [0, 1].
      pad: pixels of zero padding of the random crop; 0 for no crop.
      flip: random left-right flips.
      seed: of the initial weights, the order, the augmentation and the attacks.
      checkpoint_every: steps between checkpoints inside an epoch; 0 for none. The end
        of every epoch has one in any case.
    """

    epochs: int = 200
    batch_size: int = 128
    optimizer: Literal["sgd", "adam"] = "sgd"
    learning_rate: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 1e-4
    schedule: Literal["constant", "steps", "cosine"] = "steps"
    milestones: tuple[int, ...] = (80, 120)
    clip_norm: float | None = None
    ema_decay: float | None = None
    warmup_epochs: float = 0.0
    replays: int = 1
    replay_eps: float = 0.0
    pad: int = 0
    flip: bool = False
    seed: int = 0
    checkpoint_every: int = 0

    def __post_init__(self):
        whole = {
            "epochs": 1,
            "batch_size": 1,
            "replays": 1,
            "pad": 0,
            "seed": 0,
            "checkpoint_every": 0,
        }
        for name, least in whole.items():
            value = getattr(self, name)
            if not isinstance(value, int) or not least <= value < 2**32:
                self._reject(name, f"a whole number from {least} to 2^32 − 1")
        for name in ("learning_rate", "weight_decay", "warmup_epochs", "replay_eps"):
            if not 0 <= getattr(self, name) < math.inf:
                self._reject(name, "finite and not negative")
        if not 0 <= self.momentum < 1:
            self._reject("momentum", "in [0, 1)")
        if self.clip_norm is not None and not 0 < self.clip_norm < math.inf:
            self._reject("clip_norm", "positive or None")
        if self.ema_decay is not None and not 0 <= self.ema_decay < 1:
            self._reject("ema_decay", "in [0, 1) or None")
        milestones = self.milestones
        if type(milestones) is not tuple or any(type(m) is not int for m in milestones):
            self._reject("milestones", "a tuple of whole numbers")
        if self.optimizer not in ("sgd", "adam"):
            self._reject("optimizer", "'sgd' or 'adam'")
        if self.schedule not in ("constant", "steps", "cosine"):
            self._reject("schedule", "'constant', 'steps' or 'cosine'")

    def _reject(self, name: str, allowed: str):
        raise ValueError(f"{name} must be {allowed}, got {getattr(self, name)!r}")


FULL = FitConfig()
"""The full CIFAR-10 runs of arXiv 1906.02494 (code)."""

TRACKING = FitConfig(epochs=10, learning_rate=0.01, momentum=0.5, schedule="constant")
"""The short runs of arXiv 1906.02494 (code), whose every epoch is measured."""


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


def attack_strength(
    step: jax.Array | int, config: FitConfig, steps_per_epoch: int
) -> jax.Array:
    """Share of ε in step `step` (from 0): up by 1/W each step, W = warm-up steps."""
    warmup_steps = max(config.warmup_epochs * steps_per_epoch, 1.0)
    return jnp.minimum((step + 1) / warmup_steps, 1.0)


def _keys(seed: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Keys for the initial weights and for everything drawn in training."""
    weights, draws = jax.random.split(jax.random.key(seed))
    return weights, draws


@functools.partial(jax.jit, static_argnums=0)
def _initialise(model: nn.Module, seed: jax.Array, images: jax.Array) -> Any:
    return model.init(_keys(seed)[0], images)


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


def update_mean(mean: Any, new: Any, decay: float) -> Any:
    """γ mean + (1 − γ) new, leaf by leaf."""
    return jax.tree.map(lambda m, n: decay * m + (1 - decay) * n, mean, new)


def make_step(
    model: nn.Module,
    objective: Objective,
    optimizer: optax.GradientTransformation,
    config: FitConfig,
    *,
    steps_per_epoch: int,
    scale: float,
) -> Callable:
    """Builds step(state, images, labels, indices) -> (state, metrics) of one device.

    It takes this device's rows: images uint8 [b, *S], to be divided by `scale`, labels
    [b], and indices [b] in the data set. Gradients and metrics are averaged over the
    device axis, which `parallel.data_parallel` provides.
    """

    def step(state: TrainState, images, labels, indices):
        epoch = state.step // steps_per_epoch
        epoch_key = jax.random.fold_in(_keys(state.seed)[1], epoch)
        sample_keys = jax.vmap(lambda i: jax.random.fold_in(epoch_key, i))(indices)
        keys = jax.vmap(jax.random.split)(sample_keys)
        x = data.to_float(images, scale)
        if config.pad or config.flip:
            x = data.augment(x, keys[:, 0], pad=config.pad, flip=config.flip)
        strength = attack_strength(state.step, config, steps_per_epoch)

        def mean_loss(params, images, variables):
            network = Network(model, {**variables, "params": params}, parallel.AXIS)
            losses, metrics, network = objective(
                network, images, labels, keys=keys[:, 1], strength=strength
            )
            chex.assert_shape([losses, *metrics.values()], labels.shape)
            means = {name: jnp.mean(values) for name, values in metrics.items()}
            return jnp.mean(losses), (means, network.variables)

        def update(state: TrainState, images, of: Any = 0) -> tuple[Any, Any, Any]:
            """The next state, metrics, and the gradient for the images if asked."""
            differentiate = lowering.fast(
                jax.value_and_grad(mean_loss, argnums=of, has_aux=True)
            )
            (loss, (metrics, variables)), gradients = differentiate(
                state.variables["params"], images, state.variables
            )
            gradient, slope = gradients if of else (gradients, None)
            loss, metrics, gradient = jax.lax.pmean(
                (loss, metrics, gradient), parallel.AXIS
            )
            metrics = {**metrics, "loss": loss, "grad_norm": optax.tree.norm(gradient)}
            return _apply(state, variables, gradient), metrics, slope

        if config.replays == 1 and config.replay_eps == 0:
            state, metrics, _ = update(state, x)
        else:
            eps = config.replay_eps * strength

            def replay(carry, _):
                state, delta = carry
                moved = jnp.clip(x + delta, 0, 1)
                state, metrics, slope = update(state, moved, of=(0, 1))
                slope = jnp.where(moved == x + delta, slope, 0)
                delta = jnp.clip(delta + eps * jnp.sign(slope), -eps, eps)
                return (state, delta), metrics

            draw = functools.partial(jax.random.uniform, minval=-1, maxval=1)
            delta = eps * jax.vmap(lambda key: draw(key, x.shape[1:]))(keys[:, 1])
            (state, _), metrics = jax.lax.scan(
                replay, (state, delta), length=config.replays
            )
            metrics = jax.tree.map(lambda values: values.mean(), metrics)
        return state._replace(step=state.step + 1), metrics

    def _apply(state: TrainState, variables, gradient) -> TrainState:
        params = state.variables["params"]
        updates, opt_state = optimizer.update(gradient, state.opt_state, params)
        variables = {**variables, "params": optax.apply_updates(params, updates)}
        ema = state.ema
        if config.ema_decay is not None:
            ema = update_mean(ema, variables, config.ema_decay)
        return TrainState(state.step, state.seed, variables, opt_state, ema)

    return step
