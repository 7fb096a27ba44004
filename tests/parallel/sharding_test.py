import jax
import jax.numpy as jnp
import ml_collections
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
    ((None, None, None, None), 'too long'),
  ],
)
def test_rules_that_do_not_fit_are_refused(mesh, spec, problem):
  rules = [] if spec is None else [('R', spec)]
  with pytest.raises(errors.ConfigError, match=problem):
    sharding_lib.tree_shardings(shapes(R=(3, 8, 8)), rules, mesh)


def test_the_default_rules_split_parameters_by_rows_and_state_by_layers(mesh):
  rules = config_lib.default_config().sharding
  tree = {
    'params': {'blocks': shapes(R=(4, 8, 8), bias=(4, 8))},
    'opt_state': [{'mu': {'blocks': shapes(R=(4, 8, 8))}}],
  }
  out = sharding_lib.tree_shardings(tree, rules, mesh)
  assert out['params']['blocks']['R'].spec == P(None, 'fsdp', None)
  assert out['params']['blocks']['bias'].spec == P()
  state = out['opt_state'][0]['mu']['blocks']['R']
  assert state.spec == P('fsdp', None, None)
  assert sharding_lib.stack_sharding(out['opt_state']) == state
  assert sharding_lib.stack_sharding(out['params']) is None


def test_one_device_needs_no_stack_sharding():
  mesh = mesh_lib.make_mesh(ml_collections.ConfigDict({'data': -1, 'fsdp': 1}))
  tree = sharding_lib.tree_shardings(
    shapes(R=(4, 8, 8)), [('', ('fsdp', None, None))], mesh
  )
  assert sharding_lib.stack_sharding(tree) is None


def test_the_table_counts_bytes_per_device(mesh):
  tree = shapes(R=(4, 8, 8), bias=(10,))
  out = sharding_lib.tree_shardings(
    tree, [('R', (None, 'fsdp', None)), ('', ())], mesh
  )
  table = sharding_lib.table(tree, out).splitlines()
  assert table[1].split()[-1] == str(4 * 8 * 8 * 4 // 4)
  assert table[2].split()[-1] == '40'
  assert table[-1].split() == ['total', str(4 * 8 * 8 + 40)]


def test_shapes_carry_their_shardings(mesh):
  tree = shapes(R=(4, 8, 8))
  out = sharding_lib.tree_shardings(tree, [('', ('fsdp',))], mesh)
  (leaf,) = jax.tree.leaves(sharding_lib.with_shardings(tree, out))
  assert leaf.sharding == out['R']


@pytest.mark.parametrize(
  'rule',
  [3, 'R', ('R$',), ('(', ()), (3, ()), ('R$', 'fsdp'), ('R$', (1,)), ('R', 1)],
)
def test_what_is_no_rule_is_refused(rule):
  with pytest.raises(errors.ConfigError, match='is no rule'):
    sharding_lib.check_rules([('R$', ()), rule])
