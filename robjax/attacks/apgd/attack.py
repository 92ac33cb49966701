"""Auto-PGD: projected ascent that sets its own step size.

Croce & Hein, ICML 2020 (L∞, L2: `step_rule`) and ICML 2021 (L1: `step_rule_l1`).

A run of N steps evaluates N + 1 points. All runs (targets × restarts) share one
compiled loop, which reads its checkpoints from a table (`plan`). A sample is frozen at
its first success, and the loop ends when all samples are solved.

With ``eot=n`` a randomised model is evaluated with n fresh draws at every point. Loss,
gradient and logits are means over these draws. A point fools the model if the mean
logits do.

In place of the cross-entropy, whose gradient rounds to 0 where the model is confident,
a run climbs the log-odds (`ascent.without_saturation`). With `reference_quirks` it
climbs the cross-entropy itself.
"""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike

from robjax import losses
from robjax.attacks.apgd import step_rule, step_rule_l1
from robjax.attacks.apgd.plan import Options, make_plan
from robjax.attacks.ascent import Climbable, without_saturation
from robjax.attacks.problem import (
    Problem,
    check_classes,
    check_draws,
    check_loss,
    check_problem,
    check_values,
)
from robjax.attacks.result import AttackResult, Best
from robjax.balls import L1, L2, Ball, Linf, with_radius
from robjax.checks import Bounds, check_attacked, check_count, check_flags, check_number
from robjax.losses import Loss
from robjax.model import LogitsFn, loss_gradient, mean_logits
from robjax.samples import fold_keys, select_samples


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
    """Raises the loss by projected ascent that sets its own step size; untargeted.

    The rules are in `step_rule` and `step_rule_l1`: Croce & Hein, ICML 2020, algorithm
    1, and ICML 2021, algorithm 1.

    The robust accuracy to report comes from `robjax.evaluation.evaluate` or
    `robjax.attacks.autoattack`; `robjax.evaluation.doubts` tells what to distrust.

    >>> x = jnp.array([[0.375, 0.5]])
    >>> result = apgd(
    ...     lambda x: x, x, jnp.array([1]), key=jax.random.key(0), ball=Linf(0.125)
    ... )
    >>> bool(result.success[0]), bool(result.distance[0] <= 0.125)
    (True, True)

    Args:
      logits_fn: images [B, *S] -> logits [B, K], or (images, keys [B]) with `eot`.
      x: [B, *S] images inside `bounds`; half precision becomes float32.
      y: [B] integer labels.
      key: one key, or one for each sample.
      ball: Linf(ε), L2(ε) or L1(ε); ε a number or [B].
      bounds: as in `pgd`.
      steps: N ≥ 1, static.
      restarts: independent random starts, static.
      loss: (logits, labels) -> [B] to be maximised, static. For two classes
        `losses.margin` replaces `losses.dlr`.
      rho: ρ, share of steps that must raise the loss to keep the step size (L∞, L2).
      eot: draws of a randomised model for each evaluation; None: deterministic.
      large_reps: shrink the radius from 3ε over 2ε to ε. L1 only, at least 10 steps.
      start: [B, *S] where the first restart begins, instead of at random.
      reference_quirks: do as the reference implementation does.
        * It climbs the cross-entropy itself, also where its gradient rounds to 0.
        * Its loss history begins with a 0.
        * Its L2 projection is not exact.
        * Its L1 runs do not end with the step that is best on a linear model.
        * With `eot`, losses and verdicts come from the last draw alone.
        * A run goes on after success and returns its last fooling iterate.

    Returns:
      AttackResult. `first_success` counts evaluations: 0 is the clean image, 1 + i the
      result of i steps. Unsolved samples get the iterate of highest loss. The cost is
      one forward pass, and N + 1 gradients for each restart.

    Raises:
      ValueError: an argument is malformed; the message names it.
    """
    check_flags(large_reps=large_reps, reference_quirks=reference_quirks)
    kinds = (Linf, L2, L1)
    problem = check_problem(logits_fn, x, ball, bounds, kinds, warn_if_wide=True)
    keys = check_draws(eot, key, len(problem.x), needed=True)
    y, num_classes = check_classes(problem, y, keys=None if eot is None else keys)
    check_loss(loss)
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
    options = _check_options(options, ball)
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
    longer: tuple[int, int] | None = None,
    rho: float = 0.75,
    eot: int | None = None,
    large_reps: bool = False,
    start: jax.Array | None = None,
    reference_quirks: bool = False,
) -> AttackResult:
    """Runs Auto-PGD once for each of the likeliest wrong classes.

    Each run maximises the targeted DLR loss of its class (`losses.targeted_dlr`), which
    needs four classes. With three classes the loss is `losses.dlr`, with two
    `losses.margin`. The class only shapes the loss: leaving y for any class is success.

    >>> x = jnp.array([[0.375, 0.5, 0.0, 0.0]])
    >>> result = apgd_targeted(
    ...     lambda x: x, x, jnp.array([1]), key=jax.random.key(0), ball=Linf(0.125)
    ... )
    >>> bool(result.success[0]), bool(result.distance[0] <= 0.125)
    (True, True)

    Args:
      logits_fn, x, y, key, ball, bounds, steps, rho, eot, large_reps: as in `apgd`.
      restarts: random starts for each target, static.
      targets: how many classes, the likeliest wrong ones first (at most K − 1 are
        tried), or a sequence of ranks: 1 is the likeliest wrong class of the clean
        image.
      longer: (T, N), static: these runs are followed by others of N steps towards the T
        classes that are likeliest at the best point so far. None: they are not.
      start: [B, *S] where the first restart of every target begins.
      reference_quirks: as in `apgd`.

    Returns:
      AttackResult as in `apgd`. `loss` is the margin max_{i≠y} z_i − z_y, because
      losses of different targets cannot be compared.

    Raises:
      ValueError: an argument is malformed; the message names it.
    """
    check_flags(large_reps=large_reps, reference_quirks=reference_quirks)
    kinds = (Linf, L2, L1)
    problem = check_problem(logits_fn, x, ball, bounds, kinds, warn_if_wide=True)
    keys = check_draws(eot, key, len(problem.x), needed=True)
    y, num_classes = check_classes(problem, y, keys=None if eot is None else keys)
    options = Options(
        loss={2: losses.margin, 3: losses.dlr}.get(num_classes, losses.targeted_dlr),
        targeted=True,
        longer=_check_longer(longer, num_classes, large_reps),
        steps=steps,
        restarts=restarts,
        rho=rho,
        eot=eot,
        large_reps=large_reps,
        reference_quirks=reference_quirks,
    )
    options = _check_options(options, ball)
    start = _check_start(start, problem)
    ranks = jnp.asarray(_check_targets(targets, num_classes), jnp.int32)
    return _apgd(problem, y, keys, start, ranks, options)


def _check_options(options: Options, ball: Ball) -> Options:
    check_count("steps", options.steps, minimum=10 if options.large_reps else 1)
    check_count("restarts", options.restarts)
    check_number("rho", options.rho, minimum=0)
    if options.large_reps and not isinstance(ball, L1):
        raise ValueError(f"large_reps must be False unless ball is L1, got {ball!r}")
    return options._replace(rho=float(options.rho))


def _check_start(start: jax.Array | None, problem: Problem) -> jax.Array | None:
    if start is None:
        return None
    start = check_attacked(start, problem.bounds, name="start")
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


def _check_longer(
    longer: tuple[int, int] | None, num_classes: int, large_reps: bool
) -> tuple[int, int] | None:
    if longer is None:
        return None
    if not isinstance(longer, Sequence) or len(longer) != 2:
        raise ValueError(f"longer must be (targets, steps) or None, got {longer!r}")
    targets, steps = (check_count("longer", number) for number in longer)
    check_count("longer", steps, minimum=10 if large_reps else 1)
    return min(targets, num_classes - 1), steps


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
    logits = mean_logits(logits_fn, x, fold_keys(keys, 0), options.eot)
    best = _judge_clean(x, y, logits, options)
    best = _runs(problem, y, logits, start, fold_keys(keys, 1), best, ranks, options)
    if options.longer is not None:
        targets, steps = options.longer
        logits = mean_logits(logits_fn, best.x_adv, fold_keys(keys, 2), options.eot)
        best = best._replace(queries=best.queries + ~best.success)
        ranks = jnp.arange(1, targets + 1)
        options = options._replace(steps=steps)
        keys = fold_keys(keys, 3)
        best = _runs(problem, y, logits, start, keys, best, ranks, options)
    best = best._replace(loss=_climbed(options).read(best.loss))
    result = best.result(x, ball)
    return result._replace(queries=result.queries * (options.eot or 1))


def _runs(
    problem: Problem,
    y: jax.Array,
    logits: jax.Array,
    start: jax.Array | None,
    keys: jax.Array,
    best: Best,
    ranks: jax.Array,
    options: Options,
) -> Best:
    """The runs for each of `ranks`, where `logits` [B, K] rank the classes."""
    by_rank = _sort_wrong_classes(logits, y)

    def run(carry: tuple[int | jax.Array, Best]) -> tuple[int | jax.Array, Best]:
        number, best = carry
        rank = ranks[number // options.restarts]
        restart = number % options.restarts
        run_keys = fold_keys(fold_keys(keys, rank), restart)
        target = jnp.take(by_rank, rank - 1, axis=1)
        own_start = None if start is None else (start, restart == 0)
        best = _climb(problem, y, target, own_start, run_keys, best, options)
        return number + 1, best

    def unsolved(carry: tuple[int | jax.Array, Best]) -> jax.Array:
        number, best = carry
        return (number < ranks.size * options.restarts) & ~best.success.all()

    return lax.while_loop(unsolved, run, (0, best))[1]


class _Run(NamedTuple):
    """State of the loop over the evaluations of a run."""

    evaluation: int | jax.Array
    climb: Any  # the `Climb` or `SparseClimb` of the step rule
    best: Best


def _climb(
    problem: Problem,
    y: jax.Array,
    target: jax.Array,
    start: tuple[jax.Array, bool | jax.Array] | None,
    keys: jax.Array,
    best: Best,
    options: Options,
) -> Best:
    """One run; ends early when every sample is fooled.

    target: [B] classes that a targeted run aims at.
    start: as in `begin`.
    keys: [B] of this run.
    best: of the runs before.
    """
    rule = step_rule_l1 if isinstance(problem.ball, L1) else step_rule
    plan = make_plan(rule.phases(options))
    gradient = loss_gradient(
        problem.logits_fn,
        functools.partial(_loss, _climbed(options).loss, y, target),
        eot=options.eot,
        last_draw_only=options.reference_quirks,
    )
    climb = begin(problem, start, fold_keys(keys, 0), best.loss.dtype, options)
    solved_before = best.success

    def step(run: _Run) -> _Run:
        i, climb, best = run
        row = jax.tree.map(lambda column: column[i], plan)
        point_keys = fold_keys(fold_keys(keys, 1), i)
        g, (value, logits) = gradient(climb.x, point_keys)
        fools = row.counts & losses.misclassified(logits, y)
        loss = jnp.where(row.counts, _compared(logits, y, options), -jnp.inf)
        best = _note(best, climb.x, loss, fools, solved_before, options)
        climb = rule.advance(climb, g, value, row, problem, options)
        return _Run(i + 1, climb, best)

    def unfinished(run: _Run) -> jax.Array:
        going_on = options.reference_quirks | ~run.best.success.all()
        return (run.evaluation < plan.first.size) & going_on

    return lax.while_loop(unfinished, step, _Run(0, climb, best)).best


def _judge_clean(
    x: jax.Array, y: jax.Array, logits: jax.Array, options: Options
) -> Best:
    """The clean images as the best points so far; evaluation 0."""
    loss = _compared(logits, y, options)
    return Best.none(x, loss.dtype).update(
        x,
        loss,
        losses.misclassified(logits, y),
        freeze=True,
        replace=False,
    )


def _sort_wrong_classes(logits: jax.Array, y: jax.Array) -> jax.Array:
    """Classes [B, K] from the likeliest to the least likely, the label last."""
    is_label = jnp.arange(logits.shape[1])[None] == y[:, None]
    return jnp.argsort(jnp.where(is_label, jnp.inf, -logits), axis=1)


def _climbed(options: Options) -> Climbable:
    """What a run climbs in place of its loss."""
    if options.reference_quirks:
        return Climbable(options.loss, lambda value: value)
    return without_saturation(options.loss, options.eot)


def _compared(logits: jax.Array, y: jax.Array, options: Options) -> jax.Array:
    """The values [B] that points are compared by, over all runs."""
    loss = losses.margin if options.targeted else _climbed(options).loss
    return check_values(loss(logits, y), len(y))


def _loss(loss: Loss, y: jax.Array, target: jax.Array, logits: jax.Array) -> jax.Array:
    return loss(logits, y, target) if loss is losses.targeted_dlr else loss(logits, y)


def begin(
    problem: Problem,
    start: tuple[jax.Array, bool | jax.Array] | None,
    keys: jax.Array,
    loss_dtype: DTypeLike,
    options: Options,
) -> step_rule.Climb | step_rule_l1.SparseClimb:
    """Makes the state of a run before its first point is evaluated.

    >>> x = jnp.full((1, 2), 0.5)
    >>> problem = check_problem(lambda x: x, x, Linf(0.25), (0.0, 1.0))
    >>> keys = jax.random.split(jax.random.key(0), 1)
    >>> climb = begin(problem, (x, True), keys, x.dtype, Options(losses.margin))
    >>> climb.x.tolist()
    [[0.5, 0.5]]

    Args:
      problem: what is attacked.
      start: a point [B, *S], and whether this run begins there; if it does not, or
        without a point, the run begins at random.
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
    fools: jax.Array,
    solved: jax.Array,
    options: Options,
) -> Best:
    """Takes in an evaluated point v.

    With `reference_quirks` the last fooling point of a run wins, unless the sample was
    solved before the run.
    """
    quirks = options.reference_quirks
    noted = best.update(v, loss, fools, freeze=not quirks, replace=False)
    if not quirks:
        return noted
    newest = noted._replace(x_adv=v, loss=loss)
    return select_samples(solved, best, select_samples(fools, newest, noted))
