"""Devices and processes: everything training knows about them is in this file.

N devices do what one does on the whole batch. The state is replicated, and the batch is
split over the devices. Gradients and metrics are averaged over the axis `AXIS`, and
batch norm takes its statistics over the same axis.

Sharp edges of `jax.pmap` that this file deals with:

* `out_axes=None` returns the value of device 0: a step that forgets a `pmean` gives no
  error, only devices that drift apart;
* the initial state has to be placed with the sharding that the step returns, or the
  step is traced a second time;
* the state is donated: its buffers are gone after the step (`one_copy` before keeping).

With several processes (`jax.distributed.initialize()` before anything else) each calls
the same functions on the same data set and feeds its own rows of each batch.
"""

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from robjax.training.trainable import Trainable, trainable

AXIS = "batch"

Device: TypeAlias = jax.Device  # pyright: ignore[reportInvalidTypeForm]

Tree = TypeVar("Tree")


def check_devices(devices: Sequence[Device] | None, batch_size: int) -> list[Device]:
    """Returns the devices to train on, all by default.

    >>> len(check_devices(jax.devices()[:1], batch_size=32))
    1

    Raises:
      ValueError: there is none, one is no device or there twice, they are of some of
        the processes, or they cannot share a batch evenly.
    """
    found = np.asarray(jax.devices() if devices is None else devices, object)
    kinds = [isinstance(device, jax.Device) for device in found.flat]
    if found.ndim != 1 or not found.size or not all(kinds):
        raise ValueError(f"devices must be a list of jax.devices(), got {devices!r}")
    chosen = list(found)
    if len(set(chosen)) != len(chosen):
        raise ValueError(f"devices must be different devices, got {devices}")
    processes = {device.process_index for device in chosen}
    if 1 < len(processes) < jax.process_count():
        raise ValueError(
            "devices must be those of one process or of all, got some of "
            f"{len(processes)} of {jax.process_count()} processes"
        )
    if batch_size % len(chosen):
        raise ValueError(
            f"batch_size must be a multiple of the number of devices, {len(chosen)}, "
            f"got {batch_size}"
        )
    return chosen


def join_batch_norm(model: Any) -> Trainable:
    """The model whose batch norm takes its statistics over `AXIS`, if it can.

    A linen module needs a field `axis_name` that it hands to its batch norm.

    >>> from robjax.models import ResNet
    >>> join_batch_norm(ResNet(10)).module.axis_name
    'batch'
    """
    return trainable(model).across(AXIS)


def replicate(tree: Tree, devices: Sequence[Device]) -> Tree:
    """Places a copy of every array on every device, as the step returns it.

    >>> replicate(jnp.ones(3), jax.devices()[:1]).is_fully_replicated
    True
    """
    mesh = Mesh(np.asarray(devices), (AXIS,))
    return jax.device_put(tree, NamedSharding(mesh, PartitionSpec()))


def one_copy(tree: Tree) -> Tree:
    """A replicated tree as new arrays on this process's first device.

    >>> one_copy(replicate({"w": jnp.ones(2)}, jax.devices()[:1]))["w"].tolist()
    [1.0, 1.0]
    """
    return jax.tree.map(lambda a: jnp.copy(a.addressable_data(0)), tree)


def own_rows(batch: np.ndarray, devices: Sequence[Device]) -> np.ndarray:
    """Rows [local devices, B / devices, …] of a batch [B, …] for this process.

    >>> own_rows(np.array([5, 2, 4, 7]), jax.devices()[:1]).tolist()
    [[5, 2, 4, 7]]
    """
    shards = batch.reshape(len(devices), -1, *batch.shape[1:])
    own = [d.process_index == jax.process_index() for d in devices]
    return shards[np.asarray(own)]


def data_parallel(
    step: Callable[..., Any], devices: Sequence[Device]
) -> Callable[..., Any]:
    """Compiles step(state, images, labels, indices, …) -> (state, metrics).

    All arguments but the state come as [local devices, B / devices, …]. State and
    metrics are replicated, and the state given in is donated. Inside, collectives go
    over the axis `AXIS`.

    >>> def step(state, images, labels, indices):
    ...     return state + jax.lax.pmean(images.mean(), AXIS), {}
    >>> x = np.array([[1.0, 3.0]])  # one device, two rows
    >>> state, _ = data_parallel(step, jax.devices()[:1])(jnp.ones(()), x, x, x)
    >>> float(state)
    3.0
    """
    compiled = jax.pmap(
        lambda state, rows: step(state, *rows),
        axis_name=AXIS,
        in_axes=(None, 0),
        out_axes=None,
        donate_argnums=0,
        devices=devices,
    )
    return lambda state, *rows: compiled(state, rows)
