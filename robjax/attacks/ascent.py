"""The loop that FGSM, PGD and KL-PGD share: projected steepest ascent.

    x_{i+1} = P( x_i + α · steepest(v_i) ),   v_i = μ v_{i−1} + g_i / mean|g_i|

P projects onto ball ∩ box, α is the step size, g_i the input gradient of the
objective, μ the momentum (0: v_i = g_i). k steps cost k input gradients and, to judge
the last iterate, one forward pass.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax

from robjax import lowering
from robjax.attacks.result import Best
from robjax.balls import Ball
from robjax.checks import Bounds
from robjax.samples import per_sample

PointObjective = Callable[[jax.Array], tuple[jax.Array, jax.Array]]
"""Images [B, *S] -> (value to be maximised [B], success [B])."""


def ascend(
    objective: PointObjective,
    start: jax.Array,
    x: jax.Array,
    best: Best,
    *,
    ball: Ball,
    bounds: Bounds,
    step_size: jax.Array,
    steps: int,
    momentum: float = 0.0,
    keep_best: bool = True,
    early_exit: bool = False,
) -> Best:
    """Climbs `steps` steps from `start`; returns the best point of `best` and the path.

    keep_best=False returns the last iterate. early_exit=True freezes a sample at its
    first success and stops when all samples are solved.
    """

    def total(v):
        loss, success = objective(v)
        if loss.shape != success.shape:
            raise ValueError(
                f"loss must give one value for each sample, {success.shape}, got "
                f"{loss.shape}"
            )
        return jnp.sum(loss), (loss, success)

    gradient = lowering.fast(jax.grad(total, has_aux=True))

    def note(best, v, loss, success):
        if not keep_best:
            return best
        return best.update(v, loss, success, freeze=early_exit, replace=False)

    def step(carry):
        i, v, velocity, best = carry
        g, (loss, success) = gradient(v)
        best = note(best, v, loss, success)
        if momentum:
            scale = jnp.mean(jnp.abs(g), axis=tuple(range(1, g.ndim)), keepdims=True)
            velocity = momentum * velocity + g / jnp.where(scale > 0, scale, 1)
        else:
            velocity = g
        direction = ball.steepest(velocity, v, bounds)
        moved = v + per_sample(step_size, v) * direction
        return i + 1, ball.project(moved, x, bounds), velocity, best

    def unfinished(carry):
        i, _, _, best = carry
        return (i < steps) & ~(early_exit & best.success.all())

    carry = (jnp.int32(0), start, jnp.zeros_like(start), best)
    _, v, _, best = lax.while_loop(unfinished, step, carry)
    loss, success = lowering.fast(objective, forward=True)(v)
    if keep_best:
        return note(best, v, loss, success)
    best = best._replace(queries=best.queries + steps)
    return best.update(v, loss, success, freeze=False, replace=True)
