"""Fast gradient sign method: Goodfellow et al., ICLR 2015 (arXiv 1412.6572), §4."""

import jax

from robjax import losses
from robjax.attacks.pgd import pgd
from robjax.attacks.result import AttackResult
from robjax.balls import Ball
from robjax.checks import Bounds
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
) -> AttackResult:
    """One steepest step of length ε from x: P(x + ε · steepest(∇ loss)).

    In L∞ that is x + ε sign(∇_x loss), clipped to the box; in L2 the step along the
    gradient. Arguments and errors as in `pgd`; `key` is not used.
    """
    del key
    return pgd(
        logits_fn,
        x,
        y,
        ball=ball,
        bounds=bounds,
        steps=1,
        step_size=getattr(ball, "eps", None),
        random_start=False,
        loss=loss,
        targeted=targeted,
        keep_best=False,
    )
