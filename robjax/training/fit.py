"""Training in one call.

    state = fit(MLP(10), load("digits", "train"), config=FitConfig(epochs=20))
    logits_fn = training.logits_fn(model, state.weights)

Everything random is a function of (seed, epoch, sample), or of (seed, step, device) for
what the model draws itself. So stopping and resuming changes nothing.
"""

import contextlib
import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import optax

from robjax.checks import check_flags
from robjax.data import Dataset, to_float
from robjax.runs import preemption
from robjax.runs.files import PathLike
from robjax.runs.processes import Group, joined
from robjax.training import arguments, objectives, parallel
from robjax.training.callbacks import Callback
from robjax.training.config import FULL, FitConfig
from robjax.training.journal import Journal, describe_run
from robjax.training.load import Origin, check_start, describe_model
from robjax.training.loop import Loop, Meter, OnEpoch
from robjax.training.objectives import Objective
from robjax.training.objectives.network import takes_groups
from robjax.training.rates import RateFn, rate_reader
from robjax.training.state import (
    TrainState,
    copies,
    create_state,
    make_optimizer,
    scheduled,
)
from robjax.training.step import StepFn, make_step
from robjax.training.trainable import Model, Trainable, Variables, trainable


def fit(
    model: Model,
    data: Dataset,
    *,
    objective: Objective = objectives.standard,
    config: FitConfig = FULL,
    optimizer: optax.GradientTransformation | None = None,
    variables: Variables | None = None,
    extends: PathLike | None = None,
    run_dir: PathLike | None = None,
    resume: bool = False,
    on_epoch: OnEpoch | None = None,
    callbacks: Sequence[Callback] = (),
    devices: Sequence[parallel.Device] | None = None,
    progress: bool = True,
) -> TrainState:
    """Trains `model` on `data`, data-parallel over the devices.

    >>> import numpy as np
    >>> from robjax.data import from_arrays
    >>> from robjax.models import MLP
    >>> labels = np.arange(64) % 2
    >>> images = np.uint8(255 * labels).reshape(64, 1, 1, 1)  # black or white
    >>> config = FitConfig(epochs=1, batch_size=8)
    >>> model = MLP(2, widths=(4,))
    >>> fit(model, from_arrays(images, labels), config=config, progress=False)
    TrainState(step 8, 18 weights)

    Args:
      model: a flax.linen module without weights, or an NNX module, which stays as it
        is and lends its weights to the start. Dropout, batch norm and any of the usual
        flags for train mode are set (`robjax.training.trainable`). A field `axis_name`
        of a linen module is set, too.
      data: images uint8 [N, *S] and labels [N], with groups [N] if the objective takes
        them.
      objective: what to minimise, see `robjax.training.objectives`.
      config: everything else that decides the result.
      optimizer: replaces the one that `config` describes, with its clipping and its
        schedule. `optax.partition` with `optax.set_to_zero()` freezes a part of the
        weights; the running statistics of batch norm move all the same.
      variables: weights to start from, as ``{"params": ..., "batch_stats": ...}``;
        None: drawn from the seed, or those of the NNX module.
      extends: folder of an earlier run to go on from, from its last state, with any
        other options that fit its weights. Its epochs count in ``config.epochs``. The
        optimizer's state goes on where it has the same structure, the schedule of
        `config` where its epochs stand, callbacks begin anew.
        Each checkpoint of this run says where it came from.
      run_dir: folder for metrics.jsonl, checkpoints/ and tensorboard/; None: no files.
      resume: go on from the last checkpoint in `run_dir`, bit for bit on the same
        backend, device count and versions; a run without one starts from the beginning.
      on_epoch: called as on_epoch(epoch, variables) before training, with epoch 0,
        and after each epoch; its scalars join the record of the epoch. The variables
        (the running mean if one is kept) are its own copy on one device.
      callbacks: what else happens then: early stopping, the best weights, accuracy
        under attack, averaged weights; see `robjax.training.callbacks`.
      devices: to train on; all by default.
      progress: show a bar with images/s and the time left on a terminal, elsewhere a
        line for each epoch.

    Returns:
      The final state, on one device.

    Raises:
      ValueError: an argument is out of range, or `run_dir` holds another run.
      FloatingPointError: the loss, a metric or the gradient is not finite; the
        message names the step. Nothing of that step is saved.
      RuntimeError: another process has failed, see `robjax.runs.processes`.
      Preempted: SIGTERM came, and the state after the step in hand is in `run_dir`.
    """
    check_flags(resume=resume, progress=progress)
    adapted = trainable(model)
    arguments.check_options(objective, config, optimizer, on_epoch, callbacks)
    devices = parallel.check_devices(devices, config.batch_size)
    arguments.check_data(adapted, data, objective, config)
    arguments.check_devices_share(adapted, data.images.shape[1:], len(devices))
    steps_per_epoch = len(data.labels) // config.batch_size
    origin = None if extends is None else Origin.read(extends)
    variables = check_start(adapted, data, config, variables, origin)
    description = describe_run(
        model,
        data,
        objective,
        config,
        optimizer,
        variables=variables,
        callbacks=callbacks,
        extends=None if origin is None else origin.words,
    ) | {"devices": len(devices)}
    about = describe_model(model, data, steps_per_epoch, origin)
    step, rate = _compiled_step(
        parallel.join_batch_norm(adapted),
        objective,
        optimizer,
        # none of these changes the step: runs with other seeds need not compile
        dataclasses.replace(config, seed=0, checkpoint_every=0, balanced=False),
        steps_per_epoch,
        data.scale,
        tuple(devices),
        # the same functions may read other values of their module than before
        repr([description.get(name) for name in ("model", "objective", "optimizer")]),
    )

    def same() -> dict[str, Any]:
        chosen = {k: value for k, value in description.items() if not callable(value)}
        return {**chosen, "resume": resume}

    with joined("training", same, devices=devices) as group:
        loop = Loop(
            step=step,
            rate=rate,
            model=adapted,
            data=data,
            config=config,
            devices=devices,
            journal=_journal(group, run_dir, description, about, resume),
            measure=on_epoch or (lambda epoch, variables: {}),
            callbacks=tuple(callbacks),
            grouped=takes_groups(objective),
            progress=progress,
            group=group,
        )
        with preemption.watch(run_dir) as notice, contextlib.closing(loop.journal):
            state, stored = _begin(loop, optimizer, variables, origin)
            # rebound, so that nothing keeps the first copies in memory
            variables = origin = None
            state = loop.placed(state)
            return loop.run(state, Meter(**stored), notice)


def _journal(
    group: Group,
    run_dir: PathLike | None,
    description: dict[str, Any],
    about: dict[str, Any],
    resume: bool,
) -> Journal:
    """The files of the run, which the first process writes and all read."""
    writes = group.index == 0
    journal = Journal(run_dir, description, resume=resume, about=about, writes=writes)
    found = group.exchange(journal.checkpoint)  # all have looked before one writes
    if len(set(found)) > 1:
        raise ValueError(
            f"run_dir={str(run_dir)!r} must be a folder that all processes share, "
            f"but they find different checkpoints in it: {found}"
        )
    return journal


def _begin(
    loop: Loop,
    optimizer: optax.GradientTransformation | None,
    variables: Variables | None,
    origin: Origin | None,
) -> tuple[TrainState, dict[str, Any]]:
    """The state to go on from, and the arguments of the `Meter` of its epoch.

    A new run first records what it starts from.
    """
    state, stored = loop.journal.open(_start(loop, optimizer, variables, origin))
    if not stored:
        known = {} if origin is None else {"extends": origin.folder}
        state = loop.record(int(state.step) // loop.steps_per_epoch, state, known)
    return state, stored


def _start(
    loop: Loop,
    optimizer: optax.GradientTransformation | None,
    variables: Variables | None,
    origin: Origin | None,
) -> TrainState:
    """The state that training starts from."""
    state = create_state(
        loop.model,
        to_float(loop.data.images[:1], loop.data.scale),
        optimizer or make_optimizer(loop.config, loop.steps_per_epoch),
        loop.config,
        num_groups=loop.data.num_groups if loop.grouped else 0,
        variables=variables,
    )
    if origin is not None:
        state = origin.continued(state, loop.steps_per_epoch)
        if optimizer is None:  # milestones are epochs, whatever the batch size was
            updates = int(state.step) * loop.config.replays
            state = state._replace(opt_state=scheduled(state.opt_state, updates))
    kept = [callback.init(copies(state.weights)) for callback in loop.callbacks]
    return state._replace(callbacks=tuple(kept))


@functools.lru_cache(maxsize=8)
def _compiled_step(
    model: Trainable,
    objective: Objective,
    optimizer: optax.GradientTransformation | None,
    config: FitConfig,
    steps_per_epoch: int,
    scale: float,
    devices: tuple[parallel.Device, ...],
    description: str,
) -> tuple[StepFn, RateFn]:
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
    return parallel.data_parallel(step, devices), rate_reader(optimizer)
