"""One perturbation for all images: universal adversarial perturbations.

    max_δ J( f(clip(x_1 + δ)), f(clip(x_2 + δ)), … )   over ‖δ‖ ≤ ε

Moosavi-Dezfooli et al., "Universal adversarial perturbations", CVPR 2017, posed the
problem. The ascent is the stochastic projected gradient of Shafahi et al., "Universal
adversarial training", AAAI 2020 (arXiv 1811.11304), with steepest steps in the norm of
the ball that shrink to 0. J is a capped cross-entropy, with a target the log of its
mean probability (`shared.py`). Where x_i + δ leaves the box it is clipped, which only
brings it nearer to x_i.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike

from robjax import losses, lowering
from robjax.arrays import check_array
from robjax.attacks.problem import Problem, check_classes, check_problem
from robjax.attacks.result import AttackResult, Best
from robjax.attacks.shared import Aim, check_aim, climb, share_of
from robjax.balls import Ball
from robjax.checks import Bounds, check_bounds, check_count, check_number
from robjax.evaluation import Estimate
from robjax.model import LogitsFn
from robjax.numerics import map_batched
from robjax.samples import is_concrete


class UniversalResult(NamedTuple):
    """One perturbation, and what it does to the images that it was made with.

    What it does to others says ``evaluate(logits_fn, test, {"universal":
    functools.partial(attacks.perturbed, delta=result.delta, ball=ball)}, key=key)``.

    Attributes:
      delta: [*S], ‖δ‖ ≤ ε.
      fooled: [N] bool, x + δ is misclassified, or with a target taken for it.
      counted: [N] bool, the clean image is classified correctly; with a target, the
        label is another class.
    """

    delta: jax.Array
    fooled: jax.Array
    counted: jax.Array

    @property
    def rate(self) -> Estimate:
        """The share of the images counted that are fooled, and its standard error."""
        return share_of(np.asarray(self.fooled)[np.asarray(self.counted)])

    def __repr__(self) -> str:
        """Says how many are fooled; shows no arrays."""
        if not is_concrete(self.fooled):
            return "UniversalResult(traced)"
        count = int(np.sum(np.asarray(self.counted)))
        return f"UniversalResult(fools {str(self.rate).strip()} of {count} images)"


def universal(
    logits_fn: LogitsFn,
    x: jax.Array,
    y: jax.Array,
    *,
    key: jax.Array,
    ball: Ball,
    bounds: Bounds = (0.0, 1.0),
    target: int | None = None,
    steps: int = 500,
    batch_size: int = 128,
    step_size: ArrayLike | None = None,
    cap: ArrayLike = 9.0,
) -> UniversalResult:
    """Finds one perturbation that fools a model on as many images as it can.

    >>> from robjax.balls import Linf
    >>> x = jnp.array([[0.5, 0.4], [0.6, 0.4], [0.9, 0.1]])
    >>> found = universal(
    ...     lambda x: 10 * x, x, jnp.zeros(3, int), key=jax.random.key(0),
    ...     ball=Linf(0.125), steps=20,
    ... )
    >>> found.delta.tolist(), found
    ([-0.125, 0.125], UniversalResult(fools 66.67 ± 33.33 % of 3 images))

    Args:
      logits_fn: images [B, *S] -> logits [B, K]; any callable (`as_logits_fn`), not a
        randomised one.
      x: [N, *S] images inside `bounds`, all on the device.
      y: [N] integer labels.
      key: one key, or one for each image: of the order of the images.
      ball: Linf(ε), L2(ε) or L1(ε); ε a number.
      bounds: lowest and highest pixel value, two numbers.
      target: the class to be reached; None: any wrong one.
      steps: T ≥ 1, static.
      batch_size: images a step, static; at most all.
      step_size: α, a number; by default ε/10.
      cap: of the cross-entropy of an image, in nats; not used with a target.

    Returns:
      UniversalResult. The cost is T gradients of a batch, and two passes over the
      images.

    Raises:
      ValueError: an argument is malformed; the message names it.
    """
    problem = check_problem(logits_fn, x, ball, check_bounds(bounds), warn_if_wide=True)
    check_number("ball.eps", problem.ball.eps, minimum=0)
    aim = check_aim(problem, y, key=key, target=target, cap=cap)
    alpha = problem.ball.eps / 10 if step_size is None else step_size
    check_number("step_size", alpha, minimum=0)
    return _universal(
        problem,
        aim,
        jnp.asarray(alpha, problem.x.dtype),
        steps=check_count("steps", steps),
        batch_size=check_count("batch_size", batch_size),
    )


@functools.partial(jax.jit, static_argnames=("steps", "batch_size"))
def _universal(
    problem: Problem, aim: Aim, step_size: jax.Array, *, steps: int, batch_size: int
) -> UniversalResult:
    problem, aim, step_size = lax.stop_gradient((problem, aim, step_size))
    _, x, ball, bounds = problem
    width = bounds[1] - bounds[0]
    around = (-width, width)  # the box of differences of two images
    origin = jnp.zeros_like(x[:1])

    def put(delta: jax.Array, x: jax.Array, keys: jax.Array) -> jax.Array:
        del keys
        return jnp.clip(x + delta[None], *bounds)

    def move(delta: jax.Array, g: jax.Array, alpha: jax.Array) -> jax.Array:
        step = alpha * ball.steepest(g[None], delta[None], around)
        return ball.project(delta[None] + step, origin, around)[0]

    delta = climb(
        problem, aim, put, move, origin[0],
        step_size=step_size, steps=steps, batch_size=batch_size,
    )  # fmt: skip
    forward = lowering.exact(problem.logits_fn)

    def judge(batch: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        x, y = batch
        fooled = aim.reached(forward(put(delta, x, y)), y)
        if aim.target is not None:
            return fooled, y != aim.target
        return fooled, ~losses.misclassified(forward(x), y)

    fooled, counted = map_batched(judge, (x, aim.y), batch_size)
    return UniversalResult(delta, fooled, counted)


def perturbed(
    logits_fn: LogitsFn,
    x: jax.Array,
    y: jax.Array,
    *,
    key: jax.Array | None = None,
    ball: Ball,
    bounds: Bounds = (0.0, 1.0),
    delta: jax.Array,
) -> AttackResult:
    """Adds a given perturbation to every image: an attack that looks for nothing.

    >>> from robjax.balls import Linf
    >>> x = jnp.array([[0.5, 0.4], [0.9, 0.1]])
    >>> perturbed(
    ...     lambda x: x, x, jnp.array([0, 0]), ball=Linf(0.1),
    ...     delta=jnp.array([-0.1, 0.1]),
    ... )
    AttackResult(1 of 2 fooled at a median distance of 0.1)

    Args:
      logits_fn, x, y: as in `universal`.
      bounds: lowest and highest pixel value; also a box for each pixel, as
        `attacks.limits` makes it.
      key: not used.
      ball: the threat model; images are projected onto it.
      delta: [*S], as `UniversalResult.delta`.

    Returns:
      AttackResult; `loss` is the margin.

    Raises:
      ValueError: an argument is malformed; the message names it.
    """
    del key
    problem = check_problem(logits_fn, x, ball, bounds)
    y, _ = check_classes(problem, y)
    delta = check_array("delta", delta, "[…]", kinds=(jnp.floating,))
    delta = jnp.asarray(delta, problem.x.dtype)
    if delta.shape != problem.x.shape[1:]:
        raise ValueError(
            f"delta must have shape {problem.x.shape[1:]}, that of one image, got "
            f"{delta.shape}"
        )
    return _perturbed(problem, y, delta)


@jax.jit
def _perturbed(problem: Problem, y: jax.Array, delta: jax.Array) -> AttackResult:
    logits_fn, x, ball, bounds = problem
    x_adv = ball.project(x + delta[None], x, bounds)
    return judged(logits_fn, x, x_adv, y, ball)


def judged(
    logits_fn: LogitsFn, x: jax.Array, x_adv: jax.Array, y: jax.Array, ball: Ball
) -> AttackResult:
    """The result of an attack that made one image of each.

    >>> from robjax.balls import Linf
    >>> x = jnp.array([[0.5, 0.4]])
    >>> judged(lambda x: x, x, x[:, ::-1], jnp.array([0]), Linf(1.0)).success.tolist()
    [True]
    """
    logits = lowering.exact(logits_fn)(x_adv)
    wrong = losses.misclassified(logits, y)
    best = Best.none(x, logits.dtype)
    margin = losses.margin(logits, y)
    best = best.update(x_adv, margin, wrong, freeze=False, replace=True)
    return best.result(x, ball)
