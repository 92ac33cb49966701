"""The loop that FGSM, PGD and KL-PGD share: projected steepest ascent.

    x_{i+1} = P( x_i + α · steepest(v_i) ),   v_i = μ v_{i−1} + g_i / mean|g_i|

P projects onto ball ∩ box, α is the step size, g_i the input gradient of the objective
at x_i and μ the momentum. Without momentum (μ = 0) v_i = g_i. k steps cost k input
gradients, and one forward pass that judges the last iterate.
"""

from collections.abc import Callable
from typing import NamedTuple

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


class _Ascent(NamedTuple):
    """State of the loop."""

    steps_taken: jax.Array
    x: jax.Array  # x_i
    velocity: jax.Array  # v_{i−1}
    best: Best


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
    """Climbs `steps` steps from `start` and returns the best point found.

    >>> from robjax.balls import Linf
    >>> x = jnp.array([[0.5, 0.5]])
    >>> best = ascend(
    ...     lambda v: (v[:, 0] - v[:, 1], v[:, 0] > 0.7),
    ...     x,
    ...     x,
    ...     Best.none(x, x.dtype),
    ...     ball=Linf(jnp.float32(0.25)),
    ...     bounds=(0.0, 1.0),
    ...     step_size=jnp.float32(0.125),
    ...     steps=2,
    ... )
    >>> best.x_adv.tolist(), best.queries.tolist()
    ([[0.75, 0.25]], [3])

    Args:
      objective: what is maximised, and what counts as success.
      start: [B, *S] first point, inside ball and box.
      x: [B, *S] clean images, the centres of the ball.
      best: best point known before.
      ball: threat model.
      bounds: lowest and highest pixel value.
      step_size: α, [] or [B].
      steps: k ≥ 0, static.
      momentum: μ, static.
      keep_best: return the best of `best` and all iterates, rather than the last one.
      early_exit: freeze a sample at its first success, and stop once all samples are
        solved.

    Raises:
      ValueError: `objective` does not give one value for each sample.
    """

    def total(v: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        loss, success = objective(v)
        if loss.shape != success.shape:
            raise ValueError(
                f"loss must give one value for each sample, {success.shape}, got "
                f"{loss.shape}"
            )
        return jnp.sum(loss), (loss, success)

    gradient = lowering.fast(jax.grad(total, has_aux=True))

    def note(best: Best, v: jax.Array, loss: jax.Array, success: jax.Array) -> Best:
        if not keep_best:
            return best
        return best.update(v, loss, success, freeze=early_exit, replace=False)

    def step(state: _Ascent) -> _Ascent:
        v = state.x
        g, (loss, success) = gradient(v)
        best = note(state.best, v, loss, success)
        velocity = g
        if momentum:
            scale = jnp.mean(jnp.abs(g), axis=tuple(range(1, g.ndim)), keepdims=True)
            velocity = momentum * state.velocity + g / jnp.where(scale > 0, scale, 1)
        direction = ball.steepest(velocity, v, bounds)
        moved = v + per_sample(step_size, v) * direction
        return _Ascent(
            steps_taken=state.steps_taken + 1,
            x=ball.project(moved, x, bounds),
            velocity=velocity,
            best=best,
        )

    def unfinished(state: _Ascent) -> jax.Array:
        return (state.steps_taken < steps) & ~(early_exit & state.best.success.all())

    begun = _Ascent(
        steps_taken=jnp.int32(0),
        x=start,
        velocity=jnp.zeros_like(start),
        best=best,
    )
    ended = lax.while_loop(unfinished, step, begun)
    loss, success = lowering.fast(objective, forward=True)(ended.x)
    if keep_best:
        return note(ended.best, ended.x, loss, success)
    best = ended.best._replace(queries=ended.best.queries + steps)
    return best.update(ended.x, loss, success, freeze=False, replace=True)
