"""What an evaluation attacks: a model and N images, and how they make up batches."""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from robjax import inputs
from robjax.attacks import draws
from robjax.data import to_float
from robjax.inputs import Bounds

# Larger batches leave the caches of a CPU: per image they took up to 28 % longer.
_BATCH_SIZES = {"cpu": 64}
_SMALLEST = 8  # a smaller batch saves less than its compilation takes


class Task(NamedTuple):
    """What is attacked, checked; arrays of all N samples, on the host.

    Attributes:
      model: images (and keys, with `eot`) -> logits, on every device.
      attacked: the same in the precision that attacks compute in.
      images: [N, *S], floating or, with `scale`, integers to be divided by it.
      labels: [N] int32.
      keys: [N] PRNG keys.
      bounds: lowest and highest pixel value.
      scale: None for floating images.
      eot: draws a verdict on a randomised model is averaged over, or None.
      batch_size: most images at a time, a multiple of the device count.
      mesh: the devices that share a batch.
    """

    model: inputs.LogitsFn
    attacked: Any
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
        logits_fn: Any,
        images: np.ndarray,
        labels: Any,
        *,
        key: Any,
        bounds: Bounds,
        scale: float | None = None,
        eot: int | None = None,
        batch_size: int | None = None,
        devices: Sequence[Any] | None = None,
        dtype: Any = None,
        name: str = "y",
    ) -> "Task":
        """Checks what has to do with the model; images and bounds are checked.

        Raises:
          ValueError: an argument is malformed; the message names it (`name` is what
            the caller calls the labels).
        """
        if eot is not None:
            inputs.check_count("eot", eot)
        devices = jax.local_devices() if devices is None else list(devices)
        if not devices:
            raise ValueError("devices must name at least one device, got none")
        count = len(images)
        if batch_size is None:
            batch_size = _BATCH_SIZES.get(devices[0].platform, 256)
        batch_size = min(inputs.check_count("batch_size", batch_size), count)
        batch_size = -(-batch_size // len(devices)) * len(devices)
        model, keys = inputs.as_logits_fn(logits_fn), inputs.sample_keys(key, count)
        example = to_images(images[:1], scale)
        classes = draws.count_classes(model, example, keys[:1], eot)
        labels = inputs.check_labels(labels, count, num_classes=classes, name=name)
        mesh = Mesh(np.asarray(devices), ("batch",))
        model = jax.device_put(model, NamedSharding(mesh, PartitionSpec()))
        attacked = model if dtype is None else inputs.rounded_to(dtype, model)
        return cls(
            *(model, attacked, images, np.asarray(labels), keys, bounds, scale, eot),
            *(batch_size, mesh),
        )

    def take(self, index: np.ndarray) -> tuple[jax.Array, np.ndarray, jax.Array]:
        """Floating images, labels and keys of a batch."""
        x = to_images(self.images[index], self.scale)
        return x, self.labels[index], self.keys[index]

    def chunks(self, index: np.ndarray) -> Iterator[tuple[np.ndarray, int]]:
        """Splits an index into (batch, how many of it are real).

        All batches but the last ones have `batch_size` samples. What is left goes into
        the power of two that suffices (and can be shared by all devices), filled up
        with copies of its first sample; on a CPU, where these cost as much as others,
        into half of it and a smaller one if they were more than a quarter.
        """
        start = 0
        while start < len(index):
            size = self._batch_for(len(index) - start)
            chunk = index[start : start + size]
            padding = (0, size - len(chunk))
            yield np.pad(chunk, padding, constant_values=chunk[0]), len(chunk)
            start += size

    def _batch_for(self, left: int) -> int:
        devices, enough = self.mesh.size, 1 << (left - 1).bit_length()
        size = min(max(enough, _SMALLEST), self.batch_size)
        on_cpu = self.mesh.devices.flat[0].platform == "cpu"
        if on_cpu and size > 2 * _SMALLEST and size - left > size // 4:
            size = enough // 2
        return min(-(-size // devices) * devices, self.batch_size)


def to_images(images: Any, scale: float | None) -> jax.Array:
    """Floating images, of at least float32; see `Task.scale`."""
    if scale is not None:
        return to_float(images, scale)
    return jnp.asarray(images, jnp.promote_types(images.dtype, jnp.float32))
