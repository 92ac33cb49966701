"""Reasons to distrust an evaluation, from what its attacks did.

What AutoAttack's own code warns of is among them: outputs that are random or
probabilities, and a Square attack that breaks what gradients did not (a share above
0.2 %), which `robjax.masking` looks into.
"""

import functools
from collections.abc import Mapping
from typing import Any

import numpy as np

from robjax.attacks import verdicts
from robjax.attacks.square import square
from robjax.attacks.task import Task
from robjax.attacks.verdicts import Column

# Share of verdicts that reassociated floating-point sums may flip.
_BORDERLINE = 1e-3
# Of the largest margin; the same program on the same images repeats itself to 1e-6.
_SAME = 1e-4
_SQUARE = 2e-3


def find(
    task: Task, attacks: Mapping[str, Any], columns: Mapping[str, Column]
) -> tuple[str, ...]:
    """One sentence for each reason; `columns` are "clean" and those of `attacks`."""
    found = _of_the_model(task, columns["clean"])
    for name in attacks:
        found += _of_an_attack(name, columns[name], task.labels)
    return tuple(found + _of_square(attacks, columns))


def _of_the_model(task: Task, clean: Column) -> list[str]:
    found, labels = [], task.labels
    if lost := np.count_nonzero(clean.predicted < 0):
        found.append(f"{lost} images have logits that are not finite; counted as wrong")
    if len(labels) > 1 and np.ptp(clean.predicted) == 0 and np.ptp(labels) > 0:
        found.append(f"every image is classified as {clean.predicted[0]}")
    index, real = next(task.chunks(np.arange(len(labels))))
    margin, simplex = verdicts.look_again(task, index)
    before, again = clean.margin[index[:real]], margin[:real]
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


def _of_an_attack(name: str, column: Column, labels: np.ndarray) -> list[str]:
    found = []
    if bad := np.count_nonzero(column.outside):
        found.append(f"{name}: {bad} images returned outside the ball or the bounds")
    if lost := np.count_nonzero(column.tried & (column.predicted < 0)):
        found.append(f"{name}: {lost} attacked images give logits not finite")
    wrong = column.tried & ~column.outside
    wrong &= column.claimed != (column.predicted != labels)
    if (lied := np.count_nonzero(wrong)) > _BORDERLINE * len(labels):
        found.append(f"{name}: {lied} verdicts differ from the attack's own")
    return found


def _of_square(attacks: Mapping[str, Any], columns: Mapping[str, Column]) -> list[str]:
    ours = [
        n for n, attack in attacks.items() if functools.partial(attack).func is square
    ]
    others = [columns[name].fooled for name in attacks if name not in ours]
    if not ours or not others:
        return []
    alone = np.any([columns[name].fooled for name in ours], axis=0)
    alone &= ~np.any(others, axis=0)
    if alone.mean() <= _SQUARE:
        return []
    return [
        f"{', '.join(ours)}: fooled {alone.sum()} images that no other attack did, "
        "without gradients: they may be masked (robjax.masking)"
    ]
