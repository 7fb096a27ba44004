import json

import pytest

from lipnext_jax import files


def test_a_file_is_replaced_at_once(tmp_path):
  path = tmp_path / 'x.json'
  files.write_json(str(path), {'a': 1})
  with pytest.raises(TypeError):
    files.write_json(str(path), {'a': object()})
  assert json.loads(path.read_text()) == {'a': 1}
