"""The arguments that every attack takes, checked and ready for a compiled body.

Attacks compute in float32 or better. Half-precision images become float32, and so do
half-precision logits. The model is given float32 images then, and float32 images come
back.
"""

import math
import warnings
from typing import NamedTuple

import jax
import jax.core
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial
from jax.typing import ArrayLike

from robjax import losses
from robjax.arrays import extremes
from robjax.balls import L1, L2, Ball, Linf
from robjax.boxes import check_box, has_arrays, held
from robjax.checks import (
    Bounds,
    check_count,
    check_labels,
    check_number,
    is_half,
)
from robjax.evaluation.warnings import of_bounds
from robjax.model import LogitsFn, as_logits_fn, count_classes
from robjax.samples import check_key, is_concrete, sample_keys
from robjax.traced import TracedCallable

_ROUNDING = 1e-6  # how far ε may be above the size of the box and still mean that size


class Problem(NamedTuple):
    """A model, images and where they may move to; made by `check_problem`.

    Attributes:
      logits_fn: made by `as_logits_fn`; its logits are float32 or better. Gradients are
        0 for pixels that are held. Then it takes batches of B images only.
      x: [B, *S] images inside `bounds`, float32 or better.
      ball: the threat model; its ε is an array of the dtype of x, [] or [B].
      bounds: lowest and highest pixel value, two numbers or two arrays [B, *S].
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
    *,
    warn_if_wide: bool = False,
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
      bounds: lowest and highest pixel value, as `check_box` takes them.
      kinds: the balls that the attack knows; by default all with a steepest step.
      warn_if_wide: warn of a ball that holds every image inside `bounds`. Minimal-norm
        attacks do not, because there ε only says where to stop.

    Returns:
      Problem, whose ε has the dtype of x.

    Raises:
      ValueError: an argument is malformed; the message names it.

    Warns:
      UserWarning: ε is concrete and larger than the distance of any two images; or
        the images are concrete, and span less than 5 % of the bounds.
    """
    model = as_logits_fn(logits_fn)
    x, bounds = check_box(x, bounds)
    known = isinstance(ball, kinds) if kinds else hasattr(ball, "steepest")
    if isinstance(ball, type) or not known:
        *names, last = (f"{kind.__name__}(eps)" for kind in kinds or (Linf, L2, L1))
        allowed = f"{', '.join(names)} or {last}" if names else last
        got = f"the class {ball.__name__}" if isinstance(ball, type) else repr(ball)
        raise ValueError(f"ball must be {allowed}, got {got}")
    eps = getattr(ball, "eps", None)
    check_number("ball.eps", eps, minimum=0, batch_size=x.shape[0])
    call = Partial(_widened, model)
    if has_arrays(bounds):
        call = Partial(_with_held, held(bounds), call)
    else:  # a box for each pixel says what is meant
        if warn_if_wide:
            _warn_if_wide(ball, x, bounds)
        _warn_if_unfilled(x, bounds)
    ball = jax.tree.map(lambda value: jnp.asarray(value, x.dtype), ball)
    return Problem(as_logits_fn(call), x, ball, bounds)


def _with_held(
    still: jax.Array, model: LogitsFn, x: jax.Array, *keys: jax.Array
) -> jax.Array:
    """The model, whose gradient is 0 for pixels that are held."""
    return model(jnp.where(still, jax.lax.stop_gradient(x), x), *keys)


def _widened(model: TracedCallable, x: jax.Array, *keys: jax.Array) -> jax.Array:
    """The logits in float32 or better; half-precision losses would round to 0."""
    logits = model(x, *keys)
    # what is no array of logits is left to `check_logits`, which says so
    half = isinstance(logits, jax.Array) and is_half(logits.dtype)
    return logits.astype(jnp.float32) if half else logits


def _warn_if_wide(ball: Ball, x: jax.Array, bounds: Bounds) -> None:
    pixels = math.prod(x.shape[1:])
    sizes: dict[type, float] = {Linf: 1, L2: math.sqrt(pixels), L1: pixels}
    if isinstance(ball.eps, jax.core.Tracer) or type(ball) not in sizes:
        return
    size = sizes[type(ball)] * (bounds[1] - bounds[0])
    eps = float(np.asarray(ball.eps).max())  # jnp would trace it inside jit
    if eps <= size * (1 + _ROUNDING):
        return
    meant = f"; did you mean {eps:g}/255?" if eps / 255 < size else ""
    warnings.warn(
        f"ball.eps is {eps:g} in the unit of the pixels, but no two images inside "
        f"bounds {bounds} are farther apart than {size:g}, so the ball holds all of "
        f"them{meant}",
        stacklevel=4,
    )


def _warn_if_unfilled(x: jax.Array, bounds: Bounds) -> None:
    if not is_concrete(x):
        return
    _, low, high = map(float, extremes(x))
    if low < high:  # images of one value, as in examples, tell nothing of their range
        for text in of_bounds(low, high, bounds):
            warnings.warn(text, stacklevel=4)


def check_draws(
    eot: int | None, key: object, batch_size: int, *, needed: bool = False
) -> jax.Array | None:
    """Checks the draws of a randomised model, and the keys that they come from.

    >>> check_draws(None, None, 3) is None
    True
    >>> check_draws(5, None, 3)
    Traceback (most recent call last):
      ...
    ValueError: key must be given with eot, for the draws of the model, got None

    Args:
      eot: draws for each point; None: the model is deterministic.
      key: one key, or one for each sample; None: none was given.
      batch_size: B.
      needed: the attack draws from the key itself, with or without `eot`.

    Returns:
      Keys [B], or None if nothing is drawn.

    Raises:
      ValueError: `eot` is no whole number of at least 1, or `key` is malformed.
    """
    if eot is not None:
        check_count("eot", eot)
        if key is None:
            raise ValueError(
                "key must be given with eot, for the draws of the model, got None"
            )
    if needed or eot is not None:
        return sample_keys(key, batch_size)
    if key is not None:
        check_key(key, batch_size)
    return None


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


def check_loss(loss: object) -> None:
    """Checks that a loss can be climbed, before it meets logits.

    >>> check_loss(losses.margin)
    >>> check_loss("ce")
    Traceback (most recent call last):
      ...
    ValueError: loss must be a function (logits, labels) -> [B], got 'ce'

    Raises:
      ValueError: `loss` is not callable, or wants targets.
    """
    if loss is losses.targeted_dlr:
        raise ValueError(
            "loss must take (logits, labels), got losses.targeted_dlr, which wants "
            "targets, too: apgd_targeted climbs it"
        )
    if not callable(loss):
        raise ValueError(
            f"loss must be a function (logits, labels) -> [B], got {loss!r}"
        )


def check_values(values: jax.Array, batch_size: int) -> jax.Array:
    """Checks what a loss returned.

    >>> check_values(jnp.zeros(2), 2).shape
    (2,)

    Args:
      values: anything array-like.
      batch_size: B.

    Returns:
      The values as they are.

    Raises:
      ValueError: they are not floating-point [B].
    """
    shape = jnp.shape(values)
    if shape != (batch_size,):
        raise ValueError(
            f"loss must give one value for each sample, {(batch_size,)}, got {shape}"
        )
    dtype = jnp.result_type(values)
    if not jnp.issubdtype(dtype, jnp.floating):
        raise ValueError(f"loss must give floating-point values, got {dtype}")
    return values
