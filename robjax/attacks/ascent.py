"""The loop that FGSM, PGD and KL-PGD share: projected steepest ascent.

    x_{i+1} = P( x_i + α · steepest(v_i) ),   v_i = μ v_{i−1} + g_i / mean|g_i|

P projects onto ball ∩ box, α is the step size, g_i the input gradient of the
objective, μ the momentum (0: v_i = g_i). k steps cost k input gradients and, to judge
the last iterate, one forward pass.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from robjax import inputs, lowering
from robjax.balls import L1, L2, Ball, Linf, per_sample
from robjax.inputs import Bounds

Objective = Callable[[jax.Array], tuple[jax.Array, jax.Array]]
"""Images [B, *S] -> (value to be maximised [B], success [B])."""


class AttackResult(NamedTuple):
    """What an attack did to each of B samples.

    Attributes:
      x_adv: [B, *S] adversarial images, inside ball and bounds.
      success: [B] bool, whether `x_adv` fools the model.
      loss: [B] the loss at `x_adv`.
      first_success: [B] int32, number of the evaluation that first fooled the model,
        −1 if none did. 0 is x, unless the attack starts elsewhere and does not look at
        it; minimal-norm attacks count steps.
      distance: [B] ‖x_adv − x‖ in the ball's norm.
      queries: [B] int32, images evaluated for this sample.
    """

    x_adv: jax.Array
    success: jax.Array
    loss: jax.Array
    first_success: jax.Array
    distance: jax.Array
    queries: jax.Array


class Best(NamedTuple):
    """The best point seen so far: fooling before not fooling, then by loss."""

    x_adv: jax.Array
    success: jax.Array
    loss: jax.Array
    first_success: jax.Array
    queries: jax.Array

    @classmethod
    def none(cls, x: jax.Array, loss_dtype: Any) -> "Best":
        batch = x.shape[0]
        return cls(
            x,
            jnp.zeros(batch, bool),
            jnp.full(batch, -jnp.inf, loss_dtype),
            jnp.full(batch, -1, jnp.int32),
            jnp.zeros(batch, jnp.int32),
        )

    def update(self, x, loss, success, *, freeze: bool, replace: bool) -> "Best":
        """Takes in an evaluated point.

        freeze: a sample once fooled stays as it is and counts no more queries.
        replace: the newest point wins, as in training.
        """
        open_ = ~self.success if freeze else jnp.ones_like(success)
        better = (success & ~self.success) | (
            (success == self.success) & (loss > self.loss)
        )
        better = open_ & (better | replace)
        first = jnp.where(
            success & open_ & (self.first_success < 0), self.queries, self.first_success
        )
        return Best(
            jnp.where(per_sample_mask(better, x), x, self.x_adv),
            jnp.where(better, success, self.success),
            jnp.where(better, loss, self.loss),
            first,
            self.queries + open_,
        )

    def result(self, x: jax.Array, ball: Ball) -> AttackResult:
        return AttackResult(
            self.x_adv,
            self.success,
            self.loss,
            self.first_success,
            ball.norm(self.x_adv - x),
            self.queries,
        )


def per_sample_mask(mask: jax.Array, x: jax.Array) -> jax.Array:
    """Shapes a mask [B] so that it selects samples of x [B, *S]."""
    return mask.reshape(mask.shape + (1,) * (x.ndim - 1))


def ascend(
    objective: Objective,
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


class Problem(NamedTuple):
    """What every gradient attack is given, checked and ready for a compiled body."""

    logits_fn: inputs.LogitsFn
    x: jax.Array
    ball: Ball
    bounds: Bounds


def check(
    logits_fn: Any, x: Any, ball: Any, bounds: Any, kinds: tuple[type, ...] = ()
) -> Problem:
    """Checks what every attack takes; ValueError names the argument that is wrong.

    kinds: the balls that the attack knows; by default any that has a steepest step.
    """
    logits_fn = inputs.as_logits_fn(logits_fn)
    bounds = inputs.check_bounds(bounds)
    x = inputs.check_images(x, bounds=bounds)
    if not (isinstance(ball, kinds) if kinds else hasattr(ball, "steepest")):
        *names, last = (f"{kind.__name__}(eps)" for kind in kinds or (Linf, L2, L1))
        allowed = f"{', '.join(names)} or {last}" if names else last
        raise ValueError(f"ball must be {allowed}, got {ball!r}")
    eps = getattr(ball, "eps", None)
    inputs.check_number("ball.eps", eps, minimum=0, batch_size=x.shape[0])
    ball = jax.tree.map(lambda value: jnp.asarray(value, x.dtype), ball)
    return Problem(logits_fn, x, ball, bounds)


def check_step_size(step_size: Any, x: jax.Array) -> jax.Array:
    """Returns α ≥ 0, a number or one for each sample, as an array of x's dtype."""
    inputs.check_number("step_size", step_size, minimum=0, batch_size=x.shape[0])
    return jnp.asarray(step_size, x.dtype)
