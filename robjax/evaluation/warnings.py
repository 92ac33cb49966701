"""Reasons to distrust an evaluation, from what its attacks did.

Three of them are those of AutoAttack's own code:

* the outputs of the model are random;
* the outputs of the model are probabilities;
* an attack without gradients fooled more than 0.2 % of the samples that no attack with
  gradients fooled.

`robjax.masking` looks deeper.
"""

from collections.abc import Mapping

import numpy as np

from robjax.evaluation.attack import Attack, uses_gradients
from robjax.evaluation.batches import Task
from robjax.evaluation.sharding import SPLIT, place
from robjax.evaluation.verdicts import Verdicts, judge

# Share of samples whose verdict reassociated floating-point sums may flip.
_BORDERLINE = 1e-3
# Change of a margin, as a share of the largest one. The same program on the same images
# repeats itself to 1e-6.
_SAME = 1e-4
# Share of samples that only attacks without gradients fooled.
_GRADIENT_FREE = 2e-3


def find_warnings(
    task: Task, attacks: Mapping[str, Attack], verdicts: Mapping[str, Verdicts]
) -> tuple[str, ...]:
    """Lists reasons to distrust an evaluation, one sentence each.

    >>> import jax
    >>> from robjax.evaluation.verdicts import attack_and_judge
    >>> task = Task.make(
    ...     lambda x: x, np.array([[0.25, 0.75], [0.5, 0.5]], np.float32), [1, 0],
    ...     key=jax.random.key(0), bounds=(0.0, 1.0), devices=jax.local_devices()[:1],
    ... )
    >>> clean, _ = attack_and_judge(task, None, np.arange(2), None)
    >>> find_warnings(task, {}, {"clean": clean})[0].partition(",")[0]
    'the outputs are probabilities'

    Args:
      task: what was attacked.
      attacks: by name.
      verdicts: by name; those on "clean" and on every attack.
    """
    found = _of_the_model(task, verdicts["clean"])
    for name in attacks:
        found += _of_an_attack(name, verdicts[name], task.labels)
    return tuple(found + _of_gradient_free(attacks, verdicts))


def _of_the_model(task: Task, clean: Verdicts) -> list[str]:
    found = []
    labels = task.labels
    if lost := np.count_nonzero(clean.predicted < 0):
        found.append(f"{lost} images have logits that are not finite; counted as wrong")
    if len(labels) > 1 and np.ptp(clean.predicted) == 0 and np.ptp(labels) > 0:
        found.append(f"every image is classified as {clean.predicted[0]}")
    index, real = next(task.batches(np.arange(len(labels))))
    _, margin, simplex = judge(task, *place(task.take(index), task.mesh, SPLIT))
    before = clean.margin[index[:real]]
    again = margin[:real]
    known = np.isfinite(before) & np.isfinite(again)
    change = np.abs(before[known] - again[known]).max(initial=0)
    if change > _SAME * np.abs(before)[known].max(initial=0):
        found.append(
            "the same images give other logits in a second pass: give the model as "
            "logits_fn(images, keys), with eot"
        )
    if simplex[:real].all():
        found.append(
            "the outputs are probabilities, whose gradients vanish with confidence: "
            "give the logits"
        )
    return found


def _of_an_attack(name: str, verdicts: Verdicts, labels: np.ndarray) -> list[str]:
    found = []
    if bad := np.count_nonzero(verdicts.outside):
        found.append(f"{name}: {bad} images returned outside the ball or the bounds")
    if lost := np.count_nonzero(verdicts.tried & (verdicts.predicted < 0)):
        found.append(f"{name}: {lost} attacked images give logits not finite")
    wrong = verdicts.tried & ~verdicts.outside
    wrong &= verdicts.claimed != (verdicts.predicted != labels)
    if (lied := np.count_nonzero(wrong)) > _BORDERLINE * len(labels):
        found.append(f"{name}: {lied} verdicts differ from the attack's own")
    return found


def _of_gradient_free(
    attacks: Mapping[str, Attack], verdicts: Mapping[str, Verdicts]
) -> list[str]:
    without = [name for name, attack in attacks.items() if not uses_gradients(attack)]
    others = [verdicts[name].fooled for name in attacks if name not in without]
    if not without or not others:
        return []
    alone = np.any([verdicts[name].fooled for name in without], axis=0)
    alone &= ~np.any(others, axis=0)
    if alone.mean() <= _GRADIENT_FREE:
        return []
    return [
        f"{', '.join(without)}: fooled {alone.sum()} images that no other attack did, "
        "without gradients: they may be masked (robjax.masking)"
    ]
