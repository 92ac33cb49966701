"""Projected gradient descent: Madry et al., ICLR 2018 (arXiv 1706.06083), §2.1."""

import functools
from typing import Any

import jax
from jax import lax

from robjax import inputs, losses, lowering
from robjax.attacks import ascent
from robjax.attacks.ascent import AttackResult
from robjax.balls import Ball
from robjax.inputs import Bounds


def pgd(
    logits_fn: Any,
    x: jax.Array,
    y: jax.Array,
    *,
    key: jax.Array | None = None,
    ball: Ball,
    bounds: Bounds = (0.0, 1.0),
    steps: int = 40,
    step_size: Any = None,
    restarts: int = 1,
    random_start: bool = True,
    loss: Any = losses.cross_entropy,
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
    problem = ascent.check(logits_fn, x, ball, bounds)
    num_classes = inputs.count_classes(problem.logits_fn, problem.x)
    y = inputs.check_labels(y, x.shape[0], num_classes=num_classes)
    inputs.check_count("steps", steps)
    inputs.check_count("restarts", restarts)
    inputs.check_number("momentum", momentum, minimum=0)
    if restarts > 1 and not random_start:
        raise ValueError(f"restarts must be 1 without random_start, got {restarts}")
    if (early_exit or restarts > 1) and not keep_best:
        raise ValueError("keep_best must be True with early_exit or restarts")
    if step_size is None:
        step_size = 2.5 * problem.ball.eps / steps
    return _pgd(
        problem,
        y,
        inputs.sample_keys(key, x.shape[0]) if random_start else None,
        ascent.check_step_size(step_size, problem.x),
        steps=steps,
        restarts=restarts,
        loss=loss,
        targeted=bool(targeted),
        momentum=float(momentum),
        keep_best=bool(keep_best),
        early_exit=bool(early_exit),
    )


@functools.partial(
    jax.jit,
    static_argnames=(
        "steps",
        "restarts",
        "loss",
        "targeted",
        "momentum",
        "keep_best",
        "early_exit",
    ),
)
def _pgd(problem, y, keys, step_size, *, restarts, loss, targeted, **options):
    # for whoever differentiates around the attack, its result is a constant
    (logits_fn, x, ball, bounds), step_size = lax.stop_gradient((problem, step_size))
    # same direction as the cross-entropy, without its saturation
    climbed = losses.log_odds if loss is losses.cross_entropy else loss

    def objective(v):
        logits = logits_fn(v)
        wrong = losses.misclassified(logits, y)
        value = climbed(logits, y)
        return (-value, ~wrong) if targeted else (value, wrong)

    def run(restart, best):
        start = x
        if keys is not None:
            fold = functools.partial(jax.random.fold_in, data=restart)
            start = ball.project(x + ball.sample(jax.vmap(fold)(keys), x), x, bounds)
        return ascent.ascend(
            objective,
            start,
            x,
            best,
            ball=ball,
            bounds=bounds,
            step_size=step_size,
            **options,
        )

    loss_dtype = jax.eval_shape(objective, x)[0].dtype
    best = ascent.Best.none(x, loss_dtype)
    if keys is not None and options["keep_best"]:
        judged = lowering.fast(objective, forward=True)(x)
        best = best.update(x, *judged, freeze=options["early_exit"], replace=False)
    best = run(0, best) if restarts == 1 else lax.fori_loop(0, restarts, run, best)
    if targeted:
        best = best._replace(loss=-best.loss)
    if climbed is losses.log_odds:
        best = best._replace(loss=jax.nn.softplus(best.loss))
    return best.result(x, ball)
