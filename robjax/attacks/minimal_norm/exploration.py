"""Looks for nearer images where a walk would not have come.

A walk follows one path from x, and ends in the minimum that this path leads to. Random
points of the ball whose radius is the nearest distance so far lie in other linear
regions of a network. If such a point v is misclassified, it is nearer. If not, the
boundary linearised at v shows where its region ends, which is exact for a network of
ReLUs if the region reaches that far. Where nothing was found yet, however far, random
points seldom help, and steps uphill take their place.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from robjax import lowering
from robjax.attacks.minimal_norm.boundary import (
    distance_to,
    nearest_boundary,
    shift_to,
)
from robjax.attacks.minimal_norm.search import Found, Search
from robjax.balls import L0, Ball, Linf, with_radius
from robjax.samples import fold_keys, mask_samples

_BEYOND = 1.5  # how far beyond a boundary to go, in units of ρ
_STRIDE = 0.25  # of a signed step, as a share of the width of the box


def explore(
    search: Search,
    found: Found,
    keys: jax.Array,
    *,
    points: int,
    steps: ArrayLike,
    classes: int,
) -> Found:
    """Tries random points nearer than the nearest image so far, and their boundaries.

    A point costs two forward passes and a gradient for each wrong class.

    >>> from robjax.attacks.problem import check_problem
    >>> from robjax.samples import sample_keys
    >>> x = jnp.array([[0.25, 0.75]])
    >>> problem = check_problem(lambda x: x, x, Linf(1.0), (0.0, 1.0))
    >>> search, found = Search.begin(problem, jnp.array([1]), early_exit=False)
    >>> keys = sample_keys(jax.random.key(0), 1)
    >>> found = explore(search, found, keys, points=2, steps=0, classes=2)
    >>> round(float(found.distance[0]), 3)
    0.25

    Args:
      search: what is searched for.
      found: the record so far. A sample for which it has nothing climbs through the
        whole box, by signed steps from the first random point.
      keys: [B] of the random points.
      points: how many, static.
      steps: the number of steps to note an image with.
      classes: how many classes, y among them, a boundary is chosen from.
    """
    logits_fn, x, ball, bounds = search.problem
    y = search.y
    judge = lowering.exact(logits_fn)

    width = bounds[1] - bounds[0]

    def attempt(i, carry: tuple[jax.Array, Found]) -> tuple[jax.Array, Found]:
        uphill, found = carry
        v = _random_point(search, found, fold_keys(keys, i))
        climbs = jnp.isinf(found.distance) & (i > 0)
        v = jnp.where(mask_samples(climbs, x), uphill, v)
        length = functools.partial(distance_to, v=v, start=x, ball=ball, bounds=bounds)
        logits, boundary = nearest_boundary(logits_fn, y, v, classes, length)
        found = search.note(found, v, logits, steps)
        past = search.confidence + _BEYOND * search.rounding
        f = boundary.f - past
        goal = jnp.clip(x + shift_to(f, boundary.w, v, x, ball, bounds), *bounds)
        uphill = jnp.clip(v + _STRIDE * width * jnp.sign(boundary.w), *bounds)
        return uphill, search.note(found, goal, judge(goal), steps)

    return lax.fori_loop(0, points, attempt, (x, found))[1]


def _random_point(search: Search, found: Found, keys: jax.Array) -> jax.Array:
    """A point of the box, nearer to x than the record; uniform in it where it is empty.

    In L0 it changes any coordinate, since to lie near is no help there.
    """
    _, x, ball, bounds = search.problem
    width = bounds[1] - bounds[0]
    whole: Ball = Linf(width)
    anywhere = jnp.clip(x + whole.sample(keys, x), *bounds)
    if isinstance(ball, L0):
        return anywhere
    known = jnp.isfinite(found.distance)
    near = with_radius(ball, jnp.where(known, found.distance, width))
    v = jnp.clip(x + near.sample(keys, x), *bounds)
    return jnp.where(mask_samples(known, x), v, anywhere)
