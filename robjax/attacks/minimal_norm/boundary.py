"""The boundary between the label and another class, linearised at a point.

At a point v the difference f = z_c − z_y of two logits has the gradient w. To first
order the model is undecided between c and y at the points u with

    f + ⟨w, u − v⟩ = 0.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from robjax import lowering
from robjax.attacks.minimal_norm import hyperplanes
from robjax.balls import Ball
from robjax.boxes import box_rows
from robjax.checks import Bounds
from robjax.model import LogitsFn
from robjax.numerics import finite_or_zero
from robjax.samples import flatten_samples, mask_samples

# the box keeps a shift off the boundary if more than this share of the way is left
_MISSED = 1e-3


class Boundary(NamedTuple):
    """The boundary between y and c at a point v.

    Attributes:
      f: [B] z_c − z_y.
      w: [B, *S] its gradient.
      c: [B] the class.
    """

    f: jax.Array
    w: jax.Array
    c: jax.Array


def likely_wrong_classes(logits: jax.Array, y: jax.Array, count: int) -> jax.Array:
    """The classes other than y with the highest logits.

    >>> logits = jnp.array([[5.0, 1.0, 3.0]])
    >>> likely_wrong_classes(logits, jnp.array([0]), 2).tolist()
    [[2], [1]]

    Returns:
      [count, B], the likeliest first.
    """
    is_label = jnp.arange(logits.shape[1])[None] == y[:, None]
    return lax.top_k(jnp.where(is_label, -jnp.inf, logits), count)[1].T


def logit_difference(logits: jax.Array, c: jax.Array, y: jax.Array) -> jax.Array:
    """The logit of class c minus that of the label, z_c − z_y [B].

    >>> logits = jnp.array([[5.0, 1.0, 3.0]])
    >>> logit_difference(logits, jnp.array([2]), jnp.array([0])).tolist()
    [-2.0]
    """
    both = jnp.take_along_axis(logits, jnp.stack([c, y], axis=1), axis=1)
    return both[:, 0] - both[:, 1]


def towards_class(
    logits_fn: LogitsFn, y: jax.Array, v: jax.Array, c: jax.Array
) -> Boundary:
    """The boundary at v between y and a given class c [B]; costs one gradient.

    >>> x = jnp.array([[2.0, 1.0]])
    >>> towards_class(lambda x: x, jnp.array([0]), x, jnp.array([1])).f.tolist()
    [-1.0]
    """

    def total(v: jax.Array) -> tuple[jax.Array, jax.Array]:
        f = logit_difference(logits_fn(v), c, y)
        return jnp.sum(f), f

    w, f = lowering.fast(jax.grad(total, has_aux=True))(v)
    return Boundary(
        f=finite_or_zero(f.astype(v.dtype)), w=lowering.stored(finite_or_zero(w)), c=c
    )


def nearest_boundary(
    logits_fn: LogitsFn,
    y: jax.Array,
    v: jax.Array,
    classes: int,
    length: Callable[[Boundary], jax.Array],
) -> tuple[jax.Array, Boundary]:
    """The nearest of the boundaries at v; costs a gradient for each wrong class.

    >>> x = jnp.array([[2.0, 1.0, 1.5]])
    >>> logits, nearest = nearest_boundary(
    ...     lambda x: x, jnp.array([0]), x, 3, lambda boundary: jnp.abs(boundary.f)
    ... )
    >>> int(nearest.c[0])
    2

    Args:
      logits_fn: images [B, *S] -> logits [B, K].
      y: [B] labels.
      v: [B, *S] where the model is linearised.
      classes: how many are considered: y and those of highest logits at v.
      length: a boundary -> how far away it is, [B].

    Returns:
      The logits at v [B, K], and the nearest boundary.
    """

    def linearise(v: jax.Array) -> tuple[jax.Array, Boundary]:
        logits, pull_back = jax.vjp(logits_fn, v)
        num_classes = logits.shape[1]
        others = min(classes, num_classes) - 1
        likely = likely_wrong_classes(logits, y, others)

        def consider(rank, carry):
            least, best = carry
            c = likely[rank]
            towards = jax.nn.one_hot(c, num_classes) - jax.nn.one_hot(y, num_classes)
            (w,) = pull_back(towards.astype(logits.dtype))
            f = finite_or_zero(logit_difference(logits, c, y).astype(v.dtype))
            found = Boundary(f=f, w=lowering.stored(finite_or_zero(w)), c=c)
            distance = length(found)
            closer = distance < least
            best = Boundary(
                f=jnp.where(closer, found.f, best.f),
                w=jnp.where(mask_samples(closer, v), found.w, best.w),
                c=jnp.where(closer, found.c, best.c),
            )
            return jnp.where(closer, distance, least), best

        none = jnp.full(y.shape, jnp.inf, v.dtype)
        start = Boundary(f=jnp.zeros_like(none), w=jnp.zeros_like(v), c=likely[0])
        _, best = lax.fori_loop(0, others, consider, (none, start))
        return logits, best

    return lowering.fast(linearise)(v)


def shift_to(
    f: jax.Array,
    w: jax.Array,
    v: jax.Array,
    start: jax.Array,
    ball: Ball,
    bounds: Bounds,
) -> jax.Array:
    """The shortest shift from `start` to {u : f + ⟨w, u − v⟩ = 0}, inside the box.

    >>> from robjax.balls import Linf
    >>> v = jnp.array([[0.5, 0.5]])
    >>> w = jnp.array([[1.0, 1.0]])
    >>> shift_to(jnp.array([-0.25]), w, v, v, Linf(1.0), (0.0, 1.0)).tolist()
    [[0.125, 0.125]]

    Args:
      f: [B] value at v.
      w: [B, *S] slope.
      v: [B, *S] where f and w were taken.
      start: [B, *S] where the shift begins.
      ball: its norm is what is shortest.
      bounds: lowest and highest pixel value.

    Returns:
      [B, *S].
    """
    rows = flatten_samples(start)
    slopes = flatten_samples(w)
    excess = f + jnp.sum(slopes * flatten_samples(start - v), axis=1)
    box = box_rows(bounds)
    return hyperplanes.shift(ball, rows, slopes, excess, box).reshape(start.shape)


def distance_to(
    boundary: Boundary, v: jax.Array, start: jax.Array, ball: Ball, bounds: Bounds
) -> jax.Array:
    """The distance from `start` to a boundary linearised at v, inside the box.

    It is infinite where the box holds no point of the boundary. The refinement measures
    from the clean image, DeepFool from its iterate v.

    >>> from robjax.balls import L2
    >>> v = jnp.array([[0.5, 0.5]])
    >>> outside = Boundary(f=jnp.array([-3.0]), w=jnp.ones((1, 2)), c=jnp.array([1]))
    >>> distance_to(outside, v, v, L2(1.0), (0.0, 1.0)).tolist()
    [inf]

    Args:
      boundary: as linearised at v.
      v: [B, *S].
      start: [B, *S] where the distance is measured from.
      ball: its norm is the distance.
      bounds: lowest and highest pixel value.

    Returns:
      [B].
    """
    d = shift_to(boundary.f, boundary.w, v, start, ball, bounds)
    excess = boundary.f + _inner(boundary.w, start - v)
    # below 0 where the shift leads beyond the boundary, as in L0 it may
    left = jnp.sign(excess) * (excess + _inner(boundary.w, d))
    return jnp.where(left > _MISSED * jnp.abs(excess), jnp.inf, ball.norm(d))


def _inner(a: jax.Array, b: jax.Array) -> jax.Array:
    """⟨a, b⟩ of each sample, [B]."""
    return jnp.sum(flatten_samples(a * b), axis=1)
