"""Momentum iterative FGSM: Dong et al., CVPR 2018 (arXiv 1710.06081), algorithm 1.

    v_{i+1} = μ v_i + ∇J(x_i) / ‖∇J(x_i)‖₁,    x_{i+1} = x_i + α · steepest(v_{i+1})

from x_0 = x, v_0 = 0 with α = ε/k: k steps end inside the ball, and the last point
is the answer. `pgd` divides by the mean of |∇J| instead of its sum, which scales every
v alike and changes no step.
"""

import jax

from robjax import losses
from robjax.attacks.pgd import Options, check_pgd, run_pgd
from robjax.attacks.problem import check_problem
from robjax.attacks.result import AttackResult
from robjax.balls import Ball
from robjax.checks import Bounds, check_count
from robjax.losses import Loss
from robjax.model import LogitsFn


def mi_fgsm(
    logits_fn: LogitsFn,
    x: jax.Array,
    y: jax.Array,
    *,
    key: jax.Array | None = None,
    ball: Ball,
    bounds: Bounds = (0.0, 1.0),
    steps: int = 10,
    momentum: float = 1.0,
    loss: Loss = losses.cross_entropy,
    targeted: bool = False,
) -> AttackResult:
    """k steps of length ε/k from x along gradients that add up; the last iterate.

    Made for images that fool models other than `logits_fn`: the momentum keeps the
    path from following what is peculiar to this one.

    Args:
      logits_fn, x, y, ball, bounds, loss, targeted: as in `pgd`.
      key: not used.
      steps: k ≥ 1, static.
      momentum: decay factor μ ≥ 0, static; 0 is iterative FGSM.

    Returns:
      AttackResult; k gradients and one forward pass.

    Raises:
      ValueError: an argument is malformed; the message names it.
    """
    del key
    check_count("steps", steps)
    problem = check_problem(logits_fn, x, ball, bounds)
    options = Options(
        steps=steps,
        loss=loss,
        targeted=targeted,
        momentum=momentum,
        keep_best=False,
    )
    step_size = problem.ball.eps / steps
    y, step_size, options = check_pgd(problem, y, step_size, options)
    return run_pgd(problem, y, None, step_size, options)
