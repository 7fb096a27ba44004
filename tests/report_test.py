import csv
import io
import json
import os

import ml_collections
import numpy as np
import pytest
from tensorboardX.proto import event_pb2

from lipnext_jax import evaluate
from lipnext_jax import report
from lipnext_jax.parallel import mesh as mesh_lib

SCALARS = {
  'train/loss': 1.5,
  'train/clean': 50.0,
  'train/certified': 25.0,
  'train/epsilon': 0.1,
  'train/learning_rate': 1e-3,
  'train/orthogonality_error': 1e-6,
}


def evaluation():
  return evaluate.Evaluation(
    ids=np.arange(3),
    labels=np.array([4, 5, 6]),
    predictions=np.array([4, 5, 0]),
    radii=np.array([0.1, 1 / 3, 0], np.float32),
    lipschitz_bound=1.00001,
  )


def test_radii_keep_all_float32_digits(tmp_path):
  result = evaluation()
  report.write_evaluation(str(tmp_path), result, result.summary([0.25]))
  with open(tmp_path / 'radii.csv', newline='') as file:
    rows = list(csv.DictReader(file))
  assert [row['id'] for row in rows] == ['0', '1', '2']
  assert [row['prediction'] for row in rows] == ['4', '5', '0']
  stored = np.array([float(row['radius']) for row in rows], np.float32)
  np.testing.assert_array_equal(stored, result.radii)
  summary = json.loads((tmp_path / 'eval.json').read_text())
  assert summary['cra'] == {'0.25': pytest.approx(100 / 3)}
  assert summary['examples'] == 3
  assert not [name for name in os.listdir(tmp_path) if name.endswith('.tmp')]


def test_the_table_shows_every_number():
  out = io.StringIO()
  report.print_table(evaluation().summary([0.25, 0.5]), 'Title', out)
  text = out.getvalue()
  for part in (
    'Title',
    '66.67 %',
    '0.25 ',
    '33.33 %',
    '1 + 1.1e-05',
  ):  # The float exceeds 1 + 1e-5.
    assert part in text
  out = io.StringIO()
  summary = evaluation().summary([0.25]) | {'lipschitz_bound': 4.25}
  report.print_table(summary, 'Title', out)
  assert ' 4.25 (proved)' in out.getvalue()


def read_lines(path):
  return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_resumed_run_drops_lines_beyond_its_checkpoint(tmp_path):
  writer = report.MetricWriter(str(tmp_path))
  for step in (1, 2, 3):
    writer.write(step, {'train/loss': float(step)})
  writer.close()
  with open(tmp_path / 'metrics.jsonl', 'a') as file:
    file.write('{"step": 4, "trai')  # Killed while writing.
  writer = report.MetricWriter(str(tmp_path), start_step=2)
  writer.write(3, {'train/loss': 30.0})
  writer.close()
  lines = read_lines(tmp_path / 'metrics.jsonl')
  assert [line['step'] for line in lines] == [1, 2, 3]
  assert lines[-1]['train/loss'] == 30.0


def test_event_files_hold_the_scalars(tmp_path):
  writer = report.MetricWriter(str(tmp_path))
  writer.write(7, {'train/loss': 0.5})
  writer.close()
  (path,) = (tmp_path / 'tensorboard').iterdir()
  # TFRecord framing: length (8 bytes), crc (4), data, crc (4).
  data, events = path.read_bytes(), []
  while data:
    length = int.from_bytes(data[:8], 'little')
    events.append(event_pb2.Event.FromString(data[12 : 12 + length]))
    data = data[16 + length :]
  values = [
    (event.step, value.tag, value.simple_value)
    for event in events
    for value in event.summary.value
  ]
  assert values == [(7, 'train/loss', 0.5)]


def test_progress_shows_everything_the_readme_promises(capsys):
  with report.Progress(total_steps=10, start_step=2, batch_size=8) as progress:
    rate = progress.update(6, SCALARS)
  assert rate > 0
  shown = capsys.readouterr().err
  for part in ('6/10', 'eta', 'img/s', 'loss', 'clean', 'cert', 'ε', 'lr'):
    assert part in shown
  assert 'orth 1e-06' in shown


def test_pauses_do_not_count_in_images_per_second(monkeypatch):
  now = [0.0]
  monkeypatch.setattr(report.time, 'perf_counter', lambda: now[0])
  with report.Progress(total_steps=100, start_step=0, batch_size=8) as progress:
    for step, pause in ((10, 0.0), (20, 7.0), (30, 0.0)):
      now[0] += 1.0
      with progress.paused():
        now[0] += pause
      now[0] += 1.0
      assert progress.update(step, SCALARS) == 10 * 8 / 2


def test_a_run_is_described_by_versions_devices_and_commit():
  mesh = mesh_lib.make_mesh(ml_collections.ConfigDict({'data': -1, 'fsdp': 1}))
  run = report.describe_run(mesh)
  assert run['devices']['count'] == 8
  assert run['mesh'] == {'data': 8, 'fsdp': 1, 'tensor': 1}
  assert run['packages']['jax'].count('.') >= 2
  assert run['commit']
  json.dumps(run)
