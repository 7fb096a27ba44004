import os
import sys

import numpy as np
import pytest

from lipnext_jax import errors
from lipnext_jax import files


def test_a_file_is_replaced_at_once_or_left_alone(tmp_path):
  files.write_json(f'{tmp_path}/x.json', {'a': 1})
  files.write_arrays(f'{tmp_path}/x.npz', {'a': np.arange(3), 'b': ['x']})
  with pytest.raises(TypeError):
    files.write_json(f'{tmp_path}/x.json', {'a': object()})
  with pytest.raises(TypeError):
    files.write_arrays(f'{tmp_path}/x.npz', {7: np.arange(3)})
  assert sorted(os.listdir(tmp_path)) == ['x.json', 'x.npz']
  assert files.read_json(f'{tmp_path}/x.json') == {'a': 1}
  with np.load(tmp_path / 'x.npz', allow_pickle=False) as stored:
    assert stored['a'].tolist() == [0, 1, 2]
    assert stored['b'].tolist() == ['x']


def test_a_write_that_fails_names_its_file():
  full = '/dev/full'
  error = pytest.raises(OSError, match=f"No space left .*'{full}'")
  with error, files.naming(full), open(full, 'w') as file:
    file.write('x')


def test_no_link_is_followed_out_of_a_folder(tmp_path):
  """A stranger's workdir may hold any name, leading anywhere."""
  precious = tmp_path / 'precious'
  precious.write_text('precious')
  for name in ('a.json.tmp', 'a.json', 'log'):
    (tmp_path / name).symlink_to(precious)
  files.write_json(f'{tmp_path}/a.json', {'a': 1})
  assert files.read_json(f'{tmp_path}/a.json') == {'a': 1}
  with pytest.raises(OSError, match='symbolic links'):
    files.append(f'{tmp_path}/log')
  assert precious.read_text() == 'precious'


def test_an_address_that_names_no_bucket_is_refused():
  with pytest.raises(errors.ConfigError, match='is not a path or an addr'):
    files.exists('gs:///x')


@pytest.mark.parametrize('package', ['fsspec', 'gcsfs'])
def test_a_bucket_without_its_packages_names_the_extra(monkeypatch, package):
  monkeypatch.setitem(sys.modules, package, None)
  message = rf"needs a package .* \({package}\); .*pip install .*'.\[gcs\]'\."
  with pytest.raises(errors.ConfigError, match=message):
    files.exists('gs://bucket/x')
