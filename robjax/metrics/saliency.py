"""What a network looks at: input gradients, large-ε examples, and numbers for both.

Tsipras et al., ICLR 2019 (arXiv 1805.12152), section 3 and figures 2 to 4, say from
pictures that the gradients of robust networks align with the image, and that their
adversarial examples look like another class. For an image x and its label y, with
g = ∇_x cross-entropy, there are three numbers and two pictures. None of them depends on
the scale of g.

    border_energy        Σ_border g² / Σ g², the border `width` pixels wide
    alignment            cos(−g, x)
    autocorrelation      Moran's I of g between neighbours up, down, left and right
                         (P. A. P. Moran, Biometrika 37, 1950): 1 smooth, 0 noise
    sigma_view           g as an image
    signed_view          g in two colours

An attack of large ε is judged by k-nearest neighbours, which know no gradient.

    large_perturbation   the attack
    interpolate          the way from the image to where the attack ends
    neighbour_votes      which classes the neighbours of an image have
    votes_along          the same along the way

Images are [B, H, W, C].
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

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
from robjax.model import LogitsFn, as_logits_fn, count_classes
from robjax.numerics import map_batched, safe_norm
from robjax.samples import is_concrete
from robjax.traced import TracedCallable

# Steps and step / ε of the authors' code: L2 ε = 40 in 40 steps of 1.5, L∞ ε = .25 in
# 120 steps of .003.
_RULES: dict[type, tuple[int, float]] = {L2: (40, 1.5 / 40), Linf: (120, 0.003 / 0.25)}


class Saliency(NamedTuple):
    """The input gradient of the cross-entropy at B images, and numbers for it.

    Attributes:
      gradient: [B, H, W, C] nats per unit of the image.
      border_energy: [B] see `border_energy`.
      alignment: [B] see `alignment`.
      autocorrelation: [B] see `autocorrelation`.
    """

    gradient: jax.Array
    border_energy: jax.Array
    alignment: jax.Array
    autocorrelation: jax.Array

    def __repr__(self) -> str:
        """Means over the images; not the arrays."""
        numbers = (self.border_energy, self.alignment, self.autocorrelation)
        if not all(map(is_concrete, numbers)):
            return "Saliency(traced)"
        border, cosine, smoothness = (np.mean(np.asarray(each)) for each in numbers)
        return (
            f"Saliency({np.size(self.alignment)} images, means: border energy "
            f"{border:.3g}, alignment {cosine:.3g}, autocorrelation {smoothness:.3g})"
        )


def saliency(
    logits_fn: LogitsFn,
    x: jax.Array,
    y: jax.Array,
    *,
    width: int,
    batch_size: int = 256,
) -> Saliency:
    """The gradient of the cross-entropy at every image, and its numbers.

    A model that looks at the pixel in the middle alone has no energy at the border:

    >>> def middle(x):
    ...     return jnp.stack([x[:, 1, 1, 0], -x[:, 1, 1, 0]], axis=1)
    >>> found = saliency(middle, jnp.ones((2, 3, 3, 1)), jnp.array([0, 0]), width=1)
    >>> found.border_energy.tolist()
    [0.0, 0.0]
    >>> bool(jnp.allclose(found.alignment, 1 / 3))  # 1 of 9 pixels, all of them equal
    True

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
    model = as_logits_fn(logits_fn)
    y = check_labels(y, len(x), num_classes=count_classes(model, x))
    _check_width(x, width)
    return _saliency(model, x, y, width, check_count("batch_size", batch_size))


@functools.partial(jax.jit, static_argnums=(3, 4))
def _saliency(
    logits_fn: TracedCallable, x: jax.Array, y: jax.Array, width: int, batch_size: int
) -> Saliency:
    def total(x, y):
        odds = losses.log_odds(logits_fn(x), y)
        return jnp.sum(odds), odds

    slope = lowering.fast(jax.grad(total, has_aux=True))

    def measure(rows):
        x, y = rows
        g, odds = slope(x, y)
        # cross-entropy = softplus(log-odds), so both gradients have one direction. That
        # of the log-odds does not vanish where the network is sure.
        return Saliency(
            gradient=jax.nn.sigmoid(odds)[:, None, None, None] * g,
            border_energy=border_energy(g, width=width),
            alignment=alignment(g, x),
            autocorrelation=autocorrelation(g),
        )

    return map_batched(measure, (x, y), batch_size)


def border_energy(g: jax.Array | np.ndarray, *, width: int) -> jax.Array:
    """The share [B] of Σ g² that lies in the outer `width` pixels; 0 for g = 0.

    >>> round(float(border_energy(jnp.ones((1, 3, 3, 1)), width=1)[0]), 4)  # 8 of 9
    0.8889

    Args:
      g: [B, H, W, C] gradients.
      width: of the border in pixels.

    Raises:
      ValueError: g is not finite [B, H, W, C], or the border leaves no inside.
    """
    g = _check_images(g, "g")
    _check_width(g, width)
    border = jnp.ones((1, *g.shape[1:3], 1), g.dtype)
    border = border.at[:, width:-width, width:-width].set(0)
    return jnp.sum(border * _unit(g) ** 2, (1, 2, 3))


def alignment(g: jax.Array | np.ndarray, x: jax.Array | np.ndarray) -> jax.Array:
    """The cosine [B] between −g and the image; 0 where either is 0.

    >>> x = jnp.ones((1, 4, 4, 1))
    >>> round(float(alignment(-2 * x, x)[0]), 4)
    1.0

    Args:
      g: [B, H, W, C] gradients.
      x: [B, H, W, C] images.

    Raises:
      ValueError: g and x are not finite [B, H, W, C] of one shape.
    """
    g = _check_images(g, "g")
    x = _check_images(x)
    if g.shape != x.shape:
        raise ValueError(f"g must have the shape of x, {x.shape}, got {g.shape}")
    return -jnp.sum(_unit(g) * _unit(x), (1, 2, 3))


def autocorrelation(g: jax.Array | np.ndarray) -> jax.Array:
    """How alike neighbouring pixels of g are, Moran's I [B]; 0 for constant g.

    I = (mean of c_a c_b over neighbouring pixels a, b) / (mean of c²), with c = g less
    its mean over each channel. Both means run over the channels, too.

    >>> board = jnp.array([[1.0, -1.0], [-1.0, 1.0]]).reshape(1, 2, 2, 1)
    >>> round(float(autocorrelation(board)[0]), 4)  # every neighbour is the opposite
    -1.0

    Args:
      g: [B, H, W, C] gradients.

    Raises:
      ValueError: g is not finite [B, H, W, C].
    """
    g = _unit(_check_images(g, "g"))
    c = g - jnp.mean(g, (1, 2), keepdims=True)
    down = c[:, 1:] * c[:, :-1]
    across = c[:, :, 1:] * c[:, :, :-1]
    axes = (1, 2, 3)
    pairs = down[0].size + across[0].size
    shared = (jnp.sum(down, axes) + jnp.sum(across, axes)) / max(pairs, 1)
    mean_square = jnp.mean(c * c, axes)
    flat = mean_square <= _rounding(g) ** 2
    return jnp.where(flat, 0, shared / jnp.where(flat, 1, mean_square))


def sigma_view(g: jax.Array | np.ndarray, *, sigmas: float = 3.0) -> jax.Array:
    """Shows g as images [B, H, W, C] in [0, 1], with ½ for 0.

    (1 + clip(g, −s, s)/s)/2 with s = `sigmas` · std(g) over pixels and channels of each
    image, as in the authors' notebook. A constant g is ½ everywhere.

    >>> g = jnp.array([[1.0, -1.0], [0.0, 0.0]]).reshape(1, 2, 2, 1)
    >>> sigma_view(g, sigmas=1.0).ravel().tolist()
    [1.0, 0.0, 0.5, 0.5]

    Args:
      g: [B, H, W, C] gradients.
      sigmas: standard deviations that the view shows to each side of 0.

    Raises:
      ValueError: g is not finite [B, H, W, C], or sigmas not positive.
    """
    check_number("sigmas", sigmas, minimum=1e-6)
    g = _unit(_check_images(g, "g"))
    deviation = jnp.std(g, axis=(1, 2, 3), keepdims=True)
    flat = deviation <= _rounding(g)
    scale = sigmas * jnp.where(flat, 1, deviation)
    return jnp.where(flat, 0.5, (1 + jnp.clip(g / scale, -1, 1)) / 2)


def signed_view(g: jax.Array | np.ndarray, *, sigmas: float = 3.0) -> jax.Array:
    """Shows g of grey images in colours [B, H, W, 3]: blue > 0, red < 0, white 0.

    >>> g = jnp.array([[1.0, -1.0], [0.0, 0.0]]).reshape(1, 2, 2, 1)
    >>> signed_view(g, sigmas=1.0)[0, 0].tolist()  # red, green, blue
    [[0.0, 0.0, 1.0], [1.0, 0.0, 0.0]]

    Args:
      g: [B, H, W, 1] gradients.
      sigmas: standard deviations of g at which a colour is full.

    Raises:
      ValueError: as in `sigma_view`, or more than one channel.
    """
    if jnp.shape(g)[-1:] != (1,):
        raise ValueError(f"g must have one channel, got shape {jnp.shape(g)}")
    signed = 2 * sigma_view(g, sigmas=sigmas) - 1
    positive = jnp.maximum(signed, 0)
    negative = jnp.maximum(-signed, 0)
    return jnp.concatenate(
        [1 - positive, 1 - positive - negative, 1 - negative], axis=-1
    )


def large_perturbation(
    logits_fn: LogitsFn,
    x: jax.Array,
    y: jax.Array,
    *,
    ball: Ball,
    bounds: Bounds = (0.0, 1.0),
) -> AttackResult:
    """PGD from the image itself, last iterate, by the rules of the authors' code.

    * L2: 40 steps of length 1.5/40 ε;
    * L∞: 120 steps of length .003/.25 ε.

    ε is to be much larger than in training.

    >>> x = jnp.zeros((1, 2))
    >>> found = large_perturbation(lambda x: x, x, jnp.array([0]), ball=Linf(0.5))
    >>> found.x_adv.round(3).tolist()  # the other logit rises to ε
    [[0.0, 0.5]]

    Args:
      logits_fn: images [B, *S] -> logits [B, K].
      x: [B, *S] images inside `bounds`.
      y: [B] integer labels.
      ball: L2(ε) or Linf(ε).
      bounds: lowest and highest pixel value.

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
    x = check_images(x)
    x_adv = check_images(x_adv, name="x_adv")
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
    """Each image of unit length, or 0.

    Images are divided by their largest value first, since squares of tiny values are 0.
    """
    largest = jnp.max(jnp.abs(values), (1, 2, 3), keepdims=True)
    values = values / jnp.where(largest > 0, largest, 1)
    length = safe_norm(values, (1, 2, 3))[:, None, None, None]
    return values / jnp.where(length > 0, length, 1)


def _rounding(g: jax.Array) -> float:
    """The standard deviation below which an image of unit length counts as constant."""
    return 10 * float(jnp.finfo(g.dtype).eps)


def _check_images(x: object, name: str = "x") -> jax.Array:
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
