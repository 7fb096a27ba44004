"""Whole runs in this process: train, resume, evaluate."""

import json
import math
import os
import pathlib
import shutil
import signal

import filelock
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn import datasets

from benchmarks.runs import same_arrays
from benchmarks.runs import stored_arrays
from lipnext_jax import errors
from lipnext_jax import losses
from lipnext_jax import train
from lipnext_jax.runtime import interrupts
from tests.runs import read
from tests.runs import read_metrics

pytestmark = pytest.mark.slow  # Nearly every test trains.


def resumable(config, **fields):
  """Sets a checkpoint every 2 of the 4 steps, and examples to monitor."""
  config.checkpoint.every = config.eval.every = '2 steps'
  config.log.every = '3 steps'
  config.dataset.holdout = 100
  config.augment.crop_padding = 1
  config.mesh.fsdp = 2
  config.update_from_flattened_dict(fields)
  return config


@pytest.fixture
def config(tiny_config):
  return resumable(tiny_config)


@pytest.fixture(scope='module')
def finished(tmp_path_factory, make_tiny_config):
  """An undisturbed run, and what it returned."""
  workdir = str(tmp_path_factory.mktemp('runs') / 'undisturbed')
  return workdir, train.train_and_evaluate(
    resumable(make_tiny_config()), workdir
  )


def check_same_end(config, workdir, whole, summary):
  """Checks that resuming in `workdir` ends as the run in `whole` did."""
  assert train.train_and_evaluate(config, workdir) == summary
  assert same_arrays(stored_arrays(workdir, 4), stored_arrays(whole, 4))


def cut_in_half(whole, workdir):
  """Copies a run as if it had been killed before its last checkpoint."""
  shutil.copytree(whole, workdir)
  shutil.rmtree(os.path.join(workdir, 'checkpoints', '4'))
  os.remove(os.path.join(workdir, 'eval.json'))
  return str(workdir)


def test_a_run_leaves_everything_it_promises(finished):
  workdir, summary = finished
  filelock.FileLock(f'{workdir}/lock').acquire(0)  # It is free.
  assert json.loads(read(workdir, 'eval.json')) == summary
  assert summary['examples'] == 360
  assert set(summary['cra']) == {'0.25', '0.5'}
  # Proved, and tight for matrices that were just retracted.
  assert 1 <= summary['lipschitz_bound'] < 1 + 1e-5
  assert len(read(workdir, 'radii.csv').splitlines()) == 361
  metrics = read_metrics(workdir)
  assert [m['step'] for m in metrics if 'train/loss' in m] == [3, 4]
  assert [m['step'] for m in metrics if 'monitor/certified' in m] == [2]
  (start,) = json.loads(read(workdir, 'run.json'))
  assert start['mesh'] == {'data': 4, 'fsdp': 2, 'tensor': 1}
  assert 'params/blocks/R ' in read(workdir, 'parameters.txt')
  assert os.listdir(os.path.join(workdir, 'tensorboard'))
  product = math.prod(map(math.prod, summary['lipschitz_bounds'].values()))
  assert summary['lipschitz_bound'] == pytest.approx(product, abs=1e-14)
  with np.load(os.path.join(workdir, 'gallery.npz')) as gallery:
    assert 8 <= len(gallery['id']) <= 24
    images = datasets.load_digits().images / 16
    for image in gallery['image']:
      assert (images == image[..., 0]).all((1, 2)).any()
  # No file is missing or stale.
  assert 'evaluate the run' not in read(workdir, 'report.html')


def test_resuming_is_bitwise(finished, config, tmp_path):
  """4 steps equal 2 steps, a restore and 2 steps, in all arrays and numbers.

  The sums of the log line at step 3 start before the restore.
  """
  whole, summary = finished
  workdir = cut_in_half(whole, tmp_path / 'cut')
  with open(os.path.join(workdir, 'metrics.jsonl'), 'a') as file:
    file.write('{"step": 5, "tr')  # A line that a kill cut.
  check_same_end(config, workdir, whole, summary)
  two, four = (stored_arrays(workdir, step) for step in (2, 4))
  assert len(two) > 10
  assert not same_arrays(two, four)  # The check can fail.
  assert read(workdir, 'radii.csv') == read(whole, 'radii.csv')
  assert len(json.loads(read(workdir, 'run.json'))) == 2
  assert read_metrics(workdir) == read_metrics(whole)


@pytest.mark.parametrize('asked', [1, 2])
def test_a_signal_at_the_end_is_not_forgotten(
  finished, config, tmp_path, monkeypatch, asked
):
  """A signal in the last step, or in the save after it, skips evaluation."""
  asks = []

  def received(self, step):
    asks.append(step)
    return signal.SIGTERM if asks[-asked:] == [4] * asked else None

  workdir = str(tmp_path / 'stopped')
  with monkeypatch.context() as patch:
    patch.setattr(interrupts.Interrupts, 'received', received)
    with pytest.raises(interrupts.StoppedError, match='step 4 is sav') as info:
      train.train_and_evaluate(config, workdir)
  assert info.value.exit_code == 143
  filelock.FileLock(f'{workdir}/lock').acquire(0)  # It is free.
  assert not os.path.exists(os.path.join(workdir, 'eval.json'))
  check_same_end(config, workdir, *finished)


def late_nan(logits, labels, kernel, epsilon, **options):
  """The loss, but NaN at the last two steps."""
  loss = losses.emma_loss(logits, labels, kernel, epsilon, **options)
  return jnp.where(epsilon > 0.7, jnp.nan, loss)


def test_skipped_steps_are_said_and_too_many_end_the_run(
  finished, config, tmp_path, monkeypatch, capsys
):
  workdir = str(tmp_path / 'run')
  config.health.max_skipped, config.health.drift = 2, 1e-9
  config.checkpoint.every = '3 steps'  # Due where step 3 is skipped.
  with monkeypatch.context() as patch:
    patch.setitem(losses.LOSSES, 'emma', late_nan)
    with pytest.raises(errors.NonFiniteError) as stopped:
      train.train_and_evaluate(config, workdir)
  filelock.FileLock(f'{workdir}/lock').acquire(0)  # It is free.
  said = capsys.readouterr().err
  assert 'step 3: 1 steps skipped, whose loss or gradient was not' in said
  assert 'step 3: orthogonality error' in said  # Float32 is not that exact.
  logged = [m for m in read_metrics(workdir) if 'train/skipped_steps' in m]
  assert [m['train/skipped_in_a_row'] for m in logged] == [1, 2]
  assert ['train/loss' in m for m in logged] == [True, False]
  message = str(stopped.value)
  assert message.startswith('step 4: loss or gradient were not finite in the ')
  assert 'last 2 steps (first: loss)' in message
  assert 'the checkpoint of step 2 is intact' in message
  assert os.listdir(os.path.join(workdir, 'checkpoints')) == ['2']
  check_same_end(config, workdir, *finished)


def test_an_update_that_is_not_finite_is_never_saved(tiny_config, tmp_path):
  """Loss and gradient are finite, and the step overflows."""
  tiny_config.optimizer.learning_rate = 2e9
  tiny_config.checkpoint.every = '1 steps'
  workdir = str(tmp_path / 'run')
  with pytest.raises(errors.NonFiniteError, match='the update is not finite'):
    train.train_and_evaluate(tiny_config, workdir)
  for step in os.listdir(os.path.join(workdir, 'checkpoints')):
    assert all(np.isfinite(x).all() for x in stored_arrays(workdir, step))


def test_a_finished_run_only_evaluates(finished, config, capsys):
  workdir, summary = finished
  before = {name: read(workdir, name) for name in ('metrics.jsonl', 'run.json')}
  assert train.train_and_evaluate(config, workdir) == summary
  captured = capsys.readouterr()
  assert 'finished at step 4' in captured.err
  assert 'digits, test split' in captured.out
  assert before == {name: read(workdir, name) for name in before}
  config.eval.checkpoint, config.eval.split = 'best', 'validation'
  best = train.train_and_evaluate(config, workdir, train=False)
  assert best['step'] == 2  # The only one that was monitored.
  assert best['examples'] == 100
  config.eval.checkpoint, config.eval.split = 'last', 'test'
  assert train.train_and_evaluate(config, workdir, train=False) == summary


def test_a_config_that_does_not_fit_is_refused_and_nothing_is_written(
  finished, make_tiny_config, tmp_path
):
  used, new = pathlib.Path(finished[0]), tmp_path / 'new'

  def snapshot():
    return {path: path.stat().st_mtime for path in used.rglob('*')}

  before = snapshot()
  for field, value, problem, workdirs in (
    ('model.width', 32, r'model\.width=32 differs', [used]),
    ('microbatches', 3, r'batch_size=32.*3 micro.*48', [new]),
    ('eval.batch_size', 100, r'eval\.batch_size=100', [used, new]),
  ):
    config = resumable(make_tiny_config(), **{field: value})
    for workdir in workdirs:
      with pytest.raises(errors.ConfigError, match=problem):
        train.train_and_evaluate(config, str(workdir))
  assert snapshot() == before
  assert not new.exists()


@pytest.mark.parametrize('name', ['liresnet', 'cayley'])
def test_other_models_train_certify_and_resume_bitwise(
  name, tiny_config, tmp_path
):
  c = tiny_config
  c.model.depth, c.model.width = 1, 8
  c.optimizer.retraction_period = '1 epochs'
  c.checkpoint.every = '2 steps'
  if name == 'liresnet':
    c.model.name, c.model.activation = 'liresnet', 'minmax'
    c.model.baseline.update({'dense_depth': 1, 'dense_width': 8})
  else:
    c.model.parametrization, c.mesh.fsdp = 'cayley', 2
    c.eval.certificate = 'rigorous'
  workdir = str(tmp_path / 'run')
  summary = train.train_and_evaluate(c, workdir)
  if name == 'liresnet':
    assert summary['lipschitz_bound'] > 1.1  # Its convolutions may stretch.
    assert 'blocks/conv_circular' in summary['lipschitz_bounds']
  else:
    assert 1 <= summary['lipschitz_bound'] < 1 + 1e-4
  check_same_end(c, cut_in_half(workdir, tmp_path / 'cut'), workdir, summary)
