"""Looks for nearer images where a walk would not have come.

A walk follows one path from x, and ends in the minimum that this path leads to. So
`explore` starts at random points that are nearer to x than the nearest image so far,
and climbs the margin without going farther. What it finds misclassified is nearer.
"""

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from robjax import losses, lowering
from robjax.attacks.minimal_norm.search import Found, Search
from robjax.balls import L0, L2, Ball, Linf, with_radius
from robjax.boxes import width
from robjax.model import loss_gradient
from robjax.samples import fold_keys, mask_samples, per_sample

_STEPS = 10  # of a climb
_NEARER = 0.995  # how near an image has to be, of the nearest distance so far


def explore(
    search: Search, found: Found, keys: jax.Array, *, climbs: int, steps: ArrayLike
) -> Found:
    """Climbs the margin from random points nearer than the nearest image so far.

    A climb has ten steps from half of that distance down to a twentieth of it. Each
    costs a gradient and two forward passes.

    >>> from robjax.attacks.problem import check_problem
    >>> from robjax.samples import sample_keys
    >>> x = jnp.array([[0.25, 0.75]])
    >>> problem = check_problem(lambda x: x, x, Linf(1.0), (0.0, 1.0))
    >>> search, found = Search.begin(problem, jnp.array([1]), early_exit=False)
    >>> keys = sample_keys(jax.random.key(0), 1)
    >>> found = explore(search, found, keys, climbs=2, steps=0)
    >>> bool(jnp.argmax(found.x_adv[0]) == 0), float(found.distance[0]) < 0.5
    (True, True)

    Args:
      search: what is searched for.
      found: the record so far. A sample for which it has nothing is looked for in the
        whole box.
      keys: [B] of the random points.
      climbs: how many, static.
      steps: the number of steps to note an image with.
    """
    logits_fn, x, ball, bounds = search.problem
    judge = lowering.exact(logits_fn)
    gradient = loss_gradient(
        logits_fn, lambda logits: losses.margin(logits, search.y), eot=None
    )
    widest = width(bounds)
    box: Ball = Linf(widest)
    # in L1 one step may change all pixels, too: projections make it sparse
    slope: Ball = Linf(1.0) if isinstance(ball, Linf) else L2(1.0)

    def reach(found: Found) -> tuple[jax.Array, Ball]:
        """Which samples [B] have a record, and the ball of the images nearer than it.

        In L0 to lie near is no help, so all samples are looked for in the whole box.
        """
        known = jnp.isfinite(found.distance)
        if isinstance(ball, L0):
            return jnp.zeros_like(known), box
        return known, with_radius(ball, jnp.where(known, _NEARER * found.distance, 0))

    def step(t: jax.Array, carry: tuple[Found, jax.Array]) -> tuple[Found, jax.Array]:
        found, v = carry
        known, near = reach(found)
        g, _ = gradient(v, keys)
        size = jnp.where(known, near.eps, widest) * (1 - t / _STEPS) / 2
        way = jnp.where(
            mask_samples(known, x),
            slope.steepest(g, v, bounds),
            box.steepest(g, v, bounds),
        )
        v = inside(known, near, v + per_sample(size, x) * way)
        return search.note(found, v, judge(v), steps, passes=2), v

    def inside(known: jax.Array, near: Ball, v: jax.Array) -> jax.Array:
        nearer = near.project(v, x, bounds)
        return jnp.where(mask_samples(known, x), nearer, jnp.clip(v, *bounds))

    def climb(i: jax.Array, found: Found) -> Found:
        known, near = reach(found)
        own = fold_keys(keys, i)
        shift = jnp.where(
            mask_samples(known, x), near.sample(own, x, bounds), box.sample(own, x)
        )
        v = inside(known, near, x + shift)
        return lax.fori_loop(0, _STEPS, step, (found, v))[0]

    return lax.fori_loop(0, climbs, climb, found)
