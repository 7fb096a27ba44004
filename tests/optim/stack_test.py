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

from lipnext_jax.optim import lipnext_optimizer
from lipnext_jax.optim import orthogonal
from lipnext_jax.optim import slow_params
from lipnext_jax.optim import stack

pytestmark = pytest.mark.slow  # Optimizers are compiled for a mesh.

EPS = float(np.finfo(np.float32).eps)
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
  return orthogonal(
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
  got, state, text = run(
    make_tx(sharding), *(jax.device_put(a, sharding) for a in (x, g))
  )
  assert not re.findall(COLLECTIVES, text)
  assert 'conditional(' in text  # Each device branches for itself.
  for leaf in jax.tree.leaves((got, state)):
    if leaf.ndim:
      assert leaf.addressable_shards[0].data.shape[0] == 2
  # The same operations on the same matrices, compiled twice.
  np.testing.assert_allclose(got, want, atol=8 * EPS, rtol=0)
  np.testing.assert_allclose(
    slow_params(state, got),
    slow_params(want_state, want),
    atol=8 * EPS,
    rtol=0,
  )


@pytest.mark.parametrize(
  ('axis_type', 'length'), [(AxisType.Auto, 11), (AxisType.Explicit, 3)]
)
def test_a_stack_that_does_not_divide_is_padded(axis_type, length):
  sharding = make_sharding(axis_type)
  x, g = problem(length)
  want, _, _ = run(make_tx(), x, g)
  whole = NamedSharding(sharding.mesh, PartitionSpec())
  got, _, _ = run(
    make_tx(sharding), *(jax.device_put(a, whole) for a in (x, g))
  )
  np.testing.assert_allclose(got, want, atol=8 * EPS, rtol=0)


@pytest.mark.parametrize('axis_type', [AxisType.Auto, AxisType.Explicit])
def test_parameters_may_lie_otherwise(axis_type):
  """The model shards rows over 'b', the update whole matrices over 'a'."""
  sharding = make_sharding(axis_type, 'a')
  rows = NamedSharding(sharding.mesh, PartitionSpec(None, 'b'))
  x, g = problem(8)
  want, _, _ = run(make_tx(), x, g)
  tx = make_tx(sharding)
  got, _, _ = run(tx, *(jax.device_put(a, rows) for a in (x, g)))
  np.testing.assert_allclose(got, want, atol=8 * EPS, rtol=0)


def test_single_matrices_and_vectors_beside_a_sharded_stack():
  sharding = make_sharding(AxisType.Auto)
  x, g = problem(8)
  params = {'R': x, 'Q': x[0], 'bias': jnp.ones(3)}
  grads = {'R': g, 'Q': g[0], 'bias': jnp.ones(3)}
  make = functools.partial(lipnext_optimizer, 1e-2, retraction_period=None)
  want, _, _ = run(make(), params, grads, steps=1)
  whole = NamedSharding(sharding.mesh, PartitionSpec())
  tx = make(stack_sharding=sharding)
  got, _, _ = run(tx, *jax.device_put((params, grads), whole), steps=1)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, atol=8 * EPS, rtol=0),
    got,
    want,
  )


def test_the_text_shows_a_collective_where_there_is_one():
  """Without the sharding, the stack is gathered."""
  sharding = make_sharding(AxisType.Auto)
  x, g = (jax.device_put(a, sharding) for a in problem(16))
  _, _, text = run(make_tx(), x, g, steps=1)
  assert re.findall(COLLECTIVES, text)


def test_a_layout_that_cuts_matrices_raises():
  rows = make_sharding(AxisType.Auto, 'a', ('b',))
  for bad in (rows, PartitionSpec('a')):
    with pytest.raises(ValueError, match='NamedSharding of the first axis'):
      make_tx(bad)


def count_copies(shape):
  """Counts copies of whole stacks in the recipe's update, with donation."""
  x = jnp.zeros(shape)
  tx = lipnext_optimizer(1e-3, label_fn=lambda _: 'orthogonal')

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
