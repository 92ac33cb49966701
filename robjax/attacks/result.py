"""What an attack returns, and the best point that it keeps while it runs."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from robjax.balls import Ball
from robjax.samples import is_concrete, mask_samples


class AttackResult(NamedTuple):
    """What an attack did to each of B samples.

    Attributes:
      x_adv: [B, *S] adversarial images, inside ball and bounds.
      success: [B] bool, whether `x_adv` fools the model.
      loss: [B] the loss at `x_adv`.
      first_success: [B] int32, number of the evaluation that first fooled the model;
        −1 if none did. Number 0 is the first image that the attack evaluates: x, or its
        own start if it does not evaluate x. Minimal-norm attacks count steps instead.
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
        """Says how many were fooled and how far away; shows no arrays."""
        if not (is_concrete(self.success) and is_concrete(self.distance)):
            return "AttackResult(traced)"
        success = np.asarray(self.success)
        text = f"{success.sum()} of {success.size} fooled"
        if success.any():
            median = np.median(np.asarray(self.distance)[success])
            text += f" at a median distance of {median:.4g}"
        return f"AttackResult({text})"


class Best(NamedTuple):
    """The best point that an attack has evaluated so far, for each sample.

    A point that fools is better than one that does not. Between two that fool, or two
    that do not, the higher loss is better.

    >>> x = jnp.zeros((1, 2))
    >>> no = jnp.array([False])
    >>> yes = jnp.array([True])
    >>> best = Best.none(x, jnp.float32)
    >>> best = best.update(x, jnp.array([3.0]), no, freeze=False, replace=False)
    >>> best = best.update(x + 1, jnp.array([2.0]), yes, freeze=False, replace=False)
    >>> best.x_adv.tolist(), best.first_success.tolist()
    ([[1.0, 1.0]], [1])

    Attributes:
      x_adv: [B, *S] that point.
      success: [B] bool, whether it fools the model.
      loss: [B] its loss.
      first_success: [B] int32, number of the first evaluation that fooled, from 0; −1
        if none did.
      queries: [B] int32, evaluations so far.
    """

    x_adv: jax.Array
    success: jax.Array
    loss: jax.Array
    first_success: jax.Array
    queries: jax.Array

    @classmethod
    def none(cls, x: jax.Array, loss_dtype: DTypeLike) -> "Best":
        """Returns the state before any point was evaluated; every point is better."""
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

        Args:
          x: [B, *S] the point.
          loss: [B] its loss.
          success: [B] bool, whether it fools.
          freeze: a sample once fooled stays as it is and counts no more queries.
          replace: the newest point wins, whether it is better or not.
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
        """Returns what an attack on the images x gives back."""
        return AttackResult(
            x_adv=self.x_adv,
            success=self.success,
            loss=self.loss,
            first_success=self.first_success,
            distance=ball.norm(self.x_adv - x),
            queries=self.queries,
        )
