"""Tests stacks over 8 devices: same numbers, no collective, one compile."""

import functools
import re

import jax
import jax.numpy as jnp
from jax.sharding import AxisType
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec
import numpy as np
import optax
import pytest

from lipnext_jax import optim
from lipnext_jax.optim import stack
from tests.optim.steps import assert_close
from tests.optim.steps import EPS

pytestmark = pytest.mark.slow  # Optimizers are compiled for a mesh.

N = 6
COLLECTIVES = (
  'all-gather|all-reduce|all-to-all|collective-permute|reduce-scatter'
)


def make_sharding(axis_type, spec=('a', 'b'), rest=()):
  """Returns a sharding over two mesh axes of 4 and 2 devices."""
  mesh = jax.make_mesh((4, 2), ('a', 'b'), axis_types=(axis_type,) * 2)
  return NamedSharding(mesh, PartitionSpec(spec, *rest))


def problem(length, shape=(N, N), largest=30):
  """Returns a start, and gradients of different branches in one stack."""
  rng = np.random.default_rng(0)
  x = rng.normal(size=(length, *shape)).astype(np.float32)
  scale = np.geomspace(1e-3, largest, length).astype(np.float32)
  g = rng.normal(size=x.shape).astype(np.float32) * scale[:, None, None]
  u, _, vt = np.linalg.svd(x, full_matrices=False)
  return u @ vt, g


def make_tx(sharding=None):
  return optim.orthogonal(
    optax.sgd(0.1, momentum=0.9),
    lookahead_period=2,
    retraction_period=3,
    stack_sharding=sharding,
  )


def run(tx, x, g, steps=4):
  traces = []

  @jax.jit
  def step(x, state, g):
    traces.append(1)
    updates, state = tx.update(g, state, x)
    return optax.apply_updates(x, updates), state

  state = jax.jit(tx.init)(x)
  for _ in range(steps):
    types = jax.tree.map(jax.typeof, (x, state))
    x, state = step(x, state, g)
    assert jax.tree.map(jax.typeof, (x, state)) == types
  assert len(traces) == 1
  return x, state, step.lower(x, state, g).compile().as_text()


@pytest.mark.parametrize(
  ('axis_type', 'shape'),
  [
    (AxisType.Auto, (N, N)),
    (AxisType.Explicit, (4, N)),
    (AxisType.Explicit, (17, 2)),
  ],
)
def test_a_divided_stack_is_updated_where_it_lies(axis_type, shape):
  sharding = make_sharding(axis_type)
  # Tall matrices round by eps times the square of the step.
  x, g = problem(16, shape, largest=3 if shape == (17, 2) else 30)
  want, want_state, _ = run(make_tx(), x, g)
  placed = jax.device_put((x, g), sharding)
  got, state, text = run(make_tx(sharding), *placed)
  assert not re.findall(COLLECTIVES, text)
  if axis_type == AxisType.Auto:  # Without `sharding`, the stack is gathered.
    assert re.findall(COLLECTIVES, run(make_tx(), *placed, steps=1)[2])
  assert 'conditional(' in text  # Each device branches for itself.
  for leaf in jax.tree.leaves((got, state)):
    if leaf.ndim:
      assert leaf.addressable_shards[0].data.shape[0] == 2
  # The same operations on the same matrices, compiled twice.
  assert_close(got, want, 8 * EPS)
  slow = optim.slow_params(state, got)
  assert_close(slow, optim.slow_params(want_state, want), 8 * EPS)


@pytest.mark.parametrize(
  ('axis_type', 'length'), [(AxisType.Auto, 11), (AxisType.Explicit, 3)]
)
def test_a_stack_that_does_not_divide_is_padded(axis_type, length):
  sharding = make_sharding(axis_type)
  x, g = problem(length)
  want, _, _ = run(make_tx(), x, g)
  whole = NamedSharding(sharding.mesh, PartitionSpec())
  got, _, _ = run(make_tx(sharding), *jax.device_put((x, g), whole))
  assert_close(got, want, 8 * EPS)


@pytest.mark.parametrize('axis_type', [AxisType.Auto, AxisType.Explicit])
def test_parameters_may_lie_otherwise(axis_type):
  """The model shards rows over 'b', the update whole matrices over 'a'."""
  sharding = make_sharding(axis_type, 'a')
  rows = NamedSharding(sharding.mesh, PartitionSpec(None, 'b'))
  x, g = problem(8)
  want, _, _ = run(make_tx(), x, g)
  got, _, _ = run(make_tx(sharding), *jax.device_put((x, g), rows))
  assert_close(got, want, 8 * EPS)


def test_single_matrices_and_vectors_beside_a_sharded_stack():
  sharding = make_sharding(AxisType.Auto)
  x, g = problem(8)
  params = {'R': x, 'Q': x[0], 'bias': jnp.ones(3)}
  grads = {'R': g, 'Q': g[0], 'bias': jnp.ones(3)}
  make = functools.partial(
    optim.lipnext_optimizer, 1e-2, retraction_period=None
  )
  want, _, _ = run(make(), params, grads, steps=1)
  whole = NamedSharding(sharding.mesh, PartitionSpec())
  tx = make(stack_sharding=sharding)
  got, _, _ = run(tx, *jax.device_put((params, grads), whole), steps=1)
  assert_close(got, want, 8 * EPS)


def test_a_layout_that_cuts_matrices_raises():
  rows = make_sharding(AxisType.Auto, 'a', ('b',))
  for bad in (rows, PartitionSpec('a')):
    with pytest.raises(ValueError, match='NamedSharding of the first axis'):
      make_tx(bad)


def count_copies(shape):
  """Counts copies of whole stacks in the recipe's update, with donation."""
  x = jnp.zeros(shape)
  tx = optim.lipnext_optimizer(1e-3, label_fn=lambda _: 'orthogonal')

  def step(x, state, g):
    updates, state = tx.update(g, state, x)
    return optax.apply_updates(x, updates), state

  step = jax.jit(step, donate_argnums=(0, 1, 2))
  state = jax.eval_shape(tx.init, x)
  text = step.lower(x, state, x).compile().as_text()
  return len(re.findall(r'= f32\[4,\d+,16\]\S* copy\(', text))


@pytest.mark.parametrize('shape', [(4, 16, 16), (4, 6, 16)])
@pytest.mark.filterwarnings('ignore:Some donated buffers were not usable')
def test_no_stack_is_copied_or_laid_out_anew(shape, monkeypatch):
  assert count_copies(shape) == 0
  # Where the compiler may lay the matrices out as it likes, it copies some.
  monkeypatch.setattr(stack, '_by_rows', lambda x: x)
  assert count_copies(shape) > 0
