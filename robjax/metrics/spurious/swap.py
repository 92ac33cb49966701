"""The same foregrounds on other backgrounds, and models of other classes.

Xiao et al., "Noise or signal: the role of image backgrounds in object recognition",
ICLR 2021 (arXiv 2006.09994).
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial
from numpy.typing import ArrayLike

from robjax import losses, lowering
from robjax.arrays import check_array
from robjax.checks import (
    check_count,
    check_flags,
    check_images,
    check_labels,
    check_logits,
    check_range,
)
from robjax.metrics.finite import check_measured
from robjax.metrics.spurious.groups import Estimate, _check_correct, mean
from robjax.model import LogitsFn, as_logits_fn, count_classes
from robjax.numerics import map_batched
from robjax.samples import is_concrete
from robjax.traced import TracedCallable


def background_gap(
    same: ArrayLike, rand: ArrayLike, *, paired: bool = False
) -> Estimate:
    """The accuracy that fitting backgrounds give: acc(Mixed-Same) − acc(Mixed-Rand).

    Xiao et al., section 4. It is 0 for a model that is blind to backgrounds.

    >>> background_gap([True, True, True, True], [True, False, True, False])
    Estimate(0.5 ± 0.29)
    >>> round(float(background_gap(0.956, 0.862)), 3)  # two accuracies
    0.094

    Args:
      same: verdicts [N] on backgrounds of the image's own class, or their mean.
      rand: verdicts [M] on backgrounds of random classes, or their mean.
      paired: image i of both has the same foreground, so N = M and the standard error
        is that of the mean difference; else √(stderr² + stderr²).

    Returns:
      The gap; its standard error is NaN if only accuracies are given.

    Raises:
      ValueError: a verdict is not in [0, 1], or pairs are not of one length.
    """
    check_flags(paired=paired)
    both = [
        _check_correct(name, [value] if isinstance(value, float | int) else value)
        for name, value in (("same", same), ("rand", rand))
    ]
    first, second = both
    if paired:
        if first.shape != second.shape:
            raise ValueError(
                f"rand must have the shape of same, {list(first.shape)}, if paired, "
                f"got {list(second.shape)}"
            )
        return mean(first - second)
    high = mean(first)
    low = mean(second)
    return Estimate(high.value - low.value, jnp.hypot(high.stderr, low.stderr))


def swap_backgrounds(
    x: jax.Array | np.ndarray,
    masks: jax.Array | np.ndarray,
    scenery: jax.Array | np.ndarray,
) -> jax.Array:
    """Puts foregrounds on other backgrounds: m x + (1 − m) scenery.

    >>> x, scenery = jnp.ones((1, 1, 2, 3)), jnp.zeros((1, 1, 2, 3))
    >>> swap_backgrounds(x, jnp.array([[[1.0, 0.0]]]), scenery)[0, 0, :, 0].tolist()
    [1.0, 0.0]

    Args:
      x: [B, H, W, C] images.
      masks: [B, H, W] 1 on the foreground; bool, or in [0, 1].
      scenery: [B, H, W, C] backgrounds without a foreground, as those of the split
        only_background (`robjax.data.backgrounds`).

    Raises:
      ValueError: the shapes differ, or a value is not finite or out of its range.
    """
    x = check_measured(x)
    scenery = check_images(scenery, name="scenery")
    if scenery.shape != x.shape:
        raise ValueError(
            f"scenery must have the shape of x, {x.shape}, got {scenery.shape}"
        )
    inside = check_masks(masks, x)[..., None]
    return inside * x + (1 - inside) * scenery.astype(x.dtype)


def check_masks(masks: object, x: jax.Array) -> jax.Array:
    """Masks as numbers [B, H, W] of the dtype of x [B, H, W, C].

    >>> check_masks(np.ones((2, 4, 4), bool), jnp.ones((2, 4, 4, 3))).dtype.name
    'float32'

    Raises:
      ValueError: x is not [B, H, W, C], or masks are not [B, H, W] in [0, 1].
    """
    if x.ndim != 4:
        raise ValueError(f"x must be images [B, H, W, C], got shape {x.shape}")
    if not isinstance(masks, jax.Array | np.ndarray) or masks.shape != x.shape[:3]:
        found = getattr(masks, "shape", type(masks).__name__)
        raise ValueError(f"masks must be an array {x.shape[:3]}, got {found}")
    if masks.dtype != bool and not jnp.issubdtype(masks.dtype, jnp.floating):
        raise ValueError(
            f"masks must be bool or floating in [0, 1], got {masks.dtype}: give "
            "masks > 0 or masks / 255"
        )
    values = jnp.asarray(masks)
    check_range("masks", values.astype(x.dtype), 0, 1)
    return values.astype(x.dtype)


class BackgroundSwap(NamedTuple):
    """Verdicts on B images before and after their backgrounds are swapped.

    Attributes:
      before: bool [B] correct on the images as they are.
      after: bool [B] correct on the new backgrounds.
      kept: bool [B] the prediction stays.
    """

    before: jax.Array
    after: jax.Array
    kept: jax.Array

    @property
    def gap(self) -> Estimate:
        """The accuracy that the swap costs, from pairs of images."""
        return background_gap(self.before, self.after, paired=True)

    def __repr__(self) -> str:
        """The accuracies, the gap and how many predictions stay."""
        if not is_concrete(self.before):
            return "BackgroundSwap(traced)"
        before, after, kept = (mean(jnp.asarray(v)).value for v in self)
        gap = self.gap
        return (
            f"BackgroundSwap({np.size(self.before)} images, accuracy {before:.3f} "
            f"before and {after:.3f} after, gap {gap.value:.3f} ± {gap.stderr:.2g}, "
            f"{kept:.1%} of predictions stay)"
        )


def background_swap(
    logits_fn: LogitsFn,
    x: jax.Array | np.ndarray,
    y: ArrayLike,
    masks: jax.Array | np.ndarray,
    scenery: jax.Array | np.ndarray,
    *,
    batch_size: int = 256,
) -> BackgroundSwap:
    """Whether predictions survive it when the foregrounds get other backgrounds.

    >>> def brightest(x):  # the first two pixels: both on the foreground
    ...     return x[:, 0, :2, 0]
    >>> x = jnp.zeros((2, 1, 3, 3)).at[:, 0, 1].set(1.0)
    >>> masks = jnp.array([[[1.0, 1.0, 0.0]]] * 2)
    >>> background_swap(brightest, x, jnp.array([1, 0]), masks, 1 - x).kept.tolist()
    [True, True]

    Args:
      logits_fn: images [B, H, W, C] -> logits [B, K].
      x: [B, H, W, C] images.
      y: [B] labels.
      masks, scenery: as in `swap_backgrounds`.
      batch_size: images per chunk, bounds the memory.

    Raises:
      ValueError: an argument is malformed; the message names it.
    """
    x = check_measured(x)
    swapped = swap_backgrounds(x, masks, scenery)
    model = as_logits_fn(logits_fn)
    y = check_labels(y, len(x), num_classes=count_classes(model, x))
    return _swap(model, x, swapped, y, check_count("batch_size", batch_size))


@jax.jit(static_argnums=4)
def _swap(
    logits_fn: TracedCallable,
    x: jax.Array,
    swapped: jax.Array,
    y: jax.Array,
    batch_size: int,
) -> BackgroundSwap:
    judge = lowering.exact(logits_fn)

    def measure(rows: tuple[jax.Array, jax.Array, jax.Array]) -> BackgroundSwap:
        x, swapped, y = rows
        old = judge(x)
        new = judge(swapped)
        return BackgroundSwap(
            before=~losses.misclassified(old, y),
            after=~losses.misclassified(new, y),
            kept=jnp.argmax(old, axis=1) == jnp.argmax(new, axis=1),
        )

    return map_batched(measure, (x, swapped, y), batch_size)


def map_classes(logits_fn: LogitsFn, table: Sequence[int] | np.ndarray) -> Partial:
    """A model whose outputs stand for other classes, as one of ImageNet on ImageNet-9.

    The logit of a class is the largest of the outputs that stand for it. Outputs that
    stand for none make up one more class, the last, which is always wrong. So the
    prediction is table[argmax of the outputs].

    >>> model = map_classes(lambda x: x, [0, 1, 1, -1])
    >>> model(jnp.array([[0.1, 0.2, 0.5, 0.3]])).round(1).tolist()
    [[0.1..., 0.5, 0.3...]]

    Args:
      logits_fn: images -> outputs [B, M].
      table: int [M] the class that output m stands for; −1: none.

    Returns:
      images -> logits [B, K + 1], with K − 1 the largest number in the table.

    Raises:
      ValueError: the table has another form.
    """
    classes = np.asarray(check_array("table", table, "[M]", kinds=(jnp.integer,)))
    if classes.min() < -1 or classes.max() < 0:
        raise ValueError(f"table must hold classes or -1, got {classes.tolist()}")
    count = int(classes.max()) + 1
    members = np.arange(count + 1)[:, None] == np.where(classes < 0, count, classes)
    return Partial(_mapped, as_logits_fn(logits_fn), jnp.asarray(members))


def _mapped(
    logits_fn: TracedCallable, members: jax.Array, images: jax.Array
) -> jax.Array:
    outputs = check_logits(logits_fn(images), len(images))
    if outputs.shape[1] != members.shape[1]:
        raise ValueError(
            f"table must have an entry for each of the {outputs.shape[1]} outputs of "
            f"logits_fn, got {members.shape[1]}"
        )
    lowest = jnp.finfo(outputs.dtype).min
    return jnp.max(jnp.where(members[None], outputs[:, None], lowest), axis=2)
