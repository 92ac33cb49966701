"""Auto-PGD: projected ascent that sets its own step size.

Croce & Hein, ICML 2020 (L∞, L2: `apgd_steps`) and ICML 2021 (L1: `apgd_l1`). A run of
N steps evaluates N + 1 points; its checkpoints are a table that the loop reads, so that
all runs (targets × restarts) share one compiled loop. A sample stays as it was at its
first success, and the loop ends when all are solved.

Randomised models (`draws`): with ``eot=n`` every point is evaluated with n fresh draws;
loss and gradient are their means, and a point fools the model if the mean of the same
draws' logits does.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from robjax import inputs, losses
from robjax.attacks import apgd_l1, apgd_steps, ascent, draws
from robjax.attacks.apgd_steps import select
from robjax.attacks.ascent import AttackResult, Best, Problem
from robjax.balls import L1, L2, Ball, Linf
from robjax.inputs import Bounds


def apgd(
    logits_fn: Any,
    x: jax.Array,
    y: jax.Array,
    *,
    key: jax.Array,
    ball: Ball,
    bounds: Bounds = (0.0, 1.0),
    steps: int = 100,
    restarts: int = 1,
    loss: Any = losses.cross_entropy,
    rho: float = 0.75,
    eot: int | None = None,
    large_reps: bool = False,
    start: jax.Array | None = None,
    reference_quirks: bool = False,
) -> AttackResult:
    """Auto-PGD on `loss`, untargeted; 1 forward pass and N + 1 gradients a restart.

    Args:
      logits_fn: images [B, *S] -> logits [B, K], or (images, keys [B]) with `eot`.
      x: [B, *S] images inside `bounds`.
      y: [B] integer labels.
      key: one key, or one for each sample.
      ball: Linf(ε), L2(ε) or L1(ε); ε a number or [B].
      bounds: lowest and highest pixel value.
      steps: N ≥ 1, static.
      restarts: independent random starts, static.
      loss: (logits, labels) -> [B] to be maximised, static; `losses.dlr` becomes
        `losses.margin` for two classes.
      rho: ρ, share of steps that must raise the loss to keep the step size (L∞, L2).
      eot: draws of a randomised model for each evaluation; None: deterministic.
      large_reps: L1 only: shrink the radius from 3ε over 2ε to ε, at least 10 steps.
      start: [B, *S] where the first restart begins, instead of at random.
      reference_quirks: as the reference implementation: its loss history begins with a
        0, its L2 projection is not exact, its L1 runs do not end with the step that is
        best on a linear model, with `eot` losses and verdicts come from the last draw
        alone, and a run goes on after success and returns its last fooling iterate.

    Returns:
      AttackResult. `first_success` counts evaluations: 0 is the clean image, 1 + i the
      result of i steps. Unsolved samples get the iterate of highest loss.

    Raises:
      ValueError: an argument is malformed; the message names it.
    """
    problem, y, classes = _check(logits_fn, x, y, key, ball, bounds, eot)
    if loss is losses.dlr and classes == 2:
        loss = losses.margin
    return _apgd(
        problem,
        y,
        inputs.sample_keys(key, x.shape[0]),
        _check_start(start, problem),
        jnp.zeros(1, jnp.int32),
        loss=loss,
        targeted=False,
        **_check_options(ball, steps, restarts, rho, eot, large_reps, reference_quirks),
    )


def apgd_targeted(
    logits_fn: Any,
    x: jax.Array,
    y: jax.Array,
    *,
    key: jax.Array,
    ball: Ball,
    bounds: Bounds = (0.0, 1.0),
    steps: int = 100,
    restarts: int = 1,
    targets: int | Sequence[int] = 9,
    rho: float = 0.75,
    eot: int | None = None,
    large_reps: bool = False,
    start: jax.Array | None = None,
    reference_quirks: bool = False,
) -> AttackResult:
    """Auto-PGD on the targeted DLR loss, one run for each of the likeliest classes.

    The target of a run only shapes its loss: leaving y for any class is success. With
    three classes the loss is `losses.dlr`, with two `losses.margin`.

    Args:
      logits_fn: as in `apgd`, and so is every argument not listed here.
      x: [B, *S] images inside `bounds`.
      y: [B] integer labels.
      key: one key, or one for each sample.
      ball: Linf(ε), L2(ε) or L1(ε).
      bounds: lowest and highest pixel value.
      steps: N ≥ 1, static.
      restarts: random starts for each target, static.
      targets: how many classes, likeliest wrong ones first (at most K − 1), or which
        ones: 1 is the likeliest wrong class of the clean image.
      rho: as in `apgd`.
      eot: as in `apgd`.
      large_reps: as in `apgd`.
      start: [B, *S] where the first restart of every target begins.
      reference_quirks: as in `apgd`.

    Returns:
      AttackResult as in `apgd`; `loss` is the margin max_{i≠y} z_i − z_y, because
      losses of different targets cannot be compared.

    Raises:
      ValueError: an argument is malformed; the message names it.
    """
    problem, y, classes = _check(logits_fn, x, y, key, ball, bounds, eot)
    loss = {2: losses.margin, 3: losses.dlr}.get(classes, losses.targeted_dlr)
    return _apgd(
        problem,
        y,
        inputs.sample_keys(key, x.shape[0]),
        _check_start(start, problem),
        jnp.asarray(_check_targets(targets, classes), jnp.int32),
        loss=loss,
        targeted=True,
        **_check_options(ball, steps, restarts, rho, eot, large_reps, reference_quirks),
    )


def _check(logits_fn, x, y, key, ball, bounds, eot):
    if eot is not None:
        inputs.check_count("eot", eot)
    problem = ascent.check(logits_fn, x, ball, bounds)
    if not isinstance(ball, Linf | L2 | L1):
        raise ValueError(f"ball must be Linf(eps), L2(eps) or L1(eps), got {ball!r}")
    keys = inputs.sample_keys(key, x.shape[0])
    classes = draws.count_classes(problem.logits_fn, problem.x, keys, eot)
    y = inputs.check_labels(y, x.shape[0], num_classes=classes)
    return problem, y, classes


def _check_options(ball, steps, restarts, rho, eot, large_reps, reference_quirks):
    inputs.check_count("steps", steps, minimum=10 if large_reps else 1)
    inputs.check_count("restarts", restarts)
    inputs.check_number("rho", rho, minimum=0)
    if large_reps and not isinstance(ball, L1):
        raise ValueError(f"large_reps must be False unless ball is L1, got {ball!r}")
    return {
        "steps": steps,
        "restarts": restarts,
        "rho": float(rho),
        "eot": eot,
        "large_reps": bool(large_reps),
        "reference_quirks": bool(reference_quirks),
    }


def _check_start(start: Any, problem: Problem) -> jax.Array | None:
    if start is None:
        return None
    start = inputs.check_images(start, bounds=problem.bounds, name="start")
    if start.shape != problem.x.shape:
        raise ValueError(f"start must have the shape of x, got {start.shape}")
    return start.astype(problem.x.dtype)


def _check_targets(targets: Any, classes: int) -> list[int]:
    if not isinstance(targets, Sequence):
        count = inputs.check_count("targets", targets)
        return list(range(1, min(count, classes - 1) + 1))
    ranks = [inputs.check_count("targets", rank) for rank in targets]
    if not ranks or max(ranks) >= classes:
        raise ValueError(
            f"targets must be ranks from 1 to {classes - 1}, got {targets!r}"
        )
    return ranks


@functools.partial(
    jax.jit,
    static_argnames=(
        "loss",
        "targeted",
        "steps",
        "restarts",
        "rho",
        "eot",
        "large_reps",
        "reference_quirks",
    ),
)
def _apgd(
    problem: Problem,
    y: jax.Array,
    keys: jax.Array,
    start: jax.Array | None,
    ranks: jax.Array,
    *,
    loss: Any,
    targeted: bool,
    restarts: int,
    eot: int | None,
    reference_quirks: bool,
    **options,
) -> AttackResult:
    # for whoever differentiates around the attack, its result is a constant
    problem, start = lax.stop_gradient((problem, start))
    logits_fn, x, _, _ = problem
    report = losses.margin if targeted else loss
    logits = draws.mean_logits(logits_fn, x, draws.fold(keys, 0), eot)
    wrong = losses.misclassified(logits, y)
    best = Best.none(x, logits.dtype)
    best = best.update(x, report(logits, y), wrong, freeze=True, replace=False)
    is_label = jnp.arange(logits.shape[1])[None] == y[:, None]
    by_rank = jnp.argsort(jnp.where(is_label, jnp.inf, -logits), axis=1)

    def run(carry):
        r, best = carry
        rank, restart = ranks[r // restarts], r % restarts
        target = jnp.take(by_rank, rank - 1, axis=1)
        run_keys = draws.fold(draws.fold(draws.fold(keys, 1), rank), restart)
        use_loss = functools.partial(_loss, loss, y, target)
        evaluate = draws.evaluation(logits_fn, use_loss, eot, reference_quirks)
        climb, advance, plan = setup(
            problem, start, restart == 0, draws.fold(run_keys, 0), logits.dtype,
            reference_quirks=reference_quirks, **options,
        )  # fmt: skip
        noted = functools.partial(
            _note, y=y, report=report, open_=~best.success, last=reference_quirks
        )

        def step(carry):
            i, climb, best = carry
            row = jax.tree.map(lambda column: column[i], plan)
            g, (value, logits) = evaluate(
                climb.x, draws.fold(draws.fold(run_keys, 1), i)
            )
            best = noted(best, climb.x, logits, row.counts)
            return i + 1, advance(climb, g, value, row), best

        def unfinished(carry):
            i, _, best = carry
            return (i < plan.first.size) & (reference_quirks | ~best.success.all())

        return r + 1, lax.while_loop(unfinished, step, (0, climb, best))[2]

    def unsolved(carry):
        r, best = carry
        return (r < ranks.size * restarts) & ~best.success.all()

    _, best = lax.while_loop(unsolved, run, (0, best))
    result = best.result(x, problem.ball)
    return result._replace(queries=result.queries * (1 if eot is None else eot))


def _loss(loss, y, target, logits):
    return loss(logits, y, target) if loss is losses.targeted_dlr else loss(logits, y)


def setup(
    problem: Problem,
    start: jax.Array | None,
    use_start: Any,
    keys: jax.Array,
    loss_dtype: Any,
    *,
    steps: int,
    rho: float = 0.75,
    large_reps: bool = False,
    reference_quirks: bool = False,
):
    """State, step function (state, gradient, loss, row) -> state and plan of a run.

    `start` [B, *S] is used where `use_start` holds, else a random start from `keys`.
    """
    _, x, _, bounds = problem
    ball: Any = problem.ball  # a Protocol knows nothing of dataclasses.replace
    if isinstance(ball, L1):
        plan = apgd_steps.plan(apgd_l1.phases(steps, large_reps=large_reps))
        draw = functools.partial(apgd_l1.noise, radius=3.0 if large_reps else 1.0)
        begin = apgd_l1.begin
        given = jnp.asarray(use_start if start is not None else False) | large_reps
        advance = functools.partial(
            apgd_l1.advance, x=x, ball=ball, bounds=bounds, given_start=given,
            reference_quirks=reference_quirks,
        )  # fmt: skip
    else:
        windows = apgd_steps.checkpoint_windows(steps)
        plan = apgd_steps.plan([(1.0, windows, steps)])
        draw, begin = apgd_steps.noise, apgd_steps.begin
        advance = functools.partial(
            apgd_steps.advance, x=x, ball=ball, bounds=bounds, rho=rho,
            reference_quirks=reference_quirks,
        )  # fmt: skip
    first = draw(keys, x, ball, bounds)
    if start is not None:
        largest = dataclasses.replace(ball, eps=plan.scale[0] * ball.eps)
        first = jnp.where(use_start, largest.project(start, x, bounds), first)
    return begin(first, x, ball, loss_dtype), advance, jax.tree.map(jnp.asarray, plan)


def _note(best: Best, v, logits, counts, *, y, report, open_, last: bool) -> Best:
    """Takes in an evaluated point; with `last` a run's last fooling point wins."""
    value, wrong = report(logits, y), counts & losses.misclassified(logits, y)
    value = jnp.where(counts, value, -jnp.inf)
    noted = best.update(v, value, wrong, freeze=not last, replace=False)
    if not last:
        return noted
    newest = noted._replace(x_adv=v, loss=value)
    return select(open_, select(wrong, newest, noted), best)
