"""What all minimal-norm attacks share: the record of what was found, and the loop.

They search for the misclassified image nearest to x. ε only decides which of the images
found counts as a success.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from robjax import losses
from robjax.attacks.problem import Problem
from robjax.attacks.result import AttackResult
from robjax.checks import check_number
from robjax.samples import mask_samples


class Found(NamedTuple):
    """The nearest misclassified image so far, and what it took to find it.

    Attributes:
      x_adv: [B, *S] that image; x where none was found.
      distance: [B] from x; inf where none was found.
      loss: [B] its margin max_{i≠y} z_i − z_y.
      clean_loss: [B] the margin of the first point evaluated, which is x.
      first_success: [B] int32, the step that first found one inside the ball, or −1.
      queries: [B] int32, images evaluated.
    """

    x_adv: jax.Array
    distance: jax.Array
    loss: jax.Array
    clean_loss: jax.Array
    first_success: jax.Array
    queries: jax.Array


class Search(NamedTuple):
    """A search for the nearest image that the model takes for another class than y.

    Attributes:
      problem: model, images, ball and bounds.
      y: [B] labels.
      enough: distance from which on a sample stays as it is; scalar or [B].
      confidence: margin κ ≥ 0 with which an image must be misclassified.
    """

    problem: Problem
    y: jax.Array
    enough: jax.Array
    confidence: ArrayLike = 0.0

    @classmethod
    def begin(
        cls,
        problem: Problem,
        y: jax.Array,
        *,
        early_exit: bool,
        confidence: ArrayLike = 0.0,
    ) -> tuple["Search", Found]:
        """The search and its empty record; x must be the first point it is given."""
        x = problem.x
        eps = problem.ball.eps
        low = jnp.full(y.shape, -jnp.inf, x.dtype)
        never = jnp.full(y.shape, -1, jnp.int32)
        found = Found(
            x_adv=x,
            distance=-low,
            loss=low,
            clean_loss=low,
            first_success=never,
            queries=jnp.zeros_like(never),
        )
        # an image at distance 0 cannot be improved; nor need one that counts already
        enough = eps if early_exit else jnp.zeros_like(eps)
        return cls(problem, y, enough, confidence), found

    def wrong(self, logits: jax.Array) -> jax.Array:
        """[B] bool, whether these are the logits of a misclassified image."""
        unsure = losses.margin(logits, self.y) < self.confidence  # false for NaN
        return losses.misclassified(logits, self.y) & ~unsure

    def note(
        self,
        found: Found,
        v: jax.Array,
        logits: jax.Array,
        count: ArrayLike,
        passes: ArrayLike = 1,
    ) -> Found:
        """Takes in an evaluated point.

        Args:
          found: the record so far.
          v: [B, *S] the point.
          logits: [B, K] what the model makes of it.
          count: the number of steps behind it.
          passes: how many images were evaluated since the last point.
        """
        _, x, ball, _ = self.problem
        distance = ball.norm(v - x)
        open_ = found.distance > self.enough
        better = open_ & self.wrong(logits) & (distance < found.distance)
        first = better & (distance <= ball.eps) & (found.first_success < 0)
        loss = losses.margin(logits, self.y).astype(x.dtype)
        return Found(
            x_adv=jnp.where(mask_samples(better, x), v, found.x_adv),
            distance=jnp.where(better, distance, found.distance),
            loss=jnp.where(better, loss, found.loss),
            clean_loss=jnp.where(found.queries == 0, loss, found.clean_loss),
            first_success=jnp.where(first, count, found.first_success),
            queries=found.queries + passes * open_,
        )

    def repeat(self, count: ArrayLike, body: Callable[..., Any], *state: Any) -> Any:
        """Runs body((i, *state)) until i = count or no sample is open.

        The record must be the last part of the state.
        """

        def unfinished(carry):
            return (carry[0] < count) & (carry[-1].distance > self.enough).any()

        return lax.while_loop(unfinished, body, (jnp.int32(0), *state))

    def result(self, found: Found) -> AttackResult:
        """The nearest image where it lies inside the ball, else x."""
        x = self.problem.x
        success = found.distance <= self.problem.ball.eps
        return AttackResult(
            x_adv=jnp.where(mask_samples(success, x), found.x_adv, x),
            success=success,
            loss=jnp.where(success, found.loss, found.clean_loss),
            first_success=found.first_success,
            distance=found.distance,
            queries=found.queries,
        )


def check_constants(
    dtype: jax.typing.DTypeLike, **constants: ArrayLike
) -> dict[str, jax.Array]:
    """Returns numbers ≥ 0 as arrays, so that another value compiles nothing anew.

    >>> check_constants(jnp.float32, gamma=0.05)["gamma"].dtype
    dtype('float32')

    Raises:
      ValueError: a number is not finite or below 0.
    """
    return {
        name: jnp.asarray(check_number(name, value, minimum=0), dtype)
        for name, value in constants.items()
    }


def cosine(time: ArrayLike, first: ArrayLike, last: ArrayLike) -> jax.Array:
    """From `first` at time 0 to `last` at time 1 along half a cosine.

    >>> cosine(jnp.array([0.0, 1.0]), 1.0, 0.5).tolist()
    [1.0, 0.5]
    """
    return last + (first - last) * (1 + jnp.cos(jnp.pi * time)) / 2
