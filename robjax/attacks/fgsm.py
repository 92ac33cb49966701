"""Fast gradient sign method: Goodfellow et al., ICLR 2015 (arXiv 1412.6572), §4."""

import jax

from robjax import losses
from robjax.attacks.pgd import pgd
from robjax.attacks.result import AttackResult
from robjax.balls import Ball
from robjax.checks import Bounds, check_flags
from robjax.losses import Loss
from robjax.model import LogitsFn


def fgsm(
    logits_fn: LogitsFn,
    x: jax.Array,
    y: jax.Array,
    *,
    key: jax.Array | None = None,
    ball: Ball,
    bounds: Bounds = (0.0, 1.0),
    loss: Loss = losses.cross_entropy,
    targeted: bool = False,
    eot: int | None = None,
) -> AttackResult:
    """Takes one step of length ε from x, in the direction that raises the loss most.

        x_adv = P( x + ε · steepest(∇_x loss) )

    P projects onto ball ∩ box. In L∞ this is x + ε sign(∇_x loss), clipped to the box.
    In L2 the step goes along the gradient.

    The robust accuracy to report comes from `robjax.evaluation.evaluate` or
    `robjax.attacks.autoattack`; `robjax.evaluation.doubts` tells what to distrust.

    >>> import jax.numpy as jnp
    >>> from robjax.balls import Linf
    >>> x = jnp.array([[0.375, 0.5]])
    >>> fgsm(lambda x: x, x, jnp.array([1]), ball=Linf(0.125)).x_adv.tolist()
    [[0.5, 0.375]]

    Args:
      logits_fn, x, y, ball, bounds, loss, targeted, eot: as in `pgd`.
      key: one key, or one for each sample; used only with `eot`.

    Returns:
      AttackResult; one gradient and one forward pass, or `eot` of each.

    Raises:
      ValueError: an argument is malformed; the message names it.
    """
    check_flags(targeted=targeted)
    return pgd(
        logits_fn,
        x,
        y,
        key=key,
        ball=ball,
        bounds=bounds,
        steps=1,
        step_size=getattr(ball, "eps", None),
        random_start=False,
        loss=loss,
        targeted=targeted,
        keep_best=False,
        eot=eot,
    )
