"""Starts runs of the command line in processes of their own."""

import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent


def launch(config, workdir, *flags, stderr=None):
  """Starts training; returns the process, whose stdout is dropped.

  Args:
    config: path of the config file.
    workdir: folder of the run.
    *flags: further flags, e.g. '--config.seed=1'.
    stderr: file or `subprocess.PIPE` for stderr; None: that of this process.
  """
  program = (sys.executable, '-m', 'lipnext_jax.main')
  return subprocess.Popen(
    [*program, f'--config={config}', f'--workdir={workdir}', *flags],
    cwd=ROOT,
    stdin=subprocess.DEVNULL,
    stdout=subprocess.DEVNULL,
    stderr=stderr,
    text=True,
  )
