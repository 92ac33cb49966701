"""The loop over epochs and batches.

It only feeds batches: the host gathers uint8 rows, or takes those that processes have
decoded (`robjax.data.stored`), hands them to the compiled step and goes on to the next
batch. The rows of a step depend on seed, epoch and step alone. The loop waits for the
devices about once a second, to show progress and to stop at a NaN, and at checkpoints.
"""

import contextlib
import dataclasses
import functools
import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

from robjax.data import Dataset, StoredImages, balanced_indices, batch_indices
from robjax.runs import preemption
from robjax.runs.processes import Group
from robjax.training import parallel
from robjax.training.callbacks import Callback, EpochEnd
from robjax.training.config import FitConfig
from robjax.training.journal import Journal
from robjax.training.rates import RateFn
from robjax.training.state import TrainState
from robjax.training.step import Metrics, StepFn, attack_strength
from robjax.training.trainable import Trainable

_SECONDS_BETWEEN_FETCHES = 1.0

OnEpoch = Callable[[int, Any], Mapping[str, float]]
"""(epoch, variables) -> scalars that join the record of the epoch."""


@dataclasses.dataclass
class Meter:
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


class Rows(Sequence[np.ndarray]):
    """Rows of the data of each step of a run, [local devices, B / devices].

    Drawn when asked for, from the seed, the epoch and the step. With several processes
    they are those of this one.
    """

    def __init__(
        self, labels: np.ndarray, config: FitConfig, devices: Sequence[parallel.Device]
    ) -> None:
        self._labels = labels
        self._config = config
        self._devices = devices
        self._steps = len(labels) // config.batch_size
        # the present epoch and, where batches are made ahead, the next one
        self._drawn = functools.lru_cache(maxsize=2)(self._draw)

    def __len__(self) -> int:
        return self._config.epochs * self._steps

    def __getitem__(self, step: Any) -> Any:
        epoch, position = divmod(step, self._steps)
        return parallel.own_rows(self._drawn(epoch)[position], self._devices)

    def _draw(self, epoch: int) -> np.ndarray:
        size = self._config.batch_size
        draw = {"seed": self._config.seed, "epoch": epoch}
        if self._config.balanced:
            return balanced_indices(self._labels, size, **draw)
        return batch_indices(len(self._labels), size, **draw)


@dataclasses.dataclass(frozen=True)
class Loop:
    """What stays the same from epoch to epoch.

    Attributes:
      step: compiled.
      model: to train.
      data: to train on.
      config: how to train.
      devices: to train on.
      journal: the files of the run.
      measure: the user's `on_epoch`.
      callbacks: called after it.
      rate: the learning rate of the next update.
      grouped: the objective takes the groups of the data.
      progress: show a bar or, where there is no terminal, a line for each epoch.
      group: the processes that train together.
    """

    step: StepFn
    model: Trainable
    data: Dataset
    config: FitConfig
    devices: Sequence[parallel.Device]
    journal: Journal
    measure: OnEpoch
    callbacks: Sequence[Callback]
    rate: RateFn
    grouped: bool
    progress: bool
    group: Group

    @property
    def steps_per_epoch(self) -> int:
        return len(self.data.labels) // self.config.batch_size

    @functools.cached_property
    def rows(self) -> "Rows":
        """The rows of the data that are this process's in each step of the run."""
        return Rows(self.data.labels, self.config, self.devices)

    @contextlib.contextmanager
    def images_from(self, step: int) -> Iterator[Iterator[np.ndarray]]:
        """Iterates over this process's images of all steps, from `step` on."""
        images = self.data.images
        if isinstance(images, StoredImages):
            with images.batches(self.rows, start=step) as batches:
                yield batches
        else:
            rest = range(step, len(self.rows))
            yield (images[self.rows[number]] for number in rest)

    def run(
        self, state: TrainState, meter: Meter, notice: preemption.Notice
    ) -> TrainState:
        """Goes on from a placed state to the end; returns the last one on one device.

        `meter` has the steps of its epoch. Leaves after a step, once `notice` comes.
        """
        done = int(state.step)
        first = done // self.steps_per_epoch + 1
        with self.progress_bar(done) as bar, self.images_from(done) as images:
            for epoch in range(first, self.config.epochs + 1):
                if self.group.exchange(any(kept.stop for kept in state.callbacks))[0]:
                    break
                state, means = self.run_epoch(epoch, state, meter, bar, images, notice)
                state = self.record(epoch, state, means)
                meter = Meter()
                self.journal.save(state, meter.saved())
                notice.leave()
        bare = parallel.one_copy(state._replace(callbacks=()))
        return bare._replace(callbacks=state.callbacks)

    def placed(self, state: TrainState) -> TrainState:
        """The state on all devices; what callbacks keep stays where it is."""
        bare = parallel.replicate(state._replace(callbacks=()), self.devices)
        return bare._replace(callbacks=state.callbacks)

    def run_epoch(
        self,
        epoch: int,
        state: TrainState,
        meter: Meter,
        bar: tqdm,
        images: Iterator[np.ndarray],
        notice: preemption.Notice,
    ) -> tuple[TrainState, dict[str, float]]:
        """Takes the steps of epoch 1, 2, … that are left; returns what to record."""
        bar.set_description(f"epoch {epoch}/{self.config.epochs}")
        first = meter.count
        total = self.steps_per_epoch
        settings: dict[str, float] = {}
        start = time.perf_counter()
        fetched = start
        for position in range(first, total):
            taken = position + 1
            if taken == total:
                settings = self.settings(epoch, state)
            step = (epoch - 1) * total + position
            state, metrics = self.take_step(state, self.feed(step, next(images)))
            meter.pending.append(metrics)
            waited = time.perf_counter() - fetched
            # the end of an epoch has a checkpoint in any case, see `run`
            asked = notice.asked()
            save = taken < total and (asked or self.checkpoint_due(epoch, taken))
            if save or taken == total or waited > _SECONDS_BETWEEN_FETCHES:
                bar.update(meter.fetch(epoch) * self.config.batch_size)
                bar.set_postfix(loss=f"{meter.means()['loss']:.4g}", refresh=False)
                fetched = time.perf_counter()
            if save:
                self.journal.save(state, meter.saved())
                notice.leave()
        count = (total - first) * self.config.batch_size
        speed = count / max(time.perf_counter() - start, 1e-9)  # clocks may stand
        return state, {**meter.means(), "images_per_second": speed, **settings}

    def take_step(
        self, state: TrainState, fed: tuple[np.ndarray, ...]
    ) -> tuple[TrainState, Metrics]:
        """One step; what callbacks keep does not go through the devices."""
        bare = state._replace(callbacks=())
        moved, metrics = self.step(bare, *fed)
        return moved._replace(callbacks=state.callbacks), metrics

    def feed(self, step: int, images: np.ndarray) -> tuple[np.ndarray, ...]:
        """This process's images, labels and indices of a step, [devices, B, …].

        There are groups only where the objective takes them.
        """
        rows = self.rows[step]
        data = self.data
        fed = images, data.labels[rows], rows.astype(np.int32)
        if self.grouped and data.groups is not None:
            return (*fed, data.groups[rows])
        return fed

    def checkpoint_due(self, epoch: int, taken: int) -> bool:
        """Whether `config` asks for a checkpoint after this many steps of an epoch."""
        every = self.config.checkpoint_every
        steps = (epoch - 1) * self.steps_per_epoch + taken
        return every > 0 and steps % every == 0

    def settings(self, epoch: int, state: TrainState) -> dict[str, float]:
        """Strength of the attack and learning rate in the last step of an epoch."""
        last = epoch * self.steps_per_epoch - 1
        strength = attack_strength(last, self.config, self.steps_per_epoch)
        found = {"strength": float(strength)}
        rate = self.rate(state.opt_state, state.variables["params"])
        return found if rate is None else {**found, "learning_rate": rate}

    def record(
        self, epoch: int, state: TrainState, scalars: Mapping[str, Any]
    ) -> TrainState:
        """Logs an epoch, with what the user measures and what callbacks say."""
        weights = parallel.one_copy(state._replace(callbacks=()).weights)
        measured = self.measure(epoch, weights)
        if not isinstance(measured, Mapping):
            raise ValueError(
                "on_epoch must return a mapping from names to scalars, {} if it has "
                f"none, got {measured!r}"
            )
        measured = self.group.exchange(dict(measured))[0]  # say, seconds, not the same
        step = epoch * self.steps_per_epoch
        record = {"epoch": epoch, "step": step, **scalars, **measured}
        kept = []
        for callback, before in zip(self.callbacks, state.callbacks, strict=True):
            end = EpochEnd(epoch, weights, dict(record), self.model)
            now, found = callback.update(before, end)
            record |= found
            weights = weights if now.weights is None else now.weights
            kept.append(now)
        self.journal.log(record)
        self.show(record, stopped=any(now.stop for now in kept))
        return state._replace(callbacks=tuple(kept))

    def show(self, record: Mapping[str, Any], *, stopped: bool) -> None:
        """Writes a line about an epoch where there is no terminal for a bar."""
        if not self.progress or sys.stderr.isatty() or self.group.index > 0:
            return
        hidden = ("epoch", "step")
        words = [f"epoch {record['epoch']}/{self.config.epochs}"]
        for name, value in record.items():
            if name not in hidden and np.ndim(value) == 0:
                text = value if isinstance(value, str) else f"{float(value):.4g}"
                words.append(f"{name} {text}")
        line = "  ".join([*words, *(["stopped"] if stopped else [])])
        print(line, file=sys.stderr, flush=True)

    def progress_bar(self, done: int) -> tqdm:
        """A bar that counts images; `done` steps were taken before."""
        batch_size = self.config.batch_size
        return tqdm(
            total=self.config.epochs * self.steps_per_epoch * batch_size,
            initial=done * batch_size,
            unit=" images",
            unit_scale=True,
            disable=None if self.progress and self.group.index == 0 else True,
        )
