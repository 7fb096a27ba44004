"""The whole way, in this process: train, resume, evaluate."""

import json
import os
import shutil
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn import datasets

from lipnext_jax import checkpoint
from lipnext_jax import errors
from lipnext_jax import losses
from lipnext_jax import train
from lipnext_jax.runtime import interrupts


def read(workdir, name):
  with open(os.path.join(workdir, name), encoding='utf-8') as file:
    return file.read()


def stored_arrays(workdir, step):
  """Every array of a checkpoint, read without the program that wrote it."""
  from orbax import checkpoint as ocp

  path = os.path.join(os.path.abspath(workdir), 'checkpoints', str(step))
  with ocp.StandardCheckpointer() as checkpointer:
    tree = checkpointer.restore(os.path.join(path, 'default'))
  return [np.asarray(leaf) for leaf in jax.tree.leaves(tree)]


@pytest.fixture(scope='module')
def resumable(make_tiny_config):
  """Makes configs with a checkpoint every 2 of their 4 steps."""

  def make(**fields):
    config = make_tiny_config()
    config.checkpoint.every = '2 steps'
    config.eval.every = '2 steps'
    config.eval.monitor_examples = 64
    config.augment.crop_padding = 1
    config.mesh.data, config.mesh.fsdp = -1, 2
    config.update_from_flattened_dict(fields)
    return config

  return make


@pytest.fixture(scope='module')
def finished(tmp_path_factory, resumable):
  """An undisturbed run, and what it returned."""
  workdir = str(tmp_path_factory.mktemp('runs') / 'undisturbed')
  return workdir, train.train_and_evaluate(resumable(), workdir)


def test_a_run_leaves_everything_it_promises(finished):
  workdir, summary = finished
  assert json.loads(read(workdir, 'eval.json')) == summary
  assert summary['examples'] == 360
  assert set(summary['cra']) == {'0.25', '0.5'}
  # Proved, and tight for matrices that were just retracted.
  assert 1 <= summary['lipschitz_bound'] < 1 + 1e-5
  assert len(read(workdir, 'radii.csv').splitlines()) == 361
  metrics = [
    json.loads(line) for line in read(workdir, 'metrics.jsonl').splitlines()
  ]
  steps = [m['step'] for m in metrics if 'train/loss' in m]
  assert steps == [1, 2, 3, 4]
  assert [m['step'] for m in metrics if 'monitor/certified' in m] == [2]
  assert json.loads(read(workdir, 'config.json'))['model.width'] == 16
  (start,) = json.loads(read(workdir, 'run.json'))
  assert start['mesh'] == {'data': 4, 'fsdp': 2, 'tensor': 1}
  table = read(workdir, 'parameters.txt').splitlines()
  (row,) = (line for line in table if line.startswith('params/blocks/R '))
  # Whole matrices: two layers over the two devices of fsdp; data divides not.
  assert "(('fsdp', 'tensor'), None, None)" in row
  assert os.listdir(os.path.join(workdir, 'tensorboard'))


def test_a_run_leaves_a_report_of_itself(finished):
  workdir, summary = finished
  factors = summary['lipschitz_bounds']
  assert set(map(len, factors.values())) == {1, 2}  # The stem; two blocks.
  product = np.prod([f for layers in factors.values() for f in layers])
  assert summary['lipschitz_bound'] == pytest.approx(product, abs=1e-14)
  with np.load(os.path.join(workdir, 'gallery.npz')) as gallery:
    assert 8 <= len(gallery['id']) <= 24
    images = datasets.load_digits().images / 16
    for image in gallery['image']:
      assert (images == image[..., 0]).all((1, 2)).any()
  text = read(workdir, 'report.html')
  assert f'{summary["clean"]:.2f}\u00a0%' in text
  assert 'evaluate the run' not in text  # No file is missing or stale.


def test_resuming_is_bitwise(finished, resumable, tmp_path):
  """4 steps = 2 + restore + 2: parameters, optimizer, data order, numbers."""
  whole, summary = finished
  workdir = str(tmp_path / 'cut')
  shutil.copytree(whole, workdir)
  shutil.rmtree(os.path.join(workdir, 'checkpoints', '4'))
  os.remove(os.path.join(workdir, 'eval.json'))
  with open(os.path.join(workdir, 'metrics.jsonl'), 'a') as file:
    file.write('{"step": 5, "tr')  # Whatever a kill left behind.
  assert train.train_and_evaluate(resumable(), workdir) == summary
  ours, theirs = stored_arrays(workdir, 4), stored_arrays(whole, 4)
  assert len(ours) > 10
  for mine, other in zip(ours, theirs, strict=True):
    np.testing.assert_array_equal(mine, other)
  assert read(workdir, 'radii.csv') == read(whole, 'radii.csv')
  assert len(json.loads(read(workdir, 'run.json'))) == 2

  def losses(path):
    lines = map(json.loads, read(path, 'metrics.jsonl').splitlines())
    return {m['step']: m['train/loss'] for m in lines if 'train/loss' in m}

  assert losses(workdir) == losses(whole)


def test_a_log_line_covers_the_steps_before_the_resume(
  finished, resumable, tmp_path
):
  """A line at step 3 of a run resumed at 2: its sums are saved, too."""
  whole, cut = str(tmp_path / 'whole'), str(tmp_path / 'cut')
  config = resumable(**{'log.every': '3 steps'})
  train.train_and_evaluate(config, whole)
  shutil.copytree(whole, cut)
  shutil.rmtree(os.path.join(cut, 'checkpoints', '4'))
  train.train_and_evaluate(config, cut)

  def lines(path):
    found = map(json.loads, read(path, 'metrics.jsonl').splitlines())
    return [
      {k: v for k, v in line.items() if 'per_second' not in k}
      for line in found
      if line.get('step', 0) > 2
    ]

  assert [line['step'] for line in lines(whole)] == [3, 4]
  assert lines(cut) == lines(whole)
  # Of one step alone it would be another mean.
  one = map(json.loads, read(finished[0], 'metrics.jsonl').splitlines())
  (third,) = (m['train/loss'] for m in one if m['step'] == 3)
  assert lines(cut)[0]['train/loss'] != third


@pytest.mark.parametrize('asked', [1, 2])
def test_a_signal_at_the_end_is_not_forgotten(
  finished, resumable, tmp_path, monkeypatch, asked
):
  """In the last step, or during the save after it: no long evaluation."""
  asks = []

  def received(self, step):
    asks.append(step)
    return signal.SIGTERM if asks[-asked:] == [4] * asked else None

  workdir = str(tmp_path / 'stopped')
  with monkeypatch.context() as patch:
    patch.setattr(interrupts.Interrupts, 'received', received)
    with pytest.raises(
      interrupts.StoppedError, match='step 4 is saved'
    ) as info:
      train.train_and_evaluate(resumable(), workdir)
  assert info.value.exit_code == 143
  assert not os.path.exists(os.path.join(workdir, 'eval.json'))
  whole, summary = finished
  assert train.train_and_evaluate(resumable(), workdir) == summary
  ours, theirs = stored_arrays(workdir, 4), stored_arrays(whole, 4)
  for mine, other in zip(ours, theirs, strict=True):
    np.testing.assert_array_equal(mine, other)


def test_a_planted_fault_breaks_the_bitwise_check(
  finished, resumable, tmp_path
):
  """The comparison above can fail: resumed data off by one seed is seen."""
  whole, _ = finished
  workdir = str(tmp_path / 'other')
  config = resumable(seed=1)
  train.train_and_evaluate(config, workdir)
  pairs = zip(stored_arrays(workdir, 4), stored_arrays(whole, 4), strict=True)
  assert any(not np.array_equal(mine, other) for mine, other in pairs)


def plant(monkeypatch, is_bad):
  """The loss is NaN at the steps whose radius ε_t says so."""
  emma = losses.emma_loss

  def planted(logits, labels, kernel, epsilon, **options):
    loss = emma(logits, labels, kernel, epsilon, **options)
    return jnp.where(is_bad(epsilon), jnp.nan, loss)

  monkeypatch.setitem(losses.LOSSES, 'emma', planted)


def test_skipped_steps_are_counted_said_and_resumed_exactly(
  resumable, tmp_path, monkeypatch, capsys
):
  plant(monkeypatch, lambda epsilon: epsilon < 0.03)  # The first step.
  config = resumable(**{'health.drift': 1e-9})
  whole, cut = str(tmp_path / 'whole'), str(tmp_path / 'cut')
  summary = train.train_and_evaluate(config, whole)
  metrics = [
    json.loads(line) for line in read(whole, 'metrics.jsonl').splitlines()
  ]
  logged = [m for m in metrics if 'train/skipped_steps' in m]
  assert [m['train/skipped_steps'] for m in logged] == [1, 0, 0, 0]
  assert [m['train/skipped_in_a_row'] for m in logged] == [1, 0, 0, 0]
  assert ['train/loss' in m for m in logged] == [False, True, True, True]
  # No float32 matrix that moved is as orthogonal as that.
  assert logged[-1]['train/drifts'] == 1
  said = capsys.readouterr().err
  assert 'step 1: 1 steps skipped, whose loss or gradient was not' in said
  assert 'step 4: orthogonality error' in said
  shutil.copytree(whole, cut)
  shutil.rmtree(os.path.join(cut, 'checkpoints', '4'))
  assert train.train_and_evaluate(config, cut) == summary
  pairs = zip(stored_arrays(cut, 4), stored_arrays(whole, 4), strict=True)
  assert all(np.array_equal(mine, other) for mine, other in pairs)


def test_too_many_skipped_steps_end_the_run_and_leave_the_checkpoint(
  finished, resumable, tmp_path, monkeypatch
):
  workdir = str(tmp_path / 'run')
  config = resumable(**{'health.max_skipped': 2})
  with monkeypatch.context() as patch:
    plant(patch, lambda epsilon: epsilon > 0.7)  # The last two steps.
    with pytest.raises(errors.NonFiniteError) as stopped:
      train.train_and_evaluate(config, workdir)
  message = str(stopped.value)
  assert message.startswith('step 4: loss or gradient were not finite in the ')
  assert 'last 2 steps (first: loss)' in message
  assert 'the checkpoint of step 2 is intact' in message
  assert os.listdir(os.path.join(workdir, 'checkpoints')) == ['2']
  # What follows is the run that nothing disturbed.
  whole, summary = finished
  assert train.train_and_evaluate(config, workdir) == summary
  pairs = zip(stored_arrays(workdir, 4), stored_arrays(whole, 4), strict=True)
  assert all(np.array_equal(mine, other) for mine, other in pairs)


def test_an_update_that_is_not_finite_is_never_saved(tiny_config, tmp_path):
  """Loss and gradient were finite, the step along them was not."""
  tiny_config.optimizer.learning_rate = 2e9
  tiny_config.checkpoint.every = '1 steps'
  workdir = str(tmp_path / 'run')
  with pytest.raises(errors.NonFiniteError, match='the update is not finite'):
    train.train_and_evaluate(tiny_config, workdir)
  for step in os.listdir(os.path.join(workdir, 'checkpoints')):
    assert all(np.isfinite(x).all() for x in stored_arrays(workdir, step))


def test_a_finished_run_only_evaluates(finished, resumable, capsys):
  workdir, summary = finished
  before = {name: read(workdir, name) for name in ('metrics.jsonl', 'run.json')}
  assert train.train_and_evaluate(resumable(), workdir) == summary
  captured = capsys.readouterr()
  assert 'finished at step 4' in captured.err
  assert 'digits, test split' in captured.out
  assert before == {name: read(workdir, name) for name in before}


def test_eval_mode_prints_the_same_numbers(finished, resumable, capsys):
  workdir, summary = finished
  config = resumable()
  assert train.train_and_evaluate(config, workdir, train=False) == summary
  capsys.readouterr()
  config.eval.checkpoint = 'best'
  best = train.train_and_evaluate(config, workdir, train=False)
  assert best['step'] == 2  # The only one that was monitored.
  config.eval.checkpoint = 'last'
  assert train.train_and_evaluate(config, workdir, train=False) == summary


@pytest.mark.parametrize(
  ('fields', 'problem'),
  [
    ({'model.width': 32}, r'model\.width=32 differs'),
    ({'model.patch_size': 3}, r'model\.width|model\.patch_size=3'),
    ({'batch_size': 36}, r'batch_size=36'),
    ({'mesh.fsdp': 3}, 'mesh'),
    ({'eval.batch_size': 100}, r'eval\.batch_size=100'),
  ],
)
def test_what_does_not_fit_is_refused_without_a_trace(
  finished, resumable, tmp_path, fields, problem
):
  config = resumable(**fields)

  def snapshot(root):
    return {
      os.path.join(base, name): os.path.getmtime(os.path.join(base, name))
      for base, _, names in os.walk(root)
      for name in names
    }

  used = finished[0]
  before = snapshot(used)
  with pytest.raises(errors.ConfigError, match=problem):
    train.train_and_evaluate(config, used)
  assert snapshot(used) == before
  new = str(tmp_path / 'new')
  if 'differs' not in problem:
    with pytest.raises(errors.ConfigError):
      train.train_and_evaluate(config, new)
    assert not os.path.exists(new)


def test_evaluating_an_empty_workdir_is_refused(tmp_path, tiny_config):
  with pytest.raises(errors.ConfigError, match='holds no checkpoint'):
    train.train_and_evaluate(tiny_config, str(tmp_path / 'x'), train=False)
  assert not os.listdir(tmp_path)


def test_a_holdout_is_monitored_and_kept_out_of_training(tmp_path, tiny_config):
  tiny_config.dataset.holdout = 100
  tiny_config.eval.every = '2 steps'
  workdir = str(tmp_path / 'held')
  train.train_and_evaluate(tiny_config, workdir)
  assert checkpoint.CheckpointReader(workdir).choose('best') == 2
  tiny_config.eval.split = 'validation'
  summary = train.train_and_evaluate(tiny_config, workdir)
  assert summary['examples'] == 100


def test_training_in_bfloat16_certifies_in_float32(tmp_path, tiny_config):
  tiny_config.model.dtype = 'bfloat16'
  tiny_config.model.remat = 'products'
  summary = train.train_and_evaluate(tiny_config, str(tmp_path / 'low'))
  assert 1 <= summary['lipschitz_bound'] < 1 + 1e-5
  leaves = stored_arrays(str(tmp_path / 'low'), 4)
  assert {leaf.dtype.name for leaf in leaves} == {'float32', 'int32'}


RIVALS = {
  'liresnet': {'model.name': 'liresnet', 'model.activation': 'minmax'},
  'bronet': {'model.name': 'bronet', 'model.patch_size': 2},
  'cayley': {
    'model.parametrization': 'cayley',
    'mesh.fsdp': 2,
    'mesh.data': -1,
    'eval.certificate': 'rigorous',
  },
}


@pytest.fixture
def _quick():
  """Compiling takes longest, and a few steps of it are run."""
  jax.config.update('jax_disable_most_optimizations', True)
  yield
  jax.config.update('jax_disable_most_optimizations', False)


@pytest.mark.usefixtures('_quick')
@pytest.mark.parametrize('name', RIVALS)
def test_rivals_train_certify_and_resume_bitwise(
  name, make_tiny_config, tmp_path
):
  def config():
    c = make_tiny_config()
    c.model.depth, c.model.width = 1, 8
    c.optimizer.retraction_period = '1 epochs'
    c.checkpoint.every = '2 steps'
    if name != 'cayley':
      c.model.baseline.update({'dense_depth': 1, 'dense_width': 8})
    c.update_from_flattened_dict(RIVALS[name])
    return c

  workdir = str(tmp_path / 'run')
  summary = train.train_and_evaluate(config(), workdir)
  whole = stored_arrays(workdir, 4)
  if name == 'liresnet':
    assert summary['lipschitz_bound'] > 1.1  # Its convolutions are free.
    assert 'blocks/conv_circular' in summary['lipschitz_bounds']
  else:
    assert 1 <= summary['lipschitz_bound'] < 1 + 1e-4
  shutil.rmtree(os.path.join(workdir, 'checkpoints', '4'))
  assert train.train_and_evaluate(config(), workdir) == summary
  for mine, other in zip(stored_arrays(workdir, 4), whole, strict=True):
    np.testing.assert_array_equal(mine, other)
