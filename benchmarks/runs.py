"""Starts runs of the command line, and reads what they saved."""

import pathlib
import subprocess
import sys

import jax
import numpy as np
from orbax import checkpoint as ocp

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


def stored_arrays(workdir, step):
  """Returns all arrays of a checkpoint, read without what wrote it."""
  with ocp.StandardCheckpointer() as checkpointer:
    tree = checkpointer.restore(f'{workdir}/checkpoints/{step}/default')
  return [np.asarray(leaf) for leaf in jax.tree.leaves(tree)]


def same_arrays(a, b):
  """Returns whether two lists of arrays are equal bit for bit."""
  pairs = zip(a, b, strict=True)
  return all(
    np.asarray(x).tobytes() == np.asarray(y).tobytes() for x, y in pairs
  )
