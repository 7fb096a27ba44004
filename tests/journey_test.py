"""The way of a user with images of their own, from a folder to a predictor."""

import csv
import json
import os
import sys

import numpy as np
from PIL import Image
import pytest

from lipnext_jax import certify
from tests.runs import read

JOURNEY = """
import os
import sys
from lipnext_jax import main
from lipnext_jax.certify import __main__ as certify
sys.argv = ['main', '--config=configs/folder.py:size=32',
  '--config.dataset.data_dir=~/images', '--workdir=~/run',
  '--config.model.depth=2', '--config.model.width=16',
  '--config.batch_size=16', '--config.duration=3 steps',
  '--config.optimizer.warmup=1 steps', '--config.eval.every=0 steps']
main.main(main._parse(sys.argv))
assert not certify.main(['--workdir=~/run', '--export=~/x.lipnext'])
for flag in ('--workdir=~/run', '--predictor=~/x.lipnext'):
  print('=====')
  assert not certify.main([flag, '--certificate=fast', '--json', '~/images'])
images = os.path.expanduser('~/images/')
os.rename(images + 'noon', images + 'day')
main.main([])
"""


@pytest.fixture
def home(tmp_path):
  """Two classes of dark and bright images of several sizes."""
  rng = np.random.default_rng(0)
  for number, name in enumerate(('night <b>', 'noon')):
    folder = tmp_path / 'images' / name
    (folder / 'deep').mkdir(parents=True)
    for i in range(12):
      pixels = rng.integers(128, size=(34 + 2 * i, 40, 3)) + 127 * number
      file = f'{number}-{i}.{"png" if i % 2 else "jpg"}'
      path = folder / 'deep' / file if i % 3 else folder / file
      Image.fromarray(np.uint8(pixels)).save(path)
  return str(tmp_path)


def test_a_folder_becomes_a_predictor_that_agrees_on_every_file(
  home, run_command
):
  """The commands run in one process; `home` is its ~.

  The last one is refused: the labels of a finished run have changed.
  """
  one = os.environ['XLA_FLAGS'].replace('device_count=8', 'device_count=1')
  command = [sys.executable, '-c', JOURNEY]
  done = run_command(command, code=2, HOME=home, XLA_FLAGS=one)
  out, err = done.stdout, done.stderr
  assert 'no test split: 4 of 24 images are held out' in err
  assert 'compiling the train step …' in err
  assert "has 'day' as class 0, not 'night <b>', as when the run in" in err
  _, *reports = out.split('=====')
  found = [
    {entry['path']: entry for entry in json.loads(report)['images']}
    for report in reports
  ]
  by_run, by_predictor = found
  assert len(by_run) == 24
  run = f'{home}/run'
  rows = list(csv.DictReader(read(run, 'radii.csv').splitlines()))
  assert len(rows) == 4
  for row in rows:
    assert row['label_name'] == row['file'].split('/')[0]
    for entries in found:
      entry = entries[f'{home}/images/{row["file"]}']
      assert entry['class'] == int(row['prediction'])
      assert entry['class_name'] == row['prediction_name']
      assert entry['radius'] == pytest.approx(float(row['radius']), abs=1e-4)
  for path, entry in by_run.items():
    assert by_predictor[path]['class'] == entry['class']
  # The predictor file and the report hold the names of the classes.
  predictor = certify.load_predictor(f'{home}/x.lipnext')
  assert predictor.class_names == ('night <b>', 'noon')
  assert predictor.contents.resize == 32
  page = read(run, 'report.html')
  for part in ('night &lt;b&gt;', rows[0]['file'].split('/')[-1], '36/255'):
    assert part in page
