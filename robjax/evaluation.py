"""Clean and robust accuracy of a model over a data set, sample by sample.

    evaluate(logits_fn, test, {"pgd": partial(attacks.pgd, ball=ball)}, key=key)
    evaluate(logits_fn, test, attacks.suite("standard", ball), key=key, cascade=True)

The first judges every attack on its own, the second is AutoAttack: each attack gets
what is still robust. Sample i always draws from ``fold_in(key, i)``, i its index in
the data set, so the table does not depend on the batch size, the padding of the last
batch or the number of devices (up to floating-point reassociation). The rules of a
verdict are those of `attacks.verdicts`; files and resuming those of `attacks.harness`.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from robjax import inputs, storage
from robjax.attacks import harness
from robjax.attacks.task import Task
from robjax.data import Dataset


class Estimate(NamedTuple):
    """A proportion and its binomial standard error, both in [0, 1]."""

    mean: float
    stderr: float

    def __str__(self) -> str:
        return f"{100 * self.mean:6.2f} ± {100 * self.stderr:.2f} %"


class AttackTable(NamedTuple):
    """What one attack did to each of the N samples.

    robust: bool [N], classified correctly before *and* after the attack (in a cascade
        after those before it, too).
    margin: [N], max_{i≠y} z_i − z_y at the image it returned; −inf where it saw none.
    first_success: int [N], first step that fooled the model, as the attack counts; 0
        start, or misclassified as it is; −1 where the verdict is "not fooled".
    distance: [N], size of the perturbation in the norm of the attack's ball.
    queries: int [N], images evaluated for the sample, that of the verdict among them.
    """

    robust: np.ndarray
    margin: np.ndarray
    first_success: np.ndarray
    distance: np.ndarray
    queries: np.ndarray


class Evaluation(NamedTuple):
    """Per-sample table of an evaluation.

    labels: int [N].
    predictions: int [N], class of the unperturbed image; -1 where a logit is not
        finite, which counts as wrong.
    attacks: the table of each attack, by name.
    fooled_by: int [N], number of the first attack that fooled the model, in the order
        of `attacks`, from 1; 0: the clean image is misclassified, -1: robust.
    warnings: reasons to distrust the numbers, in words; empty if there are none.
    """

    labels: np.ndarray
    predictions: np.ndarray
    attacks: dict[str, AttackTable]
    fooled_by: np.ndarray
    warnings: tuple[str, ...]

    @property
    def correct(self) -> np.ndarray:
        """Bool [N]: the unperturbed image is classified correctly."""
        return self.predictions == self.labels

    @property
    def robust(self) -> np.ndarray:
        """Bool [N]: correct under every attack (the pointwise worst case)."""
        return self.fooled_by < 0

    @property
    def accuracy(self) -> Estimate:
        """Accuracy on the unperturbed images."""
        return proportion(self.correct)

    def robust_accuracy(self, attack: str | None = None) -> Estimate:
        """Robust accuracy under one attack, or under all of them (the default)."""
        return proportion(
            self.robust if attack is None else self.attacks[attack].robust
        )

    def table(self) -> str:
        """The accuracies (mean ± standard error) and warnings as plain text."""
        rows = {"clean": self.accuracy}
        rows |= {name: self.robust_accuracy(name) for name in self.attacks}
        if len(self.attacks) > 1:
            rows["worst case"] = self.robust_accuracy()
        width = max(map(len, rows))
        lines = [f"accuracy on {len(self.labels)} images"]
        lines += [f"  {name:<{width}}  {rate}" for name, rate in rows.items()]
        return "\n".join(lines + [f"warning: {text}" for text in self.warnings])

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the per-sample table as an npz file, all or nothing.

        The columns are ``label``, ``prediction``, ``fooled_by``, ``warnings`` and, for
        each attack, ``<name>/<field of AttackTable>``.
        """
        columns = {
            "label": self.labels,
            "prediction": self.predictions,
            "fooled_by": self.fooled_by,
            "warnings": np.asarray(self.warnings, dtype=str),
        }
        for name, table in self.attacks.items():
            columns |= {f"{name}/{k}": v for k, v in table._asdict().items()}
        storage.save_npz(path, columns)


def proportion(verdicts: np.ndarray) -> Estimate:
    """Share of true entries in a bool array [N], with its standard error."""
    mean = float(np.mean(verdicts))
    return Estimate(mean, float(np.sqrt(mean * (1 - mean) / len(verdicts))))


def evaluate(
    logits_fn: Callable[..., Any],
    data: Dataset | tuple[Any, Any],
    attacks: Mapping[str, Callable[..., Any]],
    *,
    key: jax.Array,
    cascade: bool = False,
    batch_size: int | None = None,
    bounds: inputs.Bounds = (0.0, 1.0),
    eot: int | None = None,
    dtype: Any = None,
    devices: Sequence[Any] | None = None,
    run_dir: str | os.PathLike[str] | None = None,
    resume: bool = False,
    progress: bool = False,
) -> Evaluation:
    """Measure clean and robust accuracy, sample by sample.

    Args:
        logits_fn: images [B, *S] -> logits [B, K]; with `eot` (images, keys [B]).
        data: a `robjax.data.Dataset`, or (images [N, *S] floating, labels int [N]).
        attacks: name -> attack with its options bound, for example
            ``{"pgd": functools.partial(attacks.pgd, ball=Linf(0.3), steps=40)}``.
            Only untargeted attacks; an empty mapping measures clean accuracy alone.
            Arrays and the ε of a ball, a number or [N], are traced, so another ε does
            not recompile; other options are static.
        key: one key; sample i draws from ``fold_in(key, i)``.
        cascade: give each attack only what no attack before it fooled, and draws of its
            own; otherwise each gets all that is classified correctly, with the same
            draws.
        batch_size: images at a time, over all devices together (rounded up to a
            multiple of them); default: 64 on a CPU, else 256.
        bounds: lowest and highest value of an image.
        eot: draws over which verdicts on a randomised model are averaged.
        dtype: precision that the attacks run the model in, say `jnp.bfloat16`; None:
            that of the model. Verdicts are given on the model as it is; what they deny
            of an attack's successes is attacked again on it, what it misses is not.
        devices: devices that share each batch; default: all local ones.
        run_dir: folder for what every batch gave, images included, as it is done.
        resume: go on with the evaluation in `run_dir`, which must be this very one.
        progress: show a bar for each attack, with the robust accuracy so far.

    Returns:
        The per-sample table, on the host.

    Raises:
        ValueError: an argument has a wrong shape, type or value: the message names it,
            and the model has not been compiled by then. Or `run_dir` holds a run and
            `resume` is False, or it holds another run.
    """
    bounds = inputs.check_bounds(bounds)
    images, labels, scale = _check_data(data, bounds)
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
        dtype=dtype,
        name="data labels",
    )
    outcome = harness.run(
        task,
        attacks,
        cascade=cascade,
        folder=run_dir,
        resume=resume,
        progress=progress,
    )
    return _assemble(labels, outcome, cascade)


def _assemble(labels, outcome: harness.Outcome, cascade: bool) -> Evaluation:
    """Turn the raw columns into verdicts."""
    clean, *_ = outcome.columns.values()
    tables, robust = {}, ~clean.fooled
    for name, column in list(outcome.columns.items())[1:]:
        before = robust if cascade else ~clean.fooled
        after = before & ~column.fooled
        robust = robust & after
        first = np.where(column.fooled, column.first_success, -1)
        first = np.where(clean.fooled, 0, first)
        columns = (column.margin, first, column.distance, column.queries)
        tables[name] = AttackTable(after, *columns)
    record = (tables, outcome.fooled_by, outcome.warnings)
    return Evaluation(labels, clean.predicted, *record)


def _check_data(data: Any, bounds: inputs.Bounds):
    """Images [N, *S] and int labels [N] on the host; the scale of integer images."""
    if isinstance(data, Dataset):
        images, scale = np.asarray(data.images), data.scale
        low, high = images.min(initial=0) / scale, images.max(initial=0) / scale
        if not (bounds[0] <= low and high <= bounds[1]):  # NaN fails too
            raise ValueError(
                f"data images must lie inside bounds {bounds}, got values from "
                f"{low:g} to {high:g}"
            )
        labels = inputs.check_labels(
            data.labels, len(images), num_classes=data.num_classes, name="data labels"
        )
        return images, np.asarray(labels), scale
    if not (isinstance(data, tuple) and len(data) == 2):
        kind = type(data).__name__
        raise ValueError(f"data must be a Dataset or (images, labels), got {kind}")
    images = inputs.check_images(data[0], bounds=bounds, name="data images")
    labels = inputs.check_labels(data[1], len(images), name="data labels")
    return np.asarray(images), np.asarray(labels), None
