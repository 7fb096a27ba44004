import json

import ml_collections
import numpy as np
import pytest

from lipnext_jax import errors
from lipnext_jax.data import sources
from lipnext_jax.data import views
from lipnext_jax.parallel import mesh as mesh_lib
from lipnext_jax.report import records


def test_a_run_is_described_by_versions_devices_and_commit():
  mesh = mesh_lib.make_mesh(ml_collections.ConfigDict({'data': -1, 'fsdp': 1}))
  run = records.describe_run(mesh)
  assert run['devices']['count'] == 8
  assert run['mesh'] == {'data': 8, 'fsdp': 1, 'tensor': 1}
  assert run['packages']['jax'].count('.') >= 2
  assert run['commit']
  json.dumps(run)


def a_set(classes=('cat', 'dog'), count=4, train_files='hash'):
  images = np.zeros((count, 8, 8, 1), np.uint8)
  source = views.ArraySource(images, np.arange(count) % 2)
  return sources.Dataset(
    image_shape=(8, 8, 1),
    num_classes=len(classes),
    train=source,
    test=source,
    class_names=classes,
    train_files=train_files,
  )


def test_a_run_goes_on_with_its_own_data_alone(tmp_path):
  """Another class or image changes labels, and the split of a folder."""
  workdir, before = str(tmp_path), a_set()
  records.check_data(workdir, '/data', before)  # There is no run yet.
  (tmp_path / 'run.json').write_text('[')
  records.check_data(workdir, '/data', before)  # Its record is damaged.
  facts = {
    'image_shape': [8, 8, 1],
    'num_classes': 2,
    'train_examples': 4,
    'class_names': ['cat', 'dog'],
    'train_files': 'hash',
    'resize': 0,
  }
  (tmp_path / 'run.json').write_text(json.dumps([{'data': facts}]))
  records.check_data(workdir, '/data', before)
  for now, change in (
    (a_set(('cat', 'cow', 'dog')), '3 classes, not 2'),
    (a_set(('cat', 'cow')), "'cow' as class 1, not 'dog'"),
    (a_set(count=3), '3 training images, not 4'),
    (a_set(train_files='other'), 'training images of other names'),
  ):
    with pytest.raises(errors.ConfigError, match=change) as caught:
      records.check_data(workdir, '/moved', now)
    assert 'data_dir=' in str(caught.value)
  del facts['train_files']  # Earlier versions did not record it.
  (tmp_path / 'run.json').write_text(json.dumps([{'data': facts}]))
  records.check_data(workdir, '/data', before)
