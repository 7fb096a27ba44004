"""Tests stacks over 8 devices: same numbers, no collective, one compile."""

import re

import jax
import jax.numpy as jnp
from jax.sharding import AxisType
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec
import optax
import pytest

from lipnext_jax import optim
from lipnext_jax.optim import stack
from tests.optim import steps

pytestmark = pytest.mark.slow  # Optimizers are compiled for a mesh.

N = 6
COLLECTIVES = (
  'all-gather|all-reduce|all-to-all|collective-permute|reduce-scatter'
)


def make_sharding(axis_type, *spec):
  """Returns a sharding over two mesh axes of 4 and 2 devices."""
  mesh = jax.make_mesh((4, 2), ('a', 'b'), axis_types=(axis_type,) * 2)
  return NamedSharding(mesh, PartitionSpec(*spec))


def problem(length, shape=(N, N), largest=30):
  """Returns a start, and gradients of different branches in one stack."""
  x = steps.orthonormal((length, *shape))
  scale = jnp.geomspace(1e-3, largest, length)
  return x, steps.noise(x, 1) * scale[:, None, None]


def make_tx(sharding=None):
  return optim.orthogonal(
    optax.sgd(0.1, momentum=0.9),
    lookahead_period=2,
    retraction_period=3,
    stack_sharding=sharding,
  )


def take_steps(tx, x, g, count=4):
  return steps.run(tx, x, count, lambda *_: g, jax.jit(tx.init)(x))


def compiled(tx, x, state, g, donate=()):
  """Returns the text of a compiled step."""

  def step(x, state, g):
    updates, state = tx.update(g, state, x)
    return optax.apply_updates(x, updates), state

  step = jax.jit(step, donate_argnums=donate)
  return step.lower(x, state, g).compile().as_text()


@pytest.mark.parametrize(
  ('axis_type', 'shape'),
  [
    (AxisType.Auto, (N, N)),
    (AxisType.Explicit, (4, N)),
    (AxisType.Explicit, (17, 2)),
  ],
)
def test_a_divided_stack_is_updated_where_it_lies(axis_type, shape):
  sharding = make_sharding(axis_type, ('a', 'b'))
  # Tall matrices round by eps times the square of the step.
  x, g = problem(16, shape, largest=3 if shape == (17, 2) else 30)
  want, want_state = take_steps(make_tx(), x, g)
  placed = jax.device_put((x, g), sharding)
  got, state = take_steps(make_tx(sharding), *placed)
  text = compiled(make_tx(sharding), got, state, placed[1])
  assert not re.findall(COLLECTIVES, text)
  if axis_type == AxisType.Auto:  # Without `sharding`, the stack is gathered.
    gathered = compiled(make_tx(), got, state, placed[1])
    assert re.findall(COLLECTIVES, gathered)
  assert 'conditional(' in text  # Each device branches for itself.
  for leaf in jax.tree.leaves((got, state)):
    if leaf.ndim:
      assert leaf.addressable_shards[0].data.shape[0] == 2
  # The same operations on the same matrices, compiled twice.
  steps.assert_close(got, want, 8 * steps.EPS)
  slow = optim.slow_params(state, got)
  steps.assert_close(slow, optim.slow_params(want_state, want), 8 * steps.EPS)


@pytest.mark.parametrize(
  ('axis_type', 'length', 'axes', 'spec'),
  [
    # Stacks that do not divide over 8 devices are padded.
    (AxisType.Auto, 11, ('a', 'b'), ()),
    (AxisType.Explicit, 3, ('a', 'b'), ()),
    # The model shards rows over 'b', the update whole matrices over 'a'.
    (AxisType.Auto, 8, 'a', (None, 'b')),
    (AxisType.Explicit, 8, 'a', (None, 'b')),
  ],
)
def test_parameters_may_lie_otherwise(axis_type, length, axes, spec):
  x, g = problem(length)
  want, _ = take_steps(make_tx(), x, g)
  placed = jax.device_put((x, g), make_sharding(axis_type, *spec))
  got, _ = take_steps(make_tx(make_sharding(axis_type, axes)), *placed)
  steps.assert_close(got, want, 8 * steps.EPS)


def test_single_matrices_and_vectors_beside_a_sharded_stack():
  sharding = make_sharding(AxisType.Auto, ('a', 'b'))
  x, g = problem(8)
  params = {'R': x, 'Q': x[0], 'bias': jnp.ones(3)}
  grads = {'R': g, 'Q': g[0], 'bias': jnp.ones(3)}
  want, _ = take_steps(optim.lipnext_optimizer(1e-2), params, grads, count=1)
  whole = make_sharding(AxisType.Auto)
  tx = optim.lipnext_optimizer(1e-2, stack_sharding=sharding)
  got, _ = take_steps(tx, *jax.device_put((params, grads), whole), count=1)
  steps.assert_close(got, want, 8 * steps.EPS)


def test_a_layout_that_cuts_matrices_raises():
  rows = make_sharding(AxisType.Auto, 'a', 'b')
  for bad in (rows, PartitionSpec('a')):
    with pytest.raises(ValueError, match='NamedSharding of the first axis'):
      make_tx(bad)


def count_copies(shape):
  """Counts copies of whole stacks in the recipe's update, with donation."""
  x = jnp.zeros(shape)
  tx = optim.lipnext_optimizer(1e-3, label_fn=lambda _: 'orthogonal')
  state = jax.eval_shape(tx.init, x)
  text = compiled(tx, x, state, x, donate=(0, 1, 2))
  return len(re.findall(r'= f32\[4,\d+,16\]\S* copy\(', text))


@pytest.mark.parametrize('shape', [(4, 16, 16), (4, 6, 16)])
@pytest.mark.filterwarnings('ignore:Some donated buffers were not usable')
def test_no_stack_is_copied_or_laid_out_anew(shape, monkeypatch):
  assert count_copies(shape) == 0
  # Where the compiler may lay the matrices out as it likes, it copies some.
  monkeypatch.setattr(stack, '_by_rows', lambda x: x)
  assert count_copies(shape) > 0
