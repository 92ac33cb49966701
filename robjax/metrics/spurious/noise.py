"""Noise on the foreground or on the background alone, and what it costs.

Moayeri et al., "A comprehensive study of image classification model sensitivity to
foregrounds, backgrounds, and visual attributes", CVPR 2022 (arXiv 2201.10766).

    m, z            mask in [0, 1], 1 on the region; standard normal noise
    σ · m∘z         L∞-type noise, of the same standard deviation everywhere
    r · m∘z/‖m∘z‖₂  L2-type noise, of the same length whatever the area of the region

Both are added to an image, which is then clipped to its bounds. The background's mask
is 1 − m. L∞-type noise is longer on the larger region; L2-type noise is not.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike

from robjax import losses, lowering
from robjax.arrays import check_array
from robjax.checks import (
    Bounds,
    check_bounds,
    check_count,
    check_flags,
    check_labels,
    check_range,
)
from robjax.metrics.finite import check_measured, finite_samples, warn_not_finite
from robjax.metrics.spurious.groups import Estimate, mean
from robjax.metrics.spurious.swap import check_masks
from robjax.model import LogitsFn, as_logits_fn, count_classes
from robjax.numerics import map_batched, safe_norm
from robjax.samples import fold_keys, is_concrete, mask_samples, sample_keys
from robjax.traced import TracedCallable

LINF_LEVELS = tuple(level / 255 for level in range(30, 211, 30))
"""σ of L∞-type noise in the authors' code, for images in [0, 1]."""

L2_LEVELS = tuple(float(level) for level in range(25, 201, 25))
"""r of L2-type noise in the authors' code, for 224×224×3 pixels in [0, 1].

For n pixels and channels, the like is √(n / 150528) times as much.
"""


def relative_sensitivity(acc_fg_noise: ArrayLike, acc_bg_noise: ArrayLike) -> jax.Array:
    """How much more noise on the foreground hurts than noise on the background.

    RFS = (a_bg − a_fg) / (2 min(ā, 1 − ā)) with ā = (a_fg + a_bg) / 2, from −1 to 1; 0
    where ā is 0 or 1. A positive number says that the model relies on the foreground
    more. With the noise on core and on spurious regions it is RCS, on probabilities of
    the true class of one image iRFS.

    >>> round(float(relative_sensitivity(0.6, 0.8)), 4)
    0.3333

    Args:
      acc_fg_noise: [...] accuracy under noise on the foreground (or core region).
      acc_bg_noise: [...] accuracy under noise on the background (or spurious region).

    Returns:
      [...]

    Raises:
      ValueError: the shapes differ, or an accuracy is not in [0, 1].
    """
    foreground = jnp.asarray(check_range("acc_fg_noise", acc_fg_noise, 0, 1))
    background = jnp.asarray(check_range("acc_bg_noise", acc_bg_noise, 0, 1))
    if foreground.shape != background.shape:
        raise ValueError(
            f"acc_bg_noise must have the shape of acc_fg_noise, {foreground.shape}, "
            f"got {background.shape}"
        )
    return _relative(foreground, background)


def _relative(foreground: jax.Array, background: jax.Array) -> jax.Array:
    centre = (foreground + background) / 2
    room = jnp.minimum(centre, 1 - centre)
    # at most 1, but for rounding
    ratio = (background - foreground) / (2 * jnp.where(room > 0, room, 1))
    return jnp.where(room > 0, jnp.clip(ratio, -1, 1), 0)


class NoiseSensitivity(NamedTuple):
    """What noise on one of two regions does to B images, at L levels.

    Index 0 of the axis of regions is the foreground, 1 the background. All numbers of
    an image are NaN if one of its regions is empty (a mask of 0 everywhere, or of 1),
    or if some of its logits are not finite; means leave it out.

    Attributes:
      levels: [L] σ of L∞-type, then r of L2-type noise.
      clean: [B] 1 where the image without noise is classified correctly, else 0.
      correct: [L, 2, B] share of trials that are classified correctly.
      probability: [L, 2, B] mean probability of the true class.
      classes: int [B] labels, if all accuracies are means over the classes of the
        accuracy of a class; None: means over images.
    """

    levels: jax.Array
    clean: jax.Array
    correct: jax.Array
    probability: jax.Array
    classes: jax.Array | None = None

    @property
    def excluded(self) -> jax.Array:
        """Bool [B]: which images are left out."""
        return jnp.isnan(self.clean)

    @property
    def accuracy(self) -> Estimate:
        """[L, 2] accuracies under noise."""
        return mean(self.correct, self.classes)

    @property
    def clean_accuracy(self) -> Estimate:
        """Accuracy without noise."""
        return mean(self.clean, self.classes)

    @property
    def relative(self) -> Estimate:
        """[L] relative foreground sensitivity at each level.

        The standard error is that of the linear change of RFS with both accuracies (the
        delta method), which are of the same images; NaN where RFS is 0 because all is
        correct or all is wrong.
        """
        return _over_images(self.correct, self.classes)[0]

    @property
    def mean_relative(self) -> Estimate:
        """RFS averaged over the levels where .1 < ā < .9; NaN if there are none.

        At other levels the division by min(ā, 1 − ā) makes much of few images.
        """
        return _over_images(self.correct, self.classes)[1]

    @property
    def per_image(self) -> jax.Array:
        """[L, B] iRFS: relative sensitivity of the probabilities."""
        known = ~self.excluded[None]
        return jnp.where(
            known, _relative(self.probability[:, 0], self.probability[:, 1]), jnp.nan
        )

    def __repr__(self) -> str:
        """Mean RFS, the accuracy without noise, and how many images are left out."""
        if not is_concrete(self.clean):
            return "NoiseSensitivity(traced)"
        lost = int(self.excluded.sum())
        left_out = f", {lost} left out" if lost else ""
        rfs = self.mean_relative
        return (
            f"NoiseSensitivity({self.clean.size} images{left_out}, {self.levels.size} "
            f"levels, clean accuracy {self.clean_accuracy.value:.3f}, mean RFS "
            f"{rfs.value:.3f} ± {rfs.stderr:.2g})"
        )


@jax.jit
def _over_images(
    correct: jax.Array, classes: jax.Array | None
) -> tuple[Estimate, Estimate]:
    """RFS at each level [L], and its mean over levels, from verdicts [L, 2, B]."""
    foreground, background = mean(correct, classes).value.T
    centre = (foreground + background) / 2
    rfs = _relative(foreground, background)

    # to first order, image i adds ∂RFS/∂a_fg · fg_i + ∂RFS/∂a_bg · bg_i
    room = jnp.minimum(centre, 1 - centre)
    room = jnp.where(room > 0, room, jnp.nan)
    room_slope = jnp.where(centre > 0.5, -0.5, 0.5)  # ∂ room / ∂ either accuracy
    tilt = (background - foreground) / (2 * room**2) * room_slope
    slopes = jnp.stack([-1 / (2 * room) - tilt, 1 / (2 * room) - tilt], axis=1)
    influence = jnp.sum(slopes[..., None] * correct, axis=1)

    used = (centre > 0.1) & (centre < 0.9)
    count = jnp.sum(used)
    average = jnp.sum(jnp.where(used, rfs, 0)) / count
    together = jnp.sum(jnp.where(used[:, None], influence, 0), axis=0) / count
    return (
        Estimate(rfs, mean(influence, classes).stderr),
        Estimate(average, mean(together, classes).stderr),
    )


def noise_sensitivity(
    logits_fn: LogitsFn,
    x: jax.Array | np.ndarray,
    y: ArrayLike,
    masks: jax.Array | np.ndarray,
    *,
    key: jax.Array,
    linf_levels: ArrayLike = LINF_LEVELS,
    l2_levels: ArrayLike = L2_LEVELS,
    trials: int = 1,
    class_balanced: bool = False,
    bounds: Bounds = (0.0, 1.0),
    batch_size: int = 128,
) -> NoiseSensitivity:
    """Accuracy under noise on the foreground and on the background, at all levels.

    It takes 1 forward pass for each image, and 2 for each level and trial: 31 at the
    default levels. Trial t at level l draws z from fold_in(fold_in(own key, l), t) and
    puts the same z on either region, so no number depends on the batch. New weights and
    levels do not compile anew.

    A model that sees the first pixel alone, which is the foreground:

    >>> def first(x):
    ...     return jnp.stack([0.5 - x[:, 0, 0, 0], x[:, 0, 0, 0] - 0.5], axis=1)
    >>> x = jnp.full((100, 2, 2, 3), 0.6)
    >>> masks = jnp.zeros((100, 2, 2)).at[:, 0, 0].set(1.0)
    >>> y = jnp.ones(100, int)
    >>> found = noise_sensitivity(first, x, y, masks, key=jax.random.key(0))
    >>> found.correct[:, 1].min().item(), bool(found.accuracy.value[0, 0] < 0.95)
    (1.0, True)
    >>> bool((found.relative.value > 0).all())
    True

    Args:
      logits_fn: images [B, H, W, C] -> logits [B, K].
      x: [B, H, W, C] images inside `bounds`, not normalised by channel.
      y: [B] labels.
      masks: [B, H, W] 1 on the foreground; bool, or weights in [0, 1].
      key: one key, or B keys (`robjax.samples.sample_keys`).
      linf_levels: σ [·] of L∞-type noise, may be empty.
      l2_levels: r [·] of L2-type noise, may be empty.
      trials: draws of the noise for each level.
      class_balanced: accuracies are means over classes, not over images, so that each
        class that has images counts the same.
      bounds: lowest and highest pixel value.
      batch_size: images per chunk, bounds the memory.

    Raises:
      ValueError: an argument is malformed; the message names it.

    Warns:
      UserWarning: some images have logits that are not finite.
    """
    check_flags(class_balanced=class_balanced)
    bounds = check_bounds(bounds)
    x = check_measured(x)
    masks = check_masks(masks, x)
    if is_concrete(x) and (x.min() < bounds[0] or x.max() > bounds[1]):
        raise ValueError(
            f"x must lie inside bounds {bounds}, got values from {x.min():.6g} to "
            f"{x.max():.6g}"
        )
    model = as_logits_fn(logits_fn)
    y = check_labels(y, len(x), num_classes=count_classes(model, x))
    sigmas = _check_levels("linf_levels", linf_levels)
    lengths = _check_levels("l2_levels", l2_levels)
    if not len(sigmas) + len(lengths):
        raise ValueError("linf_levels must not be empty where l2_levels are, got none")
    levels = jnp.concatenate([sigmas, lengths])
    found, finite = _measure(
        model,
        (x, y, masks, sample_keys(key, len(x))),
        levels,
        jnp.arange(len(levels)) >= len(sigmas),
        jnp.asarray(bounds, x.dtype),
        trials=check_count("trials", trials),
        batch_size=check_count("batch_size", batch_size),
    )
    warn_not_finite(logits=finite, gradients=jnp.ones_like(finite))
    return found._replace(classes=y) if class_balanced else found


def _check_levels(name: str, levels: ArrayLike) -> jax.Array:
    if isinstance(levels, list | tuple) and not levels:
        return jnp.zeros(0)
    return jnp.asarray(check_array(name, levels, "[n]", low=0), jnp.float32)


_Rows = tuple[jax.Array, jax.Array, jax.Array, jax.Array]


@functools.partial(jax.jit, static_argnames=("trials", "batch_size"))
def _measure(
    logits_fn: TracedCallable,
    rows: _Rows,
    levels: jax.Array,
    is_length: jax.Array,
    bounds: jax.Array,
    *,
    trials: int,
    batch_size: int,
) -> tuple[NoiseSensitivity, jax.Array]:
    """The result, and whether all logits of an image are finite, [B]."""
    judge = lowering.exact(logits_fn)

    def measure(rows: _Rows) -> tuple[NoiseSensitivity, jax.Array]:
        x, y, masks, keys = rows
        regions = jnp.stack([masks, 1 - masks])[..., None]

        def verdict(images: jax.Array) -> tuple[jax.Array, ...]:
            logits = judge(images)
            right = ~losses.misclassified(logits, y)
            logits = logits.astype(x.dtype)
            likely = jnp.exp(-losses.cross_entropy(logits, y))
            return right.astype(x.dtype), likely, finite_samples(logits)

        def draw(key: jax.Array) -> jax.Array:
            return jax.random.normal(key, x.shape[1:], x.dtype)

        def under_noise(run: jax.Array) -> tuple[jax.Array, ...]:
            number, trial, region = run
            z = jax.vmap(draw)(fold_keys(fold_keys(keys, number), trial))
            noise = regions[region] * z
            length = safe_norm(noise, (1, 2, 3))
            unit = noise / mask_samples(jnp.where(length > 0, length, 1), noise)
            noise = levels[number].astype(x.dtype) * jnp.where(
                is_length[number], unit, noise
            )
            return verdict(jnp.clip(x + noise, bounds[0], bounds[1]))

        shape = (len(levels), trials, 2)
        runs = jnp.stack([i.ravel() for i in jnp.indices(shape)], axis=1)
        correct, probability, finite = (
            values.reshape(*shape, len(x)) for values in jax.lax.map(under_noise, runs)
        )
        clean, _, known = verdict(x)
        finite = known & jnp.all(finite, (0, 1, 2))
        empty = jnp.any(jnp.all(regions == 0, (2, 3, 4)), axis=0)
        kept = finite & ~empty

        def known_first(values: jax.Array) -> jax.Array:
            """Images first, as chunks are joined there; NaN for what is left out."""
            # not a product with NaN: XLA takes 0 · NaN of a mask for 0
            return jnp.moveaxis(jnp.where(kept, values, jnp.nan), -1, 0)

        return NoiseSensitivity(
            levels=jnp.zeros(len(x)),
            clean=known_first(clean),
            correct=known_first(correct.mean(1)),
            probability=known_first(probability.mean(1)),
        ), finite

    found, finite = map_batched(measure, rows, batch_size)
    return found._replace(
        levels=levels,
        correct=jnp.moveaxis(found.correct, 0, -1),
        probability=jnp.moveaxis(found.probability, 0, -1),
    ), finite
