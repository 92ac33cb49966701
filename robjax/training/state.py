"""The state of a training run, and what it starts from."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from robjax.samples import is_concrete
from robjax.training.config import FitConfig
from robjax.training.objectives.network import count_weights
from robjax.training.trainable import Variables, trainable


class Kept(NamedTuple):
    """What a callback keeps from epoch to epoch, see `robjax.training.callbacks`.

    Attributes:
      weights: variables that it puts in the place of those that it was given; None: it
        leaves them.
      memory: arrays by name, whatever else it has to remember.
      stop: bool array []; whether the training is to end.
    """

    weights: Any
    memory: dict[str, Any]
    stop: Any


class TrainState(NamedTuple):
    """Everything that training changes.

    Attributes:
      step: int32, steps taken.
      seed: uint32, of every draw; traced, so that seeds share a compiled step.
      variables: {"params": ...} and, with batch norm, {"batch_stats": ...}; with an
        objective that takes groups, {"groups": {"weights": [G]}}.
      opt_state: of the optax transformation.
      ema: running mean of `variables`, or None.
      callbacks: what each callback keeps; no step changes it, only the end of an epoch.
    """

    step: jax.Array
    seed: jax.Array
    variables: Any
    opt_state: Any
    ema: Any
    callbacks: tuple[Kept, ...] = ()

    @property
    def weights(self) -> Any:
        """What to evaluate.

        What the last callback that replaces weights has kept, as `callbacks.best`;
        without one, the running mean if one is kept, else the variables.
        """
        for kept in reversed(self.callbacks):
            if kept.weights is not None:
                return kept.weights
        return self.variables if self.ema is None else self.ema

    def __repr__(self) -> str:
        """How far the training is and how large the model; not the arrays."""
        if not is_concrete(self.step):
            return "TrainState(traced)"
        if isinstance(self.step, jax.Array) and self.step.is_deleted():
            return "TrainState(donated to the next step)"
        weights = count_weights(self.variables)
        return f"TrainState(step {int(self.step)}, {weights:,} weights)"


def copies(tree: Any) -> Any:
    """A tree of new arrays with the same values.

    >>> copies({"w": jnp.ones(2)})["w"].tolist()
    [1.0, 1.0]
    """
    return jax.tree.map(jnp.array, tree)


def learning_rate_schedule(config: FitConfig, steps_per_epoch: int) -> optax.Schedule:
    """The learning rate as a function of the number of updates of the weights.

    >>> config = FitConfig(schedule="steps", milestones=(1,), learning_rate=0.5)
    >>> rates = learning_rate_schedule(config, steps_per_epoch=10)
    >>> [round(float(rates(updates)), 3) for updates in (0, 9, 11)]
    [0.5, 0.5, 0.05]
    """
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
    """Clipping, then weight decay and momentum (or AdamW) at the scheduled rate.

    >>> config = FitConfig(learning_rate=0.5, weight_decay=0.0)
    >>> optimizer = make_optimizer(config, steps_per_epoch=10)
    >>> weights = jnp.array([1.0, 2.0])
    >>> gradient = jnp.array([2.0, 4.0])
    >>> optimizer.update(gradient, optimizer.init(weights), weights)[0].tolist()
    [-1.0, -2.0]
    """
    rate = learning_rate_schedule(config, steps_per_epoch)
    clip = optax.identity()
    if config.clip_norm is not None:
        clip = optax.clip_by_global_norm(config.clip_norm)
    if config.optimizer == "adam":
        return optax.chain(clip, optax.adamw(rate, weight_decay=config.weight_decay))
    decay = optax.add_decayed_weights(config.weight_decay)
    return optax.chain(clip, decay, optax.sgd(rate, momentum=config.momentum))


def scheduled(opt_state: Any, updates: int) -> Any:
    """A state of `make_optimizer` whose schedule stands at a number of updates.

    >>> weights = jnp.ones(2)
    >>> optimizer = make_optimizer(FitConfig(), steps_per_epoch=10)
    >>> state = scheduled(optimizer.init(weights), 30)
    >>> [int(count) for _, count in optax.tree.get_all_with_path(state, "count")]
    [30]
    """

    def is_schedule(node: Any) -> bool:
        return isinstance(node, optax.ScaleByScheduleState)

    def move(node: Any) -> Any:
        return node._replace(count=jnp.int32(updates)) if is_schedule(node) else node

    return jax.tree.map(move, opt_state, is_leaf=is_schedule)


def split_seed(seed: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Keys for the initial weights and for everything drawn in training.

    >>> weights, draws = split_seed(jnp.uint32(0))
    >>> bool(weights == draws)
    False
    """
    weights, draws = jax.random.split(jax.random.key(seed))
    return weights, draws


def model_key(seed: jax.Array, step: jax.Array) -> jax.Array:
    """The key of what the model draws in a step, as dropout does, on all devices.

    >>> keys = [model_key(jnp.uint32(0), jnp.int32(step)) for step in (0, 1)]
    >>> bool(keys[0] == keys[1])
    False
    """
    # `split_seed` has the first two keys that can be folded in
    return jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), 2), step)


def create_state(
    model: Any,
    images: jax.Array,
    optimizer: optax.GradientTransformation,
    config: FitConfig,
    *,
    num_groups: int = 0,
    variables: Variables | None = None,
) -> TrainState:
    """The state before the first step.

    >>> from robjax.models import Linear
    >>> create_state(Linear(10), jnp.ones((1, 8, 8, 1)), optax.sgd(0.1), FitConfig())
    TrainState(step 0, 650 weights)

    Args:
      model: a module of flax, see `trainable`.
      images: [B, *S] any images, which give the input's shape.
      optimizer: optax transformation of the gradient.
      config: its seed decides the weights, its `ema_decay` whether a mean is kept.
      num_groups: G, for an objective that takes groups: the variables start with 1/G as
        the weight of each, unless `variables` have weights for G groups.
      variables: weights to start from, of which it keeps copies; None: those of
        `model.init`.
    """
    seed = jnp.uint32(config.seed)
    if variables is None:
        variables = trainable(model).init(split_seed(seed)[0], images)
    # the step donates its state, so it must hold nobody else's arrays
    start: dict[str, Any] = copies(dict(variables or {}))
    groups = start.pop("groups", None)
    if num_groups:
        fresh = {"weights": jnp.full(num_groups, 1 / num_groups, jnp.float32)}
        known = groups is not None and groups["weights"].shape == (num_groups,)
        start["groups"] = groups if known else fresh
    return TrainState(
        step=jnp.int32(0),
        seed=seed,
        variables=start,
        opt_state=optimizer.init(start["params"]),
        ema=None if config.ema_decay is None else copies(start),
    )
