"""Auto-PGD: projected ascent that sets its own step size.

Croce & Hein, ICML 2020 (L∞, L2: `step_rule`) and ICML 2021 (L1: `step_rule_l1`).

A run of N steps evaluates N + 1 points. All runs (targets × restarts) share one
compiled loop, which reads its checkpoints from a table (`plan`). A sample stays as it
was at its first success, and the loop ends when all are solved.

With ``eot=n`` a randomised model is evaluated with n fresh draws at every point. Loss
and gradient are their means, and a point fools the model if the mean of the same draws'
logits does.
"""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import lax

from robjax import losses
from robjax.attacks.apgd import step_rule, step_rule_l1
from robjax.attacks.apgd.plan import Options, make_plan
from robjax.attacks.problem import Problem, check_classes, check_problem
from robjax.attacks.result import AttackResult, Best
from robjax.balls import L1, L2, Ball, Linf, with_radius
from robjax.checks import Bounds, check_count, check_images, check_number
from robjax.losses import Loss
from robjax.model import LogitsFn, loss_gradient, mean_logits
from robjax.samples import fold_keys, sample_keys, select_samples


def apgd(
    logits_fn: LogitsFn,
    x: jax.Array,
    y: jax.Array,
    *,
    key: jax.Array,
    ball: Ball,
    bounds: Bounds = (0.0, 1.0),
    steps: int = 100,
    restarts: int = 1,
    loss: Loss = losses.cross_entropy,
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
    if eot is not None:
        check_count("eot", eot)
    problem = check_problem(logits_fn, x, ball, bounds, (Linf, L2, L1))
    keys = sample_keys(key, problem.x.shape[0])
    y, num_classes = check_classes(problem, y, keys=None if eot is None else keys)
    if loss is losses.dlr and num_classes == 2:
        loss = losses.margin
    options = Options(
        loss=loss,
        steps=steps,
        restarts=restarts,
        rho=rho,
        eot=eot,
        large_reps=large_reps,
        reference_quirks=reference_quirks,
    )
    _check_options(options, ball)
    start = _check_start(start, problem)
    return _apgd(problem, y, keys, start, jnp.zeros(1, jnp.int32), options)


def apgd_targeted(
    logits_fn: LogitsFn,
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
    if eot is not None:
        check_count("eot", eot)
    problem = check_problem(logits_fn, x, ball, bounds, (Linf, L2, L1))
    keys = sample_keys(key, problem.x.shape[0])
    y, num_classes = check_classes(problem, y, keys=None if eot is None else keys)
    options = Options(
        loss={2: losses.margin, 3: losses.dlr}.get(num_classes, losses.targeted_dlr),
        targeted=True,
        steps=steps,
        restarts=restarts,
        rho=rho,
        eot=eot,
        large_reps=large_reps,
        reference_quirks=reference_quirks,
    )
    _check_options(options, ball)
    start = _check_start(start, problem)
    ranks = jnp.asarray(_check_targets(targets, num_classes), jnp.int32)
    return _apgd(problem, y, keys, start, ranks, options)


def _check_options(options: Options, ball: Ball) -> None:
    check_count("steps", options.steps, minimum=10 if options.large_reps else 1)
    check_count("restarts", options.restarts)
    check_number("rho", options.rho, minimum=0)
    if options.large_reps and not isinstance(ball, L1):
        raise ValueError(f"large_reps must be False unless ball is L1, got {ball!r}")


def _check_start(start: jax.Array | None, problem: Problem) -> jax.Array | None:
    if start is None:
        return None
    start = check_images(start, bounds=problem.bounds, name="start")
    if start.shape != problem.x.shape:
        raise ValueError(f"start must have the shape of x, got {start.shape}")
    return start.astype(problem.x.dtype)


def _check_targets(targets: int | Sequence[int], num_classes: int) -> list[int]:
    if not isinstance(targets, Sequence):
        count = check_count("targets", targets)
        return list(range(1, min(count, num_classes - 1) + 1))
    ranks = [check_count("targets", rank) for rank in targets]
    if not ranks or max(ranks) >= num_classes:
        raise ValueError(
            f"targets must be ranks from 1 to {num_classes - 1}, got {targets!r}"
        )
    return ranks


@functools.partial(jax.jit, static_argnames="options")
def _apgd(
    problem: Problem,
    y: jax.Array,
    keys: jax.Array,
    start: jax.Array | None,
    ranks: jax.Array,
    options: Options,
) -> AttackResult:
    """All runs, one after the other, until every sample is fooled.

    ranks: [T] of the classes that the runs aim at, 1 for the likeliest wrong one.
    """
    # for whoever differentiates around the attack, its result is a constant
    problem, start = lax.stop_gradient((problem, start))
    logits_fn, x, ball, _ = problem
    report = losses.margin if options.targeted else options.loss
    logits = mean_logits(logits_fn, x, fold_keys(keys, 0), options.eot)
    best = Best.none(x, logits.dtype)
    best = best.update(
        x,
        report(logits, y),
        losses.misclassified(logits, y),
        freeze=True,
        replace=False,
    )
    is_label = jnp.arange(logits.shape[1])[None] == y[:, None]
    by_rank = jnp.argsort(jnp.where(is_label, jnp.inf, -logits), axis=1)
    rule = step_rule_l1 if isinstance(ball, L1) else step_rule
    plan = jax.tree.map(jnp.asarray, make_plan(rule.phases(options)))

    def run(carry):
        r, best = carry
        rank = ranks[r // options.restarts]
        restart = r % options.restarts
        run_keys = fold_keys(fold_keys(fold_keys(keys, 1), rank), restart)
        target = jnp.take(by_rank, rank - 1, axis=1)
        gradient = loss_gradient(
            logits_fn,
            functools.partial(_loss, options.loss, y, target),
            eot=options.eot,
            last_draw_only=options.reference_quirks,
        )
        climb = begin(
            problem,
            start if start is None else (start, restart == 0),
            fold_keys(run_keys, 0),
            logits.dtype,
            options,
        )
        solved = best.success

        def step(carry):
            i, climb, best = carry
            row = jax.tree.map(lambda column: column[i], plan)
            point_keys = fold_keys(fold_keys(run_keys, 1), i)
            g, (value, logits) = gradient(climb.x, point_keys)
            counted = row.counts & losses.misclassified(logits, y)
            loss = jnp.where(row.counts, report(logits, y), -jnp.inf)
            best = _note(best, climb.x, loss, counted, solved, options)
            return i + 1, rule.advance(climb, g, value, row, problem, options), best

        def unfinished(carry):
            i, _, best = carry
            going = options.reference_quirks | ~best.success.all()
            return (i < plan.first.size) & going

        return r + 1, lax.while_loop(unfinished, step, (0, climb, best))[2]

    def unsolved(carry):
        r, best = carry
        return (r < ranks.size * options.restarts) & ~best.success.all()

    _, best = lax.while_loop(unsolved, run, (0, best))
    result = best.result(x, ball)
    return result._replace(queries=result.queries * (options.eot or 1))


def _loss(loss: Loss, y: jax.Array, target: jax.Array, logits: jax.Array) -> jax.Array:
    return loss(logits, y, target) if loss is losses.targeted_dlr else loss(logits, y)


def begin(
    problem: Problem,
    start: tuple[jax.Array, jax.Array | bool] | None,
    keys: jax.Array,
    loss_dtype: jax.typing.DTypeLike,
    options: Options,
) -> step_rule.Climb | step_rule_l1.SparseClimb:
    """The state of a run before its first point is evaluated.

    Args:
      problem: what is attacked.
      start: [B, *S] the first point, and whether this run uses it instead of a random
        one; None: it is random.
      keys: [B] of the random start.
      loss_dtype: of the losses to come.
      options: of the run.
    """
    rule = step_rule_l1 if isinstance(problem.ball, L1) else step_rule
    first = rule.noise(keys, problem, options)
    used = jnp.asarray(False)
    if start is not None:
        point, used = start
        radius = rule.phases(options)[0].radius
        largest = with_radius(problem.ball, jnp.float32(radius) * problem.ball.eps)
        projected = largest.project(point, problem.x, problem.bounds)
        first = jnp.where(used, projected, first)
    return rule.begin(first, problem, jnp.asarray(used), loss_dtype)


def _note(
    best: Best,
    v: jax.Array,
    loss: jax.Array,
    wrong: jax.Array,
    solved: jax.Array,
    options: Options,
) -> Best:
    """Takes in an evaluated point.

    By the reference's rule the last fooling point of a run wins, unless the sample was
    solved before the run.
    """
    quirks = options.reference_quirks
    noted = best.update(v, loss, wrong, freeze=not quirks, replace=False)
    if not quirks:
        return noted
    newest = noted._replace(x_adv=v, loss=loss)
    return select_samples(solved, best, select_samples(wrong, newest, noted))
