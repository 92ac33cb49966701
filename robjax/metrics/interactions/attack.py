"""Attacks of equal strength: PGD that stops at a given attack utility.

Two networks, or two orders of interactions, can be compared only if the attacks took
the same away from both. Ren et al., arXiv 2103.07364, section 4.1, measure it on the
logits h,

    untargeted    U = h_y(x) − h_y(x_adv)
    targeted      U = (h_t − h_y)(x_adv) − (h_t − h_y)(x)

and keep the images whose U lies in a window (utility, utility + tolerance]. Here an
image that would jump over the window takes half the step instead, again and again.
"""

import functools
from typing import NamedTuple

import jax
import jax.core
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike

from robjax import losses, lowering
from robjax.attacks.problem import (
    Problem,
    check_classes,
    check_problem,
    check_step_size,
)
from robjax.balls import Ball
from robjax.checks import Bounds, check_bounds, check_count, check_labels, check_number
from robjax.model import LogitsFn
from robjax.samples import is_concrete, per_sample, select_samples


class UtilityAttack(NamedTuple):
    """Where the attack on each of B images stopped.

    Attributes:
      x_adv: [B, *S] inside ball and bounds.
      utility: [B] U at `x_adv`.
      reached: [B] bool, U lies in the window.
      success: [B] bool, the model is right about x, and about `x_adv` it is wrong, or
        says the target.
    """

    x_adv: jax.Array
    utility: jax.Array
    reached: jax.Array
    success: jax.Array

    def __repr__(self) -> str:
        """How many images were accepted; not the arrays."""
        if not (is_concrete(self.accepted) and is_concrete(self.utility)):
            return "UtilityAttack(traced)"
        accepted = np.asarray(self.accepted)
        text = f"{accepted.sum()} of {accepted.size} accepted"
        if accepted.any():
            text += f" at a mean utility of {np.mean(self.utility[accepted]):.4g}"
        return f"UtilityAttack({text})"

    @property
    def accepted(self) -> jax.Array:
        """[B] bool, `reached` and `success`; its mean is the accepted fraction."""
        return self.reached & self.success


def utility_attack(
    logits_fn: LogitsFn,
    x: jax.Array,
    y: jax.Array,
    *,
    ball: Ball,
    utility: ArrayLike,
    tolerance: ArrayLike = 0.5,
    target: jax.Array | None = None,
    bounds: Bounds = (0.0, 1.0),
    steps: int = 100,
    step_size: ArrayLike | None = None,
) -> UtilityAttack:
    """Runs PGD from the image itself until the model is fooled at the given utility.

    Untargeted it climbs the cross-entropy, targeted h_t − h_y. A step to a utility
    above the window is not taken, and the image's step size is halved.

    Two pixels are the logits, and 0.1 is the first step:

    >>> from robjax.balls import Linf
    >>> found = utility_attack(
    ...     lambda x: x,
    ...     jnp.array([[0.6, 0.5]]),
    ...     jnp.array([0]),
    ...     ball=Linf(0.4),
    ...     step_size=0.1,
    ...     utility=0.21,
    ...     tolerance=0.02,
    ... )
    >>> round(float(found.utility[0]), 3)  # 0.1, 0.2, not 0.3, not 0.25, 0.225
    0.225
    >>> found
    UtilityAttack(1 of 1 accepted at a mean utility of 0.225)

    Args:
      logits_fn: images [B, *S] -> logits [B, K].
      x: [B, *S] images inside `bounds`.
      y: [B] integer labels.
      ball: Linf(ε), L2(ε) or L1(ε); ε a number or [B].
      utility: the lower end of the window, at least 0; a number or [B].
      tolerance: the width of the window, above 0.
      target: [B] classes to reach; None: untargeted.
      bounds: lowest and highest pixel value.
      steps: at the most, static; each costs one gradient.
      step_size: of the first step, a number or [B]; by default ε/16, as in the paper.

    Returns:
      UtilityAttack. An image that never reached the window, or was not fooled in it, is
      not accepted.

    Raises:
      ValueError: an argument is malformed; the message names it.
    """
    problem = check_problem(logits_fn, x, ball, check_bounds(bounds))
    y, num_classes = check_classes(problem, y)
    count = len(y)
    if target is not None:
        target = check_labels(target, count, num_classes=num_classes, name="target")
        if is_concrete(target) and is_concrete(y) and bool((target == y).any()):
            raise ValueError("target must differ from y in every image")
    check_number("utility", utility, minimum=0, batch_size=count)
    check_number("tolerance", tolerance, minimum=0, batch_size=count)
    if not isinstance(tolerance, jax.core.Tracer) and np.min(tolerance) <= 0:
        raise ValueError(f"tolerance must be above 0, got {tolerance}")
    alpha = problem.ball.eps / 16 if step_size is None else step_size
    alpha = jnp.broadcast_to(check_step_size(alpha, problem.x), y.shape)
    low = jnp.asarray(utility)
    window = jnp.stack([jnp.broadcast_to(u, y.shape) for u in (low, low + tolerance)])
    return _run(problem, y, target, alpha, window, check_count("steps", steps))


class _State(NamedTuple):
    """Of each sample: the last point whose utility is not above the window."""

    x: jax.Array
    slope: jax.Array
    utility: jax.Array
    alpha: jax.Array
    done: jax.Array


@functools.partial(jax.jit, static_argnames="steps")
def _run(
    problem: Problem,
    y: jax.Array,
    target: jax.Array | None,
    alpha: jax.Array,
    window: jax.Array,
    steps: int,
) -> UtilityAttack:
    logits_fn, x, ball, bounds = lax.stop_gradient(problem)
    low, high = window

    def gain(logits: jax.Array) -> jax.Array:
        """The utility, but for what it is at x."""
        own = _at(logits, y)
        return -own if target is None else _at(logits, target) - own

    def fooled(logits: jax.Array) -> jax.Array:
        if target is None:
            return losses.misclassified(logits, y)
        return ~losses.misclassified(logits, target)

    def total(v: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        logits = logits_fn(v)
        # the direction of the cross-entropy, without its saturation
        climbed = losses.log_odds(logits, y) if target is None else gain(logits)
        return climbed.sum(), (gain(logits), fooled(logits))

    slope_of = lowering.fast(jax.grad(total, has_aux=True))

    def gradient(
        v: jax.Array,
    ) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        slope, found = slope_of(v)
        return jnp.where(jnp.isfinite(slope), slope, 0), found

    def inside(utility: jax.Array) -> jax.Array:
        return (utility > low) & (utility <= high)

    def step(state: _State) -> _State:
        direction = ball.steepest(state.slope, state.x, bounds)
        moved = state.x + per_sample(state.alpha, x) * direction
        moved = ball.project(moved, x, bounds)
        slope, (height, wrong) = gradient(moved)
        utility = height - start
        tried = _State(
            x=moved,
            slope=slope,
            utility=utility,
            alpha=state.alpha,
            done=inside(utility) & wrong,
        )
        halved = state._replace(alpha=state.alpha / 2)
        return select_samples(
            state.done, state, select_samples(utility > high, halved, tried)
        )

    slope, (start, _) = gradient(x)
    begun = _State(
        x=x,
        slope=slope,
        utility=jnp.zeros_like(start),
        alpha=alpha,
        done=jnp.zeros(len(y), bool),
    )
    _, ended = lax.while_loop(
        lambda loop: (loop[0] < steps) & ~loop[1].done.all(),
        lambda loop: (loop[0] + 1, step(loop[1])),
        (jnp.int32(0), begun),
    )
    judge = lowering.exact(logits_fn)
    before, after = judge(x), judge(ended.x)
    utility = gain(after) - gain(before)
    return UtilityAttack(
        x_adv=ended.x,
        utility=utility,
        reached=inside(utility),
        success=~losses.misclassified(before, y) & fooled(after),
    )


def _at(logits: jax.Array, classes: jax.Array) -> jax.Array:
    return jnp.take_along_axis(logits, classes[:, None], axis=1)[:, 0]
