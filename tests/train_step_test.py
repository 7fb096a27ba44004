"""The step of `train.build` on several meshes, compiled once for each."""

import collections
import functools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lipnext_jax import certify
from lipnext_jax import config as config_lib
from lipnext_jax import losses
from lipnext_jax import models
from lipnext_jax import optim
from lipnext_jax import parallel
from lipnext_jax import train
from lipnext_jax import train_step as step_lib
from lipnext_jax import trees
from lipnext_jax.aot import collectives
from lipnext_jax.aot import flops
from lipnext_jax.data import sources

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
  devices = jax.devices()[: math.prod(config.mesh.values())]
  mesh = parallel.make_mesh(config.mesh, devices)
  return train.build(config, mesh, sources.describe(config.dataset))


def trace(program):
  return program.train_step.trace(program.abstract, program.batch)


def batch_of(seed=0):
  rng = np.random.default_rng(seed)
  image = rng.random((BATCH, 8, 8, 1)).astype(np.float32)
  return {'image': image, 'label': rng.integers(0, 10, BATCH).astype(np.int32)}


class Run:
  """The compiled program of a config, and 20 steps of it."""

  def __init__(self, config):
    self.program = build(config)
    self.compiled = trace(self.program).lower().compile(QUICK)

  def start(self):
    """A fresh state: a step donates the one that it is given."""
    return self.program.init(jax.random.key(0))

  def take(self, state, *batches):
    for batch in batches:
      state = self.compiled(state, batch)
    return state

  @functools.cached_property
  def end(self):
    """The losses of 20 steps, and the state after them.

    All meshes start with the same arrays, since a sharded initialisation may
    round differently.
    """
    state, losses = place(start(), self.program), []
    for step in range(STEPS):
      state = state._replace(sums=self.program.zero_sums())
      state = self.take(state, batch_of(step))
      losses.append(float(state.sums.loss))
    return np.array(losses), state


@functools.cache
def start():
  return jax.device_get(build(make_config()).init(jax.random.key(0)))


def place(state, program):
  shardings = jax.tree.map(lambda leaf: leaf.sharding, program.abstract)
  return jax.device_put(state, shardings)


@functools.cache
def run_on(*sizes, **fields):
  return Run(make_config(sizes, **fields))


@pytest.fixture(scope='module')
def run():
  return run_on(2, 4, 1)


def test_one_compilation_and_stable_shapes_dtypes_and_shardings(run):
  def describe(state):
    return jax.tree.map(lambda x: (x.shape, x.dtype, x.sharding.spec), state)

  state, step = run.start(), run.program.train_step
  before, r = describe(state), state.params['blocks']['R']
  for seed in range(4):
    state = step(state, batch_of(seed))
  assert step._cache_size() == 1
  assert describe(state) == before
  assert int(state.step) == 4
  # Donated as a whole, in spite of the branch of skipped steps.
  assert r.is_deleted()
  shards = [x.addressable_shards[0] for x in jax.tree.leaves(state)]
  held = sum(shard.data.nbytes for shard in shards)
  assert run.compiled.memory_analysis().alias_size_in_bytes >= held


def test_parameters_are_born_in_their_shardings(run):
  state = run.start()
  slow = optim.slow_params(state.opt_state, state.params)
  for params in (state.params, slow):
    # 8 layers over 8 devices.
    shards = params['blocks']['R'].addressable_shards
    assert {s.data.shape for s in shards} == {(1, 8, 16)}
  # No device holds a whole stack, not even as a temporary of init.
  lowered = run.program.init.lower(jax.random.key(0))
  memory = lowered.compile().memory_analysis()
  whole = sum(x.nbytes for x in jax.tree.leaves(state))
  assert memory.output_size_in_bytes < 0.75 * whole


def test_sums_count_what_they_say(run):
  first, batch = run.start(), batch_of()
  params = jax.device_get(first.params)
  logits = run.program.model.apply({'params': params}, batch['image'])
  rows = models.head_kernel({'params': params})
  predictions, radii = certify.certified_radius(logits, rows)
  correct = predictions == batch['label']
  sums = jax.device_get(run.take(first, batch).sums)
  assert (sums.steps, sums.examples) == (1, BATCH)
  assert sums.correct == np.sum(correct)
  assert sums.certified == np.sum(correct & (radii > 0.25))
  loss = losses.emma_loss(logits, batch['label'], rows, 0.25 * 0.1)
  assert sums.loss == pytest.approx(float(loss), rel=1e-5)
  assert sums.means()['train/clean'] == pytest.approx(100 * np.mean(correct))
  # Twice the running mean of a hundred steps, and ten times: a spike.
  for factor, spikes in ((0.5, 0.0), (0.1, 1.0)):
    state, mean = run.start(), np.float32(factor * loss)
    health = state.health._replace(counted=np.int32(100), loss=mean)
    state = state._replace(health=health)
    assert run.take(state, batch).sums.spikes == spikes


def bad_gradient_loss(logits, *rest):
  """Finite, with a gradient that is not."""
  return losses.emma_loss(logits, *rest) + jnp.sum(jnp.sqrt(0 * logits))


def batch_with_nan():
  batch = batch_of(seed=9)
  batch['image'][3, 1, 2, 0] = np.nan
  return batch


@pytest.mark.parametrize('fault', ['loss', 'gradient'])
def test_a_step_that_is_not_finite_is_skipped_and_counted(
  run, fault, monkeypatch
):
  """Parameters and both optimizers' state stay as they are, bit for bit."""
  if fault == 'gradient':
    monkeypatch.setattr(step_lib, 'build_loss', lambda _: bad_gradient_loss)
    run = Run(make_config((2, 4, 1)))
    state, batch = run.start(), batch_of()
  else:
    state = run.take(run.start(), batch_of(0), batch_of(1))
    batch = batch_with_nan()
  for row in (1, 2):
    before = jax.device_get(state)
    state = run.take(state, batch)
    after = jax.device_get(state)
    same = jax.tree.map(np.array_equal, before[1:3], after[1:3])
    assert all(jax.tree.leaves(same))  # Parameters, optimizer.
    assert after.step == before.step + 1
    assert after.health.in_a_row == after.sums.skipped == row
  means = after.sums.means()
  assert means['train/skipped_steps'] == 2
  assert ('train/loss' in means) == (fault == 'loss')  # From the first two.
  assert np.isfinite(list(means.values())).all()
  if fault == 'loss':
    later = jax.device_get(run.take(state, batch_of()))
    assert later.health.in_a_row == 0
    assert largest_difference(after.params, later.params) > 0


def test_a_step_that_always_updates_is_found_out(monkeypatch):
  """Planted fault: if NaN passed as finite, one batch would spoil the state."""
  monkeypatch.setattr(jnp, 'isfinite', lambda x: jnp.ones_like(x, bool))
  run = Run(make_config((2, 4, 1)))
  after = run.take(run.start(), batch_with_nan())
  assert np.isnan(after.params['blocks']['bias']).all()


def test_every_loss_is_built_with_its_own_fields():
  c = make_config().loss
  c.logit_scale, c.trades_weight = 3.0, 0.5
  annealing = {'offset': 1.0, 'temperature': 0.25, 'gamma': 2.0}
  c.update({f'annealing_{name}': value for name, value in annealing.items()})
  own = {'trades': {'trades_weight': 0.5}, 'logit_annealing': annealing}
  for name, loss in losses.LOSSES.items():
    c.name = name
    built = step_lib.build_loss(c)
    assert built.func is loss
    assert built.keywords == {'logit_scale': 3.0, **own.get(name, {})}


def test_monitor_reports_what_the_last_step_used(run):
  state = run.take(run.start(), *map(batch_of, range(3)))
  program = run.program
  monitored = program.monitor(state)
  assert monitored['train/epsilon'] == program.parts.epsilon_fn(2)
  # Two steps of warm-up: the rate is at its peak.
  assert monitored['train/learning_rate'] == np.float32(0.03)
  assert monitored['train/orthogonality_error'] < 1e-5
  # A matrix off the manifold shows.
  scaled = state.params['blocks']['M'].at[1].mul(1.001)
  params = state.params | {'blocks': state.params['blocks'] | {'M': scaled}}
  monitored = program.monitor(state._replace(params=params))
  error = float(monitored['train/orthogonality_error'])
  assert error == pytest.approx(1.001**2 - 1, rel=1e-2)


def test_the_loss_is_told_the_radius_that_the_backbone_stretches_to(
  monkeypatch,
):
  """LiResNet maps a ball of radius ε into one of radius K·ε."""
  config = make_config((2, 4, 1), **{'model.name': 'liresnet'})
  config.model.depth = config.model.baseline.dense_depth = 1
  monkeypatch.setattr(
    step_lib, 'build_loss', lambda _: lambda *arguments: arguments[-1]
  )
  run = Run(config)
  state = run.start()
  constant = float(jax.jit(run.program.model.lipschitz)(state.params))
  assert constant > 1.2
  sums = run.take(state, batch_of()).sums
  # ε_0 = 0.25·0.1.
  assert float(sums.loss) == pytest.approx(0.025 * constant, rel=1e-5)
  assert float(sums.grad_norm) > 0  # K is trained through the loss.


def largest_difference(a, b):
  a, b = map(jax.device_get, (a, b))
  differences = jax.tree.map(lambda x, y: float(np.abs(x - y).max()), a, b)
  return max(jax.tree.leaves(differences))


@pytest.mark.parametrize(
  ('sizes', 'fields'),
  [*((sizes, {}) for sizes in MESHES), ((2, 2, 2), {'microbatches': 2})],
  ids=str,
)
def test_every_mesh_and_microbatches_make_the_run_of_one_device(sizes, fields):
  (losses, one), (other_losses, other) = (
    run.end for run in (run_on(*ONE), run_on(*sizes, **fields))
  )
  np.testing.assert_allclose(other_losses, losses, atol=1e-5)
  assert largest_difference(other.params, one.params) < 1e-5
  # Training moved them much further.
  assert largest_difference(one.params, start().params) > 1e-2


def test_another_batch_is_told_apart():
  """The tolerance tells apart runs that differ in one of 320 examples."""
  run, batch = run_on(2, 2, 2), batch_of()
  batch['image'][3] = batch['image'][4]
  state = run.take(place(start(), run.program), batch)
  assert abs(float(state.sums.loss) - run_on(*ONE).end[0][0]) > 1e-4


def sent_by(run):
  return collectives.read(run.compiled.as_text())


def large_transfers(run):
  """Returns {(kind, devices): number} of transfers at least as large as R."""
  counts = collections.Counter()
  for c in sent_by(run):
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
  found = large_transfers(run_on(replicas, rows, 1))
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
  run = run_on(2, 2, 2)
  found = large_transfers(run)
  swaps = sum(n for (kind, _), n in found.items() if kind == 'all-to-all')
  # One over the rows and one over the width, unless the compiler joins them.
  assert SWAPS <= swaps <= 2 * SWAPS
  assert not any(kind == 'collective-permute' for kind, _ in found)
  moved = [c for c in sent_by(run) if c.op_name.endswith('sharding_constraint')]
  # Only the working copy is gathered, over the two replicas.
  stacks = [c for c in moved if c.size >= WIDTH * WIDTH * 4]
  assert {c.group for c in stacks if c.kind == 'all-gather'} == {2}


@pytest.mark.parametrize('sizes', [(1, 8, 1), (2, 2, 2)], ids=str)
def test_nothing_is_sent_inside_the_manifold_update(sizes):
  inside = [c for c in sent_by(run_on(*sizes)) if 'optimizer/' in c.op_name]
  # The norm of the gradient for the clip, and Euclidean leaves joined with it.
  assert all(c.kind == 'all-reduce' and c.trips == 1 for c in inside)
  assert not any('shard_map' in c.op_name for c in inside)


def test_the_update_of_stacks_falls_as_one_over_the_devices():
  """Devices share the update of stacks, and each one updates Q."""

  def count(*sizes, depth=DEPTH):
    config = make_config(sizes, **{'model.depth': depth})
    jaxpr = trace(build(config)).jaxpr
    devices = math.prod(sizes)
    return flops.count(jaxpr, 'optimizer', copies=devices).total

  one = count(*ONE)
  q = count(1, 2, 1) - one
  # Q has the size of M. R has half of its rows, which saves half of 2·C³ in XᵀG
  # and in the product with X.
  layer = 2 * q - 2 * WIDTH**3
  assert one == q + DEPTH * layer
  for sizes in [(2, 2, 1), (1, 8, 1), (2, 2, 2)]:
    assert count(*sizes) == one + (math.prod(sizes) - 1) * q
  # 3 layers do not split over 8 replicas: each updates all of them.
  assert count(8, 1, 1, depth=3) == 8 * (q + 3 * layer)


def test_evaluation_gets_retracted_weights_in_the_layout_of_a_step():
  run = run_on(2, 2, 2)
  params = run.program.certified_params(run.end[1])
  r, m = params['blocks']['R'], params['blocks']['M']
  assert {s.data.shape for s in r.addressable_shards} == {(DEPTH, 8, 4)}
  assert {s.data.shape for s in m.addressable_shards} == {(DEPTH, 8, 8)}
  state = jax.device_get(run.end[1])
  slow = optim.slow_params(state.opt_state, state.params)

  def retract(x, label):
    return optim.polar_retract(x, 'svd') if label == 'orthogonal' else x

  expected = jax.tree.map(retract, slow, optim.orthogonal_labels(slow))
  assert largest_difference(params, expected) < 1e-6
  assert optim.orthogonality_error(r).max() < 1e-6
  # Step 20 is no multiple of the periods 3 and 7: slow weights differ from fast
  # ones, and are not retracted.
  assert largest_difference(state.params, expected) > 1e-3
  assert largest_difference(slow, expected) > 1e-7


def test_bfloat16_gathers_are_bfloat16_and_gradients_and_moments_as_chosen():
  config = make_config((1, 8, 1))
  config.model.dtype, config.optimizer.name = 'bfloat16', 'nadam'
  for chosen, name in (('float32', 'f32'), ('bfloat16', 'bf16')):
    config.reduce_dtype = config.optimizer.mu_dtype = chosen
    program = build(config)
    leaves = trees.named_leaves(program.abstract.opt_state).items()
    moments = [leaf.dtype for path, leaf in leaves if '/mu/' in path]
    assert len(moments) == len(jax.tree.leaves(program.abstract.params))
    assert {*moments} == {np.dtype(chosen)}
    text = trace(program).lower().as_text()
    for kind, sent in (('all_gather', 'bf16'), ('reduce_scatter', name)):
      pattern = rf'stablehlo\.{kind}"?\(.*?-> tensor<[\dx]*x(\w+)>'
      assert set(re.findall(pattern, text, flags=re.DOTALL)) == {sent}
