"""The step on several meshes: its results, its transfers, its operations.

All tests share one compilation per mesh.
"""

import collections
import functools
import re

import jax
import numpy as np
import pytest

from lipnext_jax import config as config_lib
from lipnext_jax import errors
from lipnext_jax import optim
from lipnext_jax import train
from lipnext_jax.aot import collectives
from lipnext_jax.aot import flops
from lipnext_jax.data import sources
from lipnext_jax.parallel import mesh as mesh_lib

pytestmark = pytest.mark.slow  # A train step is compiled for every mesh.

DEPTH, WIDTH, BATCH, STEPS = 8, 16, 16, 20
MESHES = [(8, 1, 1), (1, 8, 1), (2, 4, 1), (2, 2, 2), (1, 4, 2), (1, 1, 8)]
ONE = (1, 1, 1)
# Options that shorten compilation, which takes longer than the steps.
QUICK = {
  'xla_backend_optimization_level': 0,
  'xla_llvm_disable_expensive_passes': True,
}


def make_config(sizes=ONE, **fields):
  c = config_lib.default_config()
  c.model.depth, c.model.width, c.model.patch_size = DEPTH, WIDTH, 2
  c.model.m_init, c.model.shift_ratio = 'haar', 1 / 8
  c.batch_size, c.duration = BATCH, f'{STEPS} steps'
  c.optimizer.warmup = '2 steps'
  # Linear in the gradient: Adam's sign-like first steps would lift a rounding
  # error of a gradient near zero to the size of the learning rate.
  c.optimizer.name, c.optimizer.learning_rate = 'momentum', 0.03
  c.optimizer.lookahead_period = 3
  c.optimizer.retraction_period = '7 steps'
  c.loss.epsilon, c.loss.epsilon_end = 0.25, 2.0
  c.mesh.data, c.mesh.fsdp, c.mesh.tensor = sizes
  c.update_from_flattened_dict(fields)
  return c


def build(config):
  sizes = [config.mesh[axis] for axis in mesh_lib.AXES]
  devices = jax.devices()[: int(np.prod(sizes))]
  mesh = mesh_lib.make_mesh(config.mesh, devices)
  return train.build(config, mesh, sources.describe(config.dataset))


def trace(program):
  return program.train_step.trace(program.abstract, program.batch)


def batch_of(step):
  rng = np.random.default_rng(step)
  image = rng.random((BATCH, 8, 8, 1)).astype(np.float32)
  return {'image': image, 'label': rng.integers(0, 10, BATCH).astype(np.int32)}


class Run:
  """20 steps of a config, and the compiled program."""

  def __init__(self, config):
    self.program = program = build(config)
    compiled = trace(program).lower().compile(QUICK)
    self.compiled = compiled
    self.sent = collectives.read(compiled.as_text())
    # All meshes start with the same arrays, since a sharded initialisation may
    # round differently.
    state = place(start(), program)
    on_batch = mesh_lib.batch_sharding(program.mesh)
    losses = []
    for step in range(STEPS):
      batch = mesh_lib.put_batch(batch_of(step), on_batch)
      state = compiled(state._replace(sums=program.zero_sums()), batch)
      losses.append(float(state.sums.loss))
    self.losses = np.array(losses)
    self.state = state
    self.params = jax.device_get(state.params)


@functools.cache
def start():
  program = build(make_config())
  return jax.device_get(program.init(jax.random.key(0)))


def place(state, program):
  shardings = jax.tree.map(lambda leaf: leaf.sharding, program.abstract)
  return jax.device_put(state, shardings)


@functools.cache
def run_on(sizes):
  return Run(make_config(sizes))


def largest_difference(a, b):
  return max(
    float(np.abs(x - y).max())
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
  )


@pytest.mark.parametrize('sizes', MESHES, ids=str)
def test_every_mesh_makes_the_run_of_one_device(sizes):
  one, many = run_on(ONE), run_on(sizes)
  np.testing.assert_allclose(many.losses, one.losses, atol=1e-5)
  assert largest_difference(many.params, one.params) < 1e-5
  # Training moved them much further.
  assert largest_difference(one.params, start().params) > 1e-2


def test_another_batch_is_told_apart():
  """The tolerance tells apart runs that differ in one of 320 examples."""
  run = run_on((2, 2, 2))
  state = place(start(), run.program)
  on_batch = mesh_lib.batch_sharding(run.program.mesh)
  batch = batch_of(0)
  batch['image'][3] = batch['image'][4]
  state = run.compiled(state, mesh_lib.put_batch(batch, on_batch))
  assert abs(float(state.sums.loss) - run_on(ONE).losses[0]) > 1e-4


def large_transfers(run):
  """Returns {(kind, devices): number} of transfers at least as large as R."""
  counts = collections.Counter()
  for c in run.sent:
    if c.size * c.trips >= WIDTH * WIDTH * 4 // 2:  # Half of M, at α = 1/8.
      counts[c.kind, c.group] += c.trips
  return counts


# R and M each move to the layout of a step and back by an all-to-all.
SWAPS = 4
# R and M of a layer are gathered in forward and again in backward; their
# gradients are scattered.
GATHERS, SCATTERS = 4 * DEPTH, 2 * DEPTH


@pytest.mark.parametrize('replicas', [1, 2])
def test_a_step_sends_each_matrix_as_often_as_intended(replicas):
  rows = 8 // replicas
  found = large_transfers(run_on((replicas, rows, 1)))
  # Gradients of stem, head, biases and positions, together or by layers.
  assert found.pop(('all-reduce', 8)) <= 2 + DEPTH
  if replicas > 1:
    # Replicas exchange rows of gradients and the working copy. The compiler may
    # join the gradients of R and M.
    assert found.pop(('all-reduce', replicas)) in (DEPTH, 2 * DEPTH)
    assert found.pop(('all-gather', replicas)) == 2
  assert found == {
    ('all-to-all', rows): SWAPS,
    ('all-gather', rows): GATHERS,
    ('reduce-scatter', rows): SCATTERS,
  }


def test_with_width_shards_layers_still_swap_without_being_gathered():
  run = run_on((2, 2, 2))
  found = large_transfers(run)
  swaps = sum(n for (kind, _), n in found.items() if kind == 'all-to-all')
  # One over the rows and one over the width, unless the compiler joins them.
  assert SWAPS <= swaps <= 2 * SWAPS
  assert not any(kind == 'collective-permute' for kind, _ in found)
  moved = [c for c in run.sent if c.op_name.endswith('sharding_constraint')]
  # Only the working copy is gathered, over the two replicas.
  stacks = [c for c in moved if c.size >= WIDTH * WIDTH * 4]
  assert {c.group for c in stacks if c.kind == 'all-gather'} == {2}


@pytest.mark.parametrize('sizes', [(1, 8, 1), (2, 2, 2)], ids=str)
def test_nothing_is_sent_inside_the_manifold_update(sizes):
  inside = [c for c in run_on(sizes).sent if 'optimizer/' in c.op_name]
  # The norm of the gradient for the clip, and Euclidean leaves joined with it.
  assert all(c.kind == 'all-reduce' and c.trips == 1 for c in inside)
  assert not any('shard_map' in c.op_name for c in inside)


def test_the_update_of_stacks_falls_as_one_over_the_devices():
  """Devices share the update of stacks, and each one updates Q."""
  shared, copied = {}, {}
  for sizes in [ONE, (1, 2, 1), (2, 2, 1), (1, 8, 1), (2, 2, 2)]:
    config = make_config(sizes)
    jaxpr = trace(build(config)).jaxpr
    shared[sizes] = flops.count(jaxpr, 'optimizer').total
    devices = int(np.prod(sizes))
    every = flops.count(jaxpr, 'optimizer', copies=devices).total
    copied[sizes] = (every - shared[sizes]) / max(devices - 1, 1)
  assert shared[ONE] > 0
  assert set(shared.values()) == {shared[ONE]}
  # Q has the size of M. R has half of its rows, which saves half of 2·C³ in XᵀG
  # and in the product with X.
  del copied[ONE]
  (q,) = set(copied.values())
  assert shared[ONE] == q + DEPTH * (2 * q - 2 * WIDTH**3)
  # 3 layers do not split over 8 replicas: each updates all of them.
  config = make_config((8, 1, 1), **{'model.depth': 3})
  jaxpr = trace(build(config)).jaxpr
  assert flops.count(jaxpr, 'optimizer', copies=8).total == 8 * (
    q + 3 * (2 * q - 2 * WIDTH**3)
  )


def test_microbatches_add_up_to_the_batch():
  with pytest.raises(errors.ConfigError, match=r'batch_size=16.*3 micro.*24'):
    build(make_config((2, 2, 2), microbatches=3))
  whole = run_on(ONE)
  parts = Run(make_config((2, 2, 2), microbatches=2))
  np.testing.assert_allclose(parts.losses, whole.losses, atol=1e-5)
  assert largest_difference(parts.params, whole.params) < 1e-5


def test_evaluation_gets_retracted_weights_in_the_layout_of_a_step():
  run = run_on((2, 2, 2))
  params = run.program.certified_params(run.state)
  r, m = params['blocks']['R'], params['blocks']['M']
  assert {s.data.shape for s in r.addressable_shards} == {(DEPTH, 8, 4)}
  assert {s.data.shape for s in m.addressable_shards} == {(DEPTH, 8, 8)}
  state = jax.device_get(run.state)
  slow = optim.slow_params(state.opt_state, state.params)
  expected = jax.tree.map(
    lambda x, label: (
      optim.polar_retract(x, 'svd') if label == 'orthogonal' else x
    ),
    slow,
    optim.orthogonal_labels(slow),
  )
  assert largest_difference(jax.device_get(params), expected) < 1e-6
  assert optim.orthogonality_error(r).max() < 1e-6
  # Step 20 is no multiple of the periods 3 and 7: slow weights differ from fast
  # ones, and are not retracted.
  assert largest_difference(state.params, expected) > 1e-3
  assert largest_difference(slow, expected) > 1e-7


def test_bfloat16_gathers_are_bfloat16_and_gradients_what_was_chosen():
  for chosen, name in (('float32', 'f32'), ('bfloat16', 'bf16')):
    config = make_config(
      (1, 8, 1), **{'model.dtype': 'bfloat16', 'reduce_dtype': chosen}
    )
    text = trace(build(config)).lower().as_text()
    kinds = dict.fromkeys(('all_gather', 'reduce_scatter', 'all_to_all'))
    for kind in kinds:
      pattern = rf'stablehlo\.{kind}"?\(.*?-> tensor<[\dx]*x(\w+)>'
      kinds[kind] = set(re.findall(pattern, text, flags=re.DOTALL))
    assert kinds['all_gather'] == {'bf16'}
    assert kinds['reduce_scatter'] == {name}


def test_first_moments_can_be_bfloat16():
  config = make_config(
    **{'optimizer.mu_dtype': 'bfloat16', 'optimizer.name': 'nadam'}
  )
  state = build(config).abstract
  moments = [
    leaf.dtype
    for path, leaf in jax.tree_util.tree_leaves_with_path(state.opt_state)
    if '.mu[' in jax.tree_util.keystr(path)
  ]
  assert len(moments) == len(jax.tree.leaves(state.params))
  assert {dtype.name for dtype in moments} == {'bfloat16'}
