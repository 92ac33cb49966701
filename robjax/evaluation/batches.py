"""What an evaluation attacks: a model and N images, and the batches they make up."""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jax.typing import ArrayLike, DTypeLike

from robjax.boxes import boxes_of, has_arrays
from robjax.checks import Bounds, check_count, check_labels
from robjax.data import Images, to_float
from robjax.evaluation import sharding
from robjax.model import LogitsFn, as_logits_fn, count_classes, rounded_to
from robjax.runs import provenance
from robjax.samples import sample_keys
from robjax.traced import TracedCallable

# Larger batches leave the caches of a CPU: per image they took up to 28 % longer.
_BATCH_SIZES = {"cpu": 64}
_SMALLEST = 8  # a smaller batch saves less than its compilation takes


class Task(NamedTuple):
    """A model and all N samples on which it is attacked; checked by `make`.

    >>> task = Task.make(
    ...     lambda x: x, np.ones((20, 2), np.float32), np.zeros(20, int),
    ...     key=jax.random.key(0), bounds=(0.0, 1.0), batch_size=16,
    ...     devices=jax.local_devices()[:1],
    ... )
    >>> [(len(batch), real) for batch, real in task.batches(np.arange(20))]
    [(16, 16), (8, 4)]

    Attributes:
      model: images (and keys, with `eot`) -> logits, on every device.
      attacked: the same model in the precision that attacks compute in.
      images: [N, *S] on the host; floating or, with `scale`, integers to be divided by
        it.
      labels: [N] int32.
      keys: [N] PRNG keys.
      bounds: lowest and highest pixel value, two numbers or two arrays [N, *S] on the
        host.
      scale: None for floating images.
      eot: draws that a verdict on a randomised model is averaged over; None:
        deterministic.
      batch_size: most samples of a batch.
      mesh: the devices that share a batch.
    """

    model: TracedCallable
    attacked: TracedCallable
    images: Images
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
        images: Images,
        labels: ArrayLike | Sequence[int],
        *,
        key: jax.Array,
        bounds: Bounds,
        scale: float | None = None,
        eot: int | None = None,
        batch_size: int | None = None,
        devices: Sequence[sharding.Device] | None = None,
        dtype: DTypeLike | None = None,
        name: str = "y",
    ) -> "Task":
        """Checks the arguments that depend on the model, and puts it on the devices.

        Args:
          logits_fn: as in `evaluate`.
          images: [N, *S], checked already.
          labels: [N].
          key, eot, batch_size, devices, dtype: as in `evaluate`.
          bounds: lowest and highest pixel value, checked already.
          scale: what integer images are divided by; None for floating images.
          name: what the caller calls the labels, for messages.

        Raises:
          ValueError: an argument is malformed; the message names it.
        """
        if eot is not None:
            check_count("eot", eot)
        mesh = sharding.make_mesh(devices)
        count = len(images)
        # before the model is called: one image without a batch axis may not fit it
        labels = np.asarray(labels) if isinstance(labels, int | np.integer) else labels
        check_labels(labels, count, name=name)
        if batch_size is None:
            batch_size = _BATCH_SIZES.get(_platform(mesh), 256)
        batch_size = min(check_count("batch_size", batch_size), count)
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
            bounds=_on_host(bounds),
            scale=scale,
            eot=eot,
            batch_size=batch_size,
            mesh=mesh,
        )

    def facts(self) -> dict[str, Any]:
        """What the model and the samples are, so that two tasks can be compared."""
        low_and_high = self.bounds
        if has_arrays(low_and_high):
            low_and_high = provenance.checksum(low_and_high)
        images = provenance.checksum((self.images, self.labels))
        return {
            "model": provenance.identify(self.attacked),
            "data": f"{list(self.images.shape)} {images}",
            "scale": self.scale,
            "key": provenance.checksum(self.keys),
            "bounds": low_and_high,
            "eot": self.eot,
            "batch_size": self.batch_size,
        }

    def take(self, index: np.ndarray) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Returns floating images, labels and keys of a batch."""
        x = to_images(self.images[index], self.scale)
        keys = jnp.take(self.keys, index, axis=0)  # one program, keys[index] is six
        return x, jnp.asarray(self.labels[index]), keys

    def bounds_of(self, index: np.ndarray) -> Bounds:
        """Returns the bounds of a batch, two numbers or two arrays [B, *S]."""
        return boxes_of(self.bounds, index)

    def batches(self, index: np.ndarray) -> Iterator[tuple[np.ndarray, int]]:
        """Splits an index into batches of few different sizes.

        * Batches have `batch_size` samples, as long as so many are left.
        * The rest goes into one batch. Its size is the next power of two, at least 8.
        * On a CPU a copy costs as much as any other sample. If more than a quarter of
          the batch were copies, the rest is split: into a batch of half the size, and a
          smaller one for what is then left.
        * Sizes are then rounded up to a multiple of the device count. Copies of its
          first sample fill a batch up.

        So the samples of a batch do not depend on the number of devices.

        Args:
          index: [n] samples.

        Yields:
          A batch: [b] samples with the copies last, and how many are no copies.
        """
        start = 0
        while start < len(index):
            size = self._size_for(len(index) - start)
            batch = index[start : start + size]
            rounded = -(-size // self.mesh.size) * self.mesh.size
            padding = (0, rounded - len(batch))
            yield np.pad(batch, padding, constant_values=batch[0]), len(batch)
            start += size

    def _size_for(self, left: int) -> int:
        enough = 1 << (left - 1).bit_length()
        size = min(max(enough, _SMALLEST), self.batch_size)
        on_cpu = _platform(self.mesh) == "cpu"
        if on_cpu and size > 2 * _SMALLEST and size - left > size // 4:
            size = enough // 2
        return size


def _on_host(bounds: Bounds) -> Bounds:
    low, high = bounds
    return (np.asarray(low), np.asarray(high)) if has_arrays(bounds) else bounds


def _platform(mesh: Mesh) -> str:
    return mesh.devices.flat[0].platform


def to_images(images: jax.Array | Images, scale: float | None) -> jax.Array:
    """Makes images floats of at least float32.

    >>> to_images(np.array([[0, 255]], np.uint8), 255.0).tolist()
    [[0.0, 1.0]]

    Args:
      images: [B, *S].
      scale: what integer images are divided by; None for floating images.
    """
    if scale is not None:
        return to_float(images, scale)
    return jnp.asarray(images, jnp.promote_types(images.dtype, jnp.float32))
