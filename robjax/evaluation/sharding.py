"""How a batch is shared by several devices.

Each device attacks its own samples and waits for no other: there is no communication.
"""

from collections.abc import Callable, Sequence
from typing import TypeVar

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

SHARED = PartitionSpec()
"""Every device has all of it: a model, an option, one radius for all samples."""

SPLIT = PartitionSpec("batch")
"""Every device has its own samples: arrays [B, …]."""

Tree = TypeVar("Tree")


def make_mesh(devices: Sequence[jax.Device] | None) -> Mesh:
    """The devices that share each batch; None: all local ones.

    >>> make_mesh(jax.local_devices()[:1]).size
    1

    Raises:
      ValueError: there is none.
    """
    devices = jax.local_devices() if devices is None else list(devices)
    if not devices:
        raise ValueError("devices must name at least one device, got none")
    return Mesh(np.asarray(devices), ("batch",))


def place(tree: Tree, mesh: Mesh, spec: PartitionSpec) -> Tree:
    """Puts arrays where the devices of `mesh` expect them: `SHARED` or `SPLIT`.

    >>> mesh = make_mesh(jax.local_devices()[:2])
    >>> place(np.ones((4, 3)), mesh, SPLIT).shape
    (4, 3)
    """
    return jax.device_put(tree, NamedSharding(mesh, spec))


def over_devices(
    function: Callable[..., Tree], mesh: Mesh, specs: tuple[PartitionSpec, ...]
) -> Callable[..., Tree]:
    """Runs `function` on every device, on the device's own samples.

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
