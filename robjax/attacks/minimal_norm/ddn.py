"""Decoupled direction and norm (DDN) in L2: the verdict alone sets the length of δ.

Rony et al., CVPR 2019 (arXiv 1811.09600), algorithm 1. With the change δ_i = v_i − x,
the norm ρ_i, the step size α_i and the gradient g_i of the cross-entropy at v_i,

    ρ_{i+1} = (1 − γ) ρ_i   if v_i is misclassified
              (1 + γ) ρ_i   else
    u       = δ_i + α_i g_i / ‖g_i‖
    v_{i+1} = box( x + ρ_{i+1} u / ‖u‖ )

α_i falls from 1 to 0.01 along a cosine. v_0 = x, and k steps evaluate v_0 to v_{k−1},
each with one gradient; the nearest misclassified one counts. The rounds of `refinement`
follow.

The authors' code has no such rounds. It rounds v_i to 8 bits. Where the gradient is 0
it steps at random; here there is no step.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from robjax import losses, lowering
from robjax.attacks.minimal_norm.refinement import refine
from robjax.attacks.minimal_norm.search import Search, check_constants, cosine
from robjax.attacks.problem import Problem, check_classes, check_problem
from robjax.attacks.result import AttackResult
from robjax.balls import L2
from robjax.boxes import width
from robjax.checks import Bounds, check_count, check_flags
from robjax.model import LogitsFn
from robjax.numerics import finite_or_zero
from robjax.samples import per_sample

_LAST_STEP = 0.01  # of the first


class Constants(NamedTuple):
    """The numbers of a walk; see `ddn`."""

    gamma: jax.Array | float
    init_norm: jax.Array | float
    step_size: jax.Array | float


def ddn(
    logits_fn: LogitsFn,
    x: jax.Array,
    y: jax.Array,
    *,
    key: jax.Array | None = None,
    ball: L2,
    bounds: Bounds = (0.0, 1.0),
    steps: int = 100,
    gamma: float = 0.05,
    init_norm: float = 1.0,
    step_size: float = 1.0,
    early_exit: bool = False,
    reference_quirks: bool = False,
) -> AttackResult:
    """The nearest misclassified image that DDN finds in L2.

    As in `fab`, the radius ε only decides what counts as success. Pass a large one to
    ask for the smallest distances rather than a verdict.

    >>> x = jnp.array([[0.25, 0.75]])
    >>> y = jnp.array([1])
    >>> result = ddn(lambda x: x, x, y, ball=L2(1.0), steps=10)
    >>> round(float(result.distance[0]), 3)  # to [[0.5, 0.5]]
    0.354

    Args:
      logits_fn, x, y, bounds: as in `pgd`.
      key: not used; nothing here is random.
      ball: L2(ε); ε a number or [B].
      steps: k ≥ 1, static.
      gamma: γ ≥ 0, by how much the norm changes in a step.
      init_norm: ρ_0 ≥ 0, in units of the width of `bounds`, where they are widest.
      step_size: α_0 ≥ 0, in the same units; the last one is 100 times smaller.
      early_exit: freeze a sample at its first success, and stop when all are solved.
      reference_quirks: as the authors' code, without the refinement at the end.

    Returns:
      AttackResult as that of `fab`. `queries` counts forward passes: at most k for the
      walk and 8 + 27 for the refinement, which may repeat itself.

    Raises:
      ValueError: an argument is malformed; the message names it.
    """
    check_flags(early_exit=early_exit, reference_quirks=reference_quirks)
    del key
    problem = check_problem(logits_fn, x, ball, bounds, (L2,))
    y, _ = check_classes(problem, y)
    check_count("steps", steps)
    constants = Constants(gamma=gamma, init_norm=init_norm, step_size=step_size)
    return _ddn(
        problem,
        y,
        check_constants(constants, problem.x.dtype),
        steps=steps,
        early_exit=bool(early_exit),
        refined=not reference_quirks,
    )


@functools.partial(jax.jit, static_argnames=("steps", "early_exit", "refined"))
def _ddn(
    problem: Problem,
    y: jax.Array,
    constants: Constants,
    *,
    steps: int,
    early_exit: bool,
    refined: bool,
) -> AttackResult:
    problem = lax.stop_gradient(problem)
    logits_fn, x, ball, bounds = problem
    gamma, init_norm, step_size = constants
    widest = width(bounds)
    search, found = Search.begin(problem, y, early_exit=early_exit, refined=refined)
    largest = ball.norm(jnp.maximum(x - bounds[0], bounds[1] - x))

    def total(v: jax.Array) -> tuple[jax.Array, jax.Array]:
        logits = logits_fn(v)
        # same direction as the cross-entropy, without its saturation
        return jnp.sum(losses.log_odds(logits, y)), logits

    gradient = lowering.fast(jax.grad(total, has_aux=True))

    def step(carry):
        i, v, norm, found = carry
        g, logits = gradient(v)
        g = finite_or_zero(g)
        found = search.note(found, v, logits, i)
        alpha = widest * cosine(i / steps, step_size, _LAST_STEP * step_size)
        delta = v - x + per_sample(alpha, x) * ball.steepest(g, v, bounds)
        norm = norm * jnp.where(search.wrong(logits), 1 - gamma, 1 + gamma)
        norm = jnp.clip(norm, 0, largest)
        length = ball.norm(delta)
        scale = norm / jnp.where(length > 0, length, 1)
        return i + 1, jnp.clip(x + per_sample(scale, x) * delta, *bounds), norm, found

    norm = jnp.broadcast_to(widest * init_norm, y.shape)
    found = search.repeat(steps, step, x, norm, found)[-1]
    if refined:
        found = refine(search, found, steps=steps)
    return search.result(found)
