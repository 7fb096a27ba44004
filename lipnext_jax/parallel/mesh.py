"""Makes the device mesh of a config and lays batches out on it."""

from collections.abc import Sequence
import math
from typing import Any

import jax
from jax.experimental import mesh_utils
import ml_collections
import numpy as np

from lipnext_jax import errors
from lipnext_jax.models import block
from lipnext_jax.parallel import blocks
from lipnext_jax.parallel import sharding as sharding_lib

AXES = ('data', 'fsdp', 'tensor')
BATCH_AXES = ('data', 'fsdp')  # Axes that split the batch.


def make_mesh(
  mesh_config: ml_collections.ConfigDict,
  devices: Sequence[jax.Device] | None = None,
) -> jax.sharding.Mesh:
  """Makes a mesh with the axes `AXES`; a size of −1 takes all other devices.

  A slice is a group of devices with a fast network inside and a slow one to
  other slices: a TPU slice, or a host of GPUs. The axis 'data', which sends
  least, goes over the slices. Within a slice, the physical topology decides
  which devices are neighbours.

  Args:
    mesh_config: `config.mesh`; an axis that it lacks has size 1.
    devices: devices of the mesh; default: all of this run.

  Raises:
    ConfigError: the sizes do not multiply to the number of devices, or
      'tensor' would split one example over several processes.

  >>> config = ml_collections.ConfigDict({'data': -1, 'fsdp': 1})
  >>> dict(make_mesh(config).shape) == {
  ...   'data': jax.device_count(), 'fsdp': 1, 'tensor': 1}
  True
  """
  devices = jax.devices() if devices is None else devices
  sizes = _resolve_sizes(mesh_config, len(devices))
  auto = (jax.sharding.AxisType.Auto,) * len(AXES)
  if len({slice_of(device) for device in devices}) > 1:
    grid = arrange_slices(devices, sizes)
    mesh = jax.sharding.Mesh(grid, AXES, axis_types=auto)
  else:
    mesh = jax.make_mesh(sizes, AXES, auto, devices=devices)
  _check_processes(mesh)
  return mesh


def arrange_slices(
  devices: Sequence[jax.Device], sizes: Sequence[int]
) -> np.ndarray:
  """Arranges devices of several slices as a mesh, 'data' over the slices.

  If their number does not divide 'data', devices are arranged slice by slice:
  the next axes go over several slices, too, and use the slow network more.

  Args:
    devices: all devices of the mesh.
    sizes: sizes of its axes, whose product is the number of devices.
  """
  slices: dict[int, list[jax.Device]] = {}
  for device in devices:
    slices.setdefault(slice_of(device), []).append(device)
  count = len(slices)
  if sizes[0] % count == 0:
    return mesh_utils.create_hybrid_device_mesh(
      (sizes[0] // count, *sizes[1:]), (count, 1, 1), devices
    )
  rows = [
    mesh_utils.create_device_mesh((len(of_one),), of_one)
    for _, of_one in sorted(slices.items())
  ]
  return np.concatenate(rows).reshape(sizes)


def _resolve_sizes(mesh_config, count: int) -> list[int]:
  """Returns the sizes of all axes, with the rest in the place of −1."""
  sizes = [mesh_config.get(axis, 1) for axis in AXES]
  fixed = math.prod(size for size in sizes if size != -1)
  rest = count // max(fixed, 1)
  resolved = [rest if size == -1 else size for size in sizes]
  if sizes.count(-1) > 1 or math.prod(resolved) != count:
    raise errors.ConfigError(
      'mesh',
      dict(zip(AXES, sizes, strict=True)),
      f'does not match the {count} devices of this run',
      'make the sizes multiply to it, or set one of them to −1',
    )
  return resolved


def slice_of(device: Any) -> int:
  """Returns the index of a device's slice; all CPU devices are one slice.

  >>> slice_of(jax.devices()[0])
  0
  """
  return getattr(device, 'slice_index', 0)


def _check_processes(mesh: jax.sharding.Mesh) -> None:
  """Raises if a mesh splits one example over several processes."""
  owners = np.vectorize(lambda d: d.process_index)(mesh.devices)
  if (owners != owners[..., :1]).any():
    raise errors.ConfigError(
      'mesh.tensor',
      mesh.shape['tensor'],
      'splits the channels of one example over several processes',
      'choose a divisor of the devices of a process',
    )


def batch_sharding(mesh: jax.sharding.Mesh) -> jax.sharding.NamedSharding:
  """Returns the layout of a batch: its first axis over the `BATCH_AXES`."""
  spec = jax.sharding.PartitionSpec(BATCH_AXES)
  return jax.sharding.NamedSharding(mesh, spec)


def replicated(mesh: jax.sharding.Mesh) -> jax.sharding.NamedSharding:
  """Returns the layout of arrays that every device has whole."""
  return jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())


def model_devices(mesh: jax.sharding.Mesh) -> block.Devices:
  """Returns how a model's blocks use the mesh."""
  if mesh.size == 1:
    return block.ONE_DEVICE
  return blocks.Layout(mesh, replicas=('data',), rows='fsdp', width='tensor')


def check_batch_size(
  field: str, size: int, mesh: jax.sharding.Mesh, microbatches: int = 1
) -> None:
  """Raises unless the mesh splits a batch evenly.

  Args:
    field: name of the field that sets the size, for the message.
    size: number of examples in a batch.
    mesh: devices that share the batch.
    microbatches: number of parts into which every device cuts its share.

  Raises:
    ConfigError: the batch does not split; names the next size that does.
  """
  shards = sharding_lib.shards(mesh, BATCH_AXES)
  if size % (shards * microbatches):
    step = shards * microbatches
    parts = f' in {microbatches} microbatches' if microbatches > 1 else ''
    raise errors.ConfigError(
      field,
      size,
      f'does not split over {shards} devices{parts}',
      f'choose {step * math.ceil(size / step)}',
    )


def put_batch(
  batch: dict[str, np.ndarray], sharding: jax.sharding.NamedSharding
) -> dict[str, Any]:
  """Makes global arrays [b, …] from this process's part of a batch."""
  with jax.transfer_guard('allow'):  # The loop forbids all other transfers.
    return {
      name: jax.make_array_from_process_local_data(sharding, value)
      for name, value in batch.items()
    }
