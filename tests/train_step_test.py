import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lipnext_jax import certify
from lipnext_jax import losses
from lipnext_jax import models
from lipnext_jax import optim
from lipnext_jax import train
from lipnext_jax import train_step as step_lib
from lipnext_jax.data import sources
from lipnext_jax.parallel import mesh as mesh_lib

pytestmark = pytest.mark.slow  # Train steps are compiled for a mesh.


def batch_of(size=16, seed=0):
  rng = np.random.default_rng(seed)
  images = rng.random((size, 8, 8, 1)).astype(np.float32)
  return {'image': images, 'label': (np.arange(size) % 10).astype(np.int32)}


class Harness:
  """The train step of a tiny config on a mesh, as `train.py` builds it."""

  def __init__(self, config, loss_fn=None):
    config.mesh.data, config.mesh.fsdp = 4, 2
    config.batch_size = 16
    config.duration, config.optimizer.warmup = '20 steps', '2 steps'
    config.loss.epsilon_end = 2.0
    mesh = mesh_lib.make_mesh(config.mesh)
    with pytest.MonkeyPatch.context() as patch:
      if loss_fn is not None:
        patch.setattr(step_lib, 'build_loss', lambda _: loss_fn)
      program = train.build(config, mesh, sources.describe(config.dataset))
    self.program = program
    self.on_batch = mesh_lib.batch_sharding(mesh)
    self.step = program.train_step

  def start(self):
    """A fresh state: a step donates the one that it is given."""
    return self.program.init(jax.random.key(0))

  def run(self, state, *batches):
    for batch in batches:
      state = self.step(state, mesh_lib.put_batch(batch, self.on_batch))
    return state


@pytest.fixture(scope='module')
def harness(make_tiny_config):
  """Compiled once for all tests."""
  return Harness(make_tiny_config())


def test_one_compilation_and_stable_shapes_dtypes_and_shardings(harness):
  def describe(state):
    return jax.tree.map(lambda x: (x.shape, x.dtype, x.sharding.spec), state)

  state = harness.start()
  before, r = describe(state), state.params['blocks']['R']
  batch = mesh_lib.put_batch(batch_of(), harness.on_batch)
  memory = harness.step.lower(state, batch).compile().memory_analysis()
  state = harness.run(state, *(batch_of(seed=i) for i in range(4)))
  assert harness.step._cache_size() == 1
  assert describe(state) == before
  assert int(state.step) == 4
  # Donated as a whole, in spite of the branch of skipped steps.
  assert r.is_deleted()
  held = sum(
    x.addressable_shards[0].data.nbytes for x in jax.tree.leaves(state)
  )
  assert memory.alias_size_in_bytes >= held


def test_parameters_are_born_in_their_shardings(harness):
  state = harness.start()
  slow = optim.slow_params(state.opt_state, state.params)
  for params in (state.params, slow):
    # 2 layers over fsdp; data, which would not divide them, is left out.
    shards = params['blocks']['R'].addressable_shards
    assert {s.data.shape for s in shards} == {(1, 4, 16)}
  # No device holds a whole stack, not even as a temporary of init.
  lowered = harness.program.init.lower(jax.random.key(0))
  memory = lowered.compile().memory_analysis()
  whole = sum(x.nbytes for x in jax.tree.leaves(state))
  assert memory.output_size_in_bytes < 0.75 * whole


def test_sums_count_what_they_say(harness):
  start = harness.start()
  params = jax.device_get(start.params)
  batch = batch_of(seed=0)
  model = harness.program.model
  logits = np.asarray(model.apply({'params': params}, batch['image']))
  rows = np.asarray(models.head_kernel({'params': params}))
  predictions, radii = certify.certified_radius(logits, rows)
  correct = np.sum(predictions == batch['label'])
  certified = np.sum((predictions == batch['label']) & (radii > 0.25))
  sums = jax.device_get(harness.run(start, batch).sums)
  assert (sums.steps, sums.examples) == (1, 16)
  assert (sums.correct, sums.certified) == (correct, certified)
  loss = losses.emma_loss(
    jnp.asarray(logits), batch['label'], jnp.asarray(rows), 0.25 * 0.1
  )
  assert sums.loss == pytest.approx(float(loss), rel=1e-5)
  assert sums.means()['train/clean'] == pytest.approx(100 * correct / 16)


def bad_gradient_loss(logits, *rest):
  """Finite, with a gradient that is not."""
  return losses.emma_loss(logits, *rest) + jnp.sum(jnp.sqrt(0 * logits))


def batch_with_nan():
  batch = batch_of(seed=9)
  batch['image'][3, 1, 2, 0] = np.nan
  return batch


@pytest.mark.parametrize('fault', ['loss', 'gradient'])
def test_a_step_that_is_not_finite_is_skipped_and_counted(
  harness, tiny_config, fault
):
  """Parameters and both optimizers' state stay as they are, bit for bit."""
  if fault == 'gradient':
    harness = Harness(tiny_config, loss_fn=bad_gradient_loss)
    state, batch = harness.start(), batch_of()
  else:
    state = harness.run(harness.start(), batch_of(seed=0), batch_of(seed=1))
    batch = batch_with_nan()
  for row in (1, 2):
    before = jax.device_get(state)
    state = harness.run(state, batch)
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
    later = jax.device_get(harness.run(state, batch_of()))
    assert later.health.in_a_row == 0
    r, moved = (s.params['blocks']['R'] for s in (after, later))
    assert not np.array_equal(r, moved)


def test_a_step_that_always_updates_is_found_out(tiny_config, monkeypatch):
  """Planted fault: if NaN passed as finite, one batch would spoil the state."""
  monkeypatch.setattr(jnp, 'isfinite', lambda x: jnp.ones_like(x, bool))
  harness = Harness(tiny_config)
  after = harness.run(harness.start(), batch_with_nan())
  assert np.isnan(after.params['blocks']['bias']).all()


def test_a_loss_spike_is_counted(harness):
  state = harness.run(harness.start(), batch_of())
  loss = float(state.sums.loss)
  for factor, spikes in ((0.5, 0.0), (0.1, 1.0)):
    state = harness.run(harness.start(), batch_of())
    mean = jnp.float32(factor * loss)
    health = state.health._replace(counted=jnp.int32(100), loss=mean)
    health = jax.device_put(health, state.step.sharding)
    state = state._replace(health=health)
    assert harness.run(state, batch_of()).sums.spikes == spikes


def test_every_loss_is_built_with_its_own_fields(tiny_config):
  c = tiny_config.loss
  c.logit_scale = 3.0
  c.trades_weight, c.annealing_gamma = 0.5, 2.0
  c.annealing_offset, c.annealing_temperature = 1.0, 0.5
  own = {
    'trades': {'trades_weight': 0.5},
    'logit_annealing': {'offset': 1.0, 'temperature': 0.5, 'gamma': 2.0},
  }
  for name, loss in losses.LOSSES.items():
    c.name = name
    built = step_lib.build_loss(c)
    assert built.func is loss
    assert built.keywords == {'logit_scale': 3.0, **own.get(name, {})}


def test_monitor_reports_what_the_last_step_used(harness, tiny_config):
  state = harness.run(harness.start(), *(batch_of(seed=i) for i in range(3)))
  program = harness.program
  monitored = program.monitor(state)
  assert monitored['train/epsilon'] == program.parts.epsilon_fn(2)
  # Two steps of warm-up: the rate is at its peak.
  peak = np.float32(tiny_config.optimizer.learning_rate)
  assert monitored['train/learning_rate'] == peak
  assert monitored['train/orthogonality_error'] < 1e-5
  # A matrix off the manifold shows.
  scaled = state.params['blocks']['M'].at[1].mul(1.001)
  params = state.params | {'blocks': state.params['blocks'] | {'M': scaled}}
  error = program.monitor(state._replace(params=params))[
    'train/orthogonality_error'
  ]
  assert float(error) == pytest.approx(1.001**2 - 1, rel=1e-2)


def test_the_loss_is_told_the_radius_that_the_backbone_stretches_to(
  tiny_config,
):
  """LiResNet maps a ball of radius ε into one of radius K·ε."""
  tiny_config.model.name = 'liresnet'
  tiny_config.model.baseline.dense_depth = 1

  def radius_as_loss(logits, labels, head_kernel, epsilon):
    del logits, labels, head_kernel
    return epsilon

  harness = Harness(tiny_config, loss_fn=radius_as_loss)
  state = harness.start()
  constant = float(jax.jit(harness.program.model.lipschitz)(state.params))
  assert constant > 1.2
  sums = harness.run(state, batch_of()).sums
  # ε_0 = 0.25·0.1.
  assert float(sums.loss) == pytest.approx(0.025 * constant, rel=1e-5)
  assert float(sums.grad_norm) > 0  # K is trained through the loss.
