import functools

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest

from lipnext_jax import config as config_lib
from lipnext_jax import errors
from lipnext_jax.parallel import mesh as mesh_lib
from lipnext_jax.parallel import sharding as sharding_lib

P = jax.sharding.PartitionSpec


@pytest.fixture
def mesh():
  return mesh_lib.make_mesh(ml_collections.ConfigDict({'data': 2, 'fsdp': 4}))


def shapes(**sizes):
  return {
    name: jax.ShapeDtypeStruct(shape, jnp.float32)
    for name, shape in sizes.items()
  }


def test_the_first_rule_that_matches_counts(mesh):
  rules = [('^R$', (None, 'fsdp', None)), ('R', ('fsdp',)), ('', ())]
  tree = shapes(R=(3, 8, 8), RR=(4,), b=(5,))
  specs = {
    name: sharding.spec
    for name, sharding in sharding_lib.tree_shardings(tree, rules, mesh).items()
  }
  assert specs == {'R': P(None, 'fsdp', None), 'RR': P('fsdp'), 'b': P()}


@pytest.mark.parametrize(
  ('spec', 'problem'),
  [
    (None, "no rule for 'R'"),
    (('fsdp', None, None), 'splits an axis of 3 over 4'),
    ((None, 'model', None), 'unknown axis'),
    ((None, ('fsdp', 'model?'), None), 'unknown axis'),
    ((('data', 'fsdp'), None, None), 'splits an axis of 3 over 8'),
    ((('data?', 'fsdp'), None, None), 'splits an axis of 3 over 4'),
    ((None, None, None, None), 'too long'),
  ],
)
def test_rules_that_do_not_fit_are_refused(mesh, spec, problem):
  rules = [] if spec is None else [('R', spec)]
  with pytest.raises(errors.ConfigError, match=problem):
    sharding_lib.tree_shardings(shapes(R=(3, 8, 8)), rules, mesh)


def test_the_default_rules_keep_layers_and_use_rows_and_columns(mesh):
  rules = config_lib.default_config().sharding
  # R has two rows, which four devices of fsdp cannot split: its columns are.
  stacks = {'blocks': shapes(R=(8, 2, 8), M=(8, 8, 8), bias=(8, 8))}
  tree = {
    'compute': stacks,
    'params': stacks,
    'opt_state': [{'mu': {'blocks': shapes(R=(4, 8, 8))}}],
  }
  out = sharding_lib.tree_shardings(tree, rules, mesh)
  assert out['compute']['blocks']['R'].spec == P(None, None, ('tensor', 'fsdp'))
  assert out['compute']['blocks']['M'].spec == P(None, 'fsdp', 'tensor')
  layers = P(('data', 'fsdp', 'tensor'), None, None)
  assert out['params']['blocks']['R'].spec == layers
  assert out['params']['blocks']['bias'].spec == P()
  # 4 layers do not split over 2·4 devices: data, marked optional, is left out.
  state = out['opt_state'][0]['mu']['blocks']['R']
  assert state.spec == P(('fsdp', 'tensor'), None, None)
  assert sharding_lib.stack_sharding(out['opt_state']) == state
  assert sharding_lib.stack_sharding(out['compute']) is None


LAYERS = (('data', 'fsdp', 'tensor'), None, None)
USED = {'R': (None, None, ('tensor', 'fsdp')), 'M': (None, 'fsdp', 'tensor')}


@pytest.mark.parametrize('name', USED)
@pytest.mark.parametrize('sizes', [(8, 1, 1), (2, 4, 1), (2, 2, 2)])
def test_moving_changes_places_without_gathering_all(sizes, name):
  axes = dict(zip(mesh_lib.AXES, sizes, strict=True))
  mesh = mesh_lib.make_mesh(ml_collections.ConfigDict(axes))
  layers, rows = (
    jax.sharding.NamedSharding(mesh, P(*spec)) for spec in (LAYERS, USED[name])
  )
  x = jnp.arange(8.0 * 16 * 16).reshape(8, 16, 16)
  for source, target in ((layers, rows), (rows, layers)):
    move = functools.partial(sharding_lib.move, source=source, target=target)
    moved = jax.jit(move, in_shardings=source, out_shardings=target)
    compiled = moved.lower(x).compile()
    y = compiled(jax.device_put(x, source))
    assert y.sharding.is_equivalent_to(target, 3)
    np.testing.assert_array_equal(y, x)
    text = compiled.as_text()
    # No array is whole on a device, unless the target is.
    whole = 'f32[8,16,16]'
    assert (whole in text) == (axes['data'] == 8)
    expected = axes['fsdp'] * axes['tensor'] > 1
    assert ('all-to-all' in text) == expected


def test_the_table_counts_bytes_per_device(mesh):
  tree = shapes(R=(4, 8, 8), bias=(10,))
  out = sharding_lib.tree_shardings(
    tree, [('R', (None, 'fsdp', None)), ('', ())], mesh
  )
  tree = sharding_lib.with_shardings(tree, out)
  table = sharding_lib.table(tree).splitlines()
  assert table[1].split()[-1] == str(4 * 8 * 8 * 4 // 4)
  assert table[2].split()[-1] == '40'
  assert table[-1].split() == ['total', str(4 * 8 * 8 + 40)]
  assert tree['R'].sharding == out['R']


@pytest.mark.parametrize(
  'rule',
  [3, 'R', ('R$',), ('(', ()), (3, ()), ('R$', 'fsdp'), ('R$', (1,)), ('R', 1)],
)
def test_what_is_no_rule_is_refused(rule):
  with pytest.raises(errors.ConfigError, match='is not a rule'):
    sharding_lib.check_rules([('R$', ()), rule])
