"""The loop over attacks and batches; it can be killed and resumed.

`run_attacks` works on the host. It judges the clean images first, then runs each attack
on the samples that the attack is to see. `evaluate` and `attacks.autoattack` both read
their results off its record.

Batches have few sizes (`Task.batches`), so an attack compiles a few times only. The
draws of a sample depend on its own key alone.

Several processes share the batches of each attack, and exchange verdicts and images
before the next one (`robjax.runs.processes`).

With a folder, every batch is a file (`Store`). A run that was killed skips the batches
that have a file. Its result is that of a run that was never killed, bit for bit.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

from robjax.evaluation.attack import Attack
from robjax.evaluation.batches import Task, to_images
from robjax.evaluation.store import Store
from robjax.evaluation.verdicts import Verdicts, attack_and_judge, check_attack
from robjax.evaluation.warnings import find_warnings
from robjax.runs import preemption, provenance
from robjax.runs.files import PathLike
from robjax.runs.processes import Group, joined

_IMAGES_AT_ONCE = 1024


class Outcome(NamedTuple):
    """What a run recorded.

    Attributes:
      verdicts: by name; "clean" first, then the attacks in their order.
      x_adv: [N, *S] the first image of each sample that fooled; the clean image where
        nothing fooled. None unless asked for.
      warnings: reasons to distrust the verdicts.
    """

    verdicts: dict[str, Verdicts]
    x_adv: np.ndarray | None
    warnings: tuple[str, ...]

    def __repr__(self) -> str:
        """Shows the verdicts in one line each; no images."""
        lines = [f"{name}: {verdicts}" for name, verdicts in self.verdicts.items()]
        return "\n".join(["Outcome", *lines, *self.warnings])

    @property
    def fooled_by(self) -> np.ndarray:
        """[N] int32, number of the first of `verdicts` that fooled; −1 if none did."""
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
    """Runs attacks one after the other, and records what they did to each sample.

    The second image is misclassified as it is, the first once it is mirrored:

    >>> import jax
    >>> task = Task.make(
    ...     lambda x: x, np.array([[0.9, 0.2], [0.1, 0.5]], np.float32), [0, 0],
    ...     key=jax.random.key(0), bounds=(0.0, 1.0),
    ... )
    >>> def mirror(logits_fn, x, y, *, key, bounds):
    ...     return x[:, ::-1]
    >>> outcome = run_attacks(task, {"mirror": mirror}, cascade=True)
    >>> list(outcome.verdicts), outcome.fooled_by.tolist()
    (['clean', 'mirror'], [1, 0])

    Args:
      task: what is attacked.
      attacks: name -> attack with its options bound, `ball` among them; checked by
        `arguments.check_attacks`. The images of an attack without a ball have to be
        inside the box only.
      cascade: each attack sees only the samples that no attack before it fooled, and
        has draws of its own. Otherwise each sees all samples that are classified
        correctly, with the same draws.
      keep_images: hold the fooling images in memory.
      folder: where the batches are kept; None: nowhere.
      resume: `folder` may hold the beginning of this very run.
      progress: show a bar for each attack, with the share of samples still robust.

    Raises:
      ValueError: an attack or one of its options is malformed; `folder` holds a run and
        `resume` is False, or it holds another run.
      RuntimeError: another process has failed.
      Preempted: SIGTERM came; every batch that was done is in `folder`.
    """
    for name, attack in attacks.items():
        check_attack(f"attacks[{name!r}]", attack, task)

    def about() -> dict[str, Any]:
        kinds = provenance.identify(tuple(attacks.items()))
        options = {"cascade": cascade, "keep_images": keep_images, "resume": resume}
        return {**task.facts(), **options, "attacks": kinds, "run_dir": folder is None}

    with joined("evaluation", about) as group, preemption.watch(folder) as notice:
        store = Store.open(
            folder, task, attacks, cascade=cascade, resume=resume, group=group
        )
        return _attack_all(
            task, attacks, store, group, notice, cascade, keep_images, progress
        )


def _attack_all(
    task: Task,
    attacks: Mapping[str, Attack],
    store: Store,
    group: Group,
    notice: preemption.Notice,
    cascade: bool,
    keep_images: bool,
    progress: bool,
) -> Outcome:
    """Goes through attacks and batches, and leaves before a batch if told to."""
    x_adv = _clean_images(task) if keep_images else None
    record: dict[str, Verdicts] = {}
    robust = np.ones(len(task.labels), bool)
    runners: dict[str, Attack | None] = {"clean": None, **attacks}
    for number, (name, attack) in enumerate(runners.items()):
        label = f"{number:02d}-{name}"
        salt = number if cascade else None
        correct = ~record["clean"].fooled if record else robust
        todo = np.flatnonzero(robust if cascade else correct)
        before = robust.copy()
        record[name] = Verdicts.empty(len(task.labels))
        batches = list(enumerate(task.batches(todo)))
        own = [padded[:real] for _, (padded, real) in group.mine(batches)]
        total = sum(map(len, own))
        hidden = not progress or group.index > 0
        bar = tqdm(total=total, desc=name, disable=hidden, unit="image")
        bar.set_postfix_str(_percent(robust))
        for turn in group.turns(batches):
            notice.leave()
            for batch, (padded, real) in turn:
                index = padded[:real]
                done = store.load(label, batch, index)
                if done is None:
                    judged, images = attack_and_judge(task, attack, padded, salt)
                    done = (judged.first(real), images[:real])
                    store.save(label, batch, index, *done)
                verdicts, images = done
                record[name].put(index, verdicts)
                won = verdicts.fooled & robust[index]
                if x_adv is not None:
                    x_adv[index[won]] = images[won]
                robust[index[won]] = False
                bar.set_postfix_str(_percent(robust), refresh=False)
                bar.update(real)
        bar.close()
        if group.count > 1:
            _share(group, own, record[name], before, robust, x_adv)
    return Outcome(record, x_adv, find_warnings(task, attacks, record))


def _share(
    group: Group,
    own: list[np.ndarray],
    verdicts: Verdicts,
    before: np.ndarray,
    robust: np.ndarray,
    x_adv: np.ndarray | None,
) -> None:
    """Writes what the other processes found to `verdicts`, `robust` and `x_adv`.

    own: [b] samples of each batch of this process.
    before: [N] `robust` before the attack.
    """
    index = np.concatenate([np.arange(0), *own])
    won = index[before[index] & ~robust[index]]
    images = None if x_adv is None else x_adv[won]
    share = (index, Verdicts(*(values[index] for values in verdicts)), won, images)
    for index, found, won, images in group.exchange(share):
        verdicts.put(index, found)
        robust[won] = False
        if x_adv is not None:
            x_adv[won] = images


def _clean_images(task: Task) -> np.ndarray:
    """All images as floats, converted in parts to spare the memory of the device."""
    parts = [
        np.asarray(to_images(task.images[start : start + _IMAGES_AT_ONCE], task.scale))
        for start in range(0, len(task.images), _IMAGES_AT_ONCE)
    ]
    return np.concatenate(parts)


def _percent(robust: np.ndarray) -> str:
    return f"robust {100 * robust.mean():.2f} %"
