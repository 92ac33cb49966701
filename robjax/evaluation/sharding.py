"""How several devices divide a batch among them.

Each device attacks its own samples. Devices never communicate, so none waits for
another.
"""

from collections.abc import Callable, Sequence
from typing import TypeAlias, TypeVar

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

SHARED = PartitionSpec()
"""Every device has all of it: a model, an option, one radius for all samples."""

SPLIT = PartitionSpec("batch")
"""Every device has its own samples: arrays [B, …]."""

Device: TypeAlias = jax.Device  # pyright: ignore[reportInvalidTypeForm]
"""A device as `jax.devices` lists them; jaxlib tells type checkers nothing of it."""

Tree = TypeVar("Tree")


def make_mesh(devices: Sequence[Device] | None) -> Mesh:
    """Makes a mesh of the devices that share each batch.

    >>> make_mesh(jax.local_devices()[:1]).size
    1

    Args:
      devices: None: all local ones.

    Raises:
      ValueError: `devices` is empty, or holds what is no device.
    """
    found = np.asarray(jax.local_devices() if devices is None else devices, object)
    if found.ndim != 1 or not all(isinstance(device, jax.Device) for device in found):
        raise ValueError(f"devices must be a list of jax.devices(), got {devices!r}")
    if not found.size:
        raise ValueError("devices must name at least one device, got none")
    return Mesh(found, ("batch",))


def place(tree: Tree, mesh: Mesh, spec: PartitionSpec) -> Tree:
    """Copies arrays to the devices of `mesh`.

    >>> mesh = make_mesh(jax.local_devices()[:2])
    >>> place(np.ones((4, 3)), mesh, SPLIT).shape
    (4, 3)

    Args:
      tree: pytree of arrays.
      mesh: the devices.
      spec: `SHARED`: all of it to every device; `SPLIT`: to each its own samples.
    """
    return jax.device_put(tree, NamedSharding(mesh, spec))


def over_devices(
    function: Callable[..., Tree], mesh: Mesh, specs: tuple[PartitionSpec, ...]
) -> Callable[..., Tree]:
    """Makes `function` run on every device, with the device's own samples.

    >>> mesh = make_mesh(jax.local_devices()[:2])
    >>> double = over_devices(lambda x: 2 * x, mesh, (SPLIT,))
    >>> double(place(np.ones(4), mesh, SPLIT)).tolist()
    [2.0, 2.0, 2.0, 2.0]

    Args:
      function: positional arrays -> arrays [B, …].
      mesh: the devices.
      specs: `SHARED` or `SPLIT` for each argument.
    """
    if mesh.size == 1:
        return function
    return jax.shard_map(
        function, mesh=mesh, in_specs=specs, out_specs=SPLIT, check_vma=False
    )
