"""AutoAttack: several attacks, each on the samples that are still robust.

Croce & Hein, ICML 2020 (L1: ICML 2021). None of the attacks has a step size to tune.
Every attack starts from the clean images of the samples that no attack before it has
fooled. `robjax.evaluation` gathers these samples into batches, and judges what an
attack returns by a fresh forward pass.
"""

import functools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.typing import DTypeLike

from robjax import losses
from robjax.attacks.apgd import apgd, apgd_targeted
from robjax.attacks.minimal_norm import fab
from robjax.attacks.square import square
from robjax.balls import L1, L2, Ball, Linf
from robjax.boxes import check_box
from robjax.checks import Bounds, check_flags, check_range
from robjax.evaluation.arguments import check_attacks, check_ball
from robjax.evaluation.attack import Attack
from robjax.evaluation.batches import Task
from robjax.evaluation.loop import Outcome, run_attacks
from robjax.evaluation.sharding import Device
from robjax.model import LogitsFn, as_logits_fn
from robjax.runs.files import PathLike
from robjax.samples import is_concrete

_RAND_EOT = 20


class AutoAttackResult(NamedTuple):
    """What the ensemble did to each of B samples, on the host.

    Attributes:
      x_adv: [B, *S] the first image that fooled; the clean image where nothing fooled.
      success: [B] bool, whether `x_adv` fools the model.
      loss: [B] margin max_{i≠y} z_i − z_y, as the verdict measured it.
        * Where `x_adv` fools: that of `x_adv`.
        * Elsewhere: the largest of the clean image and of the images inside box and
          ball that the attacks returned.
      first_success: [B] int32, when the attack that fooled first did so, as it counts
        itself. 0: the clean image is misclassified; −1: nothing fooled.
      distance: [B] ‖x_adv − x‖ in the ball's norm; 0 where nothing fooled, because
        there `x_adv` is the clean image.
      queries: [B] int32, images evaluated for this sample, by all attacks and all
        verdicts, that on the clean image among them; −1: an attack does not say.
      fooled_by: [B] int32, index into `attacks` of the first that fooled; −1: robust.
      broken: [A, B] bool, which samples each of `attacks` fooled; false where it did
        not see the sample.
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
        """Shows robust accuracy after each attack and the warnings; no arrays."""
        if not is_concrete(self.fooled_by):
            return "AutoAttackResult(traced)"
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
    """Lists the attacks of a version of AutoAttack, by name and in their order.

    * standard, individual: apgd-ce, apgd-t, fab-t, square. For L1 apgd-ce and apgd-t
      begin with larger radii; apgd-ce has five restarts, apgd-t five targets.
    * plus: apgd-ce, apgd-dlr, fab, square, apgd-t, fab-t.
    * rand: apgd-ce, apgd-dlr, with `eot` draws for each evaluation.
    * fast: not of AutoAttack, but at 1/12 of standard's cost for an image that stays
      robust. Auto-PGD alone: 10 steps towards each of nine classes, 100 towards the one
      that came nearest, then 100 on the cross-entropy, which in L2 and L1 are 25 from
      each of four starts. Where gradients mislead it finds less, so it is for
      `evaluation.audited`, which says how much less.

    >>> from robjax.balls import Linf
    >>> list(suite("standard", Linf(8 / 255)))
    ['apgd-ce', 'apgd-t', 'fab-t', 'square']

    Args:
      version: "standard", "individual", "plus", "rand" or "fast".
      ball: threat model, bound to each attack.
      eot: draws for "rand", 20 if None; else None.
      reference_quirks: each attack does as the code of its reference does, where that
        departs from the paper.

    Returns:
      Name -> attack with its options bound, as `evaluate` takes it.

    Raises:
      ValueError: there is no such version, or its attacks know no `eot`.
    """
    check_flags(reference_quirks=reference_quirks)
    if not isinstance(ball, Linf | L2 | L1):
        raise ValueError(f"ball must be Linf(eps), L2(eps) or L1(eps), got {ball!r}")
    check_range("ball.eps", ball.eps, 0)
    if eot is not None and version in ("standard", "individual", "plus", "fast"):
        raise ValueError(
            f"eot must be None for version {version!r}, whose attacks call the model "
            f"without keys, got {eot!r}; version 'rand' averages over draws"
        )

    def bind(attack: Attack, **options: Any) -> Attack:
        return functools.partial(
            attack, ball=ball, reference_quirks=reference_quirks, **options
        )

    sparse = isinstance(ball, L1)
    random_search = bind(square, queries=5000)
    fab_t = bind(fab, targets=9, early_exit=True)
    if version in ("standard", "individual"):
        restarts = 5 if sparse else 1
        targets = 5 if sparse else 9
        return {
            "apgd-ce": bind(apgd, restarts=restarts, large_reps=sparse),
            "apgd-t": bind(apgd_targeted, targets=targets, large_reps=sparse),
            "fab-t": fab_t,
            "square": random_search,
        }
    if version == "fast":
        starts = 1 if isinstance(ball, Linf) else 4
        return {
            "apgd-t 9×10+1×100": bind(
                apgd_targeted, steps=10, longer=(1, 100), large_reps=sparse
            ),
            f"apgd-ce {starts}×{100 // starts}": bind(
                apgd, steps=100 // starts, restarts=starts, large_reps=sparse
            ),
        }
    if version == "plus":
        return {
            "apgd-ce": bind(apgd, restarts=5),
            "apgd-dlr": bind(apgd, loss=losses.dlr, restarts=5),
            "fab": bind(fab, restarts=5, early_exit=True),
            "square": random_search,
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
        "version must be 'standard', 'plus', 'rand', 'individual' or 'fast' (for "
        "autoattack with attacks= 'custom'), got "
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
    dtype: DTypeLike | None = None,
    devices: Sequence[Device] | None = None,
    run_dir: PathLike | None = None,
    resume: bool = False,
    progress: bool = False,
) -> AutoAttackResult:
    """Runs several attacks one after the other, each on the samples still robust.

    Here ε = 0.15 closes the gap between the pixels of the first image, not that of the
    second:

    >>> from robjax import attacks
    >>> from robjax.balls import Linf
    >>> autoattack(
    ...     lambda x: x,
    ...     np.array([[0.2, 0.4], [0.9, 0.1]], np.float32),
    ...     np.array([1, 0]),
    ...     key=jax.random.key(0),
    ...     ball=Linf(0.15),
    ...     version="custom",
    ...     attacks={"pgd": functools.partial(attacks.pgd, steps=5)},
    ... )
    AutoAttackResult(2 images: clean 100.00 %, pgd 50.00 %)

    Args:
      logits_fn: images [B, *S] -> logits [B, K], or (images, keys [B]) -> logits with
        `eot` or version="rand"; any callable (`as_logits_fn`).
      x: [B, *S] images inside `bounds`, any number of them; half precision becomes
        float32.
      y: [B] integer labels.
      key: one key (sample i draws from ``fold_in(key, i)``), or one for each sample.
      ball: Linf(ε), L2(ε) or L1(ε); ε a number or [B].
      bounds: as in `pgd`.
      version: which attacks run (`suite`): "standard", "plus", "rand", "custom" or
        "individual". The last runs the attacks of standard, each on every sample that
        is classified correctly.
      attacks: for "custom", name -> attack, for example ``{"pgd": partial(pgd,
        steps=40)}``. It is called as attack(logits_fn, x, y, key=, ball=, bounds=).
      eot: draws over which a randomised model is averaged.
        * "rand": by the attacks and the verdicts; 20 if None.
        * "custom": by the verdicts. Each attack has an `eot` of its own.
        * Other versions: None, since their attacks call the model without keys.
      reference_quirks: the attacks do as the code of their references does, where that
        departs from the paper (`apgd`, `fab`, `square`). False for "custom", whose
        attacks have options of their own.
      batch_size: most images at a time, over all devices together; rounded up to a
        multiple of the device count. By default 64 on a CPU, else 256.
      dtype: precision in which the attacks run the model, for example `jnp.bfloat16`;
        None: that of the model. Verdicts always come from the model in its own
        precision. Where a verdict denies a success that an attack claims, the sample is
        attacked again in the precision of the model. A sample on which the attack
        claims no success is not attacked again.
      devices: devices that share each batch; default: all local ones.
      run_dir: folder in which each batch is kept when it is done, images included.
      resume: go on with the run in `run_dir`, which must be this very one.
      progress: show a bar for each attack, with the robust accuracy so far.

    Returns:
      AutoAttackResult. An image outside the box, or outside the ball by more than
      rounding, counts as not fooling (`robjax.evaluation.verdicts`). Logits that are
      not finite count as fooling.

    Raises:
      ValueError: an argument is malformed; the message names it. Or `run_dir` holds a
        run and `resume` is False, or it holds another run.
    """
    check_flags(reference_quirks=reference_quirks, resume=resume, progress=progress)
    logits_fn = as_logits_fn(logits_fn)
    x, bounds = check_box(x, bounds)
    images = np.asarray(x)
    check_ball("ball", ball, len(images))
    if version == "custom":
        named = _bind_ball(attacks, ball, reference_quirks)
    elif attacks is None:
        named = suite(version, ball, eot=eot, reference_quirks=reference_quirks)
    else:
        raise ValueError(
            f"attacks must be None for version {version!r}, got {attacks}: give "
            "version='custom' with a mapping from names to attacks"
        )
    task = Task.make(
        logits_fn,
        images,
        y,
        key=key,
        bounds=bounds,
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


def _bind_ball(
    attacks: Mapping[str, Attack] | None, ball: Ball, reference_quirks: bool
) -> dict[str, Attack]:
    if not attacks:
        raise ValueError(f"attacks must name some for version 'custom', got {attacks}")
    if reference_quirks:
        raise ValueError(
            "reference_quirks must be False for version 'custom', whose attacks have "
            "options of their own, got True"
        )
    # what is not callable is left to `check_attack`, whose message has the name
    return {
        name: functools.partial(attack, ball=ball) if callable(attack) else attack
        for name, attack in check_attacks(attacks).items()
    }


def _summarise(outcome: Outcome) -> AutoAttackResult:
    """Reads the result off the record of a run."""
    columns = list(outcome.verdicts.values())
    fooled_by = outcome.fooled_by
    success = fooled_by >= 0
    rows = np.arange(len(fooled_by))

    def of_winner(field: str) -> np.ndarray:
        # [B] as the first that fooled has it; arbitrary where nothing fooled
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
