"""Carlini & Wagner's L2 attack: Adam on the distance plus a weighted missing margin.

Carlini & Wagner, S&P 2017 (arXiv 1608.04644), section VI.A. Images are written as

    v = m + h tanh u,    m the middle of the box, h half its width,

so that every u gives an image inside the box. From the u of x itself, Adam minimises

    ‖v − x‖² / (2h)² + c max(κ − f(v), 0),    f = max_{i≠y} z_i − z_y

over u; h is here that of the pixel with the widest box. κ is the confidence: an image
counts if f ≥ κ, and the nearest that counts is the result. A step costs one gradient.

The weight c is searched for, for each sample alone, by several runs of Adam:

* As long as no run has found an image that counts, the next c is ten times as large.
* After that, the next c is the middle between the largest weight whose run found none
  and the smallest whose run found one.

The rounds of `refinement` follow. The authors' code has no such rounds. It ends a run
for want of progress for the whole batch; here each sample ends its own.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax

from robjax import losses, lowering
from robjax.attacks.minimal_norm.refinement import refine
from robjax.attacks.minimal_norm.search import Found, Search, check_constants
from robjax.attacks.problem import Problem, check_classes, check_problem
from robjax.attacks.result import AttackResult
from robjax.balls import L2
from robjax.boxes import width
from robjax.checks import Bounds, check_count, check_flags
from robjax.model import LogitsFn
from robjax.numerics import finite_or_zero
from robjax.samples import flatten_samples, mask_samples, per_sample

_INSIDE = 0.999999
_CHECKS = 10
_PROGRESS = 0.9999


class Constants(NamedTuple):
    """The numbers of a search; see `carlini_wagner`."""

    confidence: jax.Array | float
    init_weight: jax.Array | float
    step_size: jax.Array | float


class Options(NamedTuple):
    """What the attack compiles for; every field is static.

    Attributes:
      steps: of each run.
      searches: runs, each with another weight.
      abort_early: a sample ends its run for want of progress.
      early_exit: a sample is done at its first success.
      refined: the rounds of `refinement` follow.
    """

    steps: int
    searches: int
    abort_early: bool
    early_exit: bool
    refined: bool


def carlini_wagner(
    logits_fn: LogitsFn,
    x: jax.Array,
    y: jax.Array,
    *,
    key: jax.Array | None = None,
    ball: L2,
    bounds: Bounds = (0.0, 1.0),
    steps: int = 1000,
    searches: int = 9,
    step_size: float = 0.01,
    init_weight: float = 1e-3,
    confidence: float = 0.0,
    abort_early: bool = True,
    early_exit: bool = False,
    reference_quirks: bool = False,
) -> AttackResult:
    """The nearest misclassified image that Carlini & Wagner's attack finds in L2.

    As in `fab`, the radius ε only decides what counts as success. Pass a large one to
    ask for the smallest distances rather than a verdict.

    >>> x = jnp.array([[0.25, 0.75]])
    >>> y = jnp.array([1])
    >>> result = carlini_wagner(
    ...     lambda x: x, x, y, ball=L2(1.0), steps=50, searches=2, init_weight=1.0
    ... )
    >>> round(float(result.distance[0]), 3)  # to [[0.5, 0.5]]
    0.354

    Args:
      logits_fn, x, y, bounds: as in `pgd`.
      key: not used; nothing here is random.
      ball: L2(ε); ε a number or [B].
      steps: n ≥ 1 of each run (the authors' 10,000), static.
      searches: runs, each with another c, static.
      step_size: Adam's.
      init_weight: the first c.
      confidence: κ ≥ 0; an image with a smaller margin does not count, not even x.
      abort_early: end a sample's run when a tenth of its steps has not lowered the
        objective by 0.01 %.
      early_exit: freeze a sample at its first success, and stop when all are solved.
      reference_quirks: as the authors' code, without the refinement at the end.

    Returns:
      AttackResult as that of `fab`. `queries` counts forward passes: at most
      1 + n × searches, and 8 + 27 for the refinement, which may repeat itself.

    Raises:
      ValueError: an argument is malformed; the message names it.
    """
    check_flags(
        abort_early=abort_early,
        early_exit=early_exit,
        reference_quirks=reference_quirks,
    )
    del key
    problem = check_problem(logits_fn, x, ball, bounds, (L2,))
    y, _ = check_classes(problem, y)
    check_count("steps", steps)
    check_count("searches", searches)
    constants = Constants(
        confidence=confidence, init_weight=init_weight, step_size=step_size
    )
    options = Options(
        steps=steps,
        searches=searches,
        abort_early=bool(abort_early),
        early_exit=bool(early_exit),
        refined=not reference_quirks,
    )
    constants = check_constants(constants, problem.x.dtype)
    return _carlini_wagner(problem, y, constants, options)


class Chart(NamedTuple):
    """The images of the box as v = m + h tanh u, for u without bounds.

    Attributes:
      bounds: lowest and highest pixel value.
      middle: m.
      half: h; 0 where a pixel is held.
    """

    bounds: Bounds
    middle: jax.Array | float
    half: jax.Array | float

    @classmethod
    def of(cls, bounds: Bounds) -> "Chart":
        low, high = bounds
        return cls(bounds, (low + high) / 2, (high - low) / 2)

    def image(self, u: jax.Array) -> jax.Array:
        return jnp.clip(self.middle + self.half * jnp.tanh(u), *self.bounds)

    def variable(self, v: jax.Array) -> jax.Array:
        """The u of images v, which are drawn in a little so that u is finite."""
        half = jnp.where(self.half > 0, self.half, 1)
        return jnp.arctanh(_INSIDE * (v - self.middle) / half)


class Weights(NamedTuple):
    """The search for the weight c of each sample; all are [B].

    Attributes:
      now: weight of the next run.
      low: the largest whose run found no image that counts; 0 before any.
      high: the smallest whose run found one; inf before any.
    """

    now: jax.Array
    low: jax.Array
    high: jax.Array

    def after(self, hit: jax.Array) -> "Weights":
        """Takes in whether the run with the weight `now` found one, [B] bool."""
        low = jnp.where(hit, self.low, self.now)
        high = jnp.where(hit, self.now, self.high)
        between = (low + jnp.where(jnp.isfinite(high), high, 0)) / 2
        now = jnp.where(jnp.isfinite(high), between, 10 * self.now)
        return Weights(now=now, low=low, high=high)


class Descent(NamedTuple):
    """Where the run for one weight c stands.

    Attributes:
      i: steps taken.
      u: [B, *S] the variable.
      adam: state of the optimiser.
      going: [B] bool, the sample still makes progress.
      hit: [B] bool, the run has met an image that counts.
      checked: [B] objective at the last look for progress.
      found: the nearest image of all runs.
    """

    i: jax.Array
    u: jax.Array
    adam: optax.OptState
    going: jax.Array
    hit: jax.Array
    checked: jax.Array
    found: Found

    @classmethod
    def begin(
        cls, u: jax.Array, optimiser: optax.GradientTransformation, found: Found
    ) -> "Descent":
        shape = found.distance.shape
        return cls(
            i=jnp.int32(0),
            u=u,
            adam=optimiser.init(u),
            going=jnp.ones(shape, bool),
            hit=jnp.zeros(shape, bool),
            checked=jnp.full(shape, jnp.inf, u.dtype),
            found=found,
        )


@functools.partial(jax.jit, static_argnames="options")
def _carlini_wagner(
    problem: Problem, y: jax.Array, constants: Constants, options: Options
) -> AttackResult:
    """All runs, one after the other, and the refinement; see `carlini_wagner`."""
    problem = lax.stop_gradient(problem)
    logits_fn, x, *_ = problem
    search, found = Search.begin(
        problem,
        y,
        early_exit=options.early_exit,
        confidence=constants.confidence,
        refined=options.refined,
    )
    optimiser = optax.adam(constants.step_size)
    chart = Chart.of(problem.bounds)
    start = chart.variable(x)

    def run(carry):
        r, weights, found = carry
        end = _descend(
            Descent.begin(start, optimiser, found),
            weight=weights.now,
            number=r,
            search=search,
            chart=chart,
            optimiser=optimiser,
            options=options,
        )
        weights = weights.after(end.hit)
        return r + 1, weights, end.found

    found = search.note(found, x, lowering.exact(logits_fn)(x), 0)
    weight = jnp.broadcast_to(constants.init_weight, y.shape)
    weights = Weights(
        now=weight, low=jnp.zeros_like(weight), high=jnp.full_like(weight, jnp.inf)
    )
    found = search.repeat(options.searches, run, weights, found)[-1]
    if options.refined:
        found = refine(search, found, steps=options.searches * options.steps)
    return search.result(found)


def _descend(
    begin: Descent,
    *,
    weight: jax.Array,
    number: jax.Array,
    search: Search,
    chart: Chart,
    optimiser: optax.GradientTransformation,
    options: Options,
) -> Descent:
    """A run of Adam with the weight c [B]; `number` counts the runs before it."""
    logits_fn, x, *_ = search.problem
    interval = -(-options.steps // _CHECKS)

    def total(u):
        v = chart.image(u)
        logits = logits_fn(v)
        unit = per_sample(width(chart.bounds), x)
        size = jnp.sum(flatten_samples((v - x) / unit) ** 2, axis=1)
        missing = search.confidence - losses.margin(logits, search.y)
        missing = jnp.maximum(missing, 0)
        objective = size + weight * missing.astype(x.dtype)
        return jnp.sum(objective), (v, logits, objective)

    gradient = lowering.fast(jax.grad(total, has_aux=True))

    def step(now: Descent) -> Descent:
        g, (v, logits, objective) = gradient(now.u)
        g = finite_or_zero(g)
        count = number * options.steps + now.i + 1
        update, adam = optimiser.update(g, now.adam)
        due = (now.i % interval == 0) & options.abort_early
        going = now.going & (~due | (objective <= _PROGRESS * now.checked))
        return Descent(
            i=now.i + 1,
            u=jnp.where(mask_samples(going, now.u), now.u + jnp.asarray(update), now.u),
            adam=adam,
            going=going,
            hit=now.hit | (now.going & search.wrong(logits)),
            checked=jnp.where(due, objective, now.checked),
            found=search.note(now.found, v, logits, count, passes=now.going),
        )

    def unfinished(now: Descent) -> jax.Array:
        open_ = now.found.distance > search.enough
        return (now.i < options.steps) & (now.going & open_).any()

    return lax.while_loop(unfinished, step, begin)
