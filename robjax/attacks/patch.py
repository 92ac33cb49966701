"""A patch: a picture that fools a model wherever it is put.

    max_p J( f(A(p, x_1, place_1)), f(A(p, x_2, place_2)), … )   over p inside the box

Brown et al., "Adversarial patch", 2017 (arXiv 1712.09665). A puts the patch over an
image, at a random place, size and angle. Each image draws a new place at every step, so
that the ascent is over their mean (expectation over transformations, Athalye et al.,
ICML 2018). J is a capped cross-entropy, with a target the log of its mean probability
(`shared.py`); Brown et al. have the mean of its log-probability.
"""

import functools
import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike

from robjax import losses, lowering
from robjax.arrays import check_array
from robjax.attacks.problem import Problem, check_classes, check_problem
from robjax.attacks.result import AttackResult
from robjax.attacks.shared import Aim, check_aim, climb, share_of
from robjax.attacks.universal import judged
from robjax.balls import Linf
from robjax.checks import Bounds, check_bounds, check_count, check_images, check_number
from robjax.corruptions.resampling import look_up
from robjax.evaluation import Estimate
from robjax.model import LogitsFn
from robjax.numerics import map_batched
from robjax.samples import fold_keys, is_concrete, sample_keys

_PLACES = {"centre": ", 2", "scale": "", "angle": ""}  # [B, 2], [B] and [B]
_START = 2**32 - 4  # what the key of the first patch folds in


class Placement(NamedTuple):
    """Where the patch lies on each of B images.

    Attributes:
      centre: [B, 2] row and column of its middle, in pixels.
      scale: [B] its size, of that of its array.
      angle: [B] radians.
    """

    centre: jax.Array
    scale: jax.Array
    angle: jax.Array


class PatchResult(NamedTuple):
    """A patch, and what it does at places that it was not made for.

    What it does to other images says ``evaluate(logits_fn, test, {"patch":
    functools.partial(attacks.patched, patch=result.patch)}, key=key)``.
    ``figures.pictures({"patch": [result.patch]}, title="patch", columns=[""])`` of
    `robjax.reporting` draws it.

    Attributes:
      patch: [h, w, C] a picture inside the bounds.
      fooled: [N, P] bool, the image with the patch at its p-th new place is
        misclassified, or with a target taken for it.
      counted: [N] bool, the clean image is classified correctly; with a target, the
        label is another class.
    """

    patch: jax.Array
    fooled: jax.Array
    counted: jax.Array

    @property
    def rate(self) -> Estimate:
        """Share of new places that fool; its standard error is that over images."""
        return share_of(np.asarray(self.fooled).mean(1)[np.asarray(self.counted)])

    def __repr__(self) -> str:
        """Says how often it fools; shows no arrays."""
        if not is_concrete(self.fooled):
            return "PatchResult(traced)"
        count = int(np.sum(np.asarray(self.counted)))
        places = self.fooled.shape[1]
        rate = str(self.rate).strip()
        return f"PatchResult(fools {rate} at {places} new places on {count} images)"


def patch(
    logits_fn: LogitsFn,
    x: jax.Array,
    y: jax.Array,
    *,
    key: jax.Array,
    size: tuple[int, int],
    bounds: Bounds = (0.0, 1.0),
    target: int | None = None,
    scale: tuple[float, float] = (1.0, 1.0),
    rotation: float = 0.0,
    steps: int = 500,
    batch_size: int = 128,
    step_size: ArrayLike | None = None,
    cap: ArrayLike = 9.0,
    places: int = 10,
) -> PatchResult:
    """Finds a picture that fools a model wherever it is put on an image.

    >>> x = jnp.full((4, 8, 8, 1), 0.5)
    >>> def sees_black(x):  # any black pixel makes it class 1
    ...     darkest = x.reshape(len(x), -1).min(axis=1)
    ...     return 10 * jnp.stack([darkest, 0.25 - darkest], axis=1)
    >>> found = patch(
    ...     sees_black, x, jnp.zeros(4, int), key=jax.random.key(0), size=(2, 2),
    ...     steps=50,
    ... )
    >>> found
    PatchResult(fools 100.00 ± 0.00 % at 10 new places on 4 images)

    Args:
      logits_fn: images [B, H, W, C] -> logits [B, K]; any callable (`as_logits_fn`),
        not a randomised one.
      x: [N, H, W, C] images inside `bounds`, all on the device.
      y: [N] integer labels.
      key: one key, or one for each image, whose places it draws.
      size: (h, w) of the patch in pixels, static.
      bounds: lowest and highest pixel value, two numbers, of the patch, too.
      target: the class to be reached; None: any wrong one.
      scale: smallest and largest factor of the size; drawn uniformly.
      rotation: largest angle in degrees, either way; drawn uniformly.
      steps: T ≥ 1, static.
      batch_size: images a step, static; at most all.
      step_size: α in units of the image; by default 0.05 of the width of the bounds.
      cap: of the cross-entropy of an image, in nats; not used with a target.
      places: P ≥ 1 new places for each image, on which the patch is judged; static.

    Returns:
      PatchResult. The cost is T gradients of a batch, and P + 1 passes over the images.
      Steps have the sign of the gradient.

    Raises:
      ValueError: an argument is malformed; the message names it.
    """
    problem = check_problem(
        logits_fn, _check_pictures(x), Linf(0.0), check_bounds(bounds)
    )
    aim = check_aim(problem, y, key=key, target=target, cap=cap)
    height, width, channels = problem.x.shape[1:]
    if not isinstance(size, Sequence) or len(size) != 2:
        raise ValueError(f"size must be (h, w) in pixels, got {size!r}")
    sides = tuple(check_count("size", side) for side in size)
    transform = _check_transform(sides, (height, width), scale, rotation)
    span = problem.bounds[1] - problem.bounds[0]
    alpha = 0.05 * span if step_size is None else step_size
    check_number("step_size", alpha, minimum=0)
    return _patch(
        problem,
        aim,
        transform,
        jnp.asarray(alpha, problem.x.dtype),
        shape=(*sides, channels),
        steps=check_count("steps", steps),
        batch_size=check_count("batch_size", batch_size),
        places=check_count("places", places),
    )


def _check_pictures(x: object) -> jax.Array:
    x = check_images(x)
    if x.ndim != 4:
        raise ValueError(f"x must be [B, H, W, C], got shape {x.shape}")
    return x


def _check_transform(
    size: tuple[int, ...],
    image: tuple[int, ...],
    scale: tuple[float, float],
    rotation: float,
) -> jax.Array:
    """Smallest and largest scale, and the largest angle in radians, [3]."""
    low, high = (float(value) for value in check_array("scale", scale, "[2]"))
    if not 0 < low <= high < math.inf:
        raise ValueError(f"scale must be 0 < smallest <= largest, got {scale!r}")
    if any(high * side > whole for side, whole in zip(size, image, strict=True)):
        raise ValueError(
            f"size {size} times the largest scale {high:g} must fit into images of "
            f"{image} pixels"
        )
    check_number("rotation", rotation, minimum=0)
    return jnp.array([low, high, math.radians(rotation)], jnp.float32)


@functools.partial(jax.jit, static_argnames=("shape", "steps", "batch_size", "places"))
def _patch(
    problem: Problem,
    aim: Aim,
    transform: jax.Array,
    step_size: jax.Array,
    *,
    shape: tuple[int, ...],
    steps: int,
    batch_size: int,
    places: int,
) -> PatchResult:
    problem, aim, step_size = lax.stop_gradient((problem, aim, step_size))
    x, bounds = problem.x, problem.bounds

    def put(patch: jax.Array, x: jax.Array, keys: jax.Array) -> jax.Array:
        return paste(x, patch, _place(keys, x.shape[1:3], shape[:2], transform))

    def move(patch: jax.Array, g: jax.Array, alpha: jax.Array) -> jax.Array:
        return jnp.clip(patch + alpha * jnp.sign(g), *bounds)

    start = jax.random.uniform(
        jax.random.fold_in(aim.keys[0], _START),
        shape,
        x.dtype,
        minval=bounds[0],
        maxval=bounds[1],
    )
    found = climb(
        problem, aim, put, move, start,
        step_size=step_size, steps=steps, batch_size=batch_size,
    )  # fmt: skip
    forward = lowering.exact(problem.logits_fn)

    def judge(batch: tuple[jax.Array, jax.Array, jax.Array]):
        x, y, keys = batch

        def at(number: jax.Array) -> jax.Array:
            return aim.reached(forward(put(found, x, fold_keys(keys, number))), y)

        fooled = lax.map(at, steps + jnp.arange(places)).T
        if aim.target is not None:
            return fooled, y != aim.target
        return fooled, ~losses.misclassified(forward(x), y)

    fooled, counted = map_batched(judge, (x, aim.y, aim.keys), batch_size)
    return PatchResult(found, fooled, counted)


@functools.partial(jax.jit, static_argnames=("image", "size"))
def _place(
    keys: jax.Array,
    image: tuple[int, ...],
    size: tuple[int, ...],
    transform: jax.Array,
) -> Placement:
    """Draws a place for each key, such that the turned patch is inside the image."""

    def one(key: jax.Array) -> Placement:
        scale_key, angle_key, corner_key = jax.random.split(key, 3)
        low, high, most = transform
        scale = jax.random.uniform(scale_key, minval=low, maxval=high)
        angle = jax.random.uniform(angle_key, minval=-most, maxval=most)
        cosine, sine = jnp.cos(angle), jnp.abs(jnp.sin(angle))
        height, width = size
        box = scale * jnp.stack(
            [height * cosine + width * sine, height * sine + width * cosine]
        )
        room = jnp.maximum(jnp.array(image) - box, 0)
        # whole pixels: an unturned patch of its own size is copied, not interpolated
        corner = jnp.floor(jax.random.uniform(corner_key, (2,)) * (room + 1))
        return Placement(jnp.minimum(corner, room) + (box - 1) / 2, scale, angle)

    return jax.vmap(one)(keys)


def paste(x: jax.Array, patch: jax.Array, placement: Placement) -> jax.Array:
    """Puts a patch over images, at given places.

    >>> x = jnp.zeros((1, 3, 3, 1))
    >>> place = Placement(jnp.array([[1.0, 2.0]]), jnp.ones(1), jnp.zeros(1))
    >>> paste(x, jnp.ones((1, 1, 1)), place)[0, :, :, 0].tolist()
    [[0.0, 0.0, 0.0], [0.0, 0.0, 1.0], [0.0, 0.0, 0.0]]

    Args:
      x: [B, H, W, C].
      patch: [h, w, C].
      placement: where it lies on each image.

    Returns:
      [B, H, W, C]: inside the turned and scaled rectangle the patch, by bilinear
      interpolation, outside x.

    Raises:
      ValueError: an argument is malformed; the message names it.
    """
    x = check_array("x", x, "[B, H, W, C]", kinds=(jnp.floating,))
    wanted = f"[h, w, {x.shape[3]}]"
    patch = check_array("patch", patch, wanted, kinds=(jnp.floating,))
    if not isinstance(placement, Placement):
        raise ValueError(f"placement must be a Placement, got {placement!r}")
    for name, shape in _PLACES.items():
        value = getattr(placement, name)
        check_array(f"placement.{name}", value, f"[{len(x)}{shape}]")
    return _paste(x, patch, placement)


@jax.jit
def _paste(x: jax.Array, patch: jax.Array, placement: Placement) -> jax.Array:
    """The compiled part of `paste`."""
    height, width = patch.shape[:2]
    rows, columns = jnp.indices(x.shape[1:3])

    def one(image: jax.Array, place: Placement) -> jax.Array:
        down, right = rows - place.centre[0], columns - place.centre[1]
        cosine, sine = jnp.cos(place.angle), jnp.sin(place.angle)
        u = (cosine * down + sine * right) / place.scale + (height - 1) / 2
        v = (cosine * right - sine * down) / place.scale + (width - 1) / 2
        inside = (u >= -0.5) & (u < height - 0.5) & (v >= -0.5) & (v < width - 0.5)
        u, v = jnp.clip(u, 0, height - 1), jnp.clip(v, 0, width - 1)
        return jnp.where(inside[..., None], look_up(patch, u, v), image)

    return jax.vmap(one)(x, placement).astype(x.dtype)


def patched(
    logits_fn: LogitsFn,
    x: jax.Array,
    y: jax.Array,
    *,
    key: jax.Array,
    bounds: Bounds = (0.0, 1.0),
    patch: jax.Array,
    scale: tuple[float, float] = (1.0, 1.0),
    rotation: float = 0.0,
) -> AttackResult:
    """Puts a given patch at a random place on every image: an attack without a search.

    >>> x = jnp.ones((2, 8, 8, 1))
    >>> def dark_or_bright(x):
    ...     mean = x.mean(axis=(1, 2, 3))
    ...     return jnp.stack([mean, 0.99 - mean], axis=1)
    >>> patched(
    ...     dark_or_bright, x, jnp.zeros(2, int), key=jax.random.key(0),
    ...     patch=jnp.zeros((6, 6, 1)),
    ... ).success.tolist()
    [True, True]

    Args:
      logits_fn, x, y, key, bounds, scale, rotation: as in `patch`.
      patch: [h, w, C], as `PatchResult.patch`.

    Returns:
      AttackResult; `loss` is the margin, `distance` the largest change of a pixel.

    Raises:
      ValueError: an argument is malformed; the message names it.
    """
    problem = check_problem(
        logits_fn, _check_pictures(x), Linf(0.0), check_bounds(bounds)
    )
    y, _ = check_classes(problem, y)
    kinds = (jnp.floating,)
    patch = check_array("patch", patch, "[h, w, C]", kinds=kinds, finite=False)
    patch = jnp.asarray(patch, problem.x.dtype)
    if patch.ndim != 3 or patch.shape[2] != x.shape[3]:
        raise ValueError(
            f"patch must be [h, w, {x.shape[3]}] for images {x.shape}, got "
            f"{patch.shape}"
        )
    check_images(patch[None], bounds=bounds, name="patch")
    transform = _check_transform(patch.shape[:2], x.shape[1:3], scale, rotation)
    return _patched(problem, y, sample_keys(key, len(y)), patch, transform)


@jax.jit
def _patched(
    problem: Problem,
    y: jax.Array,
    keys: jax.Array,
    patch: jax.Array,
    transform: jax.Array,
) -> AttackResult:
    x = problem.x
    placement = _place(keys, x.shape[1:3], patch.shape[:2], transform)
    x_adv = paste(x, patch, placement)
    return judged(problem.logits_fn, x, x_adv, y, problem.ball)
