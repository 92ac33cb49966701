"""Accuracy under common corruptions, for each kind and severity.

A corruption is an attack that looks at no model. Unlike an evaluation of attacks, this
one shows every image to every corruption, also those that are misclassified as they
are: the corruption error of the paper counts all images.

    CE(kind)  = mean over severities of the error          (or over that of a baseline)
    mCE       = mean over kinds of CE

Hendrycks & Dietterich, ICLR 2019, section 4.2 (`robjax.corruptions`).
"""

import functools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from tqdm import tqdm

from robjax.checks import check_flags
from robjax.corruptions import ALL, Corruption
from robjax.data import Dataset
from robjax.evaluation.arguments import check_data
from robjax.evaluation.batches import Task
from robjax.evaluation.sharding import Device
from robjax.evaluation.tables import Estimate, proportion
from robjax.evaluation.verdicts import attack_all, check_attack
from robjax.evaluation.warnings import of_task
from robjax.model import LogitsFn
from robjax.runs import files
from robjax.samples import is_concrete


class CorruptionTable(NamedTuple):
    """What each corruption did to each of N images; print it.

    Attributes:
      kinds: names of the R corruptions.
      severities: the S severities.
      clean: [N] bool, the image as it is is classified correctly.
      right: [R, S, N] bool, the corrupted image is.
      warnings: reasons to distrust the numbers, in words.
    """

    kinds: tuple[str, ...]
    severities: tuple[int, ...]
    clean: np.ndarray
    right: np.ndarray
    warnings: tuple[str, ...] = ()

    @property
    def errors(self) -> np.ndarray:
        """[R, S] share of all images that is misclassified."""
        return 1 - self.right.mean(axis=2)

    @property
    def mean_error(self) -> Estimate:
        """The mean corruption error without a baseline, and its standard error.

        It is the mean over images of the share of corruptions that each gets wrong;
        its standard error is that of this mean, since all corruptions share images.
        """
        wrong = 1 - self.right.mean(axis=(0, 1))
        count = len(wrong)
        error = wrong.std(ddof=1) / np.sqrt(count) if count > 1 else np.nan
        return Estimate(float(wrong.mean()), float(error))

    @property
    def robust(self) -> np.ndarray:
        """[N] bool, classified correctly as it is and under every corruption."""
        return self.clean & self.right.all(axis=(0, 1))

    def accuracy(self, kind: str, severity: int) -> Estimate:
        """Accuracy under one corruption, and its standard error."""
        row, column = self.kinds.index(kind), self.severities.index(severity)
        return proportion(self.right[row, column])

    def normalised_error(self, baseline: "CorruptionTable") -> float:
        """The mean corruption error mCE of the paper, over that of another model.

        A fraction: papers print 100 times this number.

            mCE = 1/R Σ_kind ( Σ_s error(kind, s) / Σ_s baseline error(kind, s) )

        Args:
          baseline: the table of the other model, of the same kinds and severities.

        Raises:
          ValueError: it has others, or no error under some kind.
        """
        mine = (self.kinds, self.severities)
        if (baseline.kinds, baseline.severities) != mine:
            raise ValueError(
                f"baseline must have the kinds and severities {mine}, got "
                f"{(baseline.kinds, baseline.severities)}"
            )
        below = baseline.errors.sum(axis=1)
        if not (below > 0).all():
            name = self.kinds[int(below.argmin())]
            raise ValueError(f"baseline must make errors under {name}, got none")
        return float((self.errors.sum(axis=1) / below).mean())

    def table(self) -> str:
        """Returns accuracies in %, a row for each kind, as plain text."""
        width = max(len("worst case"), *map(len, self.kinds))
        count = len(self.clean)
        head = "".join(f"{severity:>7}" for severity in self.severities)
        lines = [
            f"accuracy [%] on {count} images by severity",
            f"  {'':<{width}}{head}   mean",
        ]
        for kind, row in zip(self.kinds, 100 * (1 - self.errors), strict=True):
            cells = "".join(f"{share:7.1f}" for share in [*row, row.mean()])
            lines.append(f"  {kind:<{width}}{cells}")
        lines += [
            f"  {'clean':<{width}} {proportion(self.clean)}",
            f"  {'worst case':<{width}} {proportion(self.robust)}",
            f"mean corruption error {str(self.mean_error).strip()}; the standard error "
            f"of a cell is at most {50 / np.sqrt(count):.1f}",
        ]
        return "\n".join(lines + [f"warning: {text}" for text in self.warnings])

    def __repr__(self) -> str:
        return self.table() if is_concrete(self.clean) else "CorruptionTable(traced)"

    def save(self, path: files.PathLike) -> None:
        """Writes the table, image by image, as an npz file, all or nothing."""
        files.save_npz(
            path,
            {
                "kinds": np.asarray(self.kinds, dtype=str),
                "severities": np.asarray(self.severities),
                "clean": self.clean,
                "right": self.right,
                "warnings": np.asarray(self.warnings, dtype=str),
            },
        )


def corruption_table(
    logits_fn: LogitsFn,
    data: Dataset | tuple[ArrayLike, ArrayLike | Sequence[int]],
    kinds: Mapping[str, Corruption] = ALL,
    *,
    key: jax.Array,
    severities: Sequence[int] = (1, 2, 3, 4, 5),
    batch_size: int | None = None,
    eot: int | None = None,
    devices: Sequence[Device] | None = None,
    progress: bool = False,
) -> CorruptionTable:
    """Measures accuracy under common corruptions, image by image.

    >>> from robjax import corruptions
    >>> x = np.full((2, 8, 8, 1), [[[[0.2]]], [[[0.6]]]], np.float32)
    >>> def brightness(x):
    ...     mean = x.mean(axis=(1, 2, 3))
    ...     return jnp.stack([0.45 - mean, mean - 0.45], axis=1)
    >>> table = corruption_table(
    ...     brightness, (x, [0, 1]), {"brightness": corruptions.brightness},
    ...     key=jax.random.key(0), severities=(1, 5),
    ... )
    >>> table.errors.tolist(), table.robust.tolist()  # 0.2 + 0.3 is bright
    ([[0.0, 0.5]], [False, True])

    Args:
      logits_fn: images [B, H, W, C] in [0, 1] -> logits [B, K], or (images, keys [B])
        -> logits with `eot`; any callable (`as_logits_fn`).
      data: a `robjax.data.Dataset`, or (images [N, H, W, C] floating, labels int [N]).
      kinds: name -> corruption (x, *, key, severity) -> images in [0, 1]; by default
        the 15 of `robjax.corruptions.ALL`. Each compiles once.
      key: one key, or one for each image. Of one key, image i draws from ``fold_in(key,
        i)``, the same for every kind and severity.
      severities: whole numbers, given to the corruptions.
      batch_size, eot, devices: as in `evaluate`.
      progress: show a bar.

    Returns:
      The table, on the host.

    Raises:
      ValueError: an argument is malformed; the message names it.
    """
    check_flags(progress=progress)
    images, labels, scale, bounds = check_data(data, (0.0, 1.0))
    if not isinstance(kinds, Mapping) or not kinds:
        raise ValueError(
            "kinds must be a mapping from names to corruptions, as {'fog': "
            f"corruptions.fog}}, got {kinds!r}"
        )
    for kind, corruption in kinds.items():
        if not callable(corruption):
            raise ValueError(
                f"kinds[{kind!r}] must be a corruption (x, *, key, severity) -> "
                f"images, got {corruption!r}"
            )
    if not isinstance(severities, Iterable):
        raise ValueError(f"severities must be whole numbers, got {severities!r}")
    severities = tuple(severities)
    numbers = [_check_severity(severity) for severity in severities or [None]]
    task = Task.make(
        logits_fn,
        images,
        labels,
        key=key,
        bounds=bounds,
        scale=scale,
        eot=eot,
        batch_size=batch_size,
        devices=devices,
        name="data labels",
    )
    attacks = {
        kind: [
            functools.partial(_corrupted, corruption=corruption, severity=number)
            for number in numbers
        ]
        for kind, corruption in kinds.items()
    }
    for kind, (first, *_) in attacks.items():
        check_attack(f"kinds[{kind!r}]", first, task)
    count = len(task.labels)
    # full batches: a smaller one at the end would compile every kind again
    full = -(-count // task.batch_size) * task.batch_size
    everyone = np.arange(full) % count
    clean = attack_all(task, None, everyone[:count])
    found = []
    with tqdm(total=len(kinds) * len(severities), disable=not progress) as bar:
        for kind, of_kind in attacks.items():
            bar.set_description(kind)
            for attack in of_kind:
                # not `fooled`: an image that became NaN is outside, and not right
                predicted = attack_all(task, attack, everyone).predicted[:count]
                found.append(predicted == task.labels)
                bar.update()
    right = np.stack(found).reshape(len(kinds), len(severities), -1)
    return CorruptionTable(
        kinds=tuple(kinds),
        severities=severities,
        clean=~clean.fooled,
        right=right,
        warnings=tuple(of_task(task, clean, gradients=False, balls=[])),
    )


def _check_severity(severity: Any) -> np.ndarray:
    """The severity as an array, which is traced: one program for all of a kind."""
    whole = isinstance(severity, int | np.integer) and not isinstance(severity, bool)
    if not whole or not 1 <= severity <= 5:
        raise ValueError(
            f"severities must be whole numbers from 1 to 5, got {severity!r}"
        )
    return np.asarray(severity, np.int32)


def _corrupted(
    logits_fn: LogitsFn,
    x: jax.Array,
    y: jax.Array,
    *,
    key: jax.Array,
    bounds: Any,
    corruption: Corruption,
    severity: jax.Array | np.ndarray,
) -> jax.Array:
    del logits_fn, y, bounds
    return jnp.clip(corruption(x, key=key, severity=severity), 0, 1)
