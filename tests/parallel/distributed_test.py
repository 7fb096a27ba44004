import csv
import json
import os
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest

from lipnext_jax import errors
from lipnext_jax.parallel import distributed
from lipnext_jax.parallel import mesh as mesh_lib

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent


def test_a_single_process_starts_nothing():
  distributed.start(None, None, None)
  assert jax.process_count() == 1


@pytest.mark.parametrize(
  'place',
  [
    (None, 2, 0),
    ('auto', 2, 0),
    ('env', 2, 0),
    ('127.0.0.1:1234', None, None),
    ('127.0.0.1:1234', 2, None),
    ('127.0.0.1:1234', 2, 2),
    ('127.0.0.1', 2, 0),
  ],
)
def test_places_that_make_no_sense_are_refused(place):
  with pytest.raises(errors.ConfigError, match='--coordinator'):
    distributed.start(*place)


def test_the_environment_says_where_a_process_belongs(monkeypatch):
  calls = []
  monkeypatch.setattr(
    jax.distributed, 'initialize', lambda *args: calls.append(args)
  )
  monkeypatch.setenv('JAX_COORDINATOR_ADDRESS', 'first:8476')
  monkeypatch.setenv('JAX_NUM_PROCESSES', '4')
  with pytest.raises(errors.ConfigError, match=r"JAX_PROCESS_ID='' is no num"):
    distributed.start('env', None, None)
  monkeypatch.setenv('JAX_PROCESS_ID', '3')
  distributed.start('env', None, None)
  assert calls == [('first:8476', 4, 3)]


def test_sharded_arrays_come_to_the_host_whole():
  mesh = mesh_lib.make_mesh(ml_collections.ConfigDict({'data': 2, 'fsdp': 4}))
  spec = jax.sharding.PartitionSpec(None, 'fsdp')
  sharding = jax.sharding.NamedSharding(mesh, spec)
  x = jax.device_put(jnp.arange(64.0).reshape(8, 8), sharding)
  np.testing.assert_array_equal(
    distributed.to_host(x), np.arange(64.0).reshape(8, 8)
  )


def read_radii(workdir):
  with open(workdir / 'radii.csv', newline='') as file:
    rows = list(csv.DictReader(file))
  return np.array([float(row['radius']) for row in rows])


def test_several_processes_make_the_run_of_one(tmp_path):
  """The same 8 devices in one process, in two and in four.

  Parameters are split over the processes.

  The examples of a batch lie on other devices (processes interleave them),
  so sums round differently: 1e-7 per step on radii of order 0.1, lifted by
  the learning rate's sign-like steps to about 1e-5 after 4.
  """
  flags = [
    '--config=configs/digits.py:smoke',
    '--config.duration=4 steps',
    '--config.mesh.data=4',
    '--config.mesh.fsdp=2',
    '--config.optimizer.name=momentum',
  ]
  environment = os.environ | {
    'PYTHON': sys.executable,
    'JAX_DISABLE_MOST_OPTIMIZATIONS': '1',  # Compiling takes longest.
  }
  one = tmp_path / '1'
  alone = [sys.executable, '-m', 'lipnext_jax.main', f'--workdir={one}', *flags]
  for command in (
    alone,
    ['bash', 'launch/local.sh', '2', f'--workdir={tmp_path}/2', *flags],
    ['bash', 'launch/local.sh', '4', f'--workdir={tmp_path}/4', *flags],
  ):
    done = subprocess.run(
      command,
      cwd=ROOT,
      env=environment,
      capture_output=True,
      text=True,
      timeout=300,
      check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count('digits, test split') == 1  # Process 0 only.
  single = json.loads((one / 'eval.json').read_text())
  for count in (2, 4):
    several = tmp_path / str(count)
    found = json.loads((several / 'eval.json').read_text())
    assert found['examples'] == single['examples'] == 360
    assert found['clean'] == pytest.approx(single['clean'], abs=100 / 360)
    np.testing.assert_allclose(read_radii(several), read_radii(one), atol=1e-4)
    (start,) = json.loads((several / 'run.json').read_text())
    assert start['devices']['processes'] == count


def test_a_failure_in_the_launcher_is_its_exit_code(tmp_path):
  done = subprocess.run(
    [
      'bash',
      'launch/local.sh',
      '2',
      '--config=configs/digits.py:smoke',
      f'--workdir={tmp_path}/run',
      '--config.model.beta=2.0',
    ],
    cwd=ROOT,
    env=os.environ | {'PYTHON': sys.executable},
    capture_output=True,
    text=True,
    timeout=300,
    check=False,
  )
  assert done.returncode == 2, done.stderr
  assert 'model.beta=2.0' in done.stderr
