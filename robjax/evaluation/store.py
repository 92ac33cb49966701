"""The batches of a run as files, so that a killed run goes on where it was.

    <run_dir>/run.json                      what the run is, and the versions used
    <run_dir>/<number>-<attack>/<batch>.npz verdicts and images of a batch

Every file is written when its batch is done, whole or not at all. Which samples a batch
has does not depend on the number of devices, so a run may go on with more or fewer.
"""

import functools
import pathlib
import re
import warnings
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from robjax.evaluation.attack import Attack
from robjax.evaluation.batches import Task
from robjax.evaluation.sharding import SPLIT, place
from robjax.evaluation.verdicts import Verdicts, judge
from robjax.runs import files, provenance
from robjax.runs.processes import Group

_BATCHES = "[0-9][0-9]*-*/[0-9]*.npz"
_PROBED = 8  # images whose logits are part of the description of a run


class Store(NamedTuple):
    """The files of one run. Without a folder it keeps nothing and finds nothing.

    >>> Store(None).load("01-pgd", 0, np.arange(2)) is None
    True

    Attributes:
      folder: the `run_dir` of the run, or None.
    """

    folder: pathlib.Path | None

    @classmethod
    def open(
        cls,
        folder: files.PathLike | None,
        task: Task,
        attacks: Mapping[str, Attack],
        *,
        cascade: bool,
        resume: bool,
        group: Group | None = None,
    ) -> "Store":
        """Begins a run in `folder`, or goes on with the one that is there.

        Args:
          folder: `run_dir`; None: the store keeps nothing.
          task, attacks, cascade, resume: as in `run_attacks`.
          group: the processes whose run it is; None: this one's.

        Raises:
          ValueError: `folder` holds a run and `resume` is False; it holds another run,
            or batches without a description; or there is no folder to resume from.
        """
        path = provenance.open_run(
            folder,
            functools.partial(_description, task, attacks, cascade),
            parts=_BATCHES,
            resume=resume,
            group=group,
        )
        return cls(path)

    def load(
        self, attack: str, batch: int, index: np.ndarray
    ) -> tuple[Verdicts, np.ndarray] | None:
        """Reads verdicts and images of a batch; returns None if it is not done.

        Args:
          attack: number and name of the attack.
          batch: number of the batch.
          index: [b] samples of the batch.

        Warns:
          UserWarning: the file is damaged or holds other samples.
        """
        path = self._path(attack, batch)
        if path is None:
            return None
        found = files.load_part(path, ("index", "x_adv", *Verdicts._fields))
        if found is None:
            return None
        if not np.array_equal(found["index"], index):
            warnings.warn(f"{path} is of other samples: done again", stacklevel=2)
            return None
        verdicts = Verdicts(**{name: found[name] for name in Verdicts._fields})
        return verdicts, found["x_adv"]

    def save(
        self,
        attack: str,
        batch: int,
        index: np.ndarray,
        verdicts: Verdicts,
        images: np.ndarray,
    ) -> None:
        """Writes the verdicts and images of a batch, as `load` reads them."""
        path = self._path(attack, batch)
        if path is not None:
            path.parent.mkdir(exist_ok=True)
            arrays = {"index": index, "x_adv": images, **verdicts._asdict()}
            files.save_npz(path, arrays)

    def _path(self, attack: str, batch: int) -> pathlib.Path | None:
        if self.folder is None:
            return None
        return self.folder / re.sub(r"[^\w.-]+", "_", attack) / f"{batch:06d}.npz"


def _description(
    task: Task, attacks: Mapping[str, Attack], cascade: bool
) -> dict[str, Any]:
    """What decides the result of a run, so that two runs can be compared."""
    return describe_task(task) | {
        "devices": task.mesh.size,
        "cascade": cascade,
        "attacks": provenance.identify(tuple(attacks.items())),
    }


def describe_task(task: Task) -> dict[str, Any]:
    """What a model and the samples are, so that two runs can be compared.

    >>> import jax
    >>> task = Task.make(
    ...     lambda x: x, np.ones((1, 2), np.float32), [0], key=jax.random.key(0),
    ...     bounds=(0.0, 1.0), devices=jax.local_devices()[:1],
    ... )
    >>> sorted(describe_task(task))[:3]
    ['batch_size', 'bounds', 'data']
    """
    return task.facts() | {"model_outputs": _outputs(task)}


def _outputs(task: Task) -> np.ndarray:
    """Margin and spread of the logits of some images, [n, 2].

    They tell models apart where the description of their code cannot. It takes one more
    pass over the first batch, and the program that will judge it.
    """
    batch, real = next(task.batches(np.arange(len(task.labels))))
    judged = judge(task, *place(task.take(batch), task.mesh, SPLIT))
    return np.stack([judged.margin, judged.spread], axis=1)[: min(real, _PROBED)]
