import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lipnext_jax import config as config_lib
from lipnext_jax import errors
from lipnext_jax.parallel import distributed
from lipnext_jax.parallel import mesh as mesh_lib

P = jax.sharding.PartitionSpec


def mesh_of(*sizes):
  return mesh_lib.make_mesh(dict(zip(mesh_lib.AXES, sizes, strict=False)))


def test_sizes_multiply_to_the_devices():
  for sizes in ((2, 4), (-1, 4), (2, -1)):
    mesh = mesh_of(*sizes)
    assert dict(mesh.shape) == {'data': 2, 'fsdp': 4, 'tensor': 1}
    assert mesh.axis_names == mesh_lib.AXES
    assert set(mesh.axis_types) == {jax.sharding.AxisType.Auto}
  for sizes in ((3, 1), (-1, 3), (-1, -1), (0, -1)):
    with pytest.raises(errors.ConfigError, match='not match the 8 devices'):
      mesh_of(*sizes)


def test_a_batch_is_split_over_all_devices_in_order():
  mesh = mesh_of(4, 2)
  batch = {'label': np.arange(16, dtype=np.int32)}
  label = mesh_lib.put_batch(batch, mesh_lib.batch_sharding(mesh))['label']
  np.testing.assert_array_equal(distributed.to_host(label), batch['label'])
  assert {s.data.shape for s in label.addressable_shards} == {(2,)}
  with pytest.raises(errors.ConfigError, match=r'batch_size=33.*choose 40'):
    mesh_lib.check_batch_size('batch_size', 33, mesh)
  mesh_lib.check_batch_size('batch_size', 40, mesh)


def hosts(count, each):
  """Returns stand-ins for GPUs: JAX makes every host a slice."""

  def device(i):
    own = dict.fromkeys(('slice_index', 'process_index'), i // each)
    return types.SimpleNamespace(id=i, platform='gpu', device_kind='', **own)

  return [*map(device, range(count * each))]


@pytest.mark.parametrize('sizes', [(8, 2, 1), (2, 8, 1), (1, 8, 2), (2, 2, 4)])
def test_data_goes_over_the_slices_and_else_as_little_as_can_be(sizes):
  grid = mesh_lib.arrange_slices(hosts(4, 4)[::-1], sizes)
  assert grid.shape == sizes
  assert sorted(d.id for d in grid.flat) == list(range(16))
  slices = np.vectorize(lambda d: d.slice_index)(grid)
  assert (slices == slices[..., :1]).all()  # No example is split over them.
  if sizes[0] % 4 == 0:
    assert (slices == slices[:, :1]).all()
  # Devices are in the order of slices: an axis spans neighbouring slices only.
  assert (np.diff(slices.ravel()) >= 0).all()


def grid_of(devices, axes, axis_types):
  """Makes the part of a mesh that stand-ins for devices can have."""
  del axis_types
  shape = dict(zip(axes, devices.shape, strict=True))
  return types.SimpleNamespace(devices=devices, shape=shape)


def test_hosts_share_one_axis_but_no_example(monkeypatch):
  """`jax.make_mesh` cannot make one axis of 16 over two hosts."""
  devices = hosts(2, 8)
  monkeypatch.setattr(jax.sharding, 'Mesh', grid_of)
  mesh = mesh_lib.make_mesh({'data': 1, 'fsdp': -1}, devices)
  assert mesh.devices.shape == (1, 16, 1)
  with pytest.raises(errors.ConfigError, match=r'mesh\.tensor=16 splits the'):
    mesh_lib.make_mesh({'data': 1, 'tensor': -1}, devices)


# ── Trees of arrays ──────────────────────────────────────────────────────────


def shapes(**sizes):
  return {k: jax.ShapeDtypeStruct(v, jnp.float32) for k, v in sizes.items()}


def test_the_first_rule_that_matches_counts_and_the_table_says_what_follows():
  rules = [('^R$', (None, 'fsdp', None)), ('R$', ('fsdp',)), ('', ())]
  tree = shapes(R=(4, 8, 8), RR=(4,), b=(10,))
  found = mesh_lib.tree_shardings(tree, rules, mesh_of(2, 4))
  specs = {name: sharding.spec for name, sharding in found.items()}
  assert specs == {'R': P(None, 'fsdp', None), 'RR': P('fsdp'), 'b': P()}
  tree = mesh_lib.with_shardings(tree, found)
  assert tree['R'].sharding == found['R']
  _, *rows, total = mesh_lib.layout_table(tree).splitlines()
  per_device = [4 * 8 * 8 * 4 // 4, 4 * 4 // 4, 10 * 4]
  assert [row.split()[-1] for row in rows] == list(map(str, per_device))
  assert total.split() == ['total', str(sum(per_device))]


@pytest.mark.parametrize(
  ('path', 'spec', 'problem'),
  [
    ('M', (), "no rule for 'R'"),
    ('R', (None, ('fsdp', 'model?')), 'unknown axis'),
    ('R', (('data', 'fsdp'),), 'splits an axis of 3 over 8'),
    ('R', (('data?', 'fsdp'),), 'splits an axis of 3 over 4'),
    ('R', (None, None, None, None), 'too long'),
  ],
)
def test_rules_that_do_not_fit_are_refused(path, spec, problem):
  with pytest.raises(errors.ConfigError, match=problem):
    mesh_lib.tree_shardings(shapes(R=(3, 8, 8)), [(path, spec)], mesh_of(2, 4))


LAYERS = P(('data', 'fsdp', 'tensor'), None, None)
USED = {'R': P(None, None, ('tensor', 'fsdp')), 'M': P(None, 'fsdp', 'tensor')}


def test_the_default_rules_keep_layers_and_use_rows_and_columns():
  # R has two rows, which four devices of fsdp cannot split: its columns are.
  stacks = {'blocks': shapes(R=(8, 2, 8), M=(8, 8, 8), bias=(8, 8))}
  state = [{'mu': {'blocks': shapes(R=(4, 8, 8))}}]
  tree = {'compute': stacks, 'params': stacks, 'opt_state': state}
  rules = config_lib.default_config().sharding
  out = mesh_lib.tree_shardings(tree, rules, mesh_of(2, 4))
  specs = jax.tree.map(lambda sharding: sharding.spec, out)
  assert USED.items() <= specs['compute']['blocks'].items()
  assert specs['params']['blocks'] == {'R': LAYERS, 'M': LAYERS, 'bias': P()}
  # 4 layers do not split over 2·4 devices: data, marked optional, is left out.
  state = out['opt_state'][0]['mu']['blocks']['R']
  assert state.spec == P(('fsdp', 'tensor'), None, None)
  assert mesh_lib.stack_sharding(out['opt_state']) == state
  assert mesh_lib.stack_sharding(out['compute']) is None


@pytest.mark.parametrize('name', USED)
@pytest.mark.parametrize('sizes', [(8, 1, 1), (2, 4, 1), (2, 2, 2)])
def test_moving_changes_places_without_gathering_all(sizes, name):
  mesh = mesh_of(*sizes)
  layers, rows = (
    jax.sharding.NamedSharding(mesh, spec) for spec in (LAYERS, USED[name])
  )
  x = jnp.arange(8.0 * 16 * 16).reshape(8, 16, 16)
  for source, target in ((layers, rows), (rows, layers)):
    move = functools.partial(mesh_lib.move, source=source, target=target)
    moved = jax.jit(move, in_shardings=source, out_shardings=target)
    compiled = moved.lower(x).compile()
    y = compiled(jax.device_put(x, source))
    assert y.sharding.is_equivalent_to(target, 3)
    np.testing.assert_array_equal(y, x)
    text = compiled.as_text()
    # No array is whole on a device, unless the target is.
    replicated = sizes[0] == 8
    assert ('f32[8,16,16]' in text) == replicated
    assert ('all-to-all' in text) != replicated
