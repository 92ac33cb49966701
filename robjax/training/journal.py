"""What a training run leaves on disk, and how it is taken up again.

    <run_dir>/metrics.jsonl   one record for each epoch, epoch 0 = before training
    <run_dir>/checkpoints/    the latest states, see `robjax.runs.checkpoints`
    <run_dir>/tensorboard/    the same scalars

A record is written before the checkpoint at its step, which holds all records up to
then. A run that is taken up at step s writes the records up to s anew, so the file ends
up as if nothing had happened, whatever became of it. Of several processes the first
writes and all read.
"""

import functools
import pathlib
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from robjax.data import Dataset, to_float
from robjax.runs import checkpoints, files, provenance
from robjax.training.config import FitConfig
from robjax.training.objectives import Objective
from robjax.training.state import TrainState, split_seed
from robjax.training.trainable import Trainable, Variables, trainable

_PROBED = 8  # images whose logits are part of the description of a run


def describe_run(
    model: Any,
    data: Dataset,
    objective: Objective,
    config: FitConfig,
    optimizer: optax.GradientTransformation | None = None,
    *,
    variables: Variables | None = None,
    callbacks: Sequence[Any] = (),
    extends: str | None = None,
) -> dict[str, Any]:
    """Everything a user chose that decides the result.

    What is a function is computed by a `Journal` that has a folder.

    >>> from robjax.data import load
    >>> from robjax.models import Linear
    >>> from robjax.training import objectives
    >>> data = load("digits", "test")
    >>> run = describe_run(Linear(10), data, objectives.standard, FitConfig(epochs=3))
    >>> run["epochs"], run["scale"], run["objective"].words
    (3, 16.0, 'robjax.training.objectives.adversarial.standard')
    >>> run["model_outputs"]().shape
    (8, 10)

    Args:
      model, data, objective, config: as in `fit`.
      optimizer: the one given to `fit`, if one is.
      variables: that training starts from, where the seed does not decide them.
      callbacks: as in `fit`.
      extends: which state of which run training starts from, if it does.
    """
    arrays = (data.images, data.labels)
    checksum = provenance.checksum(
        arrays if data.groups is None else (*arrays, data.groups)
    )
    outputs = functools.partial(_first_outputs, model, data, config.seed, variables)
    run = {
        # the weights of an NNX module are its variables
        "model": provenance.identify(model, arrays=not isinstance(model, nnx.Module)),
        "model_outputs": outputs,
        "objective": provenance.identify(objective),
        "data": f"{data.name} {list(data.images.shape)} {checksum}",
        "scale": data.scale,
        "num_classes": data.num_classes,
    }
    # None, too, so that a run with and one without differ in these, not in the outputs
    run["extends"] = extends
    given = variables is not None and extends is None
    run["variables"] = provenance.checksum(variables) if given else None
    if optimizer is not None:
        run["optimizer"] = provenance.identify(optimizer)
    if callbacks:
        run["callbacks"] = provenance.identify(tuple(callbacks))
    return files.plain(config) | run


def _first_outputs(
    model: Any, data: Dataset, seed: int, variables: Variables | None
) -> np.ndarray:
    """The logits of a few images before training, [n, K].

    They tell models apart where the description of their code cannot.
    """
    images = to_float(data.images[:_PROBED], data.scale)
    code = repr(provenance.identify(model, arrays=not isinstance(model, nnx.Module)))
    adapted = trainable(model)
    if variables is None:
        key = split_seed(jnp.uint32(seed))[0]
        variables = adapted.init(key, images[:1])
    return np.asarray(_first_logits(adapted, code, variables, images))


@functools.partial(jax.jit, static_argnums=(0, 1))
def _first_logits(
    model: Trainable, code: str, variables: Variables, images: jax.Array
) -> jax.Array:
    del code  # a part of the key alone: equal modules may run other code than before
    return model(variables, images)


class Journal:
    """The files of one run; does nothing if `run_dir` is None.

    Args:
      run_dir: folder of the run, made if there is none; None: no files.
      description: made by `describe_run`; that of a run taken up must be the same.
      resume: a folder that holds a run already is taken up, not refused.
      about: further facts that each checkpoint names and nothing compares.
      writes: whether this process does; of several only one should.

    Raises:
      ValueError: the folder is not writable; it holds a run and `resume` is False; its
        checkpoint is lost, corrupt, or of a run set up in another way.
    """

    def __init__(
        self,
        run_dir: files.PathLike | None,
        description: dict[str, Any],
        *,
        resume: bool,
        about: Mapping[str, Any] | None = None,
        writes: bool = True,
    ) -> None:
        self._description = description
        self._about = about
        self._folder = None if run_dir is None else files.as_path(run_dir, "run_dir")
        self._writes = self._folder is not None and writes
        self._tensorboard: Any = None
        self._latest: pathlib.Path | None = None
        self._manifest: dict[str, Any] = {}
        self._records: list[dict[str, Any]] = []
        if self._folder is None:
            if resume:
                raise ValueError("run_dir must be given with resume=True, got None")
            return
        if self._writes:
            files.writable_folder(self._folder, "run_dir")
        folder = self._folder / "checkpoints"
        if (
            checkpoints.list_checkpoints(folder) or self._metrics_file().exists()
        ) and not resume:
            raise ValueError(
                f"run_dir={str(self._folder)!r} already holds a run: pass resume=True "
                "to go on with it, or name another folder"
            )
        self._description = {
            name: value() if callable(value) else value
            for name, value in description.items()
        }
        found = checkpoints.latest_checkpoint(folder)
        if found is None:
            self._check_fresh()
        else:
            self._latest, self._manifest = found
            config = self._manifest["config"]
            if not (isinstance(config, dict) and {"run", "extra"} <= config.keys()):
                raise ValueError(
                    f"run_dir={str(self._folder)!r} holds checkpoints that do not say "
                    "of which run they are: name another folder"
                )
            provenance.check_same_run(
                self._folder,
                self._manifest["config"]["run"],
                self._description,
                versions_then=self._manifest["versions"],
            )

    @property
    def checkpoint(self) -> str | None:
        """The name of the checkpoint to go on from, if there is one."""
        return None if self._latest is None else self._latest.name

    def open(self, start: TrainState) -> tuple[TrainState, Mapping[str, Any]]:
        """Returns the state to go on from, and what was stored beside it.

        Where there is no checkpoint, that is `start` and {}.
        """
        if self._latest is None:
            state = start
            extra = {}
        else:
            state = checkpoints.load_checkpoint(self._latest, start)
            extra = self._manifest["config"]["extra"]
        if self._writes:
            self._take_up(int(state.step), fresh=self._latest is None)
        return state, extra

    def log(self, record: Mapping[str, Any]) -> None:
        """Appends the record of one epoch; its numbers go to TensorBoard too."""
        if not self._writes:
            return
        self._records.append(dict(record))
        files.append_json_line(self._metrics_file(), record)
        for name, value in record.items():
            known = name in ("epoch", "step") or isinstance(value, str)
            if not known and np.ndim(value) == 0:
                self._tensorboard.add_scalar(name, float(value), record["step"])
        self._tensorboard.flush()

    def save(self, state: TrainState, extra: Mapping[str, Any]) -> None:
        """Saves a state, and JSON values beside it."""
        if self._writes:
            assert self._folder is not None
            config = {
                "run": self._description,
                "about": self._about,
                "extra": extra,
                "records": self._records,
            }
            folder = self._folder / "checkpoints"
            checkpoints.save_checkpoint(folder, int(state.step), state, config=config)

    def close(self) -> None:
        """Closes the TensorBoard file."""
        if self._tensorboard is not None:
            self._tensorboard.close()

    def _metrics_file(self) -> pathlib.Path:
        assert self._folder is not None
        return self._folder / "metrics.jsonl"

    def _check_fresh(self) -> None:
        """Raises ValueError if there are records of more than a run without checkpoint.

        Each epoch ends with a record and then a checkpoint.
        """
        try:
            records = files.load_json_lines(self._metrics_file())
        except ValueError as error:
            raise ValueError(f"{error}: remove it, or name another folder") from error
        epochs = [record.get("epoch", 0) for record in records] or [0]
        taken = max(epochs) - min(epochs)
        if taken > 1:
            raise ValueError(
                f"run_dir={str(self._folder)!r} holds records of {taken} epochs, but "
                "no checkpoint to go on from: bring its folder checkpoints back, or "
                "name another folder"
            )

    def _holds(self, records: Sequence[Mapping[str, Any]]) -> bool:
        """Whether the file of records begins with these."""
        file = self._metrics_file()
        lines = file.read_bytes().split(b"\n")[:-1] if file.exists() else []
        expected = [files.json_line(record).encode()[:-1] for record in records]
        return lines[: len(records)] == expected

    def _take_up(self, step: int, *, fresh: bool) -> None:
        """Drops the records after `step`, and opens the TensorBoard file there."""
        assert self._folder is not None
        # tensorboardX takes half a second to import
        from tensorboardX import SummaryWriter

        if not fresh:
            kept = self._manifest["config"].get("records")
            if kept is None:  # of an older version
                found = files.load_json_lines(self._metrics_file())
                kept = [record for record in found if record["step"] <= step]
            self._records = kept
        if not self._holds(self._records):
            warnings.warn(
                f"{self._metrics_file()} was altered: its records are those of "
                f"{self._latest} again",
                stacklevel=4,
            )
        files.save_json_lines(self._metrics_file(), self._records)
        self._tensorboard = SummaryWriter(
            str(self._folder / "tensorboard"), purge_step=0 if fresh else step + 1
        )
