import fcntl
import json
import os
import subprocess
import sys
import threading

import pytest

from lipnext_jax import checkpoint
from lipnext_jax import errors

HOLDER = """
import sys
from lipnext_jax import checkpoint
held = checkpoint.Lock(sys.argv[1])
held.acquire()
print('held', flush=True)
sys.stdin.readline()
"""


def test_the_same_config_is_accepted_and_comes_back(tmp_path, tiny_config):
  workdir = str(tmp_path / 'run')
  checkpoint.check_workdir(workdir, tiny_config)
  assert not os.path.exists(workdir)  # Which is fine; and nothing was made.
  checkpoint.write_config(workdir, tiny_config)
  read = checkpoint.read_config(workdir)
  assert read.to_json() == tiny_config.to_json()
  assert read.sharding[0][1] == (None, ('fsdp?',), None)  # Tuples again.
  tiny_config.log.every = '7 steps'  # Free to change.
  checkpoint.check_workdir(workdir, tiny_config)
  read = checkpoint.read_config(workdir, {'log.every': '7 steps'})
  assert read.to_json() == tiny_config.to_json()
  for field, value, problem in (
    ('model.width', 8, r'model\.width=8 cannot change what was trained'),
    ('eval.split', 'validation', r"eval\.split='validation'"),
  ):
    with pytest.raises(errors.ConfigError, match=problem):
      checkpoint.read_config(workdir, {field: value})


def test_a_run_of_an_earlier_version_goes_on(tmp_path, tiny_config):
  checkpoint.write_config(str(tmp_path), tiny_config)
  path = tmp_path / 'config.json'
  fields = json.loads(path.read_text())
  fields['model.remat'] = 'none'  # A choice, and the default, of that version.
  del fields['augment.flip']  # Newer than the run: its default.
  path.write_text(json.dumps(fields))
  checkpoint.check_workdir(str(tmp_path), tiny_config)
  stored = checkpoint.read_config(str(tmp_path))
  assert stored.to_json() == tiny_config.to_json()
  assert checkpoint.hash_config(stored) == checkpoint.hash_config(tiny_config)


def test_a_workdir_of_another_config_is_refused(tmp_path, tiny_config):
  checkpoint.write_config(str(tmp_path), tiny_config)
  for field, value, stored in (
    ('duration', '9 steps', "'4 steps'"),
    ('augment.flip', True, 'False'),
  ):
    other = tiny_config.copy_and_resolve_references()
    other.update_from_flattened_dict({field: value})
    problem = f'={value!r} differs from {stored}, with'
    with pytest.raises(errors.ConfigError, match=problem) as info:
      checkpoint.check_workdir(str(tmp_path), other)
    assert info.value.field == field
  checkpoint.check_workdir(str(tmp_path), tiny_config)  # Nothing was written.


def test_what_is_no_workdir_is_refused(tmp_path, tiny_config):
  def refused(path, problem):
    with pytest.raises(errors.ConfigError, match=problem):
      checkpoint.check_workdir(str(path), tiny_config)

  refused('s3://b/run', r"'s3://b/run' is not a path")
  path = tmp_path / 'config.json'
  with pytest.raises(errors.ConfigError, match=r'holds no config\.json'):
    checkpoint.read_config(str(tmp_path))
  for text, problem in (
    ('{"half', r'json that can be read \('),
    ('[1]', r'json that can be read \('),
    ('{"model.era": 1}', "unknown field 'model.era'"),
    ('{"model.depth": 2.5}', 'model.depth=2.5 is not of type int'),
    ('{"eval.epsilons": 1}', 'eval.epsilons=1 is not of type tuple'),
  ):
    path.write_text(text)
    refused(tmp_path, problem)
  refused(path, 'is a file')


def test_one_process_holds_it_until_it_ends_however_it_ends(tmp_path):
  workdir = f'{tmp_path}/run'
  own, again = checkpoint.Lock(workdir), checkpoint.Lock(workdir)
  with subprocess.Popen(
    [sys.executable, '-c', HOLDER, workdir],
    stdin=subprocess.PIPE,
    stdout=subprocess.PIPE,
    text=True,
  ) as holder:
    assert holder.stdout.readline() == 'held\n'
    in_use = rf"--workdir='{workdir}' is in use by process {holder.pid} on"
    for _ in range(2):  # A refused one does not change what the next is told.
      with pytest.raises(errors.ConfigError, match=in_use):
        own.acquire()
    own.release()  # Nothing is held: harmless.
    # The other processes of its run see it; those elsewhere, or of another: no.
    own.check_seen(holder.pid, seconds=0)
    elsewhere = checkpoint.Lock(str(tmp_path))
    for seen, pid in ((elsewhere, holder.pid), (own, holder.pid + 1)):
      with pytest.raises(errors.ConfigError, match='is not shared'):
        seen.check_seen(pid, seconds=0.2)
    holder.kill()
  # A run that failed leaves its lock to the next one in its process.
  assert own.acquire() == again.acquire() == os.getpid()
  own.check_seen(os.getpid(), seconds=0)  # What the killed one wrote is gone.
  again.release()
  with open(f'{workdir}/lock', 'a') as file:  # Free at once.
    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_a_lock_may_be_seen_late(tmp_path):
  """Network file systems show new files late."""
  (tmp_path / 'lock.txt').write_text('process 7 on here since long ago')
  own = checkpoint.Lock(str(tmp_path))
  late = threading.Timer(0.3, own.acquire)
  late.start()
  own.check_seen(os.getpid(), seconds=30)
  late.join()
  own.release()
