"""What the nearest neighbours of an image say of it, and of the way to another one."""

import functools

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from robjax.checks import (
    Bounds,
    check_bounds,
    check_count,
    check_images,
    check_labels,
)
from robjax.metrics.finite import check_measured
from robjax.numerics import map_batched


def interpolate(
    x: jax.Array, x_adv: jax.Array, *, points: int = 20, bounds: Bounds = (0.0, 1.0)
) -> jax.Array:
    """Images on the straight way from x to x_adv, in equal steps: [points, B, *S].

    clip(x + t δ/‖δ‖₂) with δ = x_adv − x, for t from 0 to ‖δ‖₂.

    >>> way = interpolate(jnp.zeros((1, 1)), jnp.ones((1, 1)), points=3)
    >>> way.ravel().tolist()
    [0.0, 0.5, 1.0]

    Args:
      x: [B, *S] where the way begins.
      x_adv: [B, *S] where it ends.
      points: of the way, both ends among them.
      bounds: lowest and highest pixel value.

    Raises:
      ValueError: malformed images or bounds, different shapes, or fewer than 2 points.
    """
    bounds = check_bounds(bounds)
    points = check_count("points", points, minimum=2)
    x = check_images(x, bounds=bounds)
    x_adv = check_images(x_adv, bounds=bounds, name="x_adv")
    if x.shape != x_adv.shape:
        raise ValueError(
            f"x_adv must have the shape of x, {x.shape}, got {x_adv.shape}"
        )
    share = jnp.linspace(0, 1, points, dtype=x.dtype)
    share = share.reshape(points, *(1,) * x.ndim)
    return jnp.clip((1 - share) * x[None] + share * x_adv[None], *bounds)


def neighbour_votes(
    x: jax.Array,
    reference: jax.Array,
    labels: ArrayLike,
    *,
    num_classes: int,
    k: int = 3,
    batch_size: int = 256,
) -> jax.Array:
    """The share of the k nearest references (L2) in each class, [B, K].

    >>> reference = jnp.array([[0.0], [1.0], [5.0]])
    >>> labels = jnp.array([0, 1, 1])
    >>> x = jnp.array([[0.4]])
    >>> neighbour_votes(x, reference, labels, num_classes=2, k=2).tolist()
    [[0.5, 0.5]]

    Args:
      x: [B, *S] images to judge.
      reference: [N, *S] images with known labels, N ≥ k.
      labels: [N] of `reference`.
      num_classes: K.
      k: neighbours; of equally near ones the first in `reference` count.
      batch_size: images per chunk; batch_size · N distances are held at once.

    Raises:
      ValueError: the shapes do not fit, or k is not in 1 … N.
    """
    check_count("num_classes", num_classes, minimum=2)
    x = check_measured(x)
    reference = check_measured(reference, name="reference")
    if x.shape[1:] != reference.shape[1:]:
        raise ValueError(
            f"reference must hold images {x.shape[1:]}, got {reference.shape[1:]}"
        )
    labels = check_labels(
        labels, len(reference), num_classes=num_classes, name="labels"
    )
    if check_count("k", k) > len(reference):
        raise ValueError(f"k must be 1 to {len(reference)}, got {k}")
    batch_size = check_count("batch_size", batch_size)
    return _neighbour_votes(x, reference, labels, num_classes, k, batch_size)


@functools.partial(jax.jit, static_argnums=(3, 4, 5))
def _neighbour_votes(
    x: jax.Array,
    reference: jax.Array,
    labels: jax.Array,
    num_classes: int,
    k: int,
    batch_size: int,
) -> jax.Array:
    # distances do not see the mean, rounding does
    mean = jnp.mean(reference, axis=0)
    x = x - mean[None]
    reference = reference - mean[None]
    flat = reference.reshape(len(reference), -1)
    squares = jnp.sum(flat * flat, axis=1)

    def votes(x):
        across = jnp.matmul(x.reshape(len(x), -1), flat.T, precision="highest")
        # ‖x − r‖² less ‖x‖², which is the same for all references
        _, nearest = jax.lax.top_k(2 * across - squares[None], k)
        return jnp.mean(jax.nn.one_hot(labels[nearest], num_classes), axis=1)

    return map_batched(votes, x, batch_size)


def votes_along(
    x: jax.Array,
    x_adv: jax.Array,
    reached: ArrayLike,
    reference: jax.Array,
    labels: ArrayLike,
    *,
    num_classes: int,
    k: int = 3,
    points: int = 20,
    bounds: Bounds = (0.0, 1.0),
    batch_size: int = 256,
) -> jax.Array:
    """The share of the k nearest references in a class, along a way: [points, B].

    If `reached` is the class that the network gives x_adv, then the votes say how far
    the neighbours agree with the network.

    >>> reference = jnp.array([[0.0], [1.0]])
    >>> labels = jnp.array([0, 1])
    >>> votes = votes_along(
    ...     jnp.zeros((1, 1)), jnp.ones((1, 1)), jnp.array([1]), reference, labels,
    ...     num_classes=2, k=1, points=4,
    ... )
    >>> votes.ravel().tolist()
    [0.0, 0.0, 1.0, 1.0]

    Args:
      x: [B, *S] images.
      x_adv: [B, *S] where the way ends, see `interpolate`.
      reached: [B] class that the network gives x_adv.
      reference, labels, num_classes, k, batch_size: see `neighbour_votes`.
      points: of the way, the first is x.
      bounds: lowest and highest value of an image.

    Raises:
      ValueError: as in `interpolate` and `neighbour_votes`; malformed `reached`.
    """
    check_count("num_classes", num_classes, minimum=2)
    way = interpolate(x, x_adv, points=points, bounds=bounds)
    count, shape = way.shape[1], way.shape[2:]
    reached = check_labels(reached, count, num_classes=num_classes, name="reached")
    votes = neighbour_votes(
        way.reshape(-1, *shape),
        reference,
        labels,
        num_classes=num_classes,
        k=k,
        batch_size=batch_size,
    )
    return votes.reshape(points, count, -1)[:, jnp.arange(count), reached]
