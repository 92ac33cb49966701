"""Clean and robust accuracy of a model over a data set, sample by sample.

    evaluate(logits_fn, test, {"pgd": partial(attacks.pgd, ball=ball)}, key=key)
    evaluate(logits_fn, test, attacks.suite("standard", ball), key=key, cascade=True)

The first judges every attack on its own. The second is AutoAttack: each attack gets
what is still robust.

Sample i always draws from ``fold_in(key, i)``, i its index in the data set. So the
table does not depend on the batch size, the padding of the last batch or the number of
devices, up to floating-point reassociation.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from robjax.checks import Bounds, check_bounds, check_images, check_labels
from robjax.data import Dataset
from robjax.evaluation.attack import Attack
from robjax.evaluation.batches import Task
from robjax.evaluation.loop import Outcome, run_attacks
from robjax.evaluation.tables import AttackTable, Evaluation
from robjax.model import LogitsFn
from robjax.runs.files import PathLike


def evaluate(
    logits_fn: LogitsFn,
    data: Dataset | tuple[Any, Any],
    attacks: Mapping[str, Attack],
    *,
    key: jax.Array,
    cascade: bool = False,
    batch_size: int | None = None,
    bounds: Bounds = (0.0, 1.0),
    eot: int | None = None,
    dtype: jax.typing.DTypeLike | None = None,
    devices: Sequence[jax.Device] | None = None,
    run_dir: PathLike | None = None,
    resume: bool = False,
    progress: bool = False,
) -> Evaluation:
    """Measures clean and robust accuracy, sample by sample.

    >>> import functools, jax.numpy as jnp
    >>> from robjax import attacks
    >>> from robjax.balls import Linf
    >>> x = np.array([[0.2, 0.4], [0.9, 0.1]], np.float32)
    >>> pgd = functools.partial(attacks.pgd, ball=Linf(0.15), steps=5)
    >>> evaluate(
    ...     lambda x: 10 * x, (x, np.array([1, 0])), {"PGD-5": pgd},
    ...     key=jax.random.key(0),
    ... )
    accuracy on 2 images
      clean  100.00 ± 0.00 %
      PGD-5   50.00 ± 35.36 %

    Args:
      logits_fn: images [B, *S] -> logits [B, K]; with `eot` (images, keys [B]).
      data: a `robjax.data.Dataset`, or (images [N, *S] floating, labels int [N]).
      attacks: name -> attack with its options bound, for example
        ``{"pgd": functools.partial(attacks.pgd, ball=Linf(0.3), steps=40)}``. Only
        untargeted attacks; an empty mapping measures clean accuracy alone. Arrays and
        the ε of a ball, a number or [N], are traced, so another ε does not recompile;
        other options are static.
      key: one key; sample i draws from ``fold_in(key, i)``.
      cascade: give each attack only what no attack before it fooled, and draws of its
        own. Otherwise each gets all that is classified correctly, with the same draws.
      batch_size: images at a time, over all devices together (rounded up to a multiple
        of them); default: 64 on a CPU, else 256.
      bounds: lowest and highest value of an image.
      eot: draws over which verdicts on a randomised model are averaged.
      dtype: precision that the attacks run the model in, say `jnp.bfloat16`; None: that
        of the model. Verdicts always come from the model as it is. A success that they
        deny is attacked again in the model's own precision; a failure is not.
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
    bounds = check_bounds(bounds)
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
    outcome = run_attacks(
        task,
        attacks,
        cascade=cascade,
        folder=run_dir,
        resume=resume,
        progress=progress,
    )
    return _assemble(labels, outcome, cascade)


def _assemble(labels: np.ndarray, outcome: Outcome, cascade: bool) -> Evaluation:
    """Reads the record of a run: who was robust before and after each attack."""
    clean = outcome.verdicts["clean"]
    robust = ~clean.fooled
    tables = {}
    for name, verdicts in outcome.verdicts.items():
        if name == "clean":
            continue
        before = robust if cascade else ~clean.fooled
        after = before & ~verdicts.fooled
        robust = robust & after
        first = np.where(verdicts.fooled, verdicts.first_success, -1)
        tables[name] = AttackTable(
            robust=after,
            margin=verdicts.margin,
            first_success=np.where(clean.fooled, 0, first),
            distance=verdicts.distance,
            queries=verdicts.queries,
        )
    return Evaluation(
        labels=labels,
        predictions=clean.predicted,
        attacks=tables,
        fooled_by=outcome.fooled_by,
        warnings=outcome.warnings,
    )


def _check_data(
    data: Dataset | tuple[Any, Any], bounds: Bounds
) -> tuple[np.ndarray, np.ndarray, float | None]:
    """Images [N, *S] and int labels [N] on the host; the scale of integer images."""
    if isinstance(data, Dataset):
        images = np.asarray(data.images)
        scale = data.scale
        low = images.min(initial=0) / scale
        high = images.max(initial=0) / scale
        if not (bounds[0] <= low and high <= bounds[1]):  # NaN fails too
            raise ValueError(
                f"data images must lie inside bounds {bounds}, got values from "
                f"{low:g} to {high:g}"
            )
        labels = check_labels(
            data.labels, len(images), num_classes=data.num_classes, name="data labels"
        )
        return images, np.asarray(labels), scale
    if not (isinstance(data, tuple) and len(data) == 2):
        kind = type(data).__name__
        raise ValueError(f"data must be a Dataset or (images, labels), got {kind}")
    images = check_images(data[0], bounds=bounds, name="data images")
    labels = check_labels(data[1], len(images), name="data labels")
    return np.asarray(images), np.asarray(labels), None
