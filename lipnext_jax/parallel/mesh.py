"""The mesh of a config, and how a batch lies on it."""

from collections.abc import Sequence
import math
from typing import Any

import jax
import ml_collections
import numpy as np

from lipnext_jax import errors

AXES = ('data', 'fsdp')  # Both split the batch.


def make_mesh(
  mesh_config: ml_collections.ConfigDict,
  devices: Sequence[jax.Device] | None = None,
) -> jax.sharding.Mesh:
  """A mesh with the axes `AXES`, from sizes of which one may be −1 (the rest).

  Args:
    mesh_config: `config.mesh`.
    devices: default: all of this run.

  Raises:
    ConfigError: the sizes do not multiply to the number of devices.

  >>> config = ml_collections.ConfigDict({'data': -1, 'fsdp': 1})
  >>> dict(make_mesh(config).shape) == {'data': jax.device_count(), 'fsdp': 1}
  True
  """
  devices = jax.devices() if devices is None else devices
  sizes = [mesh_config[axis] for axis in AXES]
  for axis, size in zip(AXES, sizes, strict=True):
    if size < -1 or size == 0:
      raise errors.ConfigError(
        f'mesh.{axis}', size, 'is no number of devices', 'choose −1 or above 0'
      )
  shape = dict(zip(AXES, sizes, strict=True))
  if sizes.count(-1) > 1:
    raise errors.ConfigError(
      'mesh', shape, 'has more than one −1', 'leave only one size open'
    )
  rest, remainder = divmod(
    len(devices), math.prod(size for size in sizes if size != -1)
  )
  if remainder or (-1 not in sizes and rest != 1):
    raise errors.ConfigError(
      'mesh',
      shape,
      f'does not match the {len(devices)} devices of this run',
      'make the sizes multiply to it, or set one of them to −1',
    )
  sizes = [rest if size == -1 else size for size in sizes]
  auto = (jax.sharding.AxisType.Auto,) * len(AXES)
  return jax.make_mesh(sizes, AXES, auto, devices=devices)


def batch_sharding(mesh: jax.sharding.Mesh) -> jax.sharding.NamedSharding:
  """First axis over all devices, the others whole."""
  return jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(AXES))


def replicated(mesh: jax.sharding.Mesh) -> jax.sharding.NamedSharding:
  """Whole on every device."""
  return jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())


def check_batch_size(field: str, size: int, mesh: jax.sharding.Mesh) -> None:
  """Refuses a batch that the mesh cannot split evenly.

  Raises:
    ConfigError: naming `field` and the next size that fits.
  """
  if size % mesh.size:
    fits = mesh.size * math.ceil(size / mesh.size)
    raise errors.ConfigError(
      field, size, f'does not split over {mesh.size} devices', f'choose {fits}'
    )


def put_batch(
  batch: dict[str, np.ndarray], sharding: jax.sharding.NamedSharding
) -> dict[str, Any]:
  """This process's part of a batch → global arrays [b, …] on the devices."""
  with jax.transfer_guard('allow'):  # This is where data is meant to move.
    return {
      name: jax.make_array_from_process_local_data(sharding, value)
      for name, value in batch.items()
    }
