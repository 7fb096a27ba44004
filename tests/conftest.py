"""Strict by default: 8 CPU devices, and nothing is promoted in silence."""

import contextlib
import gc
from importlib import metadata
import io
import json
import os
import subprocess
import sys
import tempfile
import warnings

# Before JAX is imported anywhere: the platform and the number of devices are
# read once.
os.environ['JAX_PLATFORMS'] = 'cpu'
# Compiling takes longest: a third less if no program is split into parts, and
# half as long by XLA's older code generator, where there still is one. With the
# newest JAX, the tests run through the one that users have.
_flags = ['--xla_cpu_parallel_codegen_split_count=1']
if metadata.version('jaxlib').startswith('0.10.'):
  _flags.append('--xla_cpu_use_fusion_emitters=false')
_flags.append('--xla_force_host_platform_device_count=8')
os.environ['XLA_FLAGS'] = ' '.join([os.environ.get('XLA_FLAGS', ''), *_flags])
# Programs compiled once serve the whole session, its subprocesses included.
# What is tested about compilation is counted in traces, which no cache saves.
_cache = tempfile.TemporaryDirectory(prefix='lipnext-compiled-')
os.environ['JAX_COMPILATION_CACHE_DIR'] = _cache.name
os.environ['JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS'] = '0'
# What most tests see no optimization changes. The others ask for the fixture
# `optimized`.
os.environ['JAX_DISABLE_MOST_OPTIMIZATIONS'] = '1'

from absl.testing import flagsaver
import filelock
import jax
import pytest

from lipnext_jax import config as config_lib

jax.config.update('jax_numpy_rank_promotion', 'raise')


@pytest.hookimpl(tryfirst=True)  # Before `-m` reads the markers.
def pytest_collection_modifyitems(items):
  """Puts files with slow tests first, so that all workers end together.

  Tests that ask for a trained run or start a program are slow.
  """
  for item in items:
    if {'trained_run', 'run_command'} & {*getattr(item, 'fixturenames', ())}:
      item.add_marker('slow')
  slow = {item.path for item in items if item.get_closest_marker('slow')}
  items.sort(key=lambda item: item.path not in slow)


def pytest_collection_finish():
  """Spares the garbage collector all that was imported, a tenth of the time."""
  gc.collect()
  gc.freeze()


@pytest.fixture(scope='session')
def run_command():
  """Runs a command of the project; returns what it said."""

  def run(command, **environment):
    return subprocess.run(
      command,
      cwd=os.path.dirname(os.path.dirname(__file__)),
      env=os.environ | {'PYTHON': sys.executable} | environment,
      capture_output=True,
      text=True,
      timeout=600,  # Some machines are busy.
      check=False,
    )

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
      warnings.catch_warnings(),
      contextlib.redirect_stdout(out),
      contextlib.redirect_stderr(err),
    ):
      # Flags of the config's fields are found in sys.argv.
      patch.setattr(sys, 'argv', ['main', *argv])
      # What ml_collections imports config files with.
      warnings.filterwarnings('ignore', r'the load_module\(\) method')
      try:
        main.main(main._parse(sys.argv))
      except SystemExit as end:
        code = end.code
    return code, out.getvalue(), err.getvalue()

  return run


@pytest.fixture(scope='module')
def optimized():
  """Compiles with all optimizations: for rounding, and for kernels.

  Programs of tests before it are forgotten, and its own after it.
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


def _tiny_config():
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


@pytest.fixture(scope='session')
def make_tiny_config():
  """Makes configs that train in seconds: 4 steps on digits."""
  return _tiny_config


@pytest.fixture
def tiny_config(make_tiny_config):
  """One of them."""
  return make_tiny_config()


@pytest.fixture(scope='session')
def trained_run(tmp_path_factory):
  """(workdir, its eval.json, its config) of a run on 8 devices. Never write.

  Trained in bfloat16, checkpoints at the steps 2 ('best') and 4 ('last'); once
  for all workers of a session.
  """
  from lipnext_jax import train  # Slow to import, and needed here only.

  shared = tmp_path_factory.getbasetemp()
  if 'PYTEST_XDIST_WORKER' in os.environ:
    shared = shared.parent
  workdir = shared / 'trained'
  config = _tiny_config()
  config.mesh.data, config.mesh.fsdp = -1, 2
  config.model.dtype = 'bfloat16'
  config.eval.every = '2 steps'
  with filelock.FileLock(shared / 'trained.lock'):
    if not (workdir / 'report.html').exists():  # Written last.
      train.train_and_evaluate(config, str(workdir))
  summary = json.loads((workdir / 'eval.json').read_text())
  return str(workdir), summary, config
