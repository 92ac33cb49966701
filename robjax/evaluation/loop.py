"""The loop over attacks and batches; it can be killed and resumed.

`evaluate` and `attacks.autoattack` are two readings of what `run_attacks` records. It
works on the host: the clean images first, then each attack on the samples that it is
to see, in the batches of `Task.batches`. Their sizes are few, so an attack compiles a
few times only. A sample's draws depend on its own key alone.

With a folder, every batch is a file (`Store`). A run that was killed skips the batches
that have one, and ends with what it would have ended with, bit for bit.
"""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from robjax.evaluation.attack import Attack
from robjax.evaluation.batches import Task, to_images
from robjax.evaluation.store import Store
from robjax.evaluation.verdicts import Verdicts, attack_and_judge, check_attack
from robjax.evaluation.warnings import find_warnings
from robjax.runs.files import PathLike

_IMAGES_AT_ONCE = 1024


class Outcome(NamedTuple):
    """What a run recorded.

    Attributes:
      verdicts: by name, "clean" first, then the attacks in their order.
      x_adv: [N, *S] the first fooling image of each sample, the clean image where
        nothing fooled; None unless asked for.
      warnings: reasons to distrust the verdicts.
    """

    verdicts: dict[str, Verdicts]
    x_adv: np.ndarray | None
    warnings: tuple[str, ...]

    @property
    def fooled_by(self) -> np.ndarray:
        """[N] int32: number of the first of `verdicts` that fooled, −1 if none did."""
        fooled = np.stack([verdicts.fooled for verdicts in self.verdicts.values()])
        return np.where(fooled.any(axis=0), fooled.argmax(axis=0), -1).astype(np.int32)


def run_attacks(
    task: Task,
    attacks: Mapping[str, Attack],
    *,
    cascade: bool,
    keep_images: bool = False,
    folder: PathLike | None = None,
    resume: bool = False,
    progress: bool = False,
) -> Outcome:
    """Runs `attacks` in their order.

    Args:
      task: what they attack.
      attacks: name -> attack with its options bound, `ball` among them. One without a
        ball is judged by the box alone.
      cascade: each attack sees only what no attack before it fooled, and has draws of
        its own. Otherwise each sees all that is classified correctly, with the same
        draws.
      keep_images: hold the fooling images in memory.
      folder: where the batches are kept, or None.
      resume: `folder` may hold the beginning of this very run.
      progress: show a bar for each attack, with the share of samples still robust.

    Raises:
      ValueError: an attack or one of its options is malformed; `folder` holds a run and
        `resume` is False, or it holds another run.
    """
    for name, attack in attacks.items():
        check_attack(name, attack, task)
    store = Store.open(folder, task, attacks, cascade=cascade, resume=resume)
    x_adv = _clean_images(task) if keep_images else None
    record: dict[str, Verdicts] = {}
    robust = np.ones(len(task.labels), bool)
    for number, (name, attack) in enumerate({"clean": None, **attacks}.items()):
        correct = ~record["clean"].fooled if record else robust
        todo = np.flatnonzero(robust if cascade else correct)
        record[name] = Verdicts.empty(len(task.labels))
        bar = tqdm(total=len(todo), desc=name, disable=not progress, unit="image")
        bar.set_postfix_str(_percent(robust))
        for batch, (padded, real) in enumerate(task.batches(todo)):
            index = padded[:real]
            done = store.load(f"{number:02d}-{name}", batch, index)
            if done is None:
                salt = number if cascade else None
                verdicts, images = attack_and_judge(task, attack, padded, salt)
                done = verdicts.first(real), images[:real]
                store.save(f"{number:02d}-{name}", batch, index, *done)
            verdicts, images = done
            record[name].put(index, verdicts)
            won = verdicts.fooled & robust[index]
            if x_adv is not None:
                x_adv[index[won]] = images[won]
            robust[index[won]] = False
            bar.set_postfix_str(_percent(robust), refresh=False)
            bar.update(real)
        bar.close()
    return Outcome(record, x_adv, find_warnings(task, attacks, record))


def _clean_images(task: Task) -> np.ndarray:
    parts = [
        np.asarray(to_images(task.images[start : start + _IMAGES_AT_ONCE], task.scale))
        for start in range(0, len(task.images), _IMAGES_AT_ONCE)
    ]
    return np.concatenate(parts)


def _percent(robust: np.ndarray) -> str:
    return f"robust {100 * robust.mean():.2f} %"
