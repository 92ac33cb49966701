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

The last three are in `robjax.metrics.neighbours`.

Images are [B, H, W, C].
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from robjax import attacks, losses, lowering
from robjax.arrays import check_array
from robjax.attacks import AttackResult
from robjax.balls import L2, Ball, Linf
from robjax.checks import (
    Bounds,
    check_count,
    check_images,
    check_labels,
    check_number,
)
from robjax.metrics.finite import (
    check_measured,
    finite_samples,
    summary,
    warn_not_finite,
    widened,
)
from robjax.metrics.neighbours import interpolate, neighbour_votes, votes_along
from robjax.model import LogitsFn, as_logits_fn, count_classes
from robjax.numerics import finite_or_zero, map_batched, safe_norm
from robjax.samples import is_concrete, mask_samples
from robjax.traced import TracedCallable

__all__ = [
    "Saliency",
    "alignment",
    "autocorrelation",
    "border_energy",
    "interpolate",
    "large_perturbation",
    "neighbour_votes",
    "saliency",
    "sigma_view",
    "signed_view",
    "votes_along",
]

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
        """Means over the images, NaN left out; not the arrays."""
        numbers = (self.border_energy, self.alignment, self.autocorrelation)
        if not all(map(is_concrete, numbers)):
            return "Saliency(traced)"
        border, cosine, smoothness = (summary(each, np.mean)[0] for each in numbers)
        _, lost = summary(self.alignment, np.mean)
        return (
            f"Saliency({np.size(self.alignment)} images{lost}, means: border energy "
            f"{border:.3g}, alignment {cosine:.3g}, autocorrelation {smoothness:.3g})"
        )


class _Found(NamedTuple):
    """Saliency, and whether log-odds and input gradients are finite, [B]."""

    saliency: Saliency
    logits: jax.Array
    gradients: jax.Array


def saliency(
    logits_fn: LogitsFn,
    x: jax.Array,
    y: jax.Array,
    *,
    width: int,
    batch_size: int = 256,
) -> Saliency:
    """The gradient of the cross-entropy at every image, and its numbers.

    Components of the gradient that are not finite count as 0.

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

    Warns:
      UserWarning: the logits of some images are not finite, and their numbers NaN; or
        their input gradients are not.
    """
    x = check_measured(_check_images(x))
    model = as_logits_fn(logits_fn)
    y = check_labels(y, len(x), num_classes=count_classes(model, x))
    _check_width(x, width)
    found = _saliency(model, x, y, width, check_count("batch_size", batch_size))
    warn_not_finite(logits=found.logits, gradients=found.gradients)
    return found.saliency


@functools.partial(jax.jit, static_argnums=(3, 4))
def _saliency(
    logits_fn: TracedCallable, x: jax.Array, y: jax.Array, width: int, batch_size: int
) -> _Found:
    def total(x, y):
        odds = losses.log_odds(widened(logits_fn(x)), y)
        return jnp.sum(odds), odds

    slope = lowering.exact(jax.grad(total, has_aux=True), forward=False)

    def measure(rows):
        x, y = rows
        raw, odds = slope(x, y)
        g = finite_or_zero(raw)
        known = ~jnp.isnan(odds)

        def where_known(values):
            return jnp.where(mask_samples(known, values), values, jnp.nan)

        # cross-entropy = softplus(log-odds), so both gradients have one direction. That
        # of the log-odds does not vanish where the network is sure.
        found = Saliency(
            gradient=jax.nn.sigmoid(odds)[:, None, None, None] * g,
            border_energy=border_energy(g, width=width),
            alignment=alignment(g, x),
            autocorrelation=autocorrelation(g),
        )
        found = jax.tree.map(where_known, found)
        return _Found(found, known, finite_samples(raw))

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
    g = check_array("g", g, "[B, H, W, C]")
    if g.shape[-1] != 1:
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
    check_number("ball.eps", ball.eps, minimum=0, batch_size=len(check_images(x)))
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
