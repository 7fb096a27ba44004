import json
import shutil

import jax
import numpy as np
import pytest

from lipnext_jax import certify
from lipnext_jax import errors
from lipnext_jax.checkpoint import restore
from lipnext_jax.data import sources


def certify_all(run):
  source = sources.load_dataset(run.config.dataset).test
  images = np.stack([source[i]['image'] for i in range(len(source))])
  predictions, rivals = certify.fast_certifier(run.model, run.params)(images)
  return predictions, np.min(rivals, axis=-1)


def test_one_device_gets_what_the_mesh_evaluated(trained_run):
  workdir, summary, config = trained_run
  run = restore.restore(workdir)
  assert run.step == summary['step'] == 4
  assert run.config.to_json() == config.to_json()
  with jax.enable_x64(True):  # A program in float64 gets the same arrays.
    wide = restore.restore(workdir)
  jax.tree.map(np.testing.assert_array_equal, run.params, wide.params)
  for leaf in jax.tree.leaves((run.params, wide.params)):
    assert leaf.dtype == np.float32
  table = np.loadtxt(f'{workdir}/radii.csv', delimiter=',', skiprows=1)
  predictions, radii = certify_all(run)
  assert predictions.dtype == np.int32
  np.testing.assert_array_equal(predictions, table[:, 2])
  np.testing.assert_allclose(radii, table[:, 3], atol=1e-6)
  # Training in bfloat16 leaves certificates in float32.
  assert 1 <= summary['lipschitz_bound'] < 1 + 1e-5
  bound = certify.lipschitz_bound(run.params)
  np.testing.assert_allclose(bound, summary['lipschitz_bound'], atol=1e-6)
  # Another checkpoint of the run has other radii.
  run = restore.restore(workdir, {'eval.checkpoint': 'best'})
  assert run.step == 2
  _, radii = certify_all(run)
  assert np.max(np.abs(radii - table[:, 3])) > 1e-4


def test_what_is_no_run_or_did_not_make_the_weights_is_refused(
  trained_run, tmp_path
):
  workdir = tmp_path / 'run'
  shutil.copytree(trained_run[0], workdir)
  path = workdir / 'config.json'
  stored = path.read_text()
  # All arrays have the same shapes, but the function is another.
  path.write_text(json.dumps(json.loads(stored) | {'model.beta': 0.25}))
  with pytest.raises(errors.CheckpointError, match='another config'):
    restore.restore(str(workdir))
  path.write_text(stored)
  shutil.rmtree(workdir / 'checkpoints')
  with pytest.raises(errors.ConfigError, match='holds no checkpoint'):
    restore.restore(str(workdir))
  for text in ('[{"data": {}}]', '[]', '{"cut', '[{"data": {"resize'):
    (workdir / 'run.json').write_text(text)
    with pytest.raises(errors.ConfigError, match=r'no run\.json that describe'):
      restore.restore(str(workdir))
