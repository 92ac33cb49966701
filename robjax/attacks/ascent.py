"""The loop that FGSM, PGD and KL-PGD share: projected steepest ascent.

    x_{i+1} = P( x_i + α · steepest(v_i) ),   v_i = μ v_{i−1} + g_i / mean|g_i|

P projects onto ball ∩ box, α is the step size, g_i the input gradient of the objective
at x_i and μ the momentum. Without momentum (μ = 0) v_i = g_i. k steps cost k input
gradients, and one forward pass that judges the last iterate. A component of g_i that is
not finite counts as 0.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from robjax import losses, lowering
from robjax.attacks.problem import Problem
from robjax.attacks.result import Best
from robjax.losses import Loss
from robjax.model import loss_gradient, mean_logits
from robjax.numerics import finite_or_zero
from robjax.samples import fold_keys, per_sample
from robjax.traced import TracedCallable

_FLOOR = 1e-20
_DRAWS = 2**32 - 2  # what the keys of a model's draws fold in; no run has this number

LogitsObjective = Callable[[jax.Array], tuple[jax.Array, jax.Array]]
"""Logits [B, K] -> (value to be maximised [B], success [B])."""


class Climbable(NamedTuple):
    """What is climbed in place of a loss; made by `without_saturation`.

    Attributes:
      loss: (logits, labels) -> [B]; it rises with the loss that it replaces.
      read: its value at logits, to the value of the loss there.
    """

    loss: Loss
    read: Callable[[jax.Array], jax.Array]


def without_saturation(loss: Loss, eot: int | None) -> Climbable:
    """Finds what to climb in place of a loss whose gradient rounds to 0.

    That loss is `losses.cross_entropy`. Any other is climbed as it is.

    * A deterministic model: `losses.log_odds` m, of which the cross-entropy is
      softplus(m). Its gradient has the same direction at every image.
    * A randomised model: softplus(m) + 1e-20 m. A mean over draws weighs the gradient
      of each draw by the slope of the loss, so the slope has to stay as it is wherever
      the cross-entropy has one.

    >>> z = jnp.array([[5000.0, 0.0]])
    >>> climbed, read = without_saturation(losses.cross_entropy, None)
    >>> value = climbed(z, jnp.array([0]))
    >>> value.tolist(), read(value).tolist()
    ([-5000.0], [0.0])

    Args:
      loss: (logits, labels) -> [B], to be maximised.
      eot: draws of a randomised model; None: deterministic.
    """
    if loss is not losses.cross_entropy:
        return Climbable(loss, lambda value: value)
    if eot is None:
        return Climbable(losses.log_odds, jax.nn.softplus)
    return Climbable(_sloped_cross_entropy, jax.nn.relu)


def _sloped_cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    odds = losses.log_odds(logits, labels)
    return jax.nn.softplus(odds) + _FLOOR * odds


def draw_keys(
    keys: jax.Array | None, eot: int | None, run: ArrayLike
) -> jax.Array | None:
    """The keys of a randomised model in one of the runs of an attack.

    >>> keys = jax.random.split(jax.random.key(0), 3)
    >>> draw_keys(keys, 10, 0).shape
    (3,)

    Args:
      keys: [B] of the attack; None: it has none.
      eot: draws of the model; None: it is deterministic.
      run: number of the run.

    Returns:
      Keys [B]; None for a deterministic model.
    """
    if keys is None or eot is None:
        return None
    return fold_keys(fold_keys(keys, _DRAWS), run)


def logits_at(
    logits_fn: TracedCallable, v: jax.Array, keys: jax.Array | None, eot: int | None
) -> jax.Array:
    """The logits [B, K] at images v by a forward pass, of draws their mean.

    >>> from robjax.model import as_logits_fn
    >>> model = as_logits_fn(lambda x: 2 * x)
    >>> logits_at(model, jnp.ones((1, 2)), None, None).tolist()
    [[2.0, 2.0]]

    Args:
      logits_fn: made by `as_logits_fn`.
      v: [B, *S] images.
      keys: [B] of the draws; None without `eot`.
      eot: draws of a randomised model; None: deterministic.
    """

    def forward(v: jax.Array, keys: jax.Array) -> jax.Array:
        return mean_logits(logits_fn, v, keys, eot)

    return lowering.fast(forward, forward=True)(v, _or_unused(keys))


def _or_unused(keys: jax.Array | None) -> jax.Array:
    """The keys, or what a deterministic model is given in their place."""
    return jnp.zeros(0) if keys is None else keys


class _Ascent(NamedTuple):
    """State of the loop."""

    steps_taken: jax.Array
    x: jax.Array  # x_i
    velocity: jax.Array  # v_{i−1}
    best: Best


def ascend(
    problem: Problem,
    objective: LogitsObjective,
    start: jax.Array,
    best: Best,
    *,
    step_size: jax.Array,
    steps: int,
    momentum: float = 0.0,
    keep_best: bool = True,
    early_exit: bool = False,
    keys: jax.Array | None = None,
    eot: int | None = None,
) -> Best:
    """Climbs `steps` steps from `start` and returns the best point found.

    >>> from robjax.attacks.problem import check_problem
    >>> from robjax.balls import Linf
    >>> x = jnp.array([[0.5, 0.5]])
    >>> problem = check_problem(lambda x: x, x, Linf(0.25), (0.0, 1.0))
    >>> best = ascend(
    ...     problem,
    ...     lambda z: (z[:, 0] - z[:, 1], z[:, 0] > 0.7),
    ...     x,
    ...     Best.none(x, x.dtype),
    ...     step_size=jnp.float32(0.125),
    ...     steps=2,
    ... )
    >>> best.x_adv.tolist(), best.queries.tolist()
    ([[0.75, 0.25]], [3])

    Args:
      problem: what is attacked.
      objective: what is maximised, and what counts as success. Of a randomised model
        the mean of the first is climbed; points are compared and judged at the mean
        logits of the same draws.
      start: [B, *S] first point, inside ball and box.
      best: best point known before.
      step_size: α, [] or [B].
      steps: k ≥ 0, static.
      momentum: μ, static.
      keep_best: return the best of `best` and all iterates, rather than the last one.
      early_exit: freeze a sample at its first success, and stop once all samples are
        solved.
      keys: [B] of the draws of a randomised model; point i folds in i.
      eot: how many draws; None: deterministic.

    Returns:
      Best, whose `queries` count each point once, whatever the draws.
    """
    logits_fn, x, ball, bounds = problem
    gradient = loss_gradient(logits_fn, lambda z: objective(z)[0], eot=eot)

    def keys_of(point: ArrayLike) -> jax.Array | None:
        return None if keys is None else fold_keys(keys, point)

    def note(best: Best, v: jax.Array, logits: jax.Array) -> Best:
        if not keep_best:
            return best
        loss, success = objective(logits)
        return best.update(v, loss, success, freeze=early_exit, replace=False)

    def step(state: _Ascent) -> _Ascent:
        v = state.x
        g, (_, logits) = gradient(v, _or_unused(keys_of(state.steps_taken)))
        best = note(state.best, v, logits)
        velocity = _accelerate(state.velocity, g, momentum) if momentum else g
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
    logits = logits_at(logits_fn, ended.x, keys_of(steps), eot)
    if keep_best:
        return note(ended.best, ended.x, logits)
    best = ended.best._replace(queries=ended.best.queries + steps)
    loss, success = objective(logits)
    return best.update(ended.x, loss, success, freeze=False, replace=True)


def _accelerate(velocity: jax.Array, g: jax.Array, momentum: float) -> jax.Array:
    """v_i of a finite g_i; a component that overflows starts again at 0."""
    axes = tuple(range(1, g.ndim))
    # the sum of large entries would overflow, and the mean of tiny ones round to 0
    peak = jnp.max(jnp.abs(g), axis=axes, keepdims=True)
    scaled = g / jnp.where(peak > 0, peak, 1)
    scale = jnp.mean(jnp.abs(scaled), axis=axes, keepdims=True)
    return finite_or_zero(momentum * velocity + scaled / jnp.where(scale > 0, scale, 1))
