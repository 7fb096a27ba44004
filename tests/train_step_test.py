import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lipnext_jax import losses
from lipnext_jax import models
from lipnext_jax import optim
from lipnext_jax import program as program_lib
from lipnext_jax import schedules
from lipnext_jax import train_step as step_lib
from lipnext_jax.data import sources
from lipnext_jax.models import interface
from lipnext_jax.models import layers
from lipnext_jax.models import registry
from lipnext_jax.optim import recipe
from lipnext_jax.parallel import mesh as mesh_lib

IMAGE_SHAPE = (8, 8, 1)
PLAN = schedules.Plan(
  total_steps=20,
  warmup_steps=2,
  retraction_period=3,
  eval_every=0,
  checkpoint_every=0,
  log_every=1,
  steps_per_epoch=10.0,
)
MODEL = models.LipNeXt(num_classes=10, depth=2, width=16, patch_size=4)


def batch_of(size=16, seed=0):
  rng = np.random.default_rng(seed)
  images = rng.random((size, *IMAGE_SHAPE)).astype(np.float32)
  return {'image': images, 'label': (np.arange(size) % 10).astype(np.int32)}


FACTS = sources.Facts(
  image_shape=IMAGE_SHAPE,
  image_dtype=np.dtype(np.float32),
  num_classes=10,
  train_examples=160,
)


class Harness:
  """The train step of a tiny config on a mesh, as `train.py` builds it."""

  def __init__(
    self, config, data=-1, fsdp=1, tensor=1, devices=None, loss_fn=None
  ):
    config.mesh.data, config.mesh.fsdp = data, fsdp
    config.mesh.tensor = tensor
    config.batch_size = 16
    config.duration, config.optimizer.warmup = '20 steps', '2 steps'
    config.loss.epsilon_end = 2.0
    self.mesh = mesh_lib.make_mesh(config.mesh, devices)
    with pytest.MonkeyPatch.context() as patch:
      if loss_fn is not None:
        patch.setattr(step_lib, 'build_loss', lambda _: loss_fn)
      program = program_lib.build(config, self.mesh, FACTS)
    self.program = program
    self.init = jax.jit(program.init_fn, out_shardings=program.shardings)
    self.state = self.init(jax.random.key(0))
    self.on_batch = mesh_lib.batch_sharding(self.mesh)
    self.step = program.train_step

  def run(self, steps):
    for i in range(steps):
      batch = mesh_lib.put_batch(batch_of(seed=i), self.on_batch)
      self.state = self.step(self.state, batch)
    return self


def test_one_compilation_and_stable_shapes_dtypes_and_shardings(
  tiny_config, monkeypatch
):
  traces = []

  def counting_loss(*args, **kwargs):
    traces.append(None)  # Runs once per trace, not once per step.
    return losses.emma_loss(*args, **kwargs)

  monkeypatch.setitem(losses.LOSSES, 'emma', counting_loss)
  harness = Harness(tiny_config)

  def describe(state):
    return jax.tree.map(lambda x: (x.shape, x.dtype, x.sharding.spec), state)

  before = describe(harness.state)
  harness.run(4)
  assert len(traces) == 1
  assert describe(harness.state) == before
  assert int(harness.state.step) == 4


def test_parameters_are_born_in_their_shardings(tiny_config):
  harness = Harness(tiny_config, data=4, fsdp=2)
  # 2 layers over fsdp; data, which would not divide them, is left out.
  r = harness.state.params['blocks']['R']
  assert {s.data.shape for s in r.addressable_shards} == {(1, 4, 16)}
  slow = optim.slow_params(harness.state.opt_state, harness.state.params)
  layers = {s.data.shape for s in slow['blocks']['R'].addressable_shards}
  assert layers == {(1, 4, 16)}
  # No device ever holds a whole stack: not even as a temporary of init.
  shapes = harness.init.lower(jax.random.key(0)).compile().memory_analysis()
  whole = sum(
    leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(harness.state)
  )
  assert shapes.output_size_in_bytes < 0.75 * whole


def test_state_is_donated(tiny_config):
  harness = Harness(tiny_config)
  before = harness.state
  harness.run(1)
  assert before.params['blocks']['R'].is_deleted()


def test_sums_count_what_they_say(tiny_config):
  harness = Harness(tiny_config).run(1)
  fresh = Harness(tiny_config)
  params = jax.device_get(fresh.state.params)
  batch = batch_of(seed=0)
  model = registry.build_model(tiny_config.model, 10)
  logits = np.asarray(model.apply({'params': params}, batch['image']))
  rows = np.asarray(models.head_kernel({'params': params}))
  correct = certified = 0
  for f, y in zip(logits, batch['label'], strict=True):
    p = int(np.argmax(f))
    radius = min(
      (f[p] - f[j]) / np.linalg.norm(rows[p] - rows[j])
      for j in range(10)
      if j != p
    )
    correct += p == y
    certified += p == y and radius > 0.25
  sums = jax.device_get(harness.state.sums)
  assert sums.steps == 1
  assert sums.examples == 16
  assert sums.correct == correct
  assert sums.certified == certified
  loss = losses.emma_loss(
    jnp.asarray(logits), batch['label'], jnp.asarray(rows), 0.25 * 0.1
  )
  assert sums.loss == pytest.approx(float(loss), rel=1e-5)
  means = sums.means()
  assert means['train/clean'] == pytest.approx(100 * correct / 16)


def bad_gradient_loss(logits, *rest):
  """Finite, with a gradient that is not."""
  return losses.emma_loss(logits, *rest) + jnp.sum(jnp.sqrt(0 * logits))


def step_with(harness, batch):
  """Host copies of the state before and after one step on `batch`."""
  before = jax.device_get(harness.state)
  batch = mesh_lib.put_batch(batch, harness.on_batch)
  harness.state = harness.step(harness.state, batch)
  return before, jax.device_get(harness.state)


def batch_with_nan():
  batch = batch_of(seed=9)
  batch['image'][3, 1, 2, 0] = np.nan
  return batch


@pytest.mark.parametrize('fault', ['loss', 'gradient'])
def test_a_step_that_is_not_finite_is_skipped_and_counted(tiny_config, fault):
  """Parameters and both optimizers' state stay as they are, bit for bit."""
  loss_fn = bad_gradient_loss if fault == 'gradient' else None
  batch = batch_of() if fault == 'gradient' else batch_with_nan()
  harness = Harness(tiny_config, data=4, fsdp=2, loss_fn=loss_fn)
  if fault == 'loss':
    harness.run(2)
  for row in (1, 2):
    before, after = step_with(harness, batch)
    same = jax.tree.map(
      np.array_equal, before[1:3], after[1:3]
    )  # Parameters, optimizer.
    assert all(jax.tree.leaves(same))
    assert after.step == before.step + 1
    assert after.health.in_a_row == row
    assert harness.state.sums.skipped == row
  means = jax.device_get(harness.state.sums).means()
  assert means['train/skipped_steps'] == 2
  assert ('train/loss' in means) == (fault == 'loss')  # From the first two.
  assert np.isfinite(list(means.values())).all()
  if fault == 'loss':
    before, after = step_with(harness, batch_of())
    assert after.health.in_a_row == 0
    assert not np.array_equal(
      before.params['blocks']['R'], after.params['blocks']['R']
    )


def test_the_step_that_always_updates_is_seen_to(tiny_config, monkeypatch):
  """The planted fault: were all found finite, one batch poisons everything."""
  monkeypatch.setattr(jnp, 'isfinite', lambda x: jnp.ones_like(x, bool))
  _, after = step_with(Harness(tiny_config), batch_with_nan())
  assert np.isnan(after.params['blocks']['bias']).all()


def test_a_branch_keeps_the_state_donated_as_a_whole(tiny_config):
  harness = Harness(tiny_config)
  batch = mesh_lib.put_batch(batch_of(), harness.on_batch)
  compiled = harness.step.lower(harness.state, batch).compile()
  memory = compiled.memory_analysis()
  whole = sum(x.nbytes for x in jax.tree.leaves(harness.state))
  assert memory.alias_size_in_bytes >= whole


def test_a_loss_spike_is_counted(tiny_config):
  harness = Harness(tiny_config).run(1)
  loss = float(harness.state.sums.loss)
  for factor, spikes in ((0.5, 0.0), (0.1, 1.0)):
    harness.state = harness.state._replace(
      health=harness.state.health._replace(
        counted=jnp.int32(100), loss=jnp.float32(factor * loss)
      )
    )
    before = float(harness.state.sums.spikes)
    harness.state = jax.device_put(harness.state, harness.program.shardings)
    harness.run(1)
    assert harness.state.sums.spikes - before == spikes


def test_the_step_learns(tiny_config):
  tiny_config.loss.name = 'cross_entropy'  # No radius that grows meanwhile.
  tiny_config.optimizer.learning_rate = 1e-2
  harness = Harness(tiny_config)
  first = float(harness.run(1).state.sums.loss)
  for _ in range(30):
    batch = mesh_lib.put_batch(batch_of(seed=0), harness.on_batch)
    zeros = jax.tree.map(jnp.zeros_like, harness.state.sums)
    harness.state = harness.step(harness.state._replace(sums=zeros), batch)
  assert harness.state.sums.loss < 0.9 * first


def test_evaluation_uses_retracted_slow_weights(tiny_config):
  tiny_config.optimizer.retraction_period = '0 steps'
  state = Harness(tiny_config).run(5).state
  slow = optim.slow_params(state.opt_state, state.params)
  evaluated = interface.certified_params(MODEL, slow)
  # 5 steps with period 2: the fast weights have gone on from the slow ones.
  fast = state.params['blocks']['R']
  assert np.abs(fast - slow['blocks']['R']).max() > 1e-5
  np.testing.assert_allclose(
    evaluated['blocks']['R'], slow['blocks']['R'], atol=1e-5
  )
  np.testing.assert_array_equal(
    evaluated['head']['kernel'], slow['head']['kernel']
  )
  error = optim.orthogonality_error(evaluated['blocks']['R']).max()
  assert error < 1e-6


@pytest.mark.parametrize('name', sorted(losses.LOSSES))
def test_every_loss_is_built_with_its_own_fields(tiny_config, name):
  c = tiny_config.loss
  c.name = name
  c.logit_scale = 3.0
  c.trades_weight, c.annealing_gamma = 0.5, 2.0
  c.annealing_offset, c.annealing_temperature = 1.0, 0.5
  own = {
    'trades': {'trades_weight': 0.5},
    'logit_annealing': {'offset': 1.0, 'temperature': 0.5, 'gamma': 2.0},
  }.get(name, {})
  logits = jax.random.normal(jax.random.key(1), (5, 4))
  labels, kernel = jnp.arange(5) % 4, jnp.eye(4)
  built = step_lib.build_loss(c)(logits, labels, kernel, 0.3)
  direct = losses.LOSSES[name](
    logits, labels, kernel, 0.3, logit_scale=3.0, **own
  )
  assert built == direct


@pytest.mark.parametrize('name', sorted(recipe.INNER_RULES))
def test_every_inner_rule_stays_on_the_manifold(tiny_config, name):
  tiny_config.optimizer.name = name
  harness = Harness(tiny_config).run(3)
  for leaf in ('R', 'M'):
    x = harness.state.params['blocks'][leaf]
    assert optim.orthogonality_error(x).max() < 1e-5
  assert np.isfinite(harness.state.sums.loss)


def test_inner_rules_are_elementwise_and_odd():
  g = jax.random.normal(jax.random.key(0), (3, 4, 4))
  for name, rule in recipe.INNER_RULES.items():
    tx = rule(1e-2)
    plus, _ = tx.update(g, tx.init(g), g)
    minus, _ = tx.update(-g, tx.init(g), g)
    np.testing.assert_allclose(plus, -minus, atol=1e-7, err_msg=name)
    flat = g.reshape(-1)[::-1]
    other, _ = tx.update(flat, tx.init(flat), flat)
    np.testing.assert_allclose(
      other[::-1].reshape(g.shape), plus, atol=1e-7, err_msg=name
    )


def test_monitor_reports_what_the_last_step_used(tiny_config):
  harness = Harness(tiny_config).run(3)
  radius = schedules.epsilon_schedule(0.25, 0.1, 2.0, PLAN.total_steps)
  rate = step_lib.learning_rate(tiny_config.optimizer, PLAN)
  monitored = step_lib.make_monitor(MODEL, radius, rate)(harness.state)
  assert monitored['train/epsilon'] == radius(2)
  assert monitored['train/learning_rate'] == rate(2)
  exact = max(
    float(optim.orthogonality_error(p).max())
    for p in (
      harness.state.params['stem']['Q'],
      harness.state.params['blocks']['R'],
      harness.state.params['blocks']['M'],
    )
  )
  estimate = float(monitored['train/orthogonality_error'])
  # Power iteration approaches from below; float32 rounds both at 1e-7.
  assert 0.3 * exact - 2e-7 < estimate < exact + 2e-7


def test_monitor_sees_a_matrix_that_left_the_manifold(tiny_config):
  state = Harness(tiny_config).state
  monitor = step_lib.make_monitor(
    MODEL, optax.constant_schedule(0.1), lambda _: 0.1
  )
  scaled = state.params['blocks']['M'].at[1].mul(1.001)
  params = state.params | {'blocks': state.params['blocks'] | {'M': scaled}}
  error = monitor(state._replace(params=params))['train/orthogonality_error']
  assert float(error) == pytest.approx(1.001**2 - 1, rel=1e-2)


def test_uint8_and_float_images_agree():
  pixels = np.arange(256, dtype=np.uint8)
  unit = np.asarray(layers.to_unit(jnp.asarray(pixels)))
  # XLA may multiply by 1/255 instead: one more rounding, 2⁻²⁴ relative each.
  np.testing.assert_allclose(unit, pixels.astype(np.float32) / 255, rtol=2**-22)
  assert (unit.min(), unit.max()) == (0, 1)
  floats = jnp.linspace(0, 1, 5)
  assert layers.to_unit(floats) is floats


def test_the_loss_is_told_the_radius_that_the_backbone_stretches_to(
  tiny_config,
):
  """ε·K of LiResNet: what reaches the features of a ball of radius ε."""
  tiny_config.model.name = 'liresnet'
  tiny_config.model.baseline.dense_depth = 1

  def radius_as_loss(logits, labels, head_kernel, epsilon):
    del logits, labels, head_kernel
    return epsilon

  harness = Harness(tiny_config, loss_fn=radius_as_loss)
  model = registry.build_model(tiny_config.model, 10)
  constant = float(jax.jit(model.lipschitz)(harness.state.params))
  assert constant > 1.2
  harness.run(1)
  # ε_0 = 0.25·0.1.
  assert float(harness.state.sums.loss) == pytest.approx(
    0.025 * constant, rel=1e-5
  )
  assert (
    float(harness.state.sums.grad_norm) > 0
  )  # K is trained through the loss.
