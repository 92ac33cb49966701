"""The arguments that every attack takes, checked and ready for a compiled body."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from robjax.balls import L1, L2, Ball, Linf
from robjax.checks import Bounds, check_bounds, check_images, check_labels, check_number
from robjax.model import LogitsFn, as_logits_fn, count_classes
from robjax.traced import TracedCallable


class Problem(NamedTuple):
    """A model, images and where they may move to; made by `check_problem`.

    Attributes:
      logits_fn: made by `as_logits_fn`.
      x: [B, *S] images inside `bounds`.
      ball: the threat model; its ε is an array of the dtype of x, [] or [B].
      bounds: lowest and highest pixel value.
    """

    logits_fn: TracedCallable
    x: jax.Array
    ball: Ball
    bounds: Bounds


def check_problem(
    logits_fn: LogitsFn,
    x: jax.Array,
    ball: Ball,
    bounds: Bounds,
    kinds: tuple[type, ...] = (),
) -> Problem:
    """Checks the arguments that every attack takes.

    >>> problem = check_problem(
    ...     lambda x: 2 * x, jnp.array([[0.25, 0.5]]), Linf(0.1), (0.0, 1.0)
    ... )
    >>> problem.logits_fn(problem.x).tolist()
    [[0.5, 1.0]]

    Args:
      logits_fn: any model (`as_logits_fn`).
      x: [B, *S] images.
      ball: the threat model.
      bounds: lowest and highest pixel value.
      kinds: the balls that the attack knows; by default all with a steepest step.

    Returns:
      Problem, whose ε has the dtype of x.

    Raises:
      ValueError: an argument is malformed; the message names it.
    """
    logits_fn = as_logits_fn(logits_fn)
    bounds = check_bounds(bounds)
    x = check_images(x, bounds=bounds)
    known = isinstance(ball, kinds) if kinds else hasattr(ball, "steepest")
    if not known:
        *names, last = (f"{kind.__name__}(eps)" for kind in kinds or (Linf, L2, L1))
        allowed = f"{', '.join(names)} or {last}" if names else last
        raise ValueError(f"ball must be {allowed}, got {ball!r}")
    eps = getattr(ball, "eps", None)
    check_number("ball.eps", eps, minimum=0, batch_size=x.shape[0])
    ball = jax.tree.map(lambda value: jnp.asarray(value, x.dtype), ball)
    return Problem(logits_fn, x, ball, bounds)


def check_classes(
    problem: Problem, y: jax.Array, *, keys: jax.Array | None = None
) -> tuple[jax.Array, int]:
    """Checks labels against the classes of the model.

    >>> problem = check_problem(
    ...     lambda x: x, jnp.full((2, 3), 0.5), Linf(0.1), (0.0, 1.0)
    ... )
    >>> labels, num_classes = check_classes(problem, jnp.array([2, 0]))
    >>> num_classes
    3

    Args:
      problem: made by `check_problem`.
      y: [B] integer labels.
      keys: [B] for a randomised model, else None.

    Returns:
      The labels [B] as int32, and the number of classes K.

    Raises:
      ValueError: the model gives no logits, or `y` is no [B] of labels below K.
    """
    num_classes = count_classes(problem.logits_fn, problem.x, keys)
    y = check_labels(y, problem.x.shape[0], num_classes=num_classes)
    return y, num_classes


def check_step_size(step_size: ArrayLike, x: jax.Array) -> jax.Array:
    """Checks a step size, and makes it an array of the dtype of x.

    >>> float(check_step_size(0.5, jnp.ones((2, 3))))
    0.5

    Args:
      step_size: α ≥ 0, a number or [B].
      x: [B, *S] images.

    Raises:
      ValueError: `step_size` is not a finite number of at least 0, nor [B] of them.
    """
    check_number("step_size", step_size, minimum=0, batch_size=x.shape[0])
    return jnp.asarray(step_size, x.dtype)
