"""What a network looks at: input gradients, large-ε examples, and numbers for both.

Tsipras et al., ICLR 2019 (arXiv 1805.12152), section 3 and figures 2 to 4, say from
pictures that the gradients of robust networks align with the image, and that their
adversarial examples look like another class. For an image x and its label y, with
g = ∇_x cross-entropy:

    border_energy     Σ_border g² / Σ g², the border `width` pixels wide
    alignment         cos(−g, x)
    autocorrelation   Moran's I of g between neighbours up, down, left and right
                      (P. A. P. Moran, Biometrika 37, 1950): 1 smooth, 0 noise
    large_perturbation, interpolate, neighbour_votes, votes_along
                      an attack of large ε, the way to it, and what k-nearest
                      neighbours, a judge that knows no gradient, say along it

All of them ignore the scale of g. Images are [B, H, W, C].
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from robjax import attacks, losses, lowering
from robjax.attacks import AttackResult
from robjax.balls import L2, Ball, Linf
from robjax.checks import (
    Bounds,
    check_bounds,
    check_count,
    check_images,
    check_labels,
    check_number,
)
from robjax.model import as_logits_fn, count_classes
from robjax.numerics import map_batched, safe_norm

# Steps and step / ε of the authors' code: L2 ε = 40 in 40 steps of 1.5, L∞ ε = .25 in
# 120 steps of .003.
_RULES: dict[Any, tuple[int, float]] = {L2: (40, 1.5 / 40), Linf: (120, 0.003 / 0.25)}


class Saliency(NamedTuple):
    """The gradient [B, H, W, C], nats per unit of the image, and its numbers [B]."""

    gradient: jax.Array
    border_energy: jax.Array
    alignment: jax.Array
    autocorrelation: jax.Array


def saliency(
    logits_fn: Any, x: jax.Array, y: jax.Array, *, width: int, batch_size: int = 256
) -> Saliency:
    """The gradient of the cross-entropy at every image, and its numbers.

    Args:
      logits_fn: images [B, H, W, C] -> logits [B, K].
      x: [B, H, W, C] images.
      y: [B] labels.
      width: of the border in pixels; 4 on MNIST.
      batch_size: images per chunk, bounds the memory.

    Raises:
      ValueError: malformed images or labels, or a border that leaves no inside.
    """
    x = _check_images(x)
    logits_fn = as_logits_fn(logits_fn)
    y = check_labels(y, len(x), num_classes=count_classes(logits_fn, x))
    _check_width(x, width)
    return _saliency(logits_fn, x, y, width, check_count("batch_size", batch_size))


def _saliency(logits_fn, x, y, width, batch_size):
    def total(x, y):
        odds = losses.log_odds(logits_fn(x), y)
        return jnp.sum(odds), odds

    slope = lowering.fast(jax.grad(total, has_aux=True))

    def measure(rows):
        x, y = rows
        g, odds = slope(x, y)
        numbers = border_energy(g, width=width), alignment(g, x), autocorrelation(g)
        # cross-entropy = softplus(log-odds): the same direction, which does not vanish
        # where the network is sure
        return Saliency(jax.nn.sigmoid(odds)[:, None, None, None] * g, *numbers)

    return map_batched(measure, (x, y), batch_size)


_saliency = jax.jit(_saliency, static_argnums=(3, 4))


def border_energy(g: Any, *, width: int) -> jax.Array:
    """Share [B] of Σ g² in the outer `width` pixels; 0 for g = 0.

    Raises:
      ValueError: g is not finite [B, H, W, C], or the border leaves no inside.
    """
    g = _check_images(g, "g")
    _check_width(g, width)
    border = jnp.ones((1, *g.shape[1:3], 1), g.dtype)
    border = border.at[:, width:-width, width:-width].set(0)
    return jnp.sum(border * _unit(g) ** 2, (1, 2, 3))


def alignment(g: Any, x: Any) -> jax.Array:
    """cos(−g, x) [B]; 0 where either is 0.

    Raises:
      ValueError: g and x are not finite [B, H, W, C] of one shape.
    """
    g, x = _check_images(g, "g"), _check_images(x)
    if g.shape != x.shape:
        raise ValueError(f"g must have the shape of x, {x.shape}, got {g.shape}")
    return -jnp.sum(_unit(g) * _unit(x), (1, 2, 3))


def autocorrelation(g: Any) -> jax.Array:
    """Moran's I [B], in the mean over neighbours and channels; 0 for constant g.

    I = (mean of c_a c_b over neighbouring pixels a, b) / (mean of c²), c = g less its
    mean over each channel.

    Raises:
      ValueError: g is not finite [B, H, W, C].
    """
    g = _unit(_check_images(g, "g"))
    c = g - jnp.mean(g, (1, 2), keepdims=True)
    down, across = c[:, 1:] * c[:, :-1], c[:, :, 1:] * c[:, :, :-1]
    axes = (1, 2, 3)
    pairs = down[0].size + across[0].size
    shared = (jnp.sum(down, axes) + jnp.sum(across, axes)) / max(pairs, 1)
    mean_square = jnp.mean(c * c, axes)
    flat = mean_square <= _rounding(g) ** 2
    return jnp.where(flat, 0, shared / jnp.where(flat, 1, mean_square))


def sigma_view(g: Any, *, sigmas: float = 3.0) -> jax.Array:
    """g as images [B, H, W, C] in [0, 1]: clipped at ±3σ of each image, 0 is ½.

    (1 + clip(g, −s, s)/s)/2 with s = 3 std(g) over pixels and channels: the authors'
    notebook. A constant g is ½ everywhere.

    Raises:
      ValueError: g is not finite [B, H, W, C], or sigmas not positive.
    """
    check_number("sigmas", sigmas, minimum=1e-6)
    g = _unit(_check_images(g, "g"))
    spread = jnp.std(g, axis=(1, 2, 3), keepdims=True)
    flat = spread <= _rounding(g)
    scale = sigmas * jnp.where(flat, 1, spread)
    return jnp.where(flat, 0.5, (1 + jnp.clip(g / scale, -1, 1)) / 2)


def signed_view(g: Any, *, sigmas: float = 3.0) -> jax.Array:
    """g of grey images as colours [B, H, W, 3]: blue positive, red negative, 0 white.

    Raises:
      ValueError: as in `sigma_view`, or more than one channel.
    """
    if jnp.shape(g)[-1:] != (1,):
        raise ValueError(f"g must have one channel, got shape {jnp.shape(g)}")
    signed = 2 * sigma_view(g, sigmas=sigmas) - 1
    positive, negative = jnp.maximum(signed, 0), jnp.maximum(-signed, 0)
    return jnp.concatenate(
        [1 - positive, 1 - positive - negative, 1 - negative], axis=-1
    )


def large_perturbation(
    logits_fn: Any,
    x: jax.Array,
    y: jax.Array,
    *,
    ball: Ball,
    bounds: Bounds = (0.0, 1.0),
) -> AttackResult:
    """PGD from the image itself, last iterate, by the rules of the authors' code.

    L2: 40 steps of 1.5/40 ε; L∞: 120 steps of .003/.25 ε; ε much larger than in
    training.

    Raises:
      ValueError: `ball` is neither L2 nor Linf; or as in `attacks.pgd`.
    """
    if type(ball) not in _RULES:
        raise ValueError(f"ball must be L2 or Linf, got {ball!r}")
    steps, share = _RULES[type(ball)]
    return attacks.pgd(
        logits_fn,
        x,
        y,
        ball=ball,
        bounds=bounds,
        steps=steps,
        step_size=share * jnp.asarray(ball.eps),
        random_start=False,
        keep_best=False,
    )


def interpolate(
    x: jax.Array, x_adv: jax.Array, *, points: int = 20, bounds: Bounds = (0.0, 1.0)
) -> jax.Array:
    """clip(x + t δ/‖δ‖₂), t = 0 … ‖δ‖₂ in equal steps: [points, B, *S].

    Raises:
      ValueError: malformed images or bounds, different shapes, or fewer than 2 points.
    """
    bounds = check_bounds(bounds)
    points = check_count("points", points, minimum=2)
    x, x_adv = check_images(x), check_images(x_adv, name="x_adv")
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
    labels: Any,
    *,
    num_classes: int,
    k: int = 3,
    batch_size: int = 256,
) -> jax.Array:
    """The share of the k nearest references (L2) in each class, [B, K].

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
    x = check_images(x)
    reference = check_images(reference, name="reference")
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


def _neighbour_votes(x, reference, labels, num_classes, k, batch_size):
    # distances do not see the mean, rounding does
    mean = jnp.mean(reference, axis=0)
    x, reference = x - mean[None], reference - mean[None]
    flat = reference.reshape(len(reference), -1)
    squares = jnp.sum(flat * flat, axis=1)

    def votes(x):
        across = jnp.matmul(x.reshape(len(x), -1), flat.T, precision="highest")
        # ‖x − r‖² less ‖x‖², which is the same for all references
        _, nearest = jax.lax.top_k(2 * across - squares[None], k)
        return jnp.mean(jax.nn.one_hot(labels[nearest], num_classes), axis=1)

    return map_batched(votes, x, batch_size)


_neighbour_votes = jax.jit(_neighbour_votes, static_argnums=(3, 4, 5))


def votes_along(
    x: jax.Array,
    x_adv: jax.Array,
    reached: Any,
    reference: jax.Array,
    labels: Any,
    *,
    num_classes: int,
    k: int = 3,
    points: int = 20,
    bounds: Bounds = (0.0, 1.0),
    batch_size: int = 256,
) -> jax.Array:
    """Share [points, B] of the k nearest references in the class `reached`, on the way.

    How far the judge agrees, from x to x_adv, that the image becomes what the network
    takes it for.

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


def _unit(values: jax.Array) -> jax.Array:
    """Each image of unit length, or 0; first over its largest value, for tiny ones."""
    largest = jnp.max(jnp.abs(values), (1, 2, 3), keepdims=True)
    values = values / jnp.where(largest > 0, largest, 1)
    length = safe_norm(values, (1, 2, 3))[:, None, None, None]
    return values / jnp.where(length > 0, length, 1)


def _rounding(g: jax.Array) -> float:
    """Below this, the variation of unit images is the rounding of constant ones."""
    return 10 * float(jnp.finfo(g.dtype).eps)


def _check_images(x: Any, name: str = "x") -> jax.Array:
    x = check_images(x, name=name)
    if x.ndim != 4:
        raise ValueError(f"{name} must be images [B, H, W, C], got shape {x.shape}")
    return x


def _check_width(x: jax.Array, width: int) -> None:
    check_count("width", width)
    if 2 * width >= min(x.shape[1:3]):
        raise ValueError(
            f"width must leave some of the {x.shape[1]}×{x.shape[2]} pixels inside, "
            f"got {width}"
        )
