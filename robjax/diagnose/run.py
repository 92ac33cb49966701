"""All lenses on one or several models; a run can be killed and resumed."""

import functools
import pathlib
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import jax
import numpy as np
from jax.typing import ArrayLike
from tqdm import tqdm

from robjax.balls import L1, L2, Ball, Linf
from robjax.checks import Bounds, check_bounds, check_count, check_flags, check_labels
from robjax.data import Dataset
from robjax.diagnose.lenses import LENSES
from robjax.diagnose.report import ModelReport, Report, load_lens, save_lens
from robjax.diagnose.results import Lens
from robjax.diagnose.subject import Budget, Found, Subject
from robjax.diagnose.verdicts import judge, threat_of
from robjax.evaluation.arguments import check_ball, check_data
from robjax.evaluation.batches import Task, to_images
from robjax.evaluation.store import describe_task
from robjax.evaluation.warnings import of_radius
from robjax.metrics.spurious.swap import check_masks
from robjax.model import LogitsFn
from robjax.runs import files, preemption, provenance
from robjax.runs.processes import Group, joined
from robjax.samples import sample_keys

BUDGETS: dict[str, Budget] = {
    "quick": Budget(128, 20, 64, 32, 0, 32, 128, 8, 3, 1),
    "standard": Budget(1000, 40, 128, 200, 2, 200, 500, 32, 4, 2),
    "full": Budget(10_000, 100, 256, 1000, 8, 1000, 1000, 100, 4, 5),
}
"""Sizes for each budget. `quick` takes two minutes on two cores for a small network,
most of it compiling."""


def diagnose(
    logits_fn: LogitsFn | Mapping[str, LogitsFn],
    data: Dataset | tuple[ArrayLike, ArrayLike | Sequence[int]],
    *,
    ball: Ball,
    key: jax.Array | None = None,
    bounds: Bounds = (0.0, 1.0),
    eot: int | None = None,
    masks: ArrayLike | None = None,
    budget: Budget | Literal["quick", "standard", "full"] = "standard",
    folder: files.PathLike | None = None,
    resume: bool = False,
    progress: bool = False,
) -> Report:
    """Is a model robust, how sure is that, why (not), and what to do next?

    Runs every lens of `robjax.diagnose.lenses` on a random sample of the data:
    AutoAttack, the masking battery, robust accuracy over the radius, minimal distances,
    the parts of the KL divergence, the Fisher spectrum, interactions, gradients and,
    with masks, the reliance on backgrounds. Every number comes with its standard error
    and the number of images it rests on.

    Args:
      logits_fn: images [B, *S] -> logits [B, K], or (images, keys [B]) -> logits with
        `eot`; any callable (`as_logits_fn`). Or several, by name.
      data: a `robjax.data.Dataset`, or (images [N, *S] floating, labels int [N]).
      ball: the threat model: Linf(ε), L2(ε) or L1(ε), ε > 0 one number.
      key: of all draws, the sample of images among them; None: that of seed 0.
      bounds: lowest and highest pixel value.
      eot: draws over which a randomised model is averaged; None: deterministic. Lenses
        that need one function are left out then.
      masks: [N, H, W] 1 on the foreground, for the lens on backgrounds.
      budget: "quick", "standard" or "full", see `BUDGETS`, or sizes of your own.
      folder: where report.json and the parts of the run go; None: nowhere.
      resume: `folder` may hold the beginning of this very run.
      progress: show one bar, with the time that is left.

    Returns:
      The report; print it.

    Raises:
      ValueError: an argument is malformed; the message names it. Or `folder` holds a
        run and `resume` is False, or it holds another run.
      Preempted: SIGTERM came; what the lens in hand had found is in `folder`.
    """
    check_flags(resume=resume, progress=progress)
    models = _check_models(logits_fn)
    sizes = _check_budget(budget)
    key = _check_key(key)
    bounds = check_bounds(bounds)
    _check_ball(ball)
    sample = _sample(data, sizes, key, bounds, masks)
    tasks = {
        name: _task(name if len(models) > 1 else "", model, sample, key, bounds, eot)
        for name, model in models.items()
    }
    for meaningless in of_radius(ball, next(iter(tasks.values())), fits=False):
        raise ValueError(f"ball: {meaningless}")
    settings = {
        "threat": threat_of(ball),
        "budget": sizes._asdict(),
        "images": len(sample.x),
        "size of the data set": sample.total,
        "bounds": bounds,
        "eot": eot,
        "key": np.asarray(jax.random.key_data(key)).tolist(),
        "models": list(models),
    }

    def description() -> dict[str, Any]:
        described = {
            f"{name}: {part}": value
            for name, task in tasks.items()
            for part, value in describe_task(task).items()
        }
        return settings | described | {"masks": provenance.checksum(sample.masks)}

    bar = tqdm(
        total=sum(cost for _, _, cost in LENSES.values()) * len(models),
        disable=not progress or jax.process_index() > 0,
        bar_format="{l_bar}{bar}| {elapsed} gone, {remaining} left",
    )
    with (
        joined("diagnosis", description) as group,
        preemption.watch(folder) as notice,
        bar,
    ):
        path = provenance.open_run(
            folder,
            description,
            parts="*/*.npz",
            resume=resume,
            name="folder",
            group=group,
        )
        reports = {}
        for place, (name, model) in enumerate(models.items()):
            subject = Subject(
                model,
                sample.x,
                np.asarray(tasks[name].labels),
                key,
                ball,
                bounds,
                eot,
                sample.masks,
                None if path is None else path / f"{place:02d}",
            )
            look = functools.partial(_looked, subject, sizes, group, notice)
            reports[name] = _examined(look, ball, bar, name if len(models) > 1 else "")
    command = {"command": shlex.join(sys.orig_argv)}
    report = Report(reports, settings, provenance.versions() | command)
    if path is not None and group.index == 0:
        report.save(path)
    return report


def _examined(
    look: Callable[[str, Found], Lens], ball: Ball, bar: tqdm, name: str
) -> ModelReport:
    """One model through all lenses; `name` is for the bar, if there are several."""
    lenses: dict[str, Lens] = {}
    for lens, (title, _, cost) in LENSES.items():
        bar.set_description(f"{name}: {title}" if name else title)
        lenses[lens] = look(lens, lenses)
        bar.update(cost)
    return ModelReport(judge(lenses, ball), lenses)


class _Sample(NamedTuple):
    """The images that are looked at: x, y, their masks, and of how many they are."""

    x: np.ndarray
    y: np.ndarray
    masks: np.ndarray | None
    total: int


def _sample(
    data: object, sizes: Budget, key: jax.Array, bounds: Bounds, masks: object
) -> _Sample:
    """Draws as many images as the largest lens takes, as floats in [0, 1] scale."""
    images, labels, scale, _ = check_data(data, bounds)
    total = len(images)
    labels = np.asarray(check_labels(labels, total, name="data labels"))
    most = max(
        sizes.attacked, sizes.masked, sizes.nearest, sizes.proven, sizes.compared
    )
    chosen = np.asarray(jax.random.permutation(key, total))[:most]
    x = np.asarray(to_images(images[chosen], scale))
    if masks is None:
        return _Sample(x, labels[chosen], None, total)
    try:
        found = np.asarray(masks)
    except ValueError as error:
        raise ValueError("masks must be one array, got rows of many lengths") from error
    if found.shape != images.shape[:3] or images.ndim != 4:
        raise ValueError(
            f"masks must be [N, H, W] for images [N, H, W, C] of shape "
            f"{images.shape}, got {found.shape}"
        )
    check_masks(found[chosen], jax.numpy.asarray(x))
    return _Sample(x, labels[chosen], found[chosen], total)


def _task(
    name: str,
    model: LogitsFn,
    sample: _Sample,
    key: jax.Array,
    bounds: Bounds,
    eot: int | None,
) -> Task:
    """A model and all images, checked; `name` is for messages, if there are several."""
    try:
        return Task.make(
            model,
            sample.x,
            sample.y,
            key=key,
            bounds=bounds,
            eot=eot,
            name="data labels",
        )
    except ValueError as error:
        if not name:
            raise
        raise ValueError(f"model {name!r}: {error}") from error


def _looked(
    subject: Subject,
    sizes: Budget,
    group: Group,
    notice: preemption.Notice,
    lens: str,
    found: Found,
) -> Lens:
    """Looks through a lens, unless its file tells what it found."""
    _, look, _ = LENSES[lens]
    if subject.folder is None:
        return look(subject, sizes, found)
    path = pathlib.Path(subject.folder) / f"{lens}.npz"
    done = load_lens(path)
    # what one process does not find, all look for together
    if all(group.exchange(done is not None)) and done is not None:
        return done
    notice.leave()
    path.parent.mkdir(exist_ok=True)
    # the lens on attacks keeps its batches as it goes, in a folder of its own
    parts = path.parent / lens
    result = look(subject._replace(folder=parts), sizes, found)
    if group.index == 0:
        save_lens(path, result)
    return result


def _check_models(logits_fn: object) -> dict[str, LogitsFn]:
    models = logits_fn if isinstance(logits_fn, Mapping) else {"model": logits_fn}
    if not models:
        raise ValueError("logits_fn must name a model at least, got an empty mapping")
    for name in models:
        if not isinstance(name, str) or not name:
            raise ValueError(f"logits_fn must have names as keys, got {name!r}")
    return dict(models)


def _check_key(key: Any) -> jax.Array:
    """One key; None: that of seed 0."""
    key = jax.random.key(0) if key is None else key
    try:
        sample_keys(key, 1)  # old keys, too
        single = jax.random.key_data(key).ndim == 1
    except (ValueError, TypeError):
        single = False
    if not single:
        found = f"shape {key.shape}" if hasattr(key, "shape") else f"{key!r}"
        raise ValueError(f"key must be one key from jax.random.key(seed), got {found}")
    return key


def _check_ball(ball: object) -> None:
    allowed = (Linf, L2, L1)
    if not isinstance(ball, allowed) and ball not in allowed:
        raise ValueError(f"ball must be Linf(eps), L2(eps) or L1(eps), got {ball!r}")
    check_ball("ball", ball, np.size(getattr(ball, "eps", 0)))
    if np.ndim(ball.eps) or not float(ball.eps) > 0:
        raise ValueError(f"ball must have one radius above 0, got {ball}")


def _check_budget(budget: object) -> Budget:
    if isinstance(budget, str) and budget in BUDGETS:
        budget = BUDGETS[budget]
    if not isinstance(budget, Budget):
        raise ValueError(
            f"budget must be one of {', '.join(BUDGETS)} or a Budget, got {budget!r}"
        )
    for field, value in budget._asdict().items():
        check_count(f"budget.{field}", value, minimum=0 if field == "starts" else 1)
    return budget
