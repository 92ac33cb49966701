"""What an evaluation attacks: a model and N images, and how they make up batches."""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from robjax.checks import Bounds, check_count, check_labels
from robjax.data import to_float
from robjax.evaluation import sharding
from robjax.model import LogitsFn, as_logits_fn, count_classes, rounded_to
from robjax.samples import sample_keys
from robjax.traced import TracedCallable

# Larger batches leave the caches of a CPU: per image they took up to 28 % longer.
_BATCH_SIZES = {"cpu": 64}
_SMALLEST = 8  # a smaller batch saves less than its compilation takes


class Task(NamedTuple):
    """What is attacked, checked. The arrays hold all N samples, on the host.

    Attributes:
      model: images (and keys, with `eot`) -> logits, on every device.
      attacked: the same in the precision that attacks compute in.
      images: [N, *S], floating or, with `scale`, integers to be divided by it.
      labels: [N] int32.
      keys: [N] PRNG keys.
      bounds: lowest and highest pixel value.
      scale: None for floating images.
      eot: draws that a verdict on a randomised model is averaged over, or None.
      batch_size: most images at a time, a multiple of the device count.
      mesh: the devices that share a batch.
    """

    model: TracedCallable
    attacked: TracedCallable
    images: np.ndarray
    labels: np.ndarray
    keys: jax.Array
    bounds: Bounds
    scale: float | None
    eot: int | None
    batch_size: int
    mesh: Mesh

    @classmethod
    def make(
        cls,
        logits_fn: LogitsFn,
        images: np.ndarray,
        labels: Any,
        *,
        key: jax.Array,
        bounds: Bounds,
        scale: float | None = None,
        eot: int | None = None,
        batch_size: int | None = None,
        devices: Sequence[jax.Device] | None = None,
        dtype: jax.typing.DTypeLike | None = None,
        name: str = "y",
    ) -> "Task":
        """Checks all that depends on the model; images and bounds are checked already.

        Args:
          logits_fn: as in `evaluate`, and so are the arguments not listed here.
          images: [N, *S], checked.
          labels: [N].
          scale: None for floating images.
          name: what the caller calls the labels, for messages.

        Raises:
          ValueError: an argument is malformed; the message names it.
        """
        if eot is not None:
            check_count("eot", eot)
        mesh = sharding.make_mesh(devices)
        count = len(images)
        if batch_size is None:
            batch_size = _BATCH_SIZES.get(_platform(mesh), 256)
        batch_size = min(check_count("batch_size", batch_size), count)
        batch_size = -(-batch_size // mesh.size) * mesh.size
        model = as_logits_fn(logits_fn)
        keys = sample_keys(key, count)
        example = to_images(images[:1], scale)
        classes = count_classes(model, example, None if eot is None else keys[:1])
        labels = check_labels(labels, count, num_classes=classes, name=name)
        model = sharding.place(model, mesh, sharding.SHARED)
        return cls(
            model=model,
            attacked=model if dtype is None else rounded_to(dtype, model),
            images=images,
            labels=np.asarray(labels),
            keys=keys,
            bounds=bounds,
            scale=scale,
            eot=eot,
            batch_size=batch_size,
            mesh=mesh,
        )

    def take(self, index: np.ndarray) -> tuple[jax.Array, np.ndarray, jax.Array]:
        """Floating images, labels and keys of a batch."""
        x = to_images(self.images[index], self.scale)
        return x, self.labels[index], self.keys[index]

    def batches(self, index: np.ndarray) -> Iterator[tuple[np.ndarray, int]]:
        """Splits an index into batches of few different sizes.

        * All batches but the last ones have `batch_size` samples.
        * The rest goes into one batch, whose size is the next power of two (made a
          multiple of the device count). It is filled up with copies of its first
          sample.
        * On a CPU a copy costs as much as any other sample. Where copies would be more
          than a quarter, the rest is split into half that size and a smaller batch.

        Yields:
          (batch, how many of it are real).
        """
        start = 0
        while start < len(index):
            size = self._size_for(len(index) - start)
            batch = index[start : start + size]
            padding = (0, size - len(batch))
            yield np.pad(batch, padding, constant_values=batch[0]), len(batch)
            start += size

    def _size_for(self, left: int) -> int:
        devices = self.mesh.size
        enough = 1 << (left - 1).bit_length()
        size = min(max(enough, _SMALLEST), self.batch_size)
        on_cpu = _platform(self.mesh) == "cpu"
        if on_cpu and size > 2 * _SMALLEST and size - left > size // 4:
            size = enough // 2
        return min(-(-size // devices) * devices, self.batch_size)


def _platform(mesh: Mesh) -> str:
    return mesh.devices.flat[0].platform


def to_images(images: jax.Array | np.ndarray, scale: float | None) -> jax.Array:
    """Images [B, *S] as floats of at least float32; see `Task.scale`.

    >>> to_images(np.array([[0, 255]], np.uint8), 255.0).tolist()
    [[0.0, 1.0]]
    """
    if scale is not None:
        return to_float(images, scale)
    return jnp.asarray(images, jnp.promote_types(images.dtype, jnp.float32))
