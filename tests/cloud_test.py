"""Workdirs in a bucket: a fake of Google Cloud Storage on the loopback address.

Everything between the program and HTTP is the real thing: Orbax, TensorStore,
epath, gcsfs, google-cloud-storage and tensorboardX.
"""

import signal
import threading
from unittest import mock

import pytest

from benchmarks.runs import same_arrays
from benchmarks.runs import stored_arrays
from lipnext_jax import checkpoint
from lipnext_jax import errors
from lipnext_jax import files
from lipnext_jax import train
from lipnext_jax.checkpoint import manifest
from lipnext_jax.checkpoint import restore
from lipnext_jax.report import __main__ as report_program
from lipnext_jax.report import workdir as workdir_lib
from lipnext_jax.runtime import command
from lipnext_jax.runtime import interrupts
from tests import bucket as fake
from tests.runs import read
from tests.runs import read_metrics

pytestmark = pytest.mark.slow  # It trains.
RUN = 'gs://bucket/runs/x'


@pytest.fixture(scope='module')
def bucket():
  """Serves an empty bucket."""
  with pytest.MonkeyPatch.context() as patch, fake.Bucket() as served:
    for name in ('STORAGE_EMULATOR_HOST', 'TENSORSTORE_GCS_HTTP_URL'):
      patch.setenv(name, f'http://{served.address}')
    # Whoever looks for credentials of a machine in the cloud finds none.
    for name in ('ROOT', 'IP', 'HOST'):
      patch.setenv(f'GCE_METADATA_{name}', served.address)
    patch.setenv('NO_GCE_CHECK', 'true')
    patch.setenv('GOOGLE_CLOUD_PROJECT', 'none')
    # Asks for the kind of a bucket over gRPC, which is not faked.
    patch.setenv('GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT', 'false')
    threading.Thread(target=served.serve_forever, args=(0.01,)).start()
    yield served
    served.shutdown()


@pytest.fixture(scope='module')
def resumed(bucket, trained_run):
  """Two steps in the bucket, a save cut short, and the rest: its eval.json."""
  *_, config = trained_run

  def received(self, step):
    return signal.SIGTERM if step == 2 else None

  with (
    mock.patch.object(interrupts.Interrupts, 'received', received),
    pytest.raises(interrupts.StoppedError, match='step 2 is saved'),
  ):
    train.train_and_evaluate(config, RUN)
  # A kill during the next save: all of it is there but for Orbax' last word.
  for name, content in list(bucket.objects.items()):
    torn = name.replace('checkpoints/2/', 'checkpoints/3/')
    if torn != name and not name.endswith('checkpoints/2/commit_success.txt'):
      bucket.objects[torn] = content
  assert checkpoint.CheckpointReader(RUN).list_steps() == [2]
  return train.train_and_evaluate(config, RUN)


def test_resuming_in_a_bucket_ends_in_the_bits_of_a_run_on_disk(
  bucket, trained_run, resumed
):
  disk, summary, _ = trained_run
  assert resumed == summary == files.read_json(f'{RUN}/eval.json')
  assert same_arrays(stored_arrays(RUN, 4), stored_arrays(disk, 4))
  assert read(RUN, 'radii.csv') == read(disk, 'radii.csv')
  assert read_metrics(RUN) == read_metrics(disk)
  assert len(read_metrics(disk)) == 5
  # A kill after a checkpoint loses no line of the steps before it.
  written = [name.removeprefix('runs/x/') for name in bucket.objects]
  committed = written.index('checkpoints/2/commit_success.txt')
  assert written.index('metrics.jsonl') < committed
  assert checkpoint.CheckpointReader(RUN).list_steps() == [2, 4]
  assert not [name for name in bucket.objects if 'checkpoints/3/' in name]
  assert len(files.read_json(f'{RUN}/run.json')) == 2
  other = trained_run[2].copy_and_resolve_references()
  other.seed = 1
  with pytest.raises(errors.ConfigError, match='seed=1 differs from 0'):
    checkpoint.check_workdir(RUN, other)


@pytest.mark.usefixtures('resumed')
def test_other_programs_read_a_run_in_a_bucket(capsys):
  assert restore.restore(RUN).step == 4  # Attacks, certification, exports.
  assert report_program.main([f'--workdir={RUN}']) == 0
  assert capsys.readouterr().out == f'{RUN}/report.html\n'
  assert list(workdir_lib.read_run(RUN).notes) == ['attack.json']


def test_a_damaged_checkpoint_is_not_used_and_set_aside(
  bucket, trained_run, resumed, capsys
):
  whole = {name for name in bucket.objects if 'checkpoints/4/' in name}
  name = max(whole, key=lambda name: len(bucket.objects[name]))
  content = bytearray(bucket.objects[name])
  content[len(content) // 2] ^= 1
  bucket.objects[name] = bytes(content)
  summary = train.train_and_evaluate(trained_run[2], RUN, train=False)
  assert (summary['step'], resumed['step']) == (2, 4)
  assert 'checkpoint 4 is damaged' in capsys.readouterr().err
  assert whole < bucket.objects.keys()  # Who only reads moves nothing.
  checkpointer = checkpoint.Checkpointer(RUN)
  assert checkpointer.find_newest() == checkpointer.close() == 2
  assert f'set aside as {RUN}/damaged/4-0' in capsys.readouterr().err
  assert not whole & bucket.objects.keys()
  moved = {n.replace('checkpoints/4', 'damaged/4-0') for n in whole}
  assert moved < bucket.objects.keys()


@pytest.mark.parametrize('status', [401, 403])
def test_a_bucket_that_refuses_or_is_not_there_is_one_line(
  bucket, monkeypatch, status
):
  """No run starts from scratch for that, and no checkpoint is damaged."""
  with pytest.raises(OSError, match='other') as refused:
    checkpoint.Lock('gs://other/x').acquire()
  assert isinstance(command.explain(refused.value), errors.WorkdirError)
  monkeypatch.setattr(bucket, 'refusal', status)
  for call in (
    lambda: checkpoint.check_workdir(RUN, None),
    checkpoint.CheckpointReader(RUN).list_steps,
    lambda: manifest.find_damage(f'{RUN}/checkpoints/2'),
  ):
    with pytest.raises(Exception, match='no permission') as refused:
      call()
    known = command.explain(refused.value)
    assert isinstance(known, errors.WorkdirError)
    assert 'no permission' in str(known)
