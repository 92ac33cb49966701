"""The boundary attack: a random walk along the boundary that comes ever nearer.

Brendel, Rauber & Bethge, ICLR 2018 (arXiv 1712.04248). v is a misclassified image at
the distance r = ‖v − x‖₂ from the clean image. With a random direction u of length 1,
orthogonal to v − x, it tries

    projection of v + δ r u onto the ball of radius (1 − α) r around x, and onto the box

and moves there if that image is misclassified. Each tenth image lies on the sphere
itself, α = 0. The sizes follow how often that works, as in the paper: after such an
image log δ moves by c (1 − ½) if it was misclassified, else by c (0 − ½); after
another one log α moves by c (1 − ¼) or c (0 − ¼).
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from robjax import lowering
from robjax.attacks.decision.start import candidate, check_starts
from robjax.attacks.minimal_norm.search import Search
from robjax.attacks.problem import Problem, check_classes, check_problem
from robjax.attacks.result import AttackResult
from robjax.balls import L2, with_radius
from robjax.checks import Bounds, check_count, check_flags, check_number
from robjax.evaluation import gradient_free
from robjax.model import LogitsFn
from robjax.samples import (
    flatten_samples,
    fold_keys,
    mask_samples,
    per_sample,
    sample_keys,
)

_TESTED = 10  # one of this many images lies on the sphere
_RATE = 0.2  # c
_ON_SPHERE, _NEARER = 0.5, 0.25  # shares of misclassified images aimed at


@gradient_free
def boundary_attack(
    logits_fn: LogitsFn,
    x: jax.Array,
    y: jax.Array,
    *,
    key: jax.Array,
    ball: L2,
    bounds: Bounds = (0.0, 1.0),
    queries: int = 10_000,
    spherical_step: ArrayLike = 0.01,
    source_step: ArrayLike = 0.01,
    starts: jax.Array | None = None,
    early_exit: bool = False,
) -> AttackResult:
    """The nearest misclassified image that a random walk finds from labels alone.

    `hop_skip_jump` needs fewer queries in most cases. As there, only the largest logit
    counts, and ε only decides what counts as success.

    >>> x = jnp.array([[0.25, 0.75]])
    >>> y = jnp.array([1])
    >>> key = jax.random.key(0)
    >>> def labels(x):
    ...     return jax.nn.one_hot(x.argmax(axis=1), 2)
    >>> result = boundary_attack(labels, x, y, key=key, ball=L2(1.0), queries=1000)
    >>> round(float(result.distance[0]), 2)  # to [[0.5, 0.5]]
    0.35

    Args:
      logits_fn, x, y, key, bounds, queries, starts, early_exit: as in `hop_skip_jump`.
      ball: L2(ε); ε a number or [B].
      spherical_step: the first δ ≥ 0, in units of the distance.
      source_step: the first α ≥ 0, in the same units.

    Returns:
      AttackResult as that of `hop_skip_jump`.

    Raises:
      ValueError: an argument is malformed; the message names it.
    """
    check_flags(early_exit=early_exit)
    problem = check_problem(logits_fn, x, ball, bounds, (L2,))
    y, _ = check_classes(problem, y)
    check_count("queries", queries)
    check_number("spherical_step", spherical_step, minimum=0)
    check_number("source_step", source_step, minimum=0)
    sizes = jnp.asarray(spherical_step), jnp.asarray(source_step)
    return _boundary_attack(
        problem,
        y,
        sample_keys(key, len(y)),
        check_starts(starts, problem.x, problem.bounds),
        jnp.stack(sizes).astype(problem.x.dtype),
        jnp.int32(queries),
        early_exit=bool(early_exit),
    )


class Walk(NamedTuple):
    """Where the walk of each sample stands.

    Attributes:
      point: [B, *S] v; x before the start is found.
      distance: [B] r, 0 before the start is found.
      spherical: [B] δ.
      source: [B] α.
    """

    point: jax.Array
    distance: jax.Array
    spherical: jax.Array
    source: jax.Array


@functools.partial(jax.jit, static_argnames=("early_exit",))
def _boundary_attack(
    problem: Problem,
    y: jax.Array,
    keys: jax.Array,
    starts: jax.Array,
    sizes: jax.Array,
    queries: jax.Array,
    *,
    early_exit: bool,
) -> AttackResult:
    problem = lax.stop_gradient(problem)
    _, x, ball, bounds = problem
    model = lowering.exact(problem.logits_fn)
    search, found = Search.begin(problem, y, early_exit=early_exit, refined=False)
    draw = jax.vmap(lambda key: jax.random.normal(key, x.shape[1:], x.dtype))

    def show(carry):
        number, walk, found = carry
        now = fold_keys(keys, number)
        gaussian = draw(now)
        on_sphere = number % _TESTED == 0
        starting = walk.distance == 0

        def begin() -> jax.Array:
            first = candidate(number, starts, fold_keys(now, 1), gaussian, bounds)
            return jnp.where(number == 0, x, first)

        image = lax.cond(starting.any(), begin, lambda: x)
        step = _propose(walk, problem, gaussian, on_sphere)
        image = jnp.where(mask_samples(starting, x), image, step)
        logits = model(image)
        wrong = search.wrong(logits)
        found = search.note(found, image, logits, number)
        adapted = _adapt(walk, wrong, on_sphere)
        distance = ball.norm(image - x)
        nearer = wrong & (starting | (distance <= walk.distance))
        walk = Walk(
            point=jnp.where(mask_samples(nearer, x), image, walk.point),
            distance=jnp.where(nearer, distance, walk.distance),
            spherical=jnp.where(starting, walk.spherical, adapted.spherical),
            source=jnp.where(starting, walk.source, adapted.source),
        )
        return number + 1, walk, found

    zero = jnp.zeros(y.shape, x.dtype)
    walk = Walk(x, zero, zero + sizes[0], zero + sizes[1])
    return search.result(search.repeat(queries, show, walk, found)[-1])


def _propose(
    walk: Walk, problem: Problem, gaussian: jax.Array, on_sphere: jax.Array
) -> jax.Array:
    """The next image of every sample, [B, *S]."""
    _, x, ball, bounds = problem
    away = flatten_samples(ball.steepest(walk.point - x, x, bounds))
    u = flatten_samples(gaussian)
    u = u - jnp.sum(u * away, axis=1, keepdims=True) * away
    direction = ball.steepest(u.reshape(x.shape), x, bounds)
    moved = walk.point + per_sample(walk.spherical * walk.distance, x) * direction
    radius = jnp.where(on_sphere, 1, 1 - walk.source) * walk.distance
    return with_radius(ball, radius).project(moved, x, bounds)


def _adapt(walk: Walk, wrong: jax.Array, on_sphere: jax.Array) -> Walk:
    """The walk with sizes that follow from the verdict on one image."""
    aim = jnp.where(on_sphere, _ON_SPHERE, _NEARER)
    factor = jnp.exp(_RATE * (wrong - aim)).astype(walk.source.dtype)
    return walk._replace(
        spherical=jnp.where(on_sphere, walk.spherical * factor, walk.spherical),
        source=jnp.where(on_sphere, walk.source, jnp.minimum(walk.source * factor, 1)),
    )
