"""What is measured of a model on clean images besides the verdicts on them.

A verdict says whether an image is misclassified. Whether the verdict means anything
takes a few passes more:

    repeats   the same images once more, and among other neighbours
    slopes    the input gradients that attacks climb

Both run on the batches and devices of a `Task`. `repeats` reuses the compiled program
of the verdicts, `slopes` compiles one.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh
from jax.typing import ArrayLike

from robjax import losses, lowering
from robjax.boxes import extent
from robjax.evaluation.batches import Task
from robjax.evaluation.sharding import SHARED, SPLIT, over_devices, place
from robjax.evaluation.verdicts import judge
from robjax.samples import flatten_samples, fold_keys, is_concrete, mask_samples
from robjax.traced import TracedCallable

# Images whose gradients are taken. A fault of 1 % of all images escapes 512 of them
# once in 170 times.
_SLOPES = 512


class Repeats(NamedTuple):
    """How far the margins of b images change without a change of the image.

    Changes are shares of the spread of the logits, that of the image or the median one
    if it is larger. inf: the logits are finite in one pass only.

    Attributes:
      again: [b] in a second pass over the same batch.
      elsewhere: [b'] of some of the images, in another place among other neighbours,
        and in a batch of another size.
      simplex: [b] bool, the outputs are probabilities.
    """

    again: np.ndarray
    elsewhere: np.ndarray
    simplex: np.ndarray

    def __repr__(self) -> str:
        """Shows the largest changes; no arrays."""
        if not is_concrete(self.again):
            return "Repeats(traced)"
        again = self.again.max(initial=0)
        elsewhere = self.elsewhere.max(initial=0)
        return f"Repeats(again {again:.2g}, elsewhere {elsewhere:.2g})"


class Slopes(NamedTuple):
    """The input gradients of the log-odds of n images.

    Attributes:
      zero: [n] bool, every component is exactly 0.
      broken: [n] bool, a component is NaN or infinite.
    """

    zero: np.ndarray
    broken: np.ndarray

    def __repr__(self) -> str:
        """Shows both counts; no arrays."""
        if not is_concrete(self.zero):
            return "Slopes(traced)"
        zero = self.zero.sum()
        return f"Slopes({zero} zero, {self.broken.sum()} broken of {len(self.zero)})"


@functools.partial(jax.jit, static_argnames="bounds")
def mixed_company(x: jax.Array, bounds: tuple[float, float]) -> jax.Array:
    """Puts every second image of a batch in another place, among strangers.

    The order is reversed, and then the images with even numbers are replaced, so that
    statistics of the batch change much: by turns by their extreme negative, high where
    they are dark and low where they are bright, and by stripes. The images left are
    ``x[::-1][1::2]``.

    >>> x = jnp.array([[0.25, 0.5], [0.75, 0.5], [0.5, 0.25], [0.75, 0.25]])
    >>> mixed_company(x, (0.0, 1.0)).tolist()
    [[0.0, 1.0], [0.5, 0.25], [0.0, 1.0], [0.25, 0.5]]

    Args:
      x: [B, *S] images, B ≥ 2; give `jnp.repeat(x, 2, axis=0)` to keep all of them.
      bounds: lowest and highest pixel value.

    Returns:
      [B, *S].
    """
    low, high = bounds
    x = x[::-1]
    negative = jnp.where(x < (low + high) / 2, high, low)
    even = jnp.arange(x[0].size).reshape(x.shape[1:]) % 2 == 0
    stripes = jnp.where(even, low, high)[None]
    place = mask_samples(jnp.arange(len(x)) % 4, x)
    stranger = jnp.where(place == 0, negative, stripes).astype(x.dtype)
    return jnp.where(place % 2 == 0, stranger, x)


def repeats(task: Task, margin: np.ndarray) -> Repeats:
    """Judges the first batch of clean images twice more, and a few of them apart.

    >>> x = np.array([[0.5, 0.25], [0.75, 0.5]], np.float32)
    >>> task = Task.make(
    ...     lambda x: x * x.sum(), x, np.zeros(2, int),
    ...     key=jax.random.key(0), bounds=(0.0, 1.0), devices=jax.local_devices()[:1],
    ... )
    >>> repeats(task, margin=np.array([-0.5, -0.5]))  # the sum is 2, then 3, then 8
    Repeats(again 0, elsewhere 3)

    Args:
      task: the model and the images.
      margin: [N] of the clean images, as the verdicts on them say.
    """
    index, real = next(task.batches(np.arange(len(task.labels))))
    again = judge(task, *place(task.take(index), task.mesh, SPLIT))
    spread = again.spread.astype(np.float64)
    scale = np.maximum(spread, np.median(spread))
    # on each device two images and two strangers: of two rows batch norm makes ±1
    copies = -(-4 * task.mesh.size // len(index))
    order = np.repeat(np.arange(len(index)), copies)
    x, y, keys = task.take(index[order])
    mixed = (mixed_company(x, extent(task.bounds)), y[::-1], keys[::-1])
    elsewhere = judge(task, *place(mixed, task.mesh, SPLIT))
    kept = order[::-1][1::2]
    # a batch of another size: of two images for each device, or if that is no other of
    # four times as many
    few = np.arange(2 * task.mesh.size)
    if len(few) >= len(index):
        few = np.resize(np.arange(len(index)), 4 * len(index))
    apart = judge(task, *place(task.take(index[few]), task.mesh, SPLIT))
    changes = (
        _change(again.margin[kept], elsewhere.margin[1::2], scale[kept]),
        _change(again.margin[few], apart.margin, scale[few]),
    )
    return Repeats(
        again=_change(margin[index], again.margin, scale)[:real],
        elsewhere=np.concatenate(changes),
        simplex=again.simplex[:real],
    )


def _change(before: np.ndarray, after: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """Changes [b] of a margin, as shares of `scale` [b]; see `Repeats`."""
    before = before.astype(np.float64)
    after = after.astype(np.float64)
    known = np.isfinite(before) & np.isfinite(after)
    size = np.abs(np.where(known, after, 0) - np.where(known, before, 0))
    same_kind = np.isfinite(before) == np.isfinite(after)
    return np.where(same_kind, size / np.where(scale > 0, scale, 1), np.inf)


def slopes(task: Task, chosen: np.ndarray) -> Slopes:
    """Takes the input gradient of the log-odds at clean images.

    Of a randomised model the gradients of all `eot` draws are looked at. It is zero if
    all of them are, and broken if one of them is.

    >>> x = np.array([[0.2, 0.4], [0.6, 0.8]], np.float32)
    >>> task = Task.make(
    ...     lambda x: jnp.round(x), x, np.array([1, 1]), key=jax.random.key(0),
    ...     bounds=(0.0, 1.0), devices=jax.local_devices()[:1],
    ... )
    >>> slopes(task, np.arange(2)).zero.tolist()
    [True, True]

    Args:
      task: the model, as attacks see it, and the images.
      chosen: [n] samples, n ≥ 1. Of more than 512 as many are taken, evenly spread.

    Raises:
      Exception: whatever the model raises when it is differentiated.
    """
    if len(chosen) > _SLOPES:
        chosen = chosen[np.linspace(0, len(chosen) - 1, _SLOPES).astype(int)]
    first, _ = next(task.batches(np.arange(len(task.labels))))
    size = len(first)  # one size, so one program
    # copies fill up the last batch
    padded = np.resize(chosen, -(-len(chosen) // size) * size)
    parts = []
    for start in range(0, len(padded), size):
        batch = place(task.take(padded[start : start + size]), task.mesh, SPLIT)
        parts.append(_slopes(task.attacked, *batch, eot=task.eot, mesh=task.mesh))
    zero, broken = (
        np.concatenate(part)[: len(chosen)] for part in zip(*parts, strict=True)
    )
    return Slopes(zero, broken)


@functools.partial(jax.jit, static_argnames=("eot", "mesh"))
def _slopes(
    model: TracedCallable,
    x: jax.Array,
    y: jax.Array,
    keys: jax.Array,
    *,
    eot: int | None,
    mesh: Mesh,
) -> tuple[jax.Array, jax.Array]:
    """The compiled part of `slopes`: which gradients are zero, and which are broken."""

    def look(
        model: TracedCallable, x: jax.Array, y: jax.Array, keys: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        def total(v: jax.Array, keys: jax.Array) -> jax.Array:
            logits = model(v) if eot is None else model(v, keys)
            return jnp.sum(losses.log_odds(logits, y))

        gradient = lowering.fast(jax.grad(total))

        def draw(number: ArrayLike) -> tuple[jax.Array, jax.Array]:
            g = flatten_samples(gradient(x, fold_keys(keys, number)))
            return jnp.all(g == 0, axis=1), ~jnp.all(jnp.isfinite(g), axis=1)

        if eot is None:
            return draw(0)
        zero, broken = lax.map(draw, jnp.arange(eot))
        return jnp.all(zero, axis=0), jnp.any(broken, axis=0)

    on_devices = over_devices(look, mesh, (SHARED, SPLIT, SPLIT, SPLIT))
    return on_devices(model, x, y, keys)
