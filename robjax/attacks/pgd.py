"""Projected gradient descent: Madry et al., ICLR 2018 (arXiv 1706.06083), §2.1."""

import functools
from typing import NamedTuple

import jax
from jax import lax
from jax.typing import ArrayLike

from robjax import losses
from robjax.attacks.ascent import ascend, draw_keys, logits_at, without_saturation
from robjax.attacks.problem import (
    Problem,
    check_classes,
    check_draws,
    check_loss,
    check_problem,
    check_step_size,
    check_values,
)
from robjax.attacks.result import AttackResult, Best
from robjax.balls import Ball
from robjax.checks import Bounds, check_count, check_flags, check_number
from robjax.losses import Loss
from robjax.model import LogitsFn
from robjax.samples import fold_keys


class Options(NamedTuple):
    """The static options of PGD, which it compiles for; `pgd` explains them."""

    steps: int
    restarts: int = 1
    random_start: bool = True
    loss: Loss = losses.cross_entropy
    targeted: bool = False
    momentum: float = 0.0
    keep_best: bool = True
    early_exit: bool = False
    eot: int | None = None


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
    eot: int | None = None,
) -> AttackResult:
    """Raises the loss in k steps of steepest ascent, from a random point of the ball.

        x_{i+1} = P( x_i + α · steepest(∇_x loss(x_i)) )

    P projects onto ball ∩ box. In L∞ steepest(g) = sign(g), in L2 it is g / ‖g‖₂.

    The robust accuracy to report comes from `robjax.evaluation.evaluate` or
    `robjax.attacks.autoattack`; `robjax.evaluation.doubts` tells what to distrust.

    >>> import jax.numpy as jnp
    >>> from robjax.balls import Linf
    >>> x = jnp.array([[0.375, 0.5]])
    >>> result = pgd(
    ...     lambda x: x, x, jnp.array([1]), key=jax.random.key(0), ball=Linf(0.125)
    ... )
    >>> result.x_adv.tolist()
    [[0.5, 0.375]]
    >>> result
    AttackResult(1 of 1 fooled at a median distance of 0.125)

    Args:
      logits_fn: images [B, *S] -> logits [B, K], or (images, keys [B]) with `eot`; any
        callable (`as_logits_fn`).
      x: [B, *S] images inside `bounds`; half precision becomes float32.
      y: [B] integer labels; with `targeted`, the classes to reach.
      key: one key, or one for each sample. Needed only for a random start and `eot`.
      ball: Linf(ε), L2(ε) or L1(ε); ε a number or [B].
      bounds: lowest and highest pixel value, two numbers or two arrays [*S] or [B, *S].
        `limits` makes such arrays of a mask, or of an ε for each pixel.
      steps: k ≥ 1, static.
      step_size: α, a number or [B]; by default 2.5 ε/k.
      restarts: independent random starts, static; the best point of all is kept.
      random_start: start uniformly in the ball, then project; otherwise start at x.
      loss: (logits, labels) -> [B] to be maximised (minimised if `targeted`), static.
      targeted: success means reaching y instead of leaving it.
      momentum: μ ≥ 0, static; v_i = μ v_{i−1} + g_i / mean|g_i| replaces the gradient.
        `mi_fgsm` is the attack of Dong et al., CVPR 2018, with its step size and start.
      keep_best: return the best of x and all iterates (fooling first, then highest
        loss), rather than the last iterate.
      early_exit: return the first iterate that fools, and stop once all samples are
        solved. Otherwise every step runs, and of the iterates that fool the one of
        highest loss is returned.
      eot: draws of a randomised model for each point, static; None: deterministic. The
        mean loss of fresh draws is climbed. Success and the `loss` that is returned are
        those of the mean logits.

    Returns:
      AttackResult. The cost is k gradients and one forward pass for each restart. With
      a random start, and `keep_best`, x costs another forward pass. `eot` multiplies
      all of it.

    Raises:
      ValueError: an argument is malformed; the message names it.
    """
    check_flags(
        random_start=random_start,
        targeted=targeted,
        keep_best=keep_best,
        early_exit=early_exit,
    )
    problem = check_problem(logits_fn, x, ball, bounds, warn_if_wide=True)
    check_count("restarts", restarts)
    if restarts > 1 and not random_start:
        raise ValueError(f"restarts must be 1 without random_start, got {restarts}")
    if (early_exit or restarts > 1) and not keep_best:
        raise ValueError("keep_best must be True with early_exit or restarts")
    options = Options(
        steps=steps,
        restarts=restarts,
        random_start=random_start,
        loss=loss,
        targeted=targeted,
        momentum=momentum,
        keep_best=keep_best,
        early_exit=early_exit,
        eot=eot,
    )
    return run_pgd(problem, *check_pgd(problem, y, key, step_size, options))


def check_pgd(
    problem: Problem,
    y: jax.Array,
    key: jax.Array | None,
    step_size: ArrayLike | None,
    options: Options,
) -> tuple[jax.Array, jax.Array | None, jax.Array, Options]:
    """Checks what PGD is given beside its problem, for `run_pgd`.

    >>> import jax.numpy as jnp
    >>> from robjax.balls import Linf
    >>> problem = check_problem(
    ...     lambda x: x, jnp.full((1, 2), 0.5), Linf(0.5), (0.0, 1.0)
    ... )
    >>> options = Options(steps=5, random_start=False)
    >>> checked = check_pgd(problem, jnp.array([1]), None, None, options)
    >>> y, keys, step_size, options = checked
    >>> float(step_size)
    0.25

    Args:
      problem: made by `check_problem`.
      y: [B] integer labels.
      key: as in `pgd`.
      step_size: α, a number or [B]; None: 2.5 ε/k.
      options: as in `pgd`.

    Returns:
      Labels [B] int32, keys [B] or None, step size [] or [B], options.

    Raises:
      ValueError: one of them is malformed; the message names it.
    """
    check_loss(options.loss)
    keys = check_draws(options.eot, key, len(problem.x), needed=options.random_start)
    y, _ = check_classes(problem, y, keys=None if options.eot is None else keys)
    check_count("steps", options.steps)
    check_number("momentum", options.momentum, minimum=0)
    alpha = 2.5 * problem.ball.eps / options.steps if step_size is None else step_size
    options = options._replace(momentum=float(options.momentum))
    return y, keys, check_step_size(alpha, problem.x), options


@functools.partial(jax.jit, static_argnames="options")
def run_pgd(
    problem: Problem,
    y: jax.Array,
    keys: jax.Array | None,
    step_size: jax.Array,
    options: Options,
) -> AttackResult:
    """Runs PGD on checked arguments; the compiled part of `pgd`.

    >>> import jax.numpy as jnp
    >>> from robjax.balls import Linf
    >>> problem = check_problem(
    ...     lambda x: x, jnp.array([[0.375, 0.5]]), Linf(0.125), (0.0, 1.0)
    ... )
    >>> options = Options(steps=5, random_start=False)
    >>> checked = check_pgd(problem, jnp.array([1]), None, None, options)
    >>> run_pgd(problem, *checked).x_adv.tolist()
    [[0.5, 0.375]]

    Args:
      problem: made by `check_problem`.
      y: [B] int32 labels.
      keys: [B] of the random starts and of the draws of the model; None: of neither.
      step_size: α, [] or [B].
      options: as in `pgd`, static.

    Returns:
      AttackResult as in `pgd`.
    """
    # for whoever differentiates around the attack, its result is a constant
    problem, step_size = lax.stop_gradient((problem, step_size))
    logits_fn, x, ball, bounds = problem
    eot = options.eot
    climbed, read = without_saturation(options.loss, eot)

    def objective(logits: jax.Array) -> tuple[jax.Array, jax.Array]:
        wrong = losses.misclassified(logits, y)
        value = check_values(climbed(logits, y), len(y))
        return (-value, ~wrong) if options.targeted else (value, wrong)

    def run(restart: ArrayLike, best: Best) -> Best:
        start = x
        if keys is not None and options.random_start:
            drawn = ball.sample(fold_keys(keys, restart), x, bounds)
            start = ball.project(x + drawn, x, bounds)
        return ascend(
            problem,
            objective,
            start,
            best,
            step_size=step_size,
            steps=options.steps,
            momentum=options.momentum,
            keep_best=options.keep_best,
            early_exit=options.early_exit,
            keys=draw_keys(keys, eot, restart + 1),
            eot=eot,
        )

    def judge(v: jax.Array) -> tuple[jax.Array, jax.Array]:
        return objective(logits_at(logits_fn, v, draw_keys(keys, eot, 0), eot))

    best = Best.none(x, jax.eval_shape(judge, x)[0].dtype)
    if options.random_start and options.keep_best:
        best = best.update(x, *judge(x), freeze=options.early_exit, replace=False)
    if options.restarts == 1:
        best = run(0, best)
    else:
        best = lax.fori_loop(0, options.restarts, run, best)
    loss = read(-best.loss if options.targeted else best.loss)
    result = best._replace(loss=loss).result(x, ball)
    return result._replace(queries=result.queries * (eot or 1))
