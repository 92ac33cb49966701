"""HopSkipJump: walks along the boundary with a gradient estimated from labels alone.

Chen, Jordan & Wainwright, IEEE S&P 2020 (arXiv 1904.02144), algorithm 2. φ(v) = 1 if v
is misclassified and −1 else, and d is the number of pixels. From a misclassified image
each round t = 1, 2, … has three parts:

    bisect     the radius r at which the image, projected onto the ball of radius r
               around x, comes to the boundary, up to θ r. The image there is v.
    estimate   g = Σ_b (φ(v + δ u_b) − φ̄) u_b over B_0 √t random directions u_b of
               length 1, with δ = ‖v − x‖ / d, in the first round 0.1 of the width of
               the bounds. φ̄ is the mean of φ. If all φ are equal, g = φ Σ u_b.
    step       v + ξ h, with h = g / ‖g‖₂ (L2) or sign(g) (L∞), and ξ = ‖v − x‖ / √t
               halved until that image is misclassified

θ is d^{−3/2} in L2 and d^{−2} in L∞, at least 8 roundings. Every point is moved into
the box, and u_b is what remains of it there. Beyond the paper, half of the estimate of
the round before is added to g: neighbouring points of the boundary have much the same
normal. In L∞ this halves what is lost to wrong signs on linear models of 64 pixels.

All samples are shown one image at a time, each in the part where its own search is.
"""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from robjax import lowering
from robjax.attacks.decision.start import candidate, check_starts
from robjax.attacks.minimal_norm.search import Search
from robjax.attacks.problem import Problem, check_classes, check_problem
from robjax.attacks.result import AttackResult
from robjax.balls import L2, Ball, Linf, with_radius
from robjax.boxes import width
from robjax.checks import Bounds, check_count, check_flags
from robjax.evaluation import gradient_free
from robjax.model import LogitsFn
from robjax.samples import fold_keys, mask_samples, per_sample, sample_keys

_START, _BISECT, _ESTIMATE, _STEP = range(4)
_FIRST_PROBE = 0.1  # of the width of the bounds
_MEMORY = 0.5  # share of the estimate before that is added
_HALVINGS = 20  # of a step, before the gradient is estimated anew


@gradient_free
def hop_skip_jump(
    logits_fn: LogitsFn,
    x: jax.Array,
    y: jax.Array,
    *,
    key: jax.Array,
    ball: Ball,
    bounds: Bounds = (0.0, 1.0),
    queries: int = 10_000,
    draws: int = 100,
    starts: jax.Array | None = None,
    early_exit: bool = False,
) -> AttackResult:
    """The nearest misclassified image that HopSkipJump finds from labels alone.

    Of the logits only the largest counts. A model that is no JAX function and gives
    labels is made one by `robjax.model.from_labels`. As in `fab`, the radius ε only
    decides what counts as success.

    >>> from robjax.balls import L2
    >>> x = jnp.array([[0.25, 0.75]])
    >>> y = jnp.array([1])
    >>> key = jax.random.key(0)
    >>> def labels(x):
    ...     return jax.nn.one_hot(x.argmax(axis=1), 2)
    >>> result = hop_skip_jump(labels, x, y, key=key, ball=L2(1.0), queries=3000)
    >>> round(float(result.distance[0]), 2)  # [[0.5, 0.5]] is 0.354 away
    0.36

    Args:
      logits_fn, x, y, bounds: as in `pgd`.
      key: one key, or one for each sample.
      ball: L2(ε) or Linf(ε); ε a number or [B].
      queries: most images that the model is shown of a sample, x itself among them.
      draws: B_0 ≥ 2, directions of the first estimate.
      starts: [M, *S] images that are tried in this order until one is misclassified,
        the same ones for all samples; then noise. None: noise alone.
      early_exit: a sample is shown no more after its first success.

    Returns:
      AttackResult as that of `fab`. `queries` is the number of images shown, never more
      than the budget, and `first_success` that of the image which first fooled inside
      the ball. The distance is infinite where no image was misclassified.

    Raises:
      ValueError: an argument is malformed; the message names it.
    """
    check_flags(early_exit=early_exit)
    problem = check_problem(logits_fn, x, ball, bounds, (L2, Linf))
    y, _ = check_classes(problem, y)
    check_count("queries", queries)
    check_count("draws", draws, minimum=2)
    return _hop_skip_jump(
        problem,
        y,
        sample_keys(key, len(y)),
        check_starts(starts, problem.x, problem.bounds),
        jnp.int32(draws),
        jnp.int32(queries),
        early_exit=bool(early_exit),
    )


class Walk(NamedTuple):
    """Where the search of each sample stands.

    Attributes:
      part: [B] which part of the round.
      round: [B] t.
      shown: [B] images evaluated in this part so far.
      point: [B, *S] the image v near the boundary; a step begins there.
      distance: [B] ‖v − x‖.
      far: [B, *S] the misclassified image that is projected.
      low: [B] a radius at which it was not misclassified; 0 at first.
      high: [B] one at which it was.
      signed: [B, *S] Σ φ u.
      total: [B, *S] Σ u.
      balance: [B] Σ φ.
      estimate: [B, *S] the latest g.
    """

    part: jax.Array
    round: jax.Array
    shown: jax.Array
    point: jax.Array
    distance: jax.Array
    far: jax.Array
    low: jax.Array
    high: jax.Array
    signed: jax.Array
    total: jax.Array
    balance: jax.Array
    estimate: jax.Array

    @classmethod
    def begin(cls, x: jax.Array) -> "Walk":
        """Returns the state in which a first misclassified image is looked for."""
        none = jnp.zeros(len(x), jnp.int32)
        zero = jnp.zeros(len(x), x.dtype)
        return cls(none, none, none, x, zero, x, zero, zero, 0 * x, 0 * x, zero, 0 * x)


@functools.partial(jax.jit, static_argnames=("early_exit",))
def _hop_skip_jump(
    problem: Problem,
    y: jax.Array,
    keys: jax.Array,
    starts: jax.Array,
    draws: jax.Array,
    queries: jax.Array,
    *,
    early_exit: bool,
) -> AttackResult:
    problem = lax.stop_gradient(problem)
    x = problem.x
    model = lowering.exact(problem.logits_fn)
    search, found = Search.begin(problem, y, early_exit=early_exit, refined=False)

    def show(carry):
        number, walk, found = carry
        image = _propose(walk, problem, fold_keys(keys, number), number, starts)
        logits = model(image)
        found = search.note(found, image, logits, number)
        walk = _advance(walk, problem, image, search.wrong(logits), draws)
        return number + 1, walk, found

    return search.result(search.repeat(queries, show, Walk.begin(x), found)[-1])


def _propose(
    walk: Walk,
    problem: Problem,
    keys: jax.Array,
    number: jax.Array,
    starts: jax.Array,
) -> jax.Array:
    """The next image of every sample, [B, *S]."""
    _, x, ball, bounds = problem
    draw = jax.vmap(lambda key: jax.random.normal(key, x.shape[1:], x.dtype))
    gaussian = draw(keys)

    def begin() -> jax.Array:
        first = candidate(number, starts, fold_keys(keys, 1), gaussian, bounds)
        return jnp.where(number == 0, x, first)

    direction = L2(1.0).steepest(gaussian, x, bounds)
    probe = walk.point + per_sample(_probe(walk, problem), x) * direction
    projected = with_radius(ball, _middle(walk)).project(walk.far, x, bounds)
    uphill = ball.steepest(walk.estimate, walk.point, bounds)
    step = walk.point + per_sample(_size(walk), x) * uphill
    starting = walk.part == _START
    image = lax.cond(starting.any(), begin, lambda: x)
    for part, other in ((_BISECT, projected), (_ESTIMATE, probe), (_STEP, step)):
        image = jnp.where(mask_samples(walk.part == part, x), other, image)
    return jnp.clip(image, *bounds)


def _probe(walk: Walk, problem: Problem) -> jax.Array:
    """δ [B]."""
    pixels = math.prod(problem.x.shape[1:])
    first = _FIRST_PROBE * width(problem.bounds)
    return jnp.where(walk.round == 1, first, walk.distance / pixels)


def _size(walk: Walk) -> jax.Array:
    """ξ [B], halved for each step that failed."""
    longest = walk.distance / jnp.sqrt(jnp.maximum(walk.round, 1))
    return longest * 0.5**walk.shown


def _advance(
    walk: Walk,
    problem: Problem,
    image: jax.Array,
    wrong: jax.Array,
    draws: jax.Array,
) -> Walk:
    """Takes in the verdict on the image that every sample was shown."""
    _, x, ball, _ = problem
    distance = ball.norm(image - x)
    starting, bisecting, estimating, stepping = (walk.part == part for part in range(4))

    # a misclassified image to be brought to the boundary
    arrived = wrong & (starting | stepping)
    nearer = bisecting & wrong
    low = jnp.where(arrived, 0, jnp.where(bisecting & ~wrong, _middle(walk), walk.low))
    high = jnp.where(arrived, distance, jnp.where(nearer, _middle(walk), walk.high))
    at = mask_samples(arrived | nearer, x)
    point = jnp.where(at, image, walk.point)
    reached = jnp.where(arrived | nearer, distance, walk.distance)

    # one more direction
    phi = jnp.where(wrong, 1.0, -1.0).astype(x.dtype)
    u = (image - walk.point) / per_sample(_probe(walk, problem), x)
    u = jnp.where(mask_samples(estimating, x), u, 0)
    signed = walk.signed + per_sample(phi, x) * u
    total = walk.total + u
    balance = walk.balance + jnp.where(estimating, phi, 0)

    shown = walk.shown + 1
    count = jnp.floor(draws * jnp.sqrt(walk.round.astype(x.dtype)))
    settled = bisecting & (high - low <= _precision(problem) * high)
    estimated = estimating & (shown >= count)
    stuck = stepping & ~wrong & (shown >= _HALVINGS)
    new_round = settled | stuck
    mean = balance / jnp.maximum(shown, 1)
    baseline = jnp.where(jnp.abs(mean) < 1, mean, 0)
    estimate = signed - per_sample(baseline, x) * total + _MEMORY * walk.estimate
    fresh = mask_samples(new_round, x)
    part = jnp.where(arrived, _BISECT, walk.part)
    part = jnp.where(new_round, _ESTIMATE, part)
    part = jnp.where(estimated, _STEP, part)
    return Walk(
        part=part,
        round=walk.round + new_round,
        shown=jnp.where(part != walk.part, 0, shown),
        point=point,
        distance=reached,
        far=jnp.where(mask_samples(arrived, x), image, walk.far),
        low=low,
        high=high,
        signed=jnp.where(fresh, 0, signed),
        total=jnp.where(fresh, 0, total),
        balance=jnp.where(new_round, 0, balance),
        estimate=jnp.where(mask_samples(estimated, x), estimate, walk.estimate),
    )


def _middle(walk: Walk) -> jax.Array:
    return (walk.low + walk.high) / 2


def _precision(problem: Problem) -> float:
    """θ."""
    pixels = math.prod(problem.x.shape[1:])
    power = -1.5 if isinstance(problem.ball, L2) else -2.0
    return max(pixels**power, 8 * float(jnp.finfo(problem.x.dtype).eps))
