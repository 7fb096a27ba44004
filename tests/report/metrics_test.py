import time
from unittest import mock

import jax.numpy as jnp
import pytest
from tensorboardX.proto import event_pb2

from lipnext_jax.report import metrics

SCALARS = {
  'train/loss': 1.5,
  'train/clean': 50.0,
  'train/certified': 25.0,
  'train/epsilon': 0.1,
  'train/learning_rate': 1e-3,
  'train/orthogonality_error': 1e-6,
}


def read_events(path):
  """Reads TFRecords: length (8 bytes), crc (4), data, crc (4)."""
  data, values = path.read_bytes(), []
  while data:
    length = int.from_bytes(data[:8], 'little')
    event = event_pb2.Event.FromString(data[12 : 12 + length])
    values += [(event.step, v.tag, v.simple_value) for v in event.summary.value]
    data = data[16 + length :]
  return values


def test_a_resumed_run_drops_lines_beyond_its_checkpoint(tmp_path):
  writer = metrics.MetricWriter(str(tmp_path))
  for step in (1, 2, 3):
    writer.write(step, {'train/loss': float(step)})
  writer.close()
  (path,) = (tmp_path / 'tensorboard').iterdir()
  expected = [(step, 'train/loss', step) for step in (1, 2, 3)]
  assert read_events(path) == expected
  with open(tmp_path / 'metrics.jsonl', 'a') as file:
    file.write('{"step": 4, "trai')  # Killed while writing.
  writer = metrics.MetricWriter(str(tmp_path), start_step=2)
  writer.write(3, {'train/loss': 30.0})
  writer.close()
  lines = metrics.read_metrics(tmp_path / 'metrics.jsonl')
  losses = [(scalars['step'], scalars['train/loss']) for _, scalars in lines]
  assert losses == [(1, 1.0), (2, 2.0), (3, 30.0)]


@pytest.fixture
def clock(monkeypatch):
  """A list with the time, which the test sets."""
  now = [0.0]
  monkeypatch.setattr(metrics.time, 'perf_counter', lambda: now[0])
  return now


def test_progress_shows_everything_the_readme_promises(clock, capsys):
  with metrics.Progress(100, start_step=0, batch_size=8) as progress:
    # Pauses do not count in images per second.
    for step, pause in ((10, 0.0), (20, 7.0), (30, 0.0)):
      clock[0] += 1.0
      with progress.paused():
        clock[0] += pause
      clock[0] += 1.0
      assert progress.update(step, SCALARS) == 10 * 8 / 2
  shown = capsys.readouterr().err
  for part in (
    '30/100', 'eta', '40 img/s', 'loss 1.500', 'clean 50.0%', 'cert 25.0%',
    'ε 0.1', 'lr 1.0e-03', 'orth 1e-06',
  ):  # fmt: skip
    assert part in shown


def test_the_bar_moves_every_second_whatever_is_logged(clock, monkeypatch):
  bar = mock.Mock(n=0)  # It stays there: every update starts from 0.
  monkeypatch.setattr(metrics.tqdm, 'tqdm', lambda **options: bar)
  progress = metrics.Progress(12_000, start_step=0, batch_size=8)
  for step in range(1, 12_001):
    clock[0] += 2**-10 if step <= 10_240 else 5.0
    progress.tick(step, jnp.float32(1.25))
  # Ten seconds of short steps, after the first few; then long ones.
  steps, texts = (
    [call.args[0] for call in method.call_args_list]
    for method in (bar.update, bar.set_postfix_str)
  )
  short = sum(step <= 10_240 for step in steps)
  assert 10 <= short <= 10 + 10
  assert texts[short - 1] == '8192 img/s loss 1.250'
  assert steps[-10:] == [*range(11_991, 12_001)]
  progress.failing = 'gradients clipped'
  progress.update(12_000, SCALARS)
  text = bar.set_postfix_str.call_args.args[0]
  assert text.startswith('FAILING: gradients clipped, ')
  assert ' img/s loss 1.500 clean 50.0%' in text


def test_what_takes_long_is_said_before_it_starts(capsys):
  with metrics.stopwatch('compiling'):
    assert capsys.readouterr().err == 'compiling …\n'
  assert capsys.readouterr().err.startswith('compiling took 0.')
  with metrics.stopwatch('reading', patience=0.05):
    time.sleep(0.2)
    assert capsys.readouterr().err == 'reading …\n'
  capsys.readouterr()
  with metrics.stopwatch('reading', patience=60):
    pass
  assert not capsys.readouterr().err
