"""Clean and robust accuracy of a model over a data set, sample by sample.

    evaluate(logits_fn, test, {"pgd": partial(attacks.pgd, ball=ball)}, key=key)
    evaluate(logits_fn, test, attacks.suite("standard", ball), key=key, cascade=True)

The first judges every attack on its own. The second is AutoAttack: each attack gets
the samples that are still robust.

The sample with index i in the data set always draws from ``fold_in(key, i)``. So the
table does not depend on the batch size, the padding of the last batch or the number of
devices, up to floating-point reassociation. Several processes (`jax.distributed`) share
the batches, and each returns the whole table.
"""

from collections.abc import Mapping, Sequence

import jax
import numpy as np
from jax.typing import ArrayLike, DTypeLike

from robjax.checks import Bounds, check_flags
from robjax.data import Dataset
from robjax.evaluation.arguments import check_attacks, check_data
from robjax.evaluation.attack import Attack
from robjax.evaluation.batches import Task
from robjax.evaluation.loop import Outcome, run_attacks
from robjax.evaluation.sharding import Device
from robjax.evaluation.tables import AttackTable, Evaluation
from robjax.model import LogitsFn
from robjax.runs.files import PathLike, as_path


def evaluate(
    logits_fn: LogitsFn,
    data: Dataset | tuple[ArrayLike, ArrayLike | Sequence[int]],
    attacks: Mapping[str, Attack],
    *,
    key: jax.Array,
    cascade: bool = False,
    batch_size: int | None = None,
    bounds: Bounds = (0.0, 1.0),
    eot: int | None = None,
    dtype: DTypeLike | None = None,
    devices: Sequence[Device] | None = None,
    keep_images: bool = False,
    run_dir: PathLike | None = None,
    resume: bool = False,
    progress: bool = False,
) -> Evaluation:
    """Measures clean and robust accuracy, sample by sample.

    Here ε = 0.15 closes the gap between the pixels of the first image, not that of the
    second:

    >>> import functools
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
      logits_fn: images [B, *S] -> logits [B, K], or (images, keys [B]) -> logits with
        `eot`; any callable (`as_logits_fn`).
      data: a `robjax.data.Dataset`, or (images [N, *S] floating, labels int [N]).
      attacks: name -> untargeted attack with its options bound, for example
        ``{"pgd": functools.partial(attacks.pgd, ball=Linf(0.3), steps=40)}``. An empty
        mapping measures clean accuracy alone. Arrays are traced, and so is the ε of a
        ball, a number or [N]: another ε compiles nothing. Other options are static.
      key: one key, or one for each sample. Of one key, sample i draws from
        ``fold_in(key, i)``.
      cascade: give each attack only the samples that no attack before it fooled, and
        draws of its own. Otherwise each gets all samples that are classified correctly,
        with the same draws.
      batch_size: most images at a time, over all devices together; rounded up to a
        multiple of the device count. By default 64 on a CPU, else 256.
      bounds: lowest and highest pixel value: two numbers, or two arrays [*S] or [N, *S]
        as `attacks.limits` makes them of masks or of an ε for each pixel. Verdicts
        respect them exactly.
      eot: draws over which verdicts on a randomised model are averaged; None: the model
        is deterministic. Each attack has an `eot` of its own, to be bound to it, as in
        ``partial(attacks.pgd, ball=ball, eot=20)``.
      dtype: precision in which the attacks run the model, for example `jnp.bfloat16`;
        None: that of the model. Verdicts always come from the model in its own
        precision. Where a verdict denies a success that an attack claims, the sample is
        attacked again in the precision of the model. A sample on which the attack
        claims no success is not attacked again.
      devices: devices that share each batch; default: all local ones.
      keep_images: give back the images that fooled, as `x_adv`.
      run_dir: folder in which each batch is kept when it is done, images included.
      resume: go on with the run in `run_dir`, which must be this very one.
      progress: show a bar for each attack, with the robust accuracy so far.

    Returns:
      The per-sample table, on the host. Its `warnings` say what there is to distrust;
      `doubts` says it before an attack has run. They cost the gradients of at most 512
      images, if an attack uses gradients, and two passes over one batch.

    Raises:
      ValueError: an argument is malformed; the message names it, and the model has not
        been compiled by then. Or `run_dir` holds a run and `resume` is False, or it
        holds another run.
    """
    check_flags(
        cascade=cascade, keep_images=keep_images, resume=resume, progress=progress
    )
    if run_dir is not None:
        as_path(run_dir, "run_dir")
    images, labels, scale, bounds = check_data(data, bounds)
    attacks = check_attacks(attacks)
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
        keep_images=keep_images,
        folder=run_dir,
        resume=resume,
        progress=progress,
    )
    return _assemble(task.labels, outcome, cascade)


def _assemble(labels: np.ndarray, outcome: Outcome, cascade: bool) -> Evaluation:
    """Makes the table from the record of a run."""
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
        x_adv=outcome.x_adv,
    )
