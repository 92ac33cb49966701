"""Ascent of the Kullback-Leibler divergence from a reference prediction.

The inner problem of TRADES (Zhang et al., ICML 2019, eq. 5) and of Fisher
regularisation (Shi et al., arXiv 1906.02494): max over the ball of
D_KL( p(x_ref) ‖ p(·) ), which needs no labels.
"""

import functools

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from robjax import losses
from robjax.attacks.ascent import ascend, draw_keys, logits_at
from robjax.attacks.problem import (
    Problem,
    check_draws,
    check_problem,
    check_step_size,
)
from robjax.attacks.result import AttackResult, Best
from robjax.balls import Ball
from robjax.checks import Bounds, check_count, check_flags
from robjax.model import LogitsFn, count_classes
from robjax.samples import per_sample


def kl_pgd(
    logits_fn: LogitsFn,
    x: jax.Array,
    *,
    key: jax.Array,
    ball: Ball,
    bounds: Bounds = (0.0, 1.0),
    steps: int = 10,
    step_size: ArrayLike | None = None,
    reference: str = "natural",
    keep_best: bool = True,
    eot: int | None = None,
) -> AttackResult:
    """Looks for the image whose prediction differs most from a reference prediction.

    Steepest ascent of D_KL(p(x_ref) ‖ p(·)) inside ball ∩ box. The divergence and its
    gradient vanish at x_ref. So the ascent always starts from a random point of the
    ball.

    >>> from robjax.balls import Linf
    >>> x = jnp.array([[0.375, 0.5]])
    >>> result = kl_pgd(lambda x: x, x, key=jax.random.key(0), ball=Linf(0.125))
    >>> result.distance.tolist(), bool(result.loss[0] > 0)
    ([0.125], True)

    Args:
      logits_fn, x, ball, bounds, keep_best, eot: as in `pgd`.
      key: one key, or one for each sample.
      steps: k ≥ 1, static.
      step_size: α, a number or [B]; by default 2.5 ε/k.
      reference: which image is x_ref.
        * "natural": x.
        * "start": the random start, as in the code of arXiv 1906.02494. In that code
          the first gradient is rounding noise. Here the first step goes in a random
          direction of its own instead, which has the same distribution.

    Returns:
      AttackResult. `loss` is the divergence in nats. `success` means that the predicted
      class differs from the one at x_ref. `first_success` 0 is the start. The cost is k
      gradients (k − 1 with "start") and two forward passes, one of them at x_ref.
      `eot` multiplies it; the reference is then the mean of the logits at x_ref.

    Raises:
      ValueError: an argument is malformed; the message names it.
    """
    check_flags(keep_best=keep_best)
    problem = check_problem(logits_fn, x, ball, bounds, warn_if_wide=True)
    keys = check_draws(eot, key, len(problem.x), needed=True)
    count_classes(problem.logits_fn, problem.x, None if eot is None else keys)
    check_count("steps", steps)
    if reference not in ("natural", "start"):
        raise ValueError(f"reference must be 'natural' or 'start', got {reference!r}")
    alpha = 2.5 * problem.ball.eps / steps if step_size is None else step_size
    return _kl_pgd(
        problem,
        keys,
        check_step_size(alpha, problem.x),
        steps=steps,
        reference=reference,
        keep_best=bool(keep_best),
        eot=eot,
    )


@functools.partial(jax.jit, static_argnames=("steps", "reference", "keep_best", "eot"))
def _kl_pgd(
    problem: Problem,
    keys: jax.Array,
    step_size: jax.Array,
    *,
    steps: int,
    reference: str,
    keep_best: bool,
    eot: int | None,
) -> AttackResult:
    # for whoever differentiates around the attack, its result is a constant
    problem, step_size = jax.lax.stop_gradient((problem, step_size))
    logits_fn, x, ball, bounds = problem
    pairs = jax.vmap(jax.random.split)(keys)
    start = ball.project(x + ball.sample(pairs[:, 0], x, bounds), x, bounds)
    x_ref = x
    if reference == "start":
        noise = jax.vmap(lambda key: jax.random.normal(key, x.shape[1:], x.dtype))
        direction = ball.steepest(noise(pairs[:, 1]), start, bounds)
        x_ref = start
        steps = steps - 1
        moved = start + per_sample(step_size, x) * direction
        start = ball.project(moved, x, bounds)
    reference_logits = logits_at(logits_fn, x_ref, draw_keys(keys, eot, 0), eot)
    predicted = jnp.argmax(reference_logits, axis=1)

    def objective(logits: jax.Array) -> tuple[jax.Array, jax.Array]:
        changed = losses.misclassified(logits, predicted)
        return losses.kl(reference_logits, logits), changed

    best = ascend(
        problem,
        objective,
        start,
        Best.none(x, jax.eval_shape(objective, reference_logits)[0].dtype),
        step_size=step_size,
        steps=steps,
        keep_best=keep_best,
        keys=draw_keys(keys, eot, 1),
        eot=eot,
    )
    best = best._replace(queries=(best.queries + 1) * (eot or 1))
    return best.result(x, ball)
