"""Decoupled direction and norm, L2: Rony et al., CVPR 2019 (arXiv 1811.09600), alg. 1.

With δ_i = v_i − x, norm ρ_i, step size α_i and the cross-entropy's gradient g_i,

    ρ_{i+1} = (1 − γ) ρ_i if v_i is misclassified, else (1 + γ) ρ_i
    u       = δ_i + α_i g_i / ‖g_i‖
    v_{i+1} = box( x + ρ_{i+1} u / ‖u‖ )

α_i falls from 1 to 0.01 along a cosine. v_0 = x, and k steps evaluate v_0 to v_{k−1},
each with one gradient; the nearest misclassified one counts. The refinements of
`refinement` follow. The authors' code has none; it rounds v_i to 8 bits, and steps at
random where the gradient is 0, where here there is no step.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax

from robjax import losses, lowering
from robjax.attacks.minimal_norm.refinement import refine
from robjax.attacks.minimal_norm.search import Search, check_constants, cosine
from robjax.attacks.problem import Problem, check_classes, check_problem
from robjax.attacks.result import AttackResult
from robjax.balls import L2
from robjax.checks import Bounds, check_count
from robjax.model import LogitsFn
from robjax.samples import per_sample

_LAST_STEP = 0.01


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

    The radius ε plays no part in the walk, as in `fab`: take a large one for the
    smallest distances rather than a verdict.

    Args:
      logits_fn, x, y, bounds: as in `pgd`.
      key: not used; nothing here is random.
      ball: L2(ε); ε a number or [B].
      steps: k ≥ 1, static.
      gamma: γ ≥ 0, by how much the norm changes in a step.
      init_norm: ρ_0 ≥ 0, in units of the width of `bounds`.
      step_size: α_0 ≥ 0, in the same units; the last one is 100 times smaller.
      early_exit: freeze a sample at its first success, and stop when all are solved.
      reference_quirks: as the authors' code, without the refinements at the end.

    Returns:
      AttackResult as that of `fab`. `queries` counts forward passes: at most k for the
      walk and 27 for the refinements.

    Raises:
      ValueError: an argument is malformed; the message names it.
    """
    del key
    problem = check_problem(logits_fn, x, ball, bounds, (L2,))
    y, _ = check_classes(problem, y)
    check_count("steps", steps)
    numbers = {"gamma": gamma, "init_norm": init_norm, "step_size": step_size}
    return _ddn(
        problem,
        y,
        check_constants(problem.x.dtype, **numbers),
        steps=steps,
        early_exit=bool(early_exit),
        refined=not reference_quirks,
    )


@functools.partial(jax.jit, static_argnames=("steps", "early_exit", "refined"))
def _ddn(
    problem: Problem,
    y: jax.Array,
    constants: dict[str, jax.Array],
    *,
    steps: int,
    early_exit: bool,
    refined: bool,
) -> AttackResult:
    problem = lax.stop_gradient(problem)
    logits_fn, x, ball, bounds = problem
    gamma = constants["gamma"]
    step_size = constants["step_size"]
    width = bounds[1] - bounds[0]
    search, found = Search.begin(problem, y, early_exit=early_exit)
    largest = ball.norm(jnp.maximum(x - bounds[0], bounds[1] - x))

    def total(v):
        logits = logits_fn(v)
        # same direction as the cross-entropy, without its saturation
        return jnp.sum(losses.log_odds(logits, y)), logits

    gradient = lowering.fast(jax.grad(total, has_aux=True))

    def step(carry):
        i, v, norm, found = carry
        g, logits = gradient(v)
        found = search.note(found, v, logits, i)
        alpha = width * cosine(i / steps, step_size, _LAST_STEP * step_size)
        delta = v - x + per_sample(alpha, x) * ball.steepest(g, v, bounds)
        norm = norm * jnp.where(search.wrong(logits), 1 - gamma, 1 + gamma)
        norm = jnp.clip(norm, 0, largest)
        length = ball.norm(delta)
        scale = norm / jnp.where(length > 0, length, 1)
        return i + 1, jnp.clip(x + per_sample(scale, x) * delta, *bounds), norm, found

    norm = jnp.broadcast_to(width * constants["init_norm"], y.shape)
    found = search.repeat(steps, step, x, norm, found)[-1]
    if refined:
        found = refine(search, found, steps=steps)
    return search.result(found)
