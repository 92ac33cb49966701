"""Attacks over any number of images: one after the other, batch by batch, resumable.

`autoattack` and `robjax.evaluation` are two readings of what `run` records. It works on
the host: the clean images first, then each attack on the samples that it is to see,
gathered into batches of one size and, for the rest, of powers of two (`Task.chunks`).
So an attack compiles for a few sizes only. A sample's draws depend on its own key
alone.

With `folder`, every batch is a file, written when it is done (whole, or not there at
all). A run that was killed reads them and goes on with the next batch: what it ends
with is what it would have ended with, bit for bit.
"""

import functools
import os
import pathlib
import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from tqdm import tqdm

from robjax import inputs, provenance, storage
from robjax.attacks import doubts
from robjax.attacks.task import Task, to_images
from robjax.attacks.verdicts import Column, attack_and_judge, trace

Attacks = Mapping[str, Callable[..., Any]]


class Outcome(NamedTuple):
    """The columns by name, "clean" first, and the first fooling image of each sample.

    `x_adv` is [N, *S], the clean image where nothing fooled; None unless asked for.
    `warnings` are reasons to distrust the columns.
    """

    columns: dict[str, Column]
    x_adv: np.ndarray | None
    warnings: tuple[str, ...]

    @property
    def fooled_by(self) -> np.ndarray:
        """[N] int32: number of the first column that fooled, −1 if none did."""
        fooled = np.stack([column.fooled for column in self.columns.values()])
        return np.where(fooled.any(axis=0), fooled.argmax(axis=0), -1).astype(np.int32)


def run(
    task: Task,
    attacks: Attacks,
    *,
    cascade: bool,
    keep_images: bool = False,
    folder: str | os.PathLike[str] | None = None,
    resume: bool = False,
    progress: bool = False,
) -> Outcome:
    """Runs `attacks` in their order.

    Args:
      task: what they attack.
      attacks: name -> attack with its options bound, `ball` among them (one without is
        judged by the box alone).
      cascade: each sees only what no attack before it fooled, and has draws of its own;
        else each sees all that is classified correctly, with the same draws.
      keep_images: hold the fooling images in memory.
      folder: where the batches are kept, or None.
      resume: `folder` may hold the beginning of this very run.
      progress: show a bar for each attack, with the share of samples still robust.

    Raises:
      ValueError: an attack or one of its options is malformed; `folder` holds a run and
        `resume` is False, or it holds another one.
    """
    for name, attack in attacks.items():
        _check_attack(name, attack, task)
    store = _Store.open(folder, task, attacks, cascade, resume)
    count, columns = len(task.labels), {}
    x_adv = None
    if keep_images:
        images = [to_images(task.images[i : i + 1024], task.scale)
                  for i in range(0, count, 1024)]  # fmt: skip
        x_adv = np.concatenate([np.asarray(part) for part in images])
    robust = np.ones(count, bool)
    for number, (name, attack) in enumerate({"clean": None, **attacks}.items()):
        correct = ~columns["clean"].fooled if columns else robust
        todo = np.flatnonzero(robust if cascade else correct)
        columns[name] = column = Column.empty(count)
        bar = tqdm(total=len(todo), desc=name, disable=not progress, unit="image",
                   postfix=_share(robust))  # fmt: skip
        for chunk, (index, real) in enumerate(task.chunks(todo)):
            salt = number if cascade else None
            judged, images = store.recall(
                f"{number:02d}-{name}",
                chunk,
                index[:real],
                lambda index=index, attack=attack, salt=salt: attack_and_judge(
                    task, attack, index, salt
                ),
            )
            for values, new in zip(column, judged, strict=True):
                values[index[:real]] = new
            won = judged.fooled & robust[index[:real]]
            if x_adv is not None:
                x_adv[index[:real][won]] = images[won]
            robust[index[:real][won]] = False
            bar.set_postfix_str(_share(robust), refresh=False)
            bar.update(real)
        bar.close()
    return Outcome(columns, x_adv, doubts.find(task, attacks, columns))


def _share(robust: np.ndarray) -> str:
    return f"robust {100 * robust.mean():.2f} %"


def _check_attack(name: str, attack: Any, task: Task) -> None:
    """Traces an attack as it will run, so that it judges its options; compiles nothing.

    Traces are kept: what has run once with the same options costs nothing.
    """
    if not callable(attack):
        raise ValueError(f"attacks[{name!r}] must be callable, got {attack!r}")
    if name == "clean":
        raise ValueError("attacks must not name one 'clean': that is the clean image")
    keywords = functools.partial(attack).keywords
    if keywords.get("targeted", False):
        raise ValueError(f"attacks[{name!r}] must be untargeted, got {attack!r}")
    index = next(task.chunks(np.arange(len(task.labels))))[0]
    if (ball := keywords.get("ball")) is not None:
        eps = getattr(ball, "eps", None)
        what = f"attacks[{name!r}] ball.eps"
        inputs.check_number(what, eps, minimum=0, batch_size=len(task.labels))
    try:
        trace(task, attack, index)
    except TypeError as error:
        if task.eot is None or keywords.get("eot") is not None:
            raise
        raise ValueError(
            f"attacks[{name!r}] must have an eot bound, since with eot={task.eot} "
            f"logits_fn takes (images, keys): {error}"
        ) from error


class _Store(NamedTuple):
    """The batches of a run as files; keeps nothing without a folder."""

    folder: pathlib.Path | None

    @classmethod
    def open(cls, folder, task: Task, attacks, cascade: bool, resume: bool) -> "_Store":
        if folder is None:
            if resume:
                raise ValueError("run_dir must be given with resume=True, got None")
            return cls(None)
        path = storage.check_writable(folder, "run_dir")
        file, now = path / "run.json", _description(task, attacks, cascade)
        if not file.exists():
            record = {"run": now, "versions": storage.versions()}
            storage.save_json(file, record)
        elif not resume:
            raise ValueError(
                f"run_dir={str(folder)!r} already holds a run: pass resume=True to go "
                "on with it, or name another folder"
            )
        else:
            then = storage.load_json(file)
            provenance.check_same_run(
                folder, then["run"], now, versions=then["versions"]
            )
        return cls(path)

    def recall(
        self, name: str, chunk: int, index: np.ndarray, work: Callable[[], Any]
    ) -> tuple[Column, np.ndarray]:
        """What `work` returns for the samples of `index`, from its file if there."""
        count = len(index)
        if self.folder is None:
            column, images = work()
            return Column(*(values[:count] for values in column)), images[:count]
        path = self.folder / re.sub(r"[^\w.-]+", "_", name) / f"{chunk:06d}.npz"
        if path.exists():
            found = storage.load_npz(path)
            if not np.array_equal(found.pop("index"), index):
                raise ValueError(f"{path} holds other samples than this run expects")
            images = found.pop("x_adv")
            return Column(**found), images
        column, images = work()
        column = Column(*(values[:count] for values in column))
        path.parent.mkdir(exist_ok=True)
        arrays = {"index": index, "x_adv": images[:count], **column._asdict()}
        storage.save_npz(path, arrays)
        return column, images[:count]


def _description(task: Task, attacks: Attacks, cascade: bool) -> dict[str, Any]:
    leaves, tree = jax.tree.flatten(task.attacked)
    return {
        "model": f"{provenance.describe(tree)} {provenance.checksum(leaves)}",
        "data": f"{list(task.images.shape)} "
        + provenance.checksum((task.images, task.labels)),
        "scale": task.scale,
        "key": provenance.checksum(task.keys),
        "bounds": task.bounds,
        "eot": task.eot,
        "batch_size": task.batch_size,
        "devices": task.mesh.size,
        "cascade": cascade,
        "attacks": [f"{name}: {provenance.describe(a)}" for name, a in attacks.items()],
    }
