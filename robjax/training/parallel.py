"""Devices and hosts: everything training knows about them is in this file.

Data parallel: the state is replicated, the batch is split over the devices, gradients
and metrics are averaged over the axis `AXIS`, and batch norm takes its statistics over
the same axis, so that N devices do what one does on the whole batch.

Sharp edges of `jax.pmap` that this file deals with:

* `out_axes=None` returns the value of device 0: a step that forgets a `pmean` gives no
  error, only devices that drift apart;
* the initial state has to be placed with the sharding that the step returns, or the
  step is traced a second time;
* the state is donated: its buffers are gone after the step (`one_copy` before keeping).

With several hosts (`jax.distributed.initialize()` before anything else) every process
calls the same functions on the same data set and feeds its own rows of each batch.
"""

from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

AXIS = "batch"


def check_devices(devices: Sequence[Any] | None, batch_size: int) -> list[Any]:
    """Returns the devices to train on, all by default.

    Raises:
      ValueError: there is none, one twice, or they cannot share a batch evenly.
    """
    chosen = jax.devices() if devices is None else list(devices)
    if not chosen or len(set(chosen)) != len(chosen):
        raise ValueError(
            f"devices must be different devices, one or more, got {devices}"
        )
    if batch_size % len(chosen):
        raise ValueError(
            f"batch_size must be a multiple of the number of devices, {len(chosen)}, "
            f"got {batch_size}"
        )
    return chosen


def join_batch_norm(model: nn.Module) -> nn.Module:
    """The model with its field `axis_name`, if it has one, set to `AXIS`."""
    return model.clone(axis_name=AXIS) if hasattr(model, "axis_name") else model


def replicate(tree: Any, devices: Sequence[Any]) -> Any:
    """Places a copy of every array on every device, as the step returns it."""
    mesh = Mesh(np.asarray(devices), (AXIS,))
    return jax.device_put(tree, NamedSharding(mesh, PartitionSpec()))


def one_copy(tree: Any) -> Any:
    """A replicated tree as new arrays on this process's first device."""
    return jax.tree.map(lambda a: jnp.copy(a.addressable_data(0)), tree)


def own_rows(batch: np.ndarray, devices: Sequence[Any]) -> np.ndarray:
    """Rows [local devices, B / devices, ...] of a batch [B, ...] for this process."""
    shards = batch.reshape(len(devices), -1, *batch.shape[1:])
    own = [d.process_index == jax.process_index() for d in devices]
    return shards[np.asarray(own)]


def data_parallel(step: Callable, devices: Sequence[Any]) -> Callable:
    """Compiles step(state, images, labels, indices) -> (state, metrics).

    The last three arguments come as [local devices, B / devices, ...]; state and
    metrics are replicated, and the state given in is donated. Inside, collectives go
    over the axis `AXIS`.
    """
    return jax.pmap(
        step,
        axis_name=AXIS,
        in_axes=(None, 0, 0, 0),
        out_axes=None,
        donate_argnums=0,
        devices=devices,
    )
