"""Projected gradient descent: Madry et al., ICLR 2018 (arXiv 1706.06083), §2.1."""

import functools
from typing import NamedTuple

import jax
from jax import lax
from jax.typing import ArrayLike

from robjax import losses, lowering
from robjax.attacks.ascent import ascend
from robjax.attacks.problem import (
    Problem,
    check_classes,
    check_problem,
    check_step_size,
)
from robjax.attacks.result import AttackResult, Best
from robjax.balls import Ball
from robjax.checks import Bounds, check_count, check_number
from robjax.losses import Loss
from robjax.model import LogitsFn
from robjax.samples import fold_keys, sample_keys


class Options(NamedTuple):
    """What PGD compiles for; every field is static and explained in `pgd`."""

    steps: int
    restarts: int = 1
    loss: Loss = losses.cross_entropy
    targeted: bool = False
    momentum: float = 0.0
    keep_best: bool = True
    early_exit: bool = False


def pgd(
    logits_fn: LogitsFn,
    x: jax.Array,
    y: jax.Array,
    *,
    key: jax.Array | None = None,
    ball: Ball,
    bounds: Bounds = (0.0, 1.0),
    steps: int = 40,
    step_size: ArrayLike | None = None,
    restarts: int = 1,
    random_start: bool = True,
    loss: Loss = losses.cross_entropy,
    targeted: bool = False,
    momentum: float = 0.0,
    keep_best: bool = True,
    early_exit: bool = False,
) -> AttackResult:
    """Steepest ascent of `loss` inside ball ∩ box, k steps from a random start.

    Args:
      logits_fn: images [B, *S] -> logits [B, K]; any callable (`as_logits_fn`).
      x: [B, *S] images inside `bounds`.
      y: [B] integer labels; with `targeted`, the classes to reach.
      key: one key, or one for each sample. Needed only for a random start.
      ball: Linf(ε), L2(ε) or L1(ε); ε a number or [B].
      bounds: lowest and highest pixel value.
      steps: k ≥ 1, static.
      step_size: α, a number or [B]; by default 2.5 ε/k.
      restarts: independent random starts, static; the best of all is kept.
      random_start: uniform in the ball, then projected; otherwise from x.
      loss: (logits, labels) -> [B] to be maximised (minimised if `targeted`), static.
      targeted: success means reaching y instead of leaving it.
      momentum: μ, static; v_i = μ v_{i−1} + g_i / mean|g_i| replaces the gradient. (The
        attack of Dong et al., CVPR 2018, with its step size and start, is `mi_fgsm`.)
      keep_best: return the best point (fooling first, then highest loss), x among them,
        rather than the last one.
      early_exit: return the first iterate that fools, and stop once all samples are
        solved; off, every step runs and the fooling iterate of highest loss wins.

    Returns:
      AttackResult; k gradients and one forward pass for each restart, and one for x
      where it is not the start itself.

    Raises:
      ValueError: an argument is malformed; the message names it.
    """
    problem = check_problem(logits_fn, x, ball, bounds)
    if restarts > 1 and not random_start:
        raise ValueError(f"restarts must be 1 without random_start, got {restarts}")
    if (early_exit or restarts > 1) and not keep_best:
        raise ValueError("keep_best must be True with early_exit or restarts")
    options = Options(
        steps=steps,
        restarts=restarts,
        loss=loss,
        targeted=targeted,
        momentum=momentum,
        keep_best=keep_best,
        early_exit=early_exit,
    )
    y, step_size, options = check_pgd(problem, y, step_size, options)
    keys = sample_keys(key, problem.x.shape[0]) if random_start else None
    return run_pgd(problem, y, keys, step_size, options)


def check_pgd(
    problem: Problem, y: jax.Array, step_size: ArrayLike | None, options: Options
) -> tuple[jax.Array, jax.Array, Options]:
    """Checks labels, step size (None: 2.5 ε/k) and options, for `run_pgd`.

    Raises:
      ValueError: one of them is malformed; the message names it.
    """
    y, _ = check_classes(problem, y)
    check_count("steps", options.steps)
    check_count("restarts", options.restarts)
    check_number("momentum", options.momentum, minimum=0)
    if step_size is None:
        step_size = 2.5 * problem.ball.eps / options.steps
    step_size = check_step_size(step_size, problem.x)
    return y, step_size, options._replace(momentum=float(options.momentum))


@functools.partial(jax.jit, static_argnames="options")
def run_pgd(
    problem: Problem,
    y: jax.Array,
    keys: jax.Array | None,
    step_size: jax.Array,
    options: Options,
) -> AttackResult:
    """PGD, compiled; what it is given is checked.

    keys: [B] of the random starts; None: it starts at x.
    """
    # for whoever differentiates around the attack, its result is a constant
    problem, step_size = lax.stop_gradient((problem, step_size))
    logits_fn, x, ball, bounds = problem
    # same direction as the cross-entropy, without its saturation
    saturates = options.loss is losses.cross_entropy
    climbed = losses.log_odds if saturates else options.loss

    def objective(v):
        logits = logits_fn(v)
        wrong = losses.misclassified(logits, y)
        value = climbed(logits, y)
        return (-value, ~wrong) if options.targeted else (value, wrong)

    def run(restart, best):
        start = x
        if keys is not None:
            drawn = ball.sample(fold_keys(keys, restart), x)
            start = ball.project(x + drawn, x, bounds)
        return ascend(
            objective,
            start,
            x,
            best,
            ball=ball,
            bounds=bounds,
            step_size=step_size,
            steps=options.steps,
            momentum=options.momentum,
            keep_best=options.keep_best,
            early_exit=options.early_exit,
        )

    loss_dtype = jax.eval_shape(objective, x)[0].dtype
    best = Best.none(x, loss_dtype)
    if keys is not None and options.keep_best:
        judged = lowering.fast(objective, forward=True)(x)
        best = best.update(x, *judged, freeze=options.early_exit, replace=False)
    if options.restarts == 1:
        best = run(0, best)
    else:
        best = lax.fori_loop(0, options.restarts, run, best)
    if options.targeted:
        best = best._replace(loss=-best.loss)
    if saturates:
        best = best._replace(loss=jax.nn.softplus(best.loss))
    return best.result(x, ball)
