"""What all minimal-norm attacks share: the record of what was found, and the loop.

They search for the misclassified image nearest to x. The radius ε only decides which of
the images found count as a success.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from robjax import losses, lowering
from robjax.attacks.problem import Problem
from robjax.attacks.result import AttackResult
from robjax.boxes import has_arrays
from robjax.checks import check_number
from robjax.numerics import finite_or_zero
from robjax.samples import flatten_samples, mask_samples, per_sample

Constants = TypeVar("Constants", bound=NamedTuple)

# On 12 kinds of random networks (up to 16 layers of 512 units, 3 of each kind, 500
# images) no margin in float32 was farther from that in float64 than FACTOR times the
# range of COPIES margins.
_COPIES = 8
_FACTOR = 4.0


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

    @property
    def empty(self) -> jax.Array:
        """[B] bool, nothing has been noted yet."""
        return self.clean_loss == -jnp.inf


class Search(NamedTuple):
    """A search for the nearest image that the model takes for another class than y.

    Attributes:
      problem: model, images, ball and bounds.
      y: [B] labels.
      enough: a number or [B]; a sample with an image no farther than this is done, and
        its record stays as it is. The other samples are open.
      confidence: margin κ ≥ 0 with which an image must be misclassified.
      rounding: ρ [B], by how much a margin must exceed κ, so that rounding does not
        decide; 0 for the authors' codes, which do not ask.
    """

    problem: Problem
    y: jax.Array
    enough: jax.Array | float
    confidence: jax.Array | float = 0.0
    rounding: jax.Array | float = 0.0

    @classmethod
    def begin(
        cls,
        problem: Problem,
        y: jax.Array,
        *,
        early_exit: bool,
        confidence: jax.Array | float = 0.0,
        refined: bool = True,
    ) -> tuple["Search", Found]:
        """The search and its empty record; x must be the first point noted in it.

        Args:
          problem: made by `check_problem`.
          y: [B] labels.
          early_exit: a sample is done at its first image inside the ball; otherwise
            only at distance 0.
          confidence: κ.
          refined: whether ρ is measured, in eight forward passes; otherwise it is 0.
        """
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
            queries=jnp.full_like(never, _COPIES if refined else 0),
        )
        # an image at distance 0 cannot be improved
        enough = eps if early_exit else jnp.zeros_like(eps)
        search = cls(
            problem=problem,
            y=y,
            enough=enough,
            confidence=confidence,
            rounding=_measure_rounding(problem, y) if refined else jnp.zeros_like(low),
        )
        return search, found

    def wrong(self, logits: jax.Array) -> jax.Array:
        """[B] bool, whether these are the logits of a misclassified image."""
        unsure = losses.margin(logits, self.y) < self.confidence  # false for NaN
        return losses.misclassified(logits, self.y) & ~unsure

    def sure(self, found: Found, logits: jax.Array) -> jax.Array:
        """[B] bool, whether another forward pass would find them misclassified, too.

        Beyond `wrong` it asks for a margin of at least κ + ρ. x itself, which is noted
        first, is judged by its class.
        """
        rho = jnp.where(found.empty, 0, self.rounding)
        unsure = losses.margin(logits, self.y) < self.confidence + rho
        return self.wrong(logits) & ~unsure

    def note(
        self,
        found: Found,
        v: jax.Array,
        logits: jax.Array,
        count: ArrayLike,
        passes: ArrayLike = 1,
    ) -> Found:
        """Records an evaluated point where it is the nearest misclassified one.

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
        better = open_ & self.sure(found, logits) & (distance < found.distance)
        first = better & (distance <= ball.eps) & (found.first_success < 0)
        loss = losses.margin(logits, self.y).astype(x.dtype)
        return Found(
            x_adv=jnp.where(mask_samples(better, x), v, found.x_adv),
            distance=jnp.where(better, distance, found.distance),
            loss=jnp.where(better, loss, found.loss),
            clean_loss=jnp.where(found.empty, loss, found.clean_loss),
            first_success=jnp.where(first, count, found.first_success),
            queries=found.queries + passes * open_,
        )

    def repeat(self, count: ArrayLike, body: Callable[..., Any], *state: Any) -> Any:
        """Runs body((i, *state)) until i = count or no sample is open.

        Args:
          count: how often at most; i counts from 0.
          body: (i, *state) -> (i + 1, *state).
          state: pytrees; the last one must be the record.

        Returns:
          The last (i, *state).
        """

        def unfinished(carry):
            i, *_, found = carry
            return (i < count) & (found.distance > self.enough).any()

        return lax.while_loop(unfinished, body, (jnp.int32(0), *state))

    def result(self, found: Found) -> AttackResult:
        """What the attack returns: the nearest image inside the ball, else x."""
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


def _measure_rounding(problem: Problem, y: jax.Array) -> jax.Array:
    """ρ [B]: how far the margin in another precision or batch may be from this one.

    In a batch of another size or in another precision sums are rounded otherwise. So
    they are where every pixel changes by one rounding of the largest: ρ is a multiple
    of the range of the margins of a few such images, and at least one rounding of
    theirs.
    """
    logits_fn, x, _, bounds = problem
    judge = lowering.exact(logits_fn)
    rounding = jnp.finfo(x.dtype).eps
    low, high = bounds
    size = high - low
    if has_arrays(bounds):
        # held pixels are rounded, too, and the width of a box says nothing of that
        size = jnp.maximum(jnp.abs(low), jnp.abs(high))
        low = per_sample(jnp.min(flatten_samples(low), axis=1), x)
        high = per_sample(jnp.max(flatten_samples(high), axis=1), x)

    def near(number: jax.Array) -> jax.Array:
        # the same for all samples, so that no result depends on the batch
        signs = jax.random.rademacher(jax.random.key(number), x.shape[1:], x.dtype)
        v = jnp.clip(x + rounding * size * signs[None], low, high)
        return losses.margin(judge(v), y).astype(x.dtype)

    margins = lax.map(near, jnp.arange(_COPIES))
    least = rounding * jnp.max(jnp.abs(margins), axis=0)
    return finite_or_zero(_FACTOR * jnp.maximum(jnp.ptp(margins, axis=0), least))


def check_constants(constants: Constants, dtype: jax.typing.DTypeLike) -> Constants:
    """Makes the numbers of an attack arrays, so that no new value compiles anew.

    >>> class Rates(NamedTuple):
    ...     gamma: jax.Array | float
    >>> check_constants(Rates(gamma=0.5), jnp.float32)
    Rates(gamma=Array(0.5, dtype=float32))

    Args:
      constants: NamedTuple of numbers ≥ 0.
      dtype: of the arrays.

    Raises:
      ValueError: a number is not finite or below 0; the message names its field.
    """
    for name, value in constants._asdict().items():
        check_number(name, value, minimum=0)
    return jax.tree.map(lambda value: jnp.asarray(value, dtype), constants)


def cosine(
    time: jax.Array, first: jax.Array | float, last: jax.Array | float
) -> jax.Array:
    """Goes from `first` at time 0 to `last` at time 1 along half a cosine.

    >>> cosine(jnp.array([0.0, 1.0]), 1.0, 0.5).tolist()
    [1.0, 0.5]
    """
    return last + (first - last) * (1 + jnp.cos(jnp.pi * time)) / 2
