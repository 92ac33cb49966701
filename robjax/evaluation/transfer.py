"""Who fools whom: the images made against one model, shown to all others.

    success[s, t]      of the images that t classifies correctly, the share that t gets
                       wrong once they were changed to fool s
    transferred[s, t]  the same of those that s and t classify correctly and that did
                       fool s

The diagonal of the first is the attack on a model itself; off it stands the attack of
somebody who does not have the model. Papernot, McDaniel & Goodfellow, "Transferability
in machine learning", 2016 (arXiv 1605.07277), have the second.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from robjax.checks import Bounds
from robjax.data import Dataset
from robjax.evaluation.arguments import check_data
from robjax.evaluation.attack import Attack
from robjax.evaluation.batches import Task
from robjax.evaluation.sharding import SPLIT, Device, place
from robjax.evaluation.tables import Estimate, proportion
from robjax.evaluation.verdicts import (
    attack_all,
    attack_and_judge,
    check_attack,
    judge,
)
from robjax.model import LogitsFn
from robjax.runs.processes import joined
from robjax.samples import is_concrete


class Transfer(NamedTuple):
    """Which of N images, made against each of M models, fool each of them; print it.

    Attributes:
      names: of the models.
      correct: [M, N] bool, the clean image is classified correctly.
      fooled: [M, M, N] bool, the image made against the first model is inside box and
        ball, and the second one misclassifies it.
    """

    names: tuple[str, ...]
    correct: np.ndarray
    fooled: np.ndarray

    @property
    def success(self) -> np.ndarray:
        """[M, M] of the images that t classifies correctly, the share that fools t."""
        return self._table("mean", only_fooling=False)

    @property
    def transferred(self) -> np.ndarray:
        """[M, M] of those that s gets right, too, and that fool s, the share for t."""
        return self._table("mean", only_fooling=True)

    def rate(self, source: str, target: str, *, only_fooling: bool = False) -> Estimate:
        """An entry with its standard error; NaN where no image is counted.

        Args:
          source: name of s.
          target: name of t.
          only_fooling: count only images that s gets right and that fool s, as in
            `transferred`.
        """
        s, t = self.names.index(source), self.names.index(target)
        counted = self.correct[t]
        if only_fooling:
            counted = counted & self.correct[s] & self.fooled[s, s]
        fooled = self.fooled[s, t][counted]
        return proportion(fooled) if len(fooled) else Estimate(np.nan, np.nan)

    def _table(self, field: str, *, only_fooling: bool) -> np.ndarray:
        return np.array(
            [
                [
                    getattr(self.rate(s, t, only_fooling=only_fooling), field)
                    for t in self.names
                ]
                for s in self.names
            ]
        )

    def table(self) -> str:
        """Returns `success` in % with standard errors as plain text."""
        width = max(len("made for"), *map(len, self.names))
        column = max(15, width + 1)
        heads = "".join(f"{name:>{column}}" for name in self.names)
        count = self.correct.shape[1]
        lines = [
            f"images that fool [%], of those classified correctly, on {count} images",
            f"{'made for':<{width}}{heads}",
        ]
        for source in self.names:
            cells = "".join(
                f"{str(self.rate(source, t)).removesuffix(' %'):>{column}}"
                for t in self.names
            )
            lines.append(f"{source:<{width}}{cells}")
        return "\n".join(lines)

    def __repr__(self) -> str:
        return self.table() if is_concrete(self.correct) else "Transfer(traced)"


def transfer(
    models: Mapping[str, LogitsFn],
    data: Dataset | tuple[ArrayLike, ArrayLike | Sequence[int]],
    attack: Attack,
    *,
    key: jax.Array,
    batch_size: int | None = None,
    bounds: Bounds = (0.0, 1.0),
    devices: Sequence[Device] | None = None,
) -> Transfer:
    """Attacks each model and shows the images to all of them.

    The second model is the first one with less trust in the second pixel:

    >>> import functools
    >>> from robjax import attacks
    >>> from robjax.balls import Linf
    >>> x = np.array([[0.6, 0.4], [0.7, 0.4]], np.float32)
    >>> fgsm = functools.partial(attacks.fgsm, ball=Linf(0.125))
    >>> transfer(
    ...     {"a": lambda x: x, "b": lambda x: x * jnp.array([[1.0, 0.75]])},
    ...     (x, np.array([0, 0])), fgsm, key=jax.random.key(0),
    ... ).success.tolist()
    [[0.5, 0.0], [0.5, 0.0]]

    Args:
      models: name -> images [B, *S] to logits [B, K], deterministic; any callable
        (`as_logits_fn`). The same classes for all.
      data: a `robjax.data.Dataset`, or (images [N, *S] floating, labels int [N]).
      attack: untargeted, with its options bound, as in `evaluate`.
      key: one key, or one for each sample. Of one key, sample i draws from
        ``fold_in(key, i)``, against every model the same.
      batch_size, bounds, devices: as in `evaluate`.

    Returns:
      Transfer. Every image is attacked, whether its model has it right or not. The cost
      is M attacks and M² passes over the images.

    Raises:
      ValueError: an argument is malformed; the message names it.
    """
    if not isinstance(models, Mapping) or not models:
        raise ValueError(
            "models must be a mapping from names to models, as {'cnn': …}, got "
            f"{models!r}"
        )
    images, labels, scale, bounds = check_data(data, bounds)
    tasks = [
        Task.make(
            model,
            images,
            labels,
            key=key,
            bounds=bounds,
            scale=scale,
            batch_size=batch_size,
            devices=devices,
            name="data labels",
        )
        for model in models.values()
    ]
    for name, task in zip(models, tasks, strict=True):
        check_attack(f"attack on {name!r}", attack, task)
    everyone = np.arange(len(tasks[0].labels))
    correct = np.stack([~attack_all(task, None, everyone).fooled for task in tasks])
    fooled = np.stack([_shown(source, tasks, attack, everyone) for source in tasks])
    return Transfer(tuple(models), correct, fooled)


def _shown(
    source: Task, targets: Sequence[Task], attack: Attack, index: np.ndarray
) -> np.ndarray:
    """Attacks the model of `source`; [M, N] bool, which targets the images fool."""

    def show(padded: tuple[np.ndarray, int]) -> np.ndarray:
        batch, real = padded
        verdicts, images = attack_and_judge(source, attack, batch, None)
        _, y, keys = place(source.take(batch), source.mesh, SPLIT)
        x_adv = place(jnp.asarray(images), source.mesh, SPLIT)
        predicted = [judge(target, x_adv, y, keys).predicted for target in targets]
        return (np.stack(predicted) != np.asarray(y)[None])[:, :real] & (
            ~verdicts.outside[None, :real]
        )

    with joined("transfer", source.facts) as group:
        return np.concatenate(group.map(show, source.batches(index)), axis=1)
