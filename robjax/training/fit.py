"""The training loop.

    state = fit(MLP(10), load("digits", "train"), config=FitConfig(epochs=20))
    logits_fn = jax.tree_util.Partial(model.apply, state.weights)

The loop only feeds batches: the host gathers uint8 rows, hands them to the compiled
step and goes on to the next batch. It waits for the devices about once a second, to
show progress and to stop at a NaN, and at checkpoints. Everything random is a function
of (seed, epoch, sample), so stopping and resuming changes nothing.
"""

import contextlib
import dataclasses
import functools
import inspect
import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import numpy as np
import optax
from tqdm import tqdm

from robjax.checks import check_labels, check_logits, check_number
from robjax.data import Dataset, batch_indices, to_float
from robjax.runs.files import PathLike
from robjax.training import objectives, parallel
from robjax.training.config import FULL, FitConfig
from robjax.training.journal import Journal, describe_run
from robjax.training.objectives import Objective
from robjax.training.objectives.network import takes_groups
from robjax.training.state import (
    TrainState,
    create_state,
    learning_rate_schedule,
    make_optimizer,
)
from robjax.training.step import Metrics, StepFn, attack_strength, make_step

_SECONDS_BETWEEN_FETCHES = 1.0

OnEpoch = Callable[[int, Any], Mapping[str, float]]
"""(epoch, variables) -> scalars that join the record of the epoch."""


def fit(
    model: nn.Module,
    data: Dataset,
    *,
    objective: Objective = objectives.standard,
    config: FitConfig = FULL,
    optimizer: optax.GradientTransformation | None = None,
    run_dir: PathLike | None = None,
    resume: bool = False,
    on_epoch: OnEpoch | None = None,
    devices: Sequence[parallel.Device] | None = None,
    progress: bool = True,
) -> TrainState:
    """Trains `model` on `data`, data-parallel over the devices.

    >>> from robjax.data import from_arrays
    >>> from robjax.models import MLP
    >>> labels = np.arange(64) % 2
    >>> images = np.uint8(255 * labels).reshape(64, 1, 1, 1)  # black or white
    >>> config = FitConfig(epochs=1, batch_size=8)
    >>> model = MLP(2, widths=(4,))
    >>> fit(model, from_arrays(images, labels), config=config, progress=False)
    TrainState(step 8, 18 weights)

    Args:
      model: flax.linen module called as model(images, train=...). Its field
        `axis_name`, if there is one, is set here.
      data: images uint8 [N, *S] and labels [N], with groups [N] if the objective takes
        them.
      objective: what to minimise, see `robjax.training.objectives`.
      config: everything else that decides the result.
      optimizer: replaces the one that `config` describes, with its clipping and its
        schedule.
      run_dir: folder for metrics.jsonl, checkpoints/ and tensorboard/; None: no files.
      resume: go on from the last checkpoint in `run_dir`, bit for bit on the same
        backend, device count and versions; a run without one starts from the beginning.
      on_epoch: called as on_epoch(epoch, variables) before training, with epoch 0,
        and after each epoch; its scalars join the record of the epoch. The variables
        (the running mean if one is kept) are its own copy on one device.
      devices: to train on; all by default.
      progress: show a bar with images/s and the time left, on a terminal.

    Returns:
      The final state, on one device.

    Raises:
      ValueError: an argument is out of range, or `run_dir` holds another run.
      FloatingPointError: the loss, a metric or the gradient is not finite; the
        message names the step. Nothing of that step is saved.
    """
    _check_options(objective, config, optimizer, on_epoch)
    devices = parallel.check_devices(devices, config.batch_size)
    _check_model(model, data, config, len(devices))
    _check_ball(objective)
    grouped = takes_groups(objective)
    if grouped and data.groups is None:
        raise ValueError(
            "data must have groups for an objective that takes them, as "
            f"robjax.data.from_arrays(..., groups=...) makes it, got {data!r}"
        )
    description = describe_run(model, data, objective, config, optimizer)
    journal = Journal(run_dir, description, resume=resume)

    model = parallel.join_batch_norm(model)
    steps_per_epoch = len(data.labels) // config.batch_size
    step = _compiled_step(
        model,
        objective,
        optimizer,
        # neither changes the step, so that runs with other seeds need not compile
        dataclasses.replace(config, seed=0, checkpoint_every=0),
        steps_per_epoch,
        data.scale,
        tuple(devices),
        # the same functions may read other values of their module than before
        repr([description.get(name) for name in ("model", "objective", "optimizer")]),
    )
    loop = _Loop(
        step=step,
        data=data,
        config=config,
        devices=devices,
        journal=journal,
        measure=on_epoch or (lambda epoch, variables: {}),
        scheduled=optimizer is None,
        grouped=grouped,
    )
    state = create_state(
        model,
        to_float(data.images[:1], data.scale),
        optimizer or make_optimizer(config, steps_per_epoch),
        config,
        num_groups=data.num_groups if grouped else 0,
    )
    with contextlib.closing(journal):
        state, stored = journal.open(state)
        if int(state.step) == 0:
            loop.record(0, state, {})
        # rebound, so that nothing keeps the first copy in memory
        state = parallel.replicate(state, devices)
        state = loop.run(state, _Meter(**stored), progress=progress)
    return parallel.one_copy(state)


@functools.lru_cache(maxsize=8)
def _compiled_step(
    model: nn.Module,
    objective: Objective,
    optimizer: optax.GradientTransformation | None,
    config: FitConfig,
    steps_per_epoch: int,
    scale: float,
    devices: tuple[parallel.Device, ...],
    description: str,
) -> StepFn:
    del description  # a part of the key alone
    optimizer = optimizer or make_optimizer(config, steps_per_epoch)
    step = make_step(
        model,
        objective,
        optimizer,
        config,
        steps_per_epoch=steps_per_epoch,
        scale=scale,
    )
    return parallel.data_parallel(step, devices)


def _check_model(
    model: nn.Module, data: Dataset, config: FitConfig, num_devices: int
) -> None:
    """Raises ValueError unless `model` can learn `data`; compiles nothing."""
    _check_kinds(model, data)
    count = len(data.labels)
    if config.batch_size > count:
        raise ValueError(
            f"batch_size must be at most the number of samples, {count}, got "
            f"{config.batch_size}"
        )
    check_labels(data.labels, count, num_classes=data.num_classes, name="labels")
    logits, variables = _outputs(model, data)
    check_logits(logits, 1, name="model")
    if logits.shape[1] < data.num_classes:
        raise ValueError(
            f"model must have an output for each of the {data.num_classes} classes, "
            f"got {logits.shape[1]}"
        )
    separate = "batch_stats" in variables and not hasattr(model, "axis_name")
    if separate and num_devices > 1:
        raise ValueError(
            "model must have a field axis_name, handed to its batch norm, to be "
            f"trained on {num_devices} devices"
        )


def _check_kinds(model: object, data: object) -> None:
    """Raises ValueError unless model and data are of the right kind."""
    if not isinstance(model, nn.Module):
        kind = type(model).__name__
        found = f"the class {model.__name__}" if isinstance(model, type) else kind
        raise ValueError(
            "model must be a flax.linen module without weights, as "
            f"robjax.models.MLP(10), got {found}"
        )
    if model.scope is not None:
        raise ValueError(
            f"model must have no weights, got a bound {type(model).__name__}: fit "
            "draws its own, give model.unbind()[0]"
        )
    if not isinstance(data, Dataset):
        raise ValueError(
            "data must be a Dataset, as robjax.data.from_arrays(images, labels) makes "
            f"it, got {type(data).__name__}"
        )
    parameters = inspect.signature(type(model).__call__).parameters
    train = parameters.get("train")
    anything = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    if train.default is not False if train else not anything:
        found = ", ".join(map(str, list(parameters.values())[1:]))
        raise ValueError(
            "model must be called as model(images, train=True) in training, and as "
            "model(images) otherwise: write __call__(self, x, train: bool = False), "
            f"got __call__(self, {found})"
        )


def _outputs(model: nn.Module, data: Dataset) -> tuple[Any, Mapping[str, Any]]:
    """What a model returns for one image of `data`, and its variables, as shapes.

    Raises:
      ValueError: it cannot be called with images, or not in train mode.
    """
    image = jax.ShapeDtypeStruct((1, *data.images.shape[1:]), np.float32)
    batch = jax.ShapeDtypeStruct((2, *data.images.shape[1:]), np.float32)
    train = functools.partial(model.apply, train=True, mutable=["batch_stats"])
    try:
        outputs = jax.eval_shape(model.init_with_output, jax.random.key(0), image)
    except Exception as error:
        raise ValueError(
            f"model must take images {list(batch.shape)}, got {type(error).__name__}: "
            f"{error}"
        ) from error
    try:
        jax.eval_shape(train, outputs[1], batch)
    except Exception as error:
        raise ValueError(
            "model must run with train=True and no random key (fit has none for "
            f"dropout), got {type(error).__name__}: {error}"
        ) from error
    return outputs


def _check_options(
    objective: object, config: object, optimizer: object, on_epoch: object
) -> None:
    """Raises ValueError unless the options are of the right kind."""
    if isinstance(objective, type) or not callable(objective):
        raise ValueError(
            "objective must be a function, as robjax.training.objectives has them, got "
            f"{objective!r}"
        )
    try:
        grouped = {"groups": None} if takes_groups(objective) else {}
        inspect.signature(objective).bind(
            None, None, None, keys=None, strength=None, **grouped
        )
    except TypeError as error:
        raise ValueError(
            "objective must be called as objective(network, images, labels, keys=, "
            f"strength=), as those of robjax.training.objectives, got {objective!r}: "
            f"{error}"
        ) from error
    if not isinstance(config, FitConfig):
        raise ValueError(f"config must be a FitConfig, as FitConfig(), got {config!r}")
    if not (optimizer is None or hasattr(optimizer, "init")):
        raise ValueError(
            f"optimizer must be one of optax, as optax.adam(1e-3), got {optimizer!r}"
        )
    if on_epoch is not None and not callable(on_epoch):
        raise ValueError(f"on_epoch must be a function or None, got {on_epoch!r}")


def _check_ball(objective: Objective) -> None:
    """Raises ValueError if a ball is bound to the objective and has no radius ≥ 0."""
    bound = getattr(objective, "keywords", {})
    if "ball" in bound:
        eps = getattr(bound["ball"], "eps", None)
        check_number("objective's ball.eps", eps, minimum=0)


@dataclasses.dataclass
class _Meter:
    """Sums of the metrics of one epoch, fetched from the devices now and then.

    Attributes:
      count: steps in the sums.
      sums: of each metric.
      pending: the metrics of later steps, still on the devices.
    """

    count: int = 0
    sums: dict[str, float] = dataclasses.field(default_factory=dict)
    pending: list[Metrics] = dataclasses.field(default_factory=list)

    def fetch(self, epoch: int) -> int:
        """Adds what is pending to the sums and returns how many steps that were.

        Raises:
          FloatingPointError: a value is not finite; the message names the step.
        """
        fetched = len(self.pending)
        for metrics in jax.device_get(self.pending):
            self.count += 1
            for name, value in metrics.items():
                if not math.isfinite(value):
                    # no update came before the first step
                    advice = (
                        "the weights are those of the start, so look for an operation "
                        "that overflows or has no slope (a norm or root at 0)"
                        if epoch == self.count == 1
                        else "a lower learning_rate, a clip_norm or a longer warm-up "
                        "may help"
                    )
                    raise FloatingPointError(
                        f"training stopped: {name} is {value} in step {self.count} "
                        f"of epoch {epoch}; {advice}"
                    )
                self.sums[name] = self.sums.get(name, 0.0) + float(value)
        self.pending.clear()
        return fetched

    def means(self) -> dict[str, float]:
        return {name: total / self.count for name, total in sorted(self.sums.items())}

    def saved(self) -> dict[str, Any]:
        """What a checkpoint keeps of it."""
        assert not self.pending
        return {"count": self.count, "sums": self.sums}


@dataclasses.dataclass(frozen=True)
class _Loop:
    """What stays the same from epoch to epoch.

    Attributes:
      step: compiled by `_compiled_step`.
      data: to train on.
      config: how to train.
      devices: to train on.
      journal: the files of the run.
      measure: the user's `on_epoch`.
      scheduled: the optimiser is that of `config`, which says the learning rate.
      grouped: the objective takes the groups of the data.
    """

    step: StepFn
    data: Dataset
    config: FitConfig
    devices: Sequence[parallel.Device]
    journal: Journal
    measure: OnEpoch
    scheduled: bool
    grouped: bool

    @property
    def steps_per_epoch(self) -> int:
        return len(self.data.labels) // self.config.batch_size

    def run(self, state: TrainState, meter: _Meter, *, progress: bool) -> TrainState:
        """Goes on from a state to the end; `meter` has the steps of its epoch."""
        done = int(state.step)
        first = done // self.steps_per_epoch + 1
        with self.progress_bar(done, progress) as bar:
            for epoch in range(first, self.config.epochs + 1):
                state, means = self.run_epoch(epoch, state, meter, bar)
                self.record(epoch, state, means | self.settings(epoch))
                meter = _Meter()
                self.journal.save(state, meter.saved())
        return state

    def run_epoch(
        self, epoch: int, state: TrainState, meter: _Meter, bar: tqdm
    ) -> tuple[TrainState, dict[str, float]]:
        """Takes the steps of epoch 1, 2, … that are left; returns mean metrics."""
        batch_size = self.config.batch_size
        batches = batch_indices(
            len(self.data.labels), batch_size, seed=self.config.seed, epoch=epoch - 1
        )
        bar.set_description(f"epoch {epoch}/{self.config.epochs}")
        first = meter.count
        total = len(batches)
        start = time.perf_counter()
        fetched = start
        for position in range(first, total):
            state, metrics = self.step(state, *self.feed(batches[position]))
            meter.pending.append(metrics)
            taken = position + 1
            waited = time.perf_counter() - fetched
            # the end of an epoch has a checkpoint in any case, see `run`
            save = taken < total and self.checkpoint_due(epoch, taken)
            if save or taken == total or waited > _SECONDS_BETWEEN_FETCHES:
                bar.update(meter.fetch(epoch) * batch_size)
                bar.set_postfix(loss=f"{meter.means()['loss']:.4g}", refresh=False)
                fetched = time.perf_counter()
            if save:
                self.journal.save(state, meter.saved())
        images = (total - first) * batch_size
        speed = images / (time.perf_counter() - start)
        return state, {**meter.means(), "images_per_second": speed}

    def feed(self, batch: np.ndarray) -> tuple[np.ndarray, ...]:
        """This process's images, labels, indices and groups of a batch of indices [B].

        There are groups only where the objective takes them.
        """
        rows = parallel.own_rows(batch, self.devices)
        data = self.data
        fed = data.images[rows], data.labels[rows], rows.astype(np.int32)
        if self.grouped and data.groups is not None:
            return (*fed, data.groups[rows])
        return fed

    def checkpoint_due(self, epoch: int, taken: int) -> bool:
        """Whether `config` asks for a checkpoint after this many steps of an epoch."""
        every = self.config.checkpoint_every
        steps = (epoch - 1) * self.steps_per_epoch + taken
        return every > 0 and steps % every == 0

    def settings(self, epoch: int) -> dict[str, float]:
        """The strength of the attack and the learning rate at the end of an epoch."""
        taken = epoch * self.steps_per_epoch
        strength = attack_strength(taken - 1, self.config, self.steps_per_epoch)
        if not self.scheduled:
            return {"strength": float(strength)}
        rates = learning_rate_schedule(self.config, self.steps_per_epoch)
        rate = np.asarray(rates(taken * self.config.replays - 1))
        return {"strength": float(strength), "learning_rate": float(rate)}

    def record(
        self, epoch: int, state: TrainState, scalars: Mapping[str, float]
    ) -> None:
        """Logs an epoch, with what the user measures."""
        measured = self.measure(epoch, parallel.one_copy(state.weights))
        if not isinstance(measured, Mapping):
            raise ValueError(
                "on_epoch must return a mapping from names to scalars, {} if it has "
                f"none, got {measured!r}"
            )
        step = epoch * self.steps_per_epoch
        self.journal.log({"epoch": epoch, "step": step, **scalars, **measured})

    def progress_bar(self, done: int, progress: bool) -> tqdm:
        """A bar that counts images; `done` steps were taken before."""
        batch_size = self.config.batch_size
        return tqdm(
            total=self.config.epochs * self.steps_per_epoch * batch_size,
            initial=done * batch_size,
            unit=" images",
            unit_scale=True,
            disable=None if progress else True,
        )
