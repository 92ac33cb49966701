"""Momentum iterative FGSM: Dong et al., CVPR 2018 (arXiv 1710.06081), algorithm 1.

    v_{i+1} = μ v_i + ∇J(x_i) / ‖∇J(x_i)‖₁,    x_{i+1} = x_i + α · steepest(v_{i+1})

from x_0 = x and v_0 = 0, with the loss J, the momentum μ and α = ε/k. So k steps end
inside the ball. The last point is the answer.

The loop (`ascent`) divides by the mean of |∇J| instead of its sum. That scales every v
alike and changes no step.
"""

import jax

from robjax import losses
from robjax.attacks.pgd import Options, check_pgd, run_pgd
from robjax.attacks.problem import check_problem
from robjax.attacks.result import AttackResult
from robjax.balls import Ball
from robjax.checks import Bounds, check_count, check_flags
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
    eot: int | None = None,
) -> AttackResult:
    """Takes k steps of length ε/k from x along a running sum of gradients.

    The attack is made for images that also fool other models. The sum keeps the path
    from following gradients that are peculiar to `logits_fn`.

    >>> import jax.numpy as jnp
    >>> from robjax.balls import Linf
    >>> x = jnp.array([[0.375, 0.5]])
    >>> result = mi_fgsm(lambda x: x, x, jnp.array([1]), ball=Linf(0.125), steps=4)
    >>> result.x_adv.tolist()
    [[0.5, 0.375]]

    Args:
      logits_fn, x, y, ball, bounds, loss, targeted, eot: as in `pgd`.
      key: one key, or one for each sample; used only with `eot`.
      steps: k ≥ 1, static.
      momentum: decay factor μ ≥ 0, static; 0 is iterative FGSM.

    Returns:
      AttackResult for the last iterate; k gradients and one forward pass, or `eot`
      times as many.

    Raises:
      ValueError: an argument is malformed; the message names it.
    """
    check_flags(targeted=targeted)
    check_count("steps", steps)
    problem = check_problem(logits_fn, x, ball, bounds, warn_if_wide=True)
    options = Options(
        steps=steps,
        random_start=False,
        loss=loss,
        targeted=targeted,
        momentum=momentum,
        keep_best=False,
        eot=eot,
    )
    step_size = problem.ball.eps / steps
    return run_pgd(problem, *check_pgd(problem, y, key, step_size, options))
