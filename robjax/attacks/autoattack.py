"""AutoAttack: an ensemble of parameter-free attacks, each on what is still robust.

Croce & Hein, ICML 2020 (L1: ICML 2021). Every attack starts from the clean images that
no attack before it has turned. What it returns is judged by a fresh forward pass.
`robjax.evaluation` gathers the survivors into batches and gives the verdicts.
"""

import functools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from robjax import losses
from robjax.attacks.apgd import apgd, apgd_targeted
from robjax.attacks.minimal_norm import fab
from robjax.attacks.problem import check_problem
from robjax.attacks.square import square
from robjax.balls import L1, Ball
from robjax.checks import Bounds
from robjax.evaluation.attack import Attack
from robjax.evaluation.batches import Task
from robjax.evaluation.loop import Outcome, run_attacks
from robjax.model import LogitsFn
from robjax.runs.files import PathLike

_RAND_EOT = 20


class AutoAttackResult(NamedTuple):
    """What the ensemble did to each of B samples, on the host.

    Attributes:
      x_adv: [B, *S] the fooling images; the clean image where nothing fooled.
      success: [B] bool, whether `x_adv` fools the model.
      loss: [B] margin max_{i≠y} z_i − z_y of the image that an attack returned, as the
        verdict measured it: of `x_adv` where it fools, else the largest among the clean
        image and the allowed images that the attacks returned.
      first_success: [B] int32 as counted by the attack that fooled (0 for a clean
        image that is misclassified), −1 where nothing fooled.
      distance: [B] ‖x_adv − x‖ in the ball's norm; 0 where nothing fooled, for there
        `x_adv` is the clean image.
      queries: [B] int32, images evaluated for this sample: clean, by all attacks, and
        one more for the verdict on each; −1 where an attack does not say.
      fooled_by: [B] int32 index into `attacks` of the first that fooled, −1 if robust.
      broken: [A, B] bool, what each of `attacks` fooled among the samples it was given.
      attacks: names in the order they ran; the first, "clean", is the clean image.
      warnings: reasons to distrust the numbers, in words; empty if there are none.
    """

    x_adv: np.ndarray
    success: np.ndarray
    loss: np.ndarray
    first_success: np.ndarray
    distance: np.ndarray
    queries: np.ndarray
    fooled_by: np.ndarray
    broken: np.ndarray
    attacks: tuple[str, ...]
    warnings: tuple[str, ...]

    def __repr__(self) -> str:
        """Robust accuracy after each attack, and the warnings; not the arrays."""
        shares = (f"{k} {100 * v:.2f} %" for k, v in self.robust_accuracy.items())
        robust = f"AutoAttackResult({len(self.success)} images: {', '.join(shares)}"
        return "; ".join((robust, *self.warnings)) + ")"

    @property
    def robust_accuracy(self) -> dict[str, float]:
        """Share of samples still robust after each of `attacks`, in their order."""
        left = np.where(self.fooled_by < 0, len(self.attacks), self.fooled_by)
        return {name: float(np.mean(left > i)) for i, name in enumerate(self.attacks)}


def suite(
    version: str,
    ball: Ball,
    *,
    eot: int | None = None,
    reference_quirks: bool = False,
) -> dict[str, Attack]:
    """The attacks of a version by name, in order, with `ball` and their options bound.

    standard, individual: apgd-ce, apgd-t, fab-t, square; for L1 the two Auto-PGDs begin
    with larger radii, and have five restarts and five targets. plus: apgd-ce, apgd-dlr,
    fab, square, apgd-t, fab-t. rand: apgd-ce and apgd-dlr with `eot` draws a point, 20
    if it is None. With `reference_quirks` each attack follows the reference's code
    where that departs from the paper.

    Raises:
      ValueError: there is no such version, or its attacks know no `eot`.
    """
    if eot is not None and version in ("standard", "individual", "plus"):
        raise ValueError(
            f"eot must be None for version {version!r}, whose attacks call the model "
            f"without keys, got {eot!r}; version 'rand' averages over draws"
        )
    common: dict[str, Any] = {"ball": ball, "reference_quirks": reference_quirks}
    bind = functools.partial(functools.partial, **common)
    sparse = isinstance(ball, L1)
    square_ = bind(square, queries=5000)
    fab_t = bind(fab, targets=9, early_exit=True)
    if version in ("standard", "individual"):
        restarts, targets = (5, 5) if sparse else (1, 9)
        return {
            "apgd-ce": bind(apgd, restarts=restarts, large_reps=sparse),
            "apgd-t": bind(apgd_targeted, targets=targets, large_reps=sparse),
            "fab-t": fab_t,
            "square": square_,
        }
    if version == "plus":
        return {
            "apgd-ce": bind(apgd, restarts=5),
            "apgd-dlr": bind(apgd, loss=losses.dlr, restarts=5),
            "fab": bind(fab, restarts=5, early_exit=True),
            "square": square_,
            "apgd-t": bind(apgd_targeted),
            "fab-t": fab_t,
        }
    if version == "rand":
        draws = _RAND_EOT if eot is None else eot
        return {
            "apgd-ce": bind(apgd, eot=draws),
            "apgd-dlr": bind(apgd, loss=losses.dlr, eot=draws),
        }
    raise ValueError(
        "version must be 'standard', 'plus', 'rand', 'individual' or 'custom', got "
        f"{version!r}"
    )


def autoattack(
    logits_fn: LogitsFn,
    x: jax.Array,
    y: jax.Array,
    *,
    key: jax.Array,
    ball: Ball,
    bounds: Bounds = (0.0, 1.0),
    version: str = "standard",
    attacks: Mapping[str, Attack] | None = None,
    eot: int | None = None,
    reference_quirks: bool = False,
    batch_size: int | None = None,
    dtype: jax.typing.DTypeLike | None = None,
    devices: Sequence[jax.Device] | None = None,
    run_dir: PathLike | None = None,
    resume: bool = False,
    progress: bool = False,
) -> AutoAttackResult:
    """Runs the attacks of a version, one after the other, on the samples still robust.

    Args:
      logits_fn: images [B, *S] -> logits [B, K]; any callable (`as_logits_fn`). With
        `eot`, or version="rand", (images, keys [B]) -> logits.
      x: [B, *S] images inside `bounds`, any number of them.
      y: [B] integer labels.
      key: one key (sample i draws from ``fold_in(key, i)``), or one for each sample.
      ball: Linf(ε), L2(ε) or L1(ε); ε a number or [B].
      bounds: lowest and highest pixel value.
      version: "standard", "plus", "rand", "custom", or "individual": the attacks of
        standard, each on every sample that is classified correctly.
      attacks: for "custom", name -> attack, as ``{"pgd": partial(pgd, steps=40)}``,
        which is called with (logits_fn, x, y, key=, ball=, bounds=).
      eot: for "rand", draws over which the attacks and the verdicts on a randomised
        model are averaged, 20 if None; for "custom", those of the verdicts, as each
        attack has an `eot` of its own. Else None: these attacks know no draws.
      reference_quirks: the attacks follow the reference's code where that departs from
        the paper (`apgd`, `fab`, `square`). A custom attack has an option of its own.
      batch_size: most images at a time, over all devices together (rounded up to a
        multiple of them); default: 64 on a CPU, else 256.
      dtype: precision that the attacks run the model in, say `jnp.bfloat16`; None: that
        of the model. Verdicts always come from the model as it is. A success that they
        deny is attacked again in the model's own precision; a failure is not.
      devices: devices that share each batch; default: all local ones.
      run_dir: folder for what every batch gave, images included, as it is done.
      resume: go on with the run in `run_dir`, which must be this very one.
      progress: show a bar for each attack, with the robust accuracy so far.

    Returns:
      AutoAttackResult. A returned image that is outside the box, or outside the ball by
      more than rounding (`verdicts`), counts as not fooling; logits that are not finite
      as fooling.

    Raises:
      ValueError: an argument is malformed, the message names it; `run_dir` holds a run
        and `resume` is False, or it holds another run.
    """
    problem = check_problem(logits_fn, x, ball, bounds)
    if version == "custom":
        named = _custom(attacks, ball, reference_quirks)
    elif attacks is None:
        named = suite(version, ball, eot=eot, reference_quirks=reference_quirks)
    else:
        raise ValueError(f"attacks must be None for version {version!r}, got {attacks}")
    task = Task.make(
        problem.logits_fn,
        np.asarray(problem.x),
        y,
        key=key,
        bounds=problem.bounds,
        eot=_RAND_EOT if eot is None and version == "rand" else eot,
        batch_size=batch_size,
        devices=devices,
        dtype=dtype,
    )
    outcome = run_attacks(
        task,
        named,
        cascade=version != "individual",
        keep_images=True,
        folder=run_dir,
        resume=resume,
        progress=progress,
    )
    return _summarise(outcome)


def _custom(
    attacks: Mapping[str, Attack] | None, ball: Ball, reference_quirks: bool
) -> dict[str, Attack]:
    if not attacks:
        raise ValueError(f"attacks must name some for version 'custom', got {attacks}")
    if reference_quirks:
        raise ValueError(
            "reference_quirks must be False for version 'custom', whose attacks have "
            "options of their own, got True"
        )
    return {
        name: functools.partial(attack, ball=ball) if callable(attack) else attack
        for name, attack in attacks.items()
    }


def _summarise(outcome: Outcome) -> AutoAttackResult:
    columns = list(outcome.verdicts.values())
    fooled_by = outcome.fooled_by
    success = fooled_by >= 0
    rows = np.arange(len(fooled_by))

    def of_winner(field: str) -> np.ndarray:
        return np.stack([getattr(column, field) for column in columns])[fooled_by, rows]

    highest = np.max([column.margin for column in columns], axis=0)
    queries = np.stack([column.queries for column in columns])
    unknown = (queries < 0).any(axis=0)
    assert outcome.x_adv is not None
    return AutoAttackResult(
        x_adv=outcome.x_adv,
        success=success,
        loss=np.where(success, of_winner("margin"), highest),
        first_success=np.where(success, of_winner("first_success"), -1),
        distance=np.where(success, of_winner("distance"), 0),
        queries=np.where(unknown, -1, queries.sum(axis=0, dtype=np.int32)),
        fooled_by=fooled_by,
        broken=np.stack([column.fooled for column in columns]),
        attacks=tuple(outcome.verdicts),
        warnings=outcome.warnings,
    )
