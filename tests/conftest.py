"""Fixtures; tests have 8 CPU devices and strict rank promotion."""

import atexit
import contextlib
import gc
from importlib import metadata
import io
import json
import os
import shutil
import subprocess
import sys
import tempfile

# JAX reads the platform and the number of devices once, when it is imported.
os.environ['JAX_PLATFORMS'] = 'cpu'
# Compiling takes longest: a third less without splitting programs into parts,
# and half as long with XLA's older code generator. Tests with a newer JAX use
# the code generator that users have.
_flags = ['--xla_cpu_parallel_codegen_split_count=1']
if metadata.version('jaxlib').startswith('0.10.'):
  _flags.append('--xla_cpu_use_fusion_emitters=false')
_flags.append('--xla_force_host_platform_device_count=8')
os.environ['XLA_FLAGS'] = ' '.join([os.environ.get('XLA_FLAGS', ''), *_flags])
# The whole session, subprocesses included, shares compiled programs. Tests of
# compilation count traces, which are not cached.
_cache = tempfile.mkdtemp(prefix='lipnext-compiled-')
atexit.register(shutil.rmtree, _cache, ignore_errors=True)
os.environ['JAX_COMPILATION_CACHE_DIR'] = _cache
os.environ['JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS'] = '0'
# Most tests do not depend on optimizations; others use the fixture `optimized`.
os.environ['JAX_DISABLE_MOST_OPTIMIZATIONS'] = '1'

from absl.testing import flagsaver
import filelock
import jax
import pytest

from lipnext_jax import config as config_lib

jax.config.update('jax_numpy_rank_promotion', 'raise')


@pytest.hookimpl(tryfirst=True)  # Before `-m` reads the markers.
def pytest_collection_modifyitems(items):
  """Marks tests that start programs or need a trained run as slow.

  Files with slow tests come first, so that all workers end together.
  """
  for item in items:
    if {'trained_run', 'run_command'} & {*getattr(item, 'fixturenames', ())}:
      item.add_marker('slow')
  slow = {item.path for item in items if item.get_closest_marker('slow')}
  items.sort(key=lambda item: item.path not in slow)


def pytest_collection_finish():
  """Hides imports from the garbage collector, to save a tenth of the time."""
  gc.collect()
  gc.freeze()


@pytest.fixture(scope='session')
def run_command():
  """Runs a command in the repository; returns the completed process.

  Its exit code must be `code`; None allows any.
  """

  root = os.path.dirname(os.path.dirname(__file__))

  def run(command, cwd=root, code=0, **environment):
    done = subprocess.run(
      command,
      cwd=cwd,
      env=os.environ | {'PYTHON': sys.executable} | environment,
      capture_output=True,
      text=True,
      timeout=600,
      check=False,
    )
    assert code in (done.returncode, None), done.stdout + done.stderr
    return done

  return run


@pytest.fixture(scope='session')
def run_main():
  """Runs a command line of `lipnext_jax.main` in this process.

  Returns (exit code, stdout, stderr).
  """
  from lipnext_jax import main  # Slow to import, and needed in few tests.

  def run(*argv):
    out, err, code = io.StringIO(), io.StringIO(), 0
    with (
      pytest.MonkeyPatch.context() as patch,
      flagsaver.flagsaver(),
      contextlib.redirect_stdout(out),
      contextlib.redirect_stderr(err),
    ):
      # ml_collections looks for flags of config fields in sys.argv.
      patch.setattr(sys, 'argv', ['main', *argv])
      # It runs a config file in the module of the file before, if there is one.
      patch.delitem(sys.modules, 'config_config', raising=False)
      try:
        main.main(main._parse(sys.argv))
      except SystemExit as end:
        code = end.code
    return code, out.getvalue(), err.getvalue()

  return run


@pytest.fixture(scope='module')
def optimized():
  """Turns all optimizations on, for tests of rounding and of kernels.

  Clears the caches of compiled programs before and after the module.
  """
  with pytest.MonkeyPatch.context() as patch:
    patch.setenv('JAX_DISABLE_MOST_OPTIMIZATIONS', '0')
    jax.config.update('jax_disable_most_optimizations', False)
    jax.clear_caches()
    yield
    jax.config.update('jax_disable_most_optimizations', True)
    jax.clear_caches()


@pytest.fixture
def rng():
  """A fresh key; the same in every test."""
  return jax.random.key(0)


@pytest.fixture(scope='session')
def make_tiny_config():
  """Makes configs that train in seconds: 4 steps on digits."""

  def make():
    c = config_lib.default_config()
    c.model.depth = 2
    c.model.width = 16
    c.model.patch_size = 4
    c.batch_size = 32
    c.duration = '4 steps'
    c.optimizer.warmup = '1 steps'
    c.optimizer.lookahead_period = 2
    c.optimizer.retraction_period = '3 steps'
    c.loss.epsilon = 0.25
    c.eval.batch_size = 360
    c.eval.epsilons = (0.25, 0.5)
    c.eval.every = '0 steps'
    c.checkpoint.every = '0 steps'
    c.log.every = '1 steps'
    return c

  return make


@pytest.fixture
def tiny_config(make_tiny_config):
  """A config of `make_tiny_config`."""
  return make_tiny_config()


@pytest.fixture(scope='session')
def trained_run(tmp_path_factory, make_tiny_config):
  """(workdir, eval.json, config) of a run on 8 devices; never write to it.

  The run trains in bfloat16 and has checkpoints at the steps 2 ('best') and 4
  ('last'). All workers of a session share it.
  """
  from lipnext_jax import train  # Slow to import, and needed here only.

  shared = tmp_path_factory.getbasetemp()
  if 'PYTEST_XDIST_WORKER' in os.environ:
    shared = shared.parent
  workdir = shared / 'trained'
  config = make_tiny_config()
  config.mesh.data, config.mesh.fsdp = -1, 2
  config.model.dtype = 'bfloat16'
  config.eval.every = '2 steps'
  with filelock.FileLock(shared / 'trained.lock'):
    if not (workdir / 'report.html').exists():  # Written last.
      train.train_and_evaluate(config, str(workdir))
  summary = json.loads((workdir / 'eval.json').read_text())
  return str(workdir), summary, config
