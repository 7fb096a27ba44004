import json

import numpy as np
import pytest

from lipnext_jax import files


def test_a_file_is_replaced_at_once(tmp_path):
  path = tmp_path / 'x.json'
  files.write_json(str(path), {'a': 1})
  with pytest.raises(TypeError):
    files.write_json(str(path), {'a': object()})
  assert json.loads(path.read_text()) == {'a': 1}


def test_arrays_are_replaced_at_once(tmp_path):
  path = tmp_path / 'x.npz'
  files.write_npz(str(path), {'a': np.arange(3)})
  with pytest.raises(ValueError, match='allow_pickle'):
    files.write_npz(str(path), {'a': np.array([object()])})
  with np.load(path) as stored:
    assert stored['a'].tolist() == [0, 1, 2]
