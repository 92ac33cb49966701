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
from robjax.training.state import (
    TrainState,
    create_state,
    learning_rate_schedule,
    make_optimizer,
)
from robjax.training.step import attack_strength, make_step

_SECONDS_BETWEEN_FETCHES = 1.0

OnEpoch = Callable[[int, Any], Mapping[str, float]]


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
    devices: Sequence[Any] | None = None,
    progress: bool = True,
) -> TrainState:
    """Trains `model` on `data`, data-parallel over the devices.

    Args:
      model: flax.linen module called as model(images, train=...). Its field
        `axis_name`, if there is one, is set here.
      data: images uint8 [N, *S] and labels [N].
      objective: what to minimise, see `robjax.training.objectives`.
      config: everything else that decides the result.
      optimizer: replaces the one that `config` describes (as do its clipping and its
        schedule). Resuming checks that its state has the same form, not that its
        constants are the same.
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
    devices = parallel.check_devices(devices, config.batch_size)
    _check_model(model, data, config, len(devices))
    _check_ball(objective)
    description = describe_run(model, data, objective, config)
    if optimizer is not None:
        description["optimizer"] = "given to fit"
    journal = Journal(run_dir, description, resume=resume)
    trained = parallel.join_batch_norm(model)
    steps_per_epoch = len(data.labels) // config.batch_size
    step = _compiled_step(
        trained,
        objective,
        optimizer,
        # neither changes the step, so that runs with other seeds need not compile
        dataclasses.replace(config, seed=0, checkpoint_every=0),
        steps_per_epoch,
        data.scale,
        tuple(devices),
    )
    state = create_state(
        trained,
        to_float(data.images[:1], data.scale),
        optimizer or make_optimizer(config, steps_per_epoch),
        config,
    )
    measure = on_epoch or (lambda epoch, variables: {})

    with contextlib.closing(journal):
        state, extra = journal.open(state)
        meter, done = _Meter(**extra), int(state.step)
        loop = _Loop(step, data, config, devices, journal)
        if done == 0:
            scalars = measure(0, parallel.one_copy(state.weights))
            journal.log({"epoch": 0, "step": 0, **scalars})
        state = parallel.replicate(state, devices)
        with _progress_bar(config, steps_per_epoch, done, progress) as bar:
            for epoch in range(done // steps_per_epoch + 1, config.epochs + 1):
                state, means = loop.run_epoch(epoch, state, meter, bar)
                taken = epoch * steps_per_epoch
                means["strength"] = float(
                    attack_strength(taken - 1, config, steps_per_epoch)
                )
                if optimizer is None:
                    rates = learning_rate_schedule(config, steps_per_epoch)
                    means["learning_rate"] = float(rates(taken * config.replays - 1))
                scalars = measure(epoch, parallel.one_copy(state.weights))
                journal.log({"epoch": epoch, "step": taken, **means, **scalars})
                meter = _Meter()
                journal.save(state, meter.saved())
    return parallel.one_copy(state)


@functools.lru_cache(maxsize=8)
def _compiled_step(
    model: nn.Module,
    objective: Objective,
    optimizer: optax.GradientTransformation | None,
    config: FitConfig,
    steps_per_epoch: int,
    scale: float,
    devices: tuple[Any, ...],
) -> Callable:
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
    if not isinstance(model, nn.Module):
        raise ValueError(
            f"model must be a flax.linen module, got {type(model).__name__}"
        )
    count = len(data.labels)
    if config.batch_size > count:
        raise ValueError(
            f"batch_size must be at most the number of samples, {count}, got "
            f"{config.batch_size}"
        )
    check_labels(data.labels, count, num_classes=data.num_classes, name="labels")
    example = jax.ShapeDtypeStruct((1, *data.images.shape[1:]), np.float32)
    logits, variables = jax.eval_shape(
        model.init_with_output, jax.random.key(0), example
    )
    check_logits(logits, 1)
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


def _check_ball(objective: Objective) -> None:
    """Raises ValueError if a ball is bound to the objective and has no radius ≥ 0."""
    bound = getattr(objective, "keywords", {})
    if "ball" in bound:
        eps = getattr(bound["ball"], "eps", None)
        check_number("objective's ball.eps", eps, minimum=0)


def _progress_bar(
    config: FitConfig, steps_per_epoch: int, done: int, progress: bool
) -> tqdm:
    return tqdm(
        total=config.epochs * steps_per_epoch * config.batch_size,
        initial=done * config.batch_size,
        unit=" images",
        unit_scale=True,
        disable=None if progress else True,
    )


@dataclasses.dataclass
class _Meter:
    """Sums of the metrics of one epoch, fetched from the devices now and then."""

    count: int = 0
    sums: dict[str, float] = dataclasses.field(default_factory=dict)
    pending: list[Mapping[str, jax.Array]] = dataclasses.field(default_factory=list)

    def fetch(self, epoch: int) -> None:
        """Adds what is pending; FloatingPointError at the first value not finite."""
        for metrics in jax.device_get(self.pending):
            self.count += 1
            for name, value in metrics.items():
                if not math.isfinite(value):
                    raise FloatingPointError(
                        f"training stopped: {name} is {value} in step {self.count} "
                        f"of epoch {epoch}; a lower learning_rate, a clip_norm or a "
                        "longer warm-up may help"
                    )
                self.sums[name] = self.sums.get(name, 0.0) + float(value)
        self.pending.clear()

    def means(self) -> dict[str, float]:
        return {name: total / self.count for name, total in sorted(self.sums.items())}

    def saved(self) -> dict[str, Any]:
        assert not self.pending
        return {"count": self.count, "sums": self.sums}


@dataclasses.dataclass(frozen=True)
class _Loop:
    """What stays the same from epoch to epoch."""

    step: Callable[..., tuple[TrainState, Mapping[str, jax.Array]]]
    data: Dataset
    config: FitConfig
    devices: Sequence[Any]
    journal: Journal

    def run_epoch(
        self, epoch: int, state: TrainState, meter: _Meter, bar: tqdm
    ) -> tuple[TrainState, dict[str, float]]:
        """Takes the steps of epoch 1, 2, … that are left; returns mean metrics."""
        batch_size, every = self.config.batch_size, self.config.checkpoint_every
        batches = batch_indices(
            len(self.data.labels), batch_size, seed=self.config.seed, epoch=epoch - 1
        )
        bar.set_description(f"epoch {epoch}/{self.config.epochs}")
        first, total = meter.count, len(batches)
        start = fetched = time.perf_counter()
        for position in range(first, total):
            state, metrics = self.step(state, *self._feed(batches[position]))
            meter.pending.append(metrics)
            taken, now = position + 1, time.perf_counter()
            due = every and ((epoch - 1) * total + taken) % every == 0
            save = due and taken < total
            if save or taken == total or now - fetched > _SECONDS_BETWEEN_FETCHES:
                steps = len(meter.pending)
                meter.fetch(epoch)
                bar.update(steps * batch_size)
                bar.set_postfix(loss=f"{meter.means()['loss']:.4g}", refresh=False)
                fetched = time.perf_counter()
            if save:
                self.journal.save(state, meter.saved())
        images = (total - first) * batch_size
        speed = images / (time.perf_counter() - start)
        return state, {**meter.means(), "images_per_second": speed}

    def _feed(self, batch: np.ndarray) -> tuple[np.ndarray, ...]:
        """This process's images, labels and indices of a batch of indices [B]."""
        rows = parallel.own_rows(batch, self.devices)
        return self.data.images[rows], self.data.labels[rows], rows.astype(np.int32)
