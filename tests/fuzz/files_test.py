"""Malformed images, arrays, predictors and workdirs from strangers.

Valid files are cut, or have bits flipped, or parts doubled or overwritten. What
comes of it is the contents (checksums do not cover everything) or an error of
ours in one line, soon.
"""

import contextlib
import functools
import json
import time

import jax
import numpy as np
from PIL import Image
import pytest

from lipnext_jax import certify
from lipnext_jax import checkpoint
from lipnext_jax import errors
from lipnext_jax import models
from lipnext_jax import report
from lipnext_jax.data import images
from lipnext_jax.data import inputs
from lipnext_jax.data import sources

SECONDS = 10.0  # More is a hang; a call takes milliseconds.
PIXELS = np.random.default_rng(0).integers(256, size=(9, 7, 3), dtype=np.uint8)


def damaged(data, seed):
  """Returns `data` with one to four damages, the same for a seed."""
  rng = np.random.default_rng(seed)
  data = bytearray(data)
  for _ in range(rng.integers(1, 5)):
    at, size = int(rng.integers(max(1, len(data)))), int(rng.integers(1, 65))
    damages = [  # The end of what is replaced, and its replacement.
      (at + 1, bytes(byte ^ 1 << size % 8 for byte in data[at : at + 1])),
      (at + size**2, b''),
      (at, data[at : at + size]),
      (at + size, bytes(size)),
      (at + size, b'\xff' * size),
      (at, str(10**size).encode()[:size]),
    ]
    end, replacement = damages[rng.integers(len(damages))]
    data[at:end] = replacement
  return bytes(data)


def survive(call):
  """Calls; it raises nothing but an error of ours, and is soon over."""
  begin = time.monotonic()
  with contextlib.suppress(errors.UserError):  # Its text is one line.
    call()
  assert time.monotonic() - begin < SECONDS


def read_input(path):
  return inputs.read(path, inputs.Preprocessing((9, 7, 3), 0))


def write_predictor(path):
  model = models.LipNeXt(num_classes=2, depth=1, width=8, patch_size=4)
  params = model.init(jax.random.key(0), np.zeros((1, 8, 8, 1)))['params']
  certify.export_predictor(path, model, params, (8, 8, 1))


# Name → (writes a valid file, reads a file of that name, how many times).
FILES = {
  **{
    f'x.{kind}': (Image.fromarray(PIXELS).save, read_input, 40)
    for kind in images.FORMATS
  },
  'x.npy': (lambda path: np.save(path, PIXELS), read_input, 100),
  'train.npz': (
    lambda path: np.savez_compressed(path, image=PIXELS[None], label=[3]),
    functools.partial(sources.open_npz, 'dataset.extra_npz'),
    100,
  ),
  'x.lipnext': (write_predictor, certify.load_predictor, 60),
}


@pytest.mark.parametrize('name', FILES)
@pytest.mark.filterwarnings('ignore')  # Pillow's, of what it could still read.
def test_damaged_files(name, tmp_path):
  write, read, count = FILES[name]
  path = tmp_path / name
  write(str(path))
  data = path.read_bytes()
  for seed in range(count):
    path.write_bytes(damaged(data, seed))
    survive(lambda: read(str(path)))


def test_a_reader_that_has_other_errors_is_seen():
  with pytest.raises(KeyError):
    survive(lambda: {}['not one of ours'])


OTHERS = [  # JSON of another form, or none.
  *('null', 'true', '-1', '1e400', 'NaN', '""', '[]', '[[]]', '[{}]', '{}'),
  *('{"": {}}', '{"a": [null, 0.5]}', '{"model.depth": 1}', '[{"data": 3}]'),
  *('[{"data": {"image_shape": "x", "num_classes": {}}}]', '{"step": "x"}'),
  *('{"step": 1e400, "train/loss": []}', '', '\udcff'),
]
READERS = {
  'config.json': [
    checkpoint.check_workdir,
    lambda path, _: checkpoint.read_config(path),
  ],
  'run.json': [lambda workdir, _: report.read_data_facts(workdir)],
  'metrics.jsonl': [
    lambda workdir, _: report.MetricWriter(workdir, start_step=5).close()
  ],
}


@pytest.mark.parametrize('name', READERS)
def test_workdirs_with_other_contents(tiny_config, tmp_path, name):
  """A file that is damaged, or is other JSON."""
  checkpoint.write_config(str(tmp_path), tiny_config)
  facts = {'image_shape': [8, 8, 1], 'num_classes': 10}
  facts |= {'train_examples': 1437, 'resize': 0}
  (tmp_path / 'run.json').write_text(json.dumps([{'data': facts}]))
  metrics = '{"step": 3, "train/loss": 1.0}\n' * 3
  (tmp_path / 'metrics.jsonl').write_text(metrics)
  valid = (tmp_path / name).read_bytes()

  others = [text.encode(errors='surrogateescape') for text in OTHERS]
  for data in others + [damaged(valid, seed) for seed in range(30)]:
    (tmp_path / name).write_bytes(data)
    for read in READERS[name]:
      survive(lambda read=read: read(str(tmp_path), tiny_config))
