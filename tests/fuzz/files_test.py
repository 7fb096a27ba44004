"""Malformed archives, images, arrays and workdirs from strangers.

Each is valid bytes with something done to them: bits flipped, parts cut,
doubled or overwritten. What comes of it is the contents (checksums do not
cover everything) or an error of ours in one line, soon, and nothing is written.
"""

import functools
import io
import json
import os
import pickle
import shutil
import tarfile
import time
import tracemalloc
import zipfile

import hypothesis
from hypothesis import strategies as st
import jax
import numpy as np
from PIL import Image
import pytest

from lipnext_jax import certify
from lipnext_jax import checkpoint
from lipnext_jax import errors
from lipnext_jax import models
from lipnext_jax import report
from lipnext_jax import restore
from lipnext_jax.data import images
from lipnext_jax.data import inputs
from lipnext_jax.data import npz
from lipnext_jax.data.formats import archives
from lipnext_jax.data.formats import restricted_pickle

SECONDS = 10.0  # More is a hang; a call takes milliseconds.
MEMORY = 700 << 20  # Bytes: of the largest image allowed, as RGB and as RGBA.
PIXELS = np.random.default_rng(0).integers(256, size=(9, 7, 3), dtype=np.uint8)

KINDS = ['flip', 'cut', 'double', 'zero', 'fill', 'insert']


@st.composite
def damages(draw):
  """Up to four times: what, where (0 to 1), how much."""
  one = st.tuples(st.sampled_from(KINDS), st.floats(0, 1), st.integers(1, 64))
  return draw(st.lists(one, min_size=1, max_size=4))


def damaged(data, what):
  data = bytearray(data)
  for kind, where, size in what:
    at = int(where * max(0, len(data) - 1))
    if kind == 'flip' and data:
      data[at] ^= 1 << size % 8
    elif kind == 'cut':
      del data[at : at + size**2]
    elif kind == 'double':
      data[at:at] = data[at : at + size]
    elif kind == 'zero':
      data[at : at + size] = bytes(size)
    elif kind == 'fill':
      data[at : at + size] = b'\xff' * size
    else:
      data[at:at] = str(10**size).encode()[:size]
  return bytes(data)


def many(count):
  return hypothesis.settings(
    max_examples=count,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=list(hypothesis.HealthCheck),
  )


def survive(call, *known):
  """Calls; what it raises is known, one line, soon, and small."""
  begin, message = time.monotonic(), 'one line'
  tracemalloc.start()
  try:
    call()
  except (errors.UserError, *known) as error:
    message = str(error)
  finally:
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
  assert time.monotonic() - begin < SECONDS
  assert peak < MEMORY
  assert len(message.splitlines()) == 1


def snapshot(folder):
  return {
    os.path.join(base, name): os.path.getsize(os.path.join(base, name))
    for base, _, names in os.walk(folder)
    for name in names
  }


@pytest.fixture
def check_writes(tmp_path, monkeypatch):
  """Runs a call on a file of such bytes; no other file changes."""
  monkeypatch.chdir(tmp_path)

  def check(name, data, call, *known):
    path = tmp_path / 'in' / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(data)
    before = snapshot(tmp_path)
    survive(lambda: call(str(path)), *known)
    assert snapshot(tmp_path) == before
    path.unlink()

  return check


def make_tar(compression='', kind=tarfile.PAX_FORMAT, folder='folder'):
  file = io.BytesIO()
  with tarfile.open(fileobj=file, mode=f'w:{compression}', format=kind) as tar:
    for i in range(3):
      info = tarfile.TarInfo(f'{folder}/{i}.bin')
      info.size = 600 * i
      tar.addfile(info, io.BytesIO(bytes(600 * i)))
  return file.getvalue()


def make_zip():
  file = io.BytesIO()
  with zipfile.ZipFile(file, 'w', zipfile.ZIP_DEFLATED) as archive:
    for i in range(3):
      archive.writestr(f'folder/{i}.txt', 'text' * 100 * i)
  return file.getvalue()


def read_all(entries):
  for entry in entries:
    archives.read(entry)


LONG = 'long' * 40  # With extension headers for every file.
ARCHIVES = {
  'tar': (make_tar(), lambda path: read_all(archives.list_tar(path))),
  'gnu.tar': (
    make_tar('', tarfile.GNU_FORMAT, LONG),
    lambda path: read_all(archives.list_tar(path)),
  ),
  'pax.tar': (
    make_tar('', tarfile.PAX_FORMAT, LONG),
    lambda path: read_all(archives.list_tar(path)),
  ),
  'tar.gz': (
    make_tar('gz'),
    lambda path: archives.read_tar_gz(path, frozenset(['1.bin', '2.bin'])),
  ),
  'zip': (make_zip(), lambda path: read_all(archives.list_zip(path))),
}


@pytest.mark.parametrize('kind', ARCHIVES)
def test_damaged_archives(check_writes, kind):
  data, call = ARCHIVES[kind]

  @many(60)
  @hypothesis.given(damages())
  def check(what):
    check_writes(f'x.{kind}', damaged(data, what), call)

  check()


NAMES = ['../out', '/tmp/out', 'a/../../out', 'C:\\out', '', 'a\0b', '..', '.']
TYPES = [
  tarfile.LNKTYPE,
  tarfile.SYMTYPE,
  tarfile.CHRTYPE,
  tarfile.BLKTYPE,
  tarfile.FIFOTYPE,
  tarfile.DIRTYPE,
  tarfile.REGTYPE,
]


@many(60)
@hypothesis.given(
  st.sampled_from(NAMES) | st.text(max_size=20),
  st.sampled_from(TYPES),
  st.integers(0, 2**40),
)
def test_hostile_members_of_tars(tmp_path_factory, name, kind, size):
  folder = tmp_path_factory.mktemp('tar')
  path = folder / 'x.tar'
  with tarfile.open(path, 'w') as tar:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, '/etc/passwd'
    info.size = size
    tar.addfile(info)
  before = snapshot(folder)
  survive(lambda: read_all(archives.list_tar(str(path))))
  assert snapshot(folder) == before


@many(40)
@hypothesis.given(
  st.sampled_from(NAMES) | st.text(max_size=20), st.integers(0, 0xFFFF)
)
def test_hostile_members_of_zips(tmp_path_factory, name, mode):
  folder = tmp_path_factory.mktemp('zip')
  path = folder / 'x.zip'
  with zipfile.ZipFile(path, 'w') as archive:
    info = zipfile.ZipInfo(name or 'x')
    info.external_attr = mode << 16
    archive.writestr(info, 'text')
  before = snapshot(folder)
  survive(lambda: read_all(archives.list_zip(str(path))))
  assert snapshot(folder) == before


def encode(kind):
  file = io.BytesIO()
  Image.fromarray(PIXELS).save(file, kind)
  return file.getvalue()


@pytest.mark.parametrize('kind', images.FORMATS)
@pytest.mark.filterwarnings('ignore')  # Pillow's, of what it could still read.
def test_damaged_images(kind):
  data = encode(kind)

  @many(60)
  @hypothesis.given(damages())
  def check(what):
    survive(lambda: images.decode(damaged(data, what)), images.BadImageError)

  check()


def save(array):
  file = io.BytesIO()
  np.save(file, array)
  return file.getvalue()


def save_all(**arrays):
  file = io.BytesIO()
  np.savez_compressed(file, **arrays)
  return file.getvalue()


HOW = inputs.Preprocessing((9, 7, 3), 0)


def test_damaged_arrays(check_writes):
  data = save(PIXELS)

  @many(120)
  @hypothesis.given(damages())
  def check(what):
    check_writes('x.npy', damaged(data, what), lambda p: inputs.read(p, HOW))

  check()


@pytest.mark.parametrize(
  'header', ["{'descr': '|u1', 'fortran_order': False, "]
)
@pytest.mark.parametrize('shape', ['(10**15,)', '(1000000000000000,)', '(-1,)'])
def test_arrays_that_claim_absurd_shapes(check_writes, header, shape):
  text = f"{header}'shape': {shape}, }}".ljust(117) + '\n'
  data = b'\x93NUMPY\x01\x00\x76\x00' + text.encode()
  check_writes('x.npy', data, lambda p: inputs.read(p, HOW))


def test_damaged_sets_of_arrays(check_writes):
  data = save_all(image=PIXELS[None], label=np.array([3]))

  @many(120)
  @hypothesis.given(damages())
  def check(what):
    check_writes(
      'train.npz',
      damaged(data, what),
      lambda p: npz.read_arrays(os.path.dirname(p), 'train.npz'),
    )

  check()


@many(200)
@hypothesis.given(damages())
def test_damaged_pickles(what):
  data = pickle.dumps({b'labels': [1, 2], b'data': b'\1' * 30}, protocol=2)
  survive(
    lambda: restricted_pickle.loads(damaged(data, what)),
    restricted_pickle.RefusedError,
  )


@pytest.fixture(scope='module')
def predictor(tmp_path_factory):
  """The bytes of an exported predictor."""
  path = str(tmp_path_factory.mktemp('export') / 'x.lipnext')
  model = models.LipNeXt(num_classes=2, depth=1, width=8, patch_size=4)
  params = model.init(jax.random.key(0), np.zeros((1, 8, 8, 1)))['params']
  certify.export_predictor(path, model, params, (8, 8, 1))
  with open(path, 'rb') as file:
    return file.read()


def test_damaged_predictors(check_writes, predictor):
  @many(60)
  @hypothesis.given(damages())
  def check(what):
    check_writes('x', damaged(predictor, what), certify.load_predictor)

  check()


JSON = st.recursive(
  st.none() | st.booleans() | st.floats() | st.text(max_size=5),
  lambda inner: (
    st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner)
  ),
  max_leaves=6,
)


@pytest.fixture(scope='module')
def workdir(tmp_path_factory, make_tiny_config):
  """What a run leaves that is read as JSON, without the run."""
  folder = tmp_path_factory.mktemp('run')
  checkpoint.write_config(str(folder), make_tiny_config())
  (folder / 'run.json').write_text(
    '[{"data": {"image_shape": [8, 8, 1], "num_classes": 10, '
    '"train_examples": 1437}}]'
  )
  return str(folder)


READERS = {
  'config.json': [
    lambda path, config: checkpoint.check_workdir(path, config),
    lambda path, config: restore.read_config(path),
  ],
  'run.json': [lambda path, config: report.read_data_facts(path)],
  'metrics.jsonl': [
    lambda path, config: report.MetricWriter(path, start_step=5).close()
  ],
}


@pytest.mark.parametrize('name', READERS)
def test_workdirs_with_other_contents(
  workdir, make_tiny_config, tmp_path, name
):
  """A file that is damaged, is other JSON, or nests without end."""
  config = make_tiny_config()
  path = os.path.join(workdir, name)
  valid = '{"step": 3, "train/loss": 1.0}\n' * 3
  if os.path.exists(path):
    with open(path, encoding='utf-8') as file:
      valid = file.read()
  copy = str(tmp_path / 'copy')
  shutil.copytree(workdir, copy)

  def check(data):
    with open(os.path.join(copy, name), 'wb') as file:
      file.write(data)
    for read in READERS[name]:
      survive(functools.partial(read, copy, config))

  many(50)(
    hypothesis.given(
      damages().map(lambda what: damaged(valid.encode(), what))
      | JSON.map(lambda value: json.dumps(value).encode())
      | st.sampled_from(
        [b'', b'[' * 100_000, b'\xff\xfe', b'{"model.depth": 1}']
      )
    )(check)
  )()
