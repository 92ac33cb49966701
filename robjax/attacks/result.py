"""What an attack returns, and the best point that it keeps while it runs."""

from typing import NamedTuple

import jax
import jax.core
import jax.numpy as jnp
import numpy as np

from robjax.balls import Ball
from robjax.samples import mask_samples


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

    def __repr__(self) -> str:
        """How many were fooled and how far away; not the arrays."""
        if isinstance(self.success, jax.core.Tracer):
            return "AttackResult(traced)"
        success = np.asarray(self.success)
        text = f"{success.sum()} of {success.size} fooled"
        if success.any():
            median = np.median(np.asarray(self.distance)[success])
            text += f" at a median distance of {median:.4g}"
        return f"AttackResult({text})"


class Best(NamedTuple):
    """The best point seen so far: fooling before not fooling, then by loss."""

    x_adv: jax.Array
    success: jax.Array
    loss: jax.Array
    first_success: jax.Array
    queries: jax.Array

    @classmethod
    def none(cls, x: jax.Array, loss_dtype: jax.typing.DTypeLike) -> "Best":
        """Before any point was evaluated."""
        batch = x.shape[0]
        return cls(
            x_adv=x,
            success=jnp.zeros(batch, bool),
            loss=jnp.full(batch, -jnp.inf, loss_dtype),
            first_success=jnp.full(batch, -1, jnp.int32),
            queries=jnp.zeros(batch, jnp.int32),
        )

    def update(
        self,
        x: jax.Array,
        loss: jax.Array,
        success: jax.Array,
        *,
        freeze: bool,
        replace: bool | jax.Array,
    ) -> "Best":
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
            x_adv=jnp.where(mask_samples(better, x), x, self.x_adv),
            success=jnp.where(better, success, self.success),
            loss=jnp.where(better, loss, self.loss),
            first_success=first,
            queries=self.queries + open_,
        )

    def result(self, x: jax.Array, ball: Ball) -> AttackResult:
        """What the attack on the images x returns."""
        return AttackResult(
            x_adv=self.x_adv,
            success=self.success,
            loss=self.loss,
            first_success=self.first_success,
            distance=ball.norm(self.x_adv - x),
            queries=self.queries,
        )
