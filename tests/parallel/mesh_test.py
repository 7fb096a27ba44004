import itertools
import types

import jax
import ml_collections
import numpy as np
import pytest

from lipnext_jax import errors
from lipnext_jax.parallel import mesh as mesh_lib


def mesh_of(data, fsdp, tensor=1):
  return mesh_lib.make_mesh(
    ml_collections.ConfigDict({'data': data, 'fsdp': fsdp, 'tensor': tensor})
  )


@pytest.mark.parametrize(
  ('data', 'fsdp', 'shape'),
  [(-1, 1, (8, 1)), (1, -1, (1, 8)), (2, 4, (2, 4)), (-1, 4, (2, 4))],
)
def test_sizes_and_the_rest(data, fsdp, shape):
  mesh = mesh_of(data, fsdp)
  assert tuple(mesh.shape.values()) == (*shape, 1)
  assert mesh.axis_names == ('data', 'fsdp', 'tensor')
  assert set(mesh.axis_types) == {jax.sharding.AxisType.Auto}


@pytest.mark.parametrize(
  ('data', 'fsdp'),
  [(3, 1), (-1, 3), (4, 4), (1, 1), (-1, -1), (0, 8), (0, -1)],
)
def test_sizes_that_do_not_fit_are_refused(data, fsdp):
  with pytest.raises(errors.ConfigError, match='not match the 8 devices'):
    mesh_of(data, fsdp)


def test_a_batch_is_split_over_all_devices_in_order():
  mesh = mesh_of(4, 2)
  batch = {'label': np.arange(16, dtype=np.int32)}
  label = mesh_lib.put_batch(batch, mesh_lib.batch_sharding(mesh))['label']
  np.testing.assert_array_equal(label, batch['label'])
  assert {s.data.shape for s in label.addressable_shards} == {(2,)}


def test_a_batch_that_does_not_split_names_the_next_that_does():
  with pytest.raises(errors.ConfigError, match=r'batch_size=33.*choose 40'):
    mesh_lib.check_batch_size('batch_size', 33, mesh_of(-1, 1))
  mesh_lib.check_batch_size('batch_size', 40, mesh_of(-1, 1))


def hosts(count, each):
  """Returns stand-ins for GPUs: JAX makes every host a slice."""
  return [
    types.SimpleNamespace(
      id=each * host + i,
      slice_index=host,
      process_index=host,
      platform='gpu',
      device_kind='',
    )
    for host, i in itertools.product(range(count), range(each))
  ]


@pytest.mark.parametrize('sizes', [(8, 2, 1), (2, 8, 1), (1, 8, 2), (2, 2, 4)])
def test_data_goes_over_the_slices_and_else_as_little_as_can_be(sizes):
  count, each = 4, 4
  devices = hosts(count, each)
  grid = mesh_lib.arrange_slices(devices[::-1], sizes)
  assert grid.shape == sizes
  assert sorted(d.id for d in grid.flat) == list(range(count * each))
  slices = np.vectorize(lambda d: d.slice_index)(grid)
  assert (slices == slices[..., :1]).all()  # No example is split over them.
  if sizes[0] % count == 0:
    assert (slices == slices[:, :1]).all()
  # Devices are in the order of slices: an axis spans neighbouring slices only.
  assert (np.diff(slices.ravel()) >= 0).all()


def test_a_mesh_over_slices_that_data_does_not_cover_is_made(monkeypatch):
  """`jax.make_mesh` cannot make one axis of 16 over two hosts."""
  devices = hosts(2, 8)
  with pytest.raises(ValueError, match='slice'):
    jax.make_mesh((1, 16, 1), mesh_lib.AXES, devices=devices)
  monkeypatch.setattr(
    jax.sharding, 'Mesh', lambda grid, axes, axis_types: Grid(grid)
  )
  mesh = mesh_lib.make_mesh(
    ml_collections.ConfigDict({'data': 1, 'fsdp': -1}), devices
  )
  assert mesh.devices.shape == (1, 16, 1)


class Grid:
  """The part of a mesh that stand-ins for devices can have."""

  def __init__(self, devices):
    self.devices = devices
    self.shape = dict(zip(mesh_lib.AXES, devices.shape, strict=True))
