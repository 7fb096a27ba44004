"""Runs command lines, each in a process of its own, without its start-up time.

Takes a JSON list of [module, argument, …], and writes one of [exit code,
stdout, stderr, seconds]. Everything slow is imported once, and forked; the
module itself then runs as with `python -m`.
"""

import json
import multiprocessing
import os
import runpy
import signal
import sys
import tempfile
import time

import sklearn.datasets  # noqa: F401 (A run says so if it waits for it.)

from lipnext_jax import train  # noqa: F401
from lipnext_jax.checkpoint import restore  # noqa: F401 (what the modules import)

SECONDS = 60  # After which a command hangs.


def run_module(module, argv, out, err):
  """Runs a command line in this process; stdin is empty."""
  signal.alarm(SECONDS)
  os.dup2(out.fileno(), 1)
  os.dup2(err.fileno(), 2)
  sys.argv = [module, *argv]
  runpy.run_module(module, run_name='__main__', alter_sys=True)


def run(module, argv):
  """Forks, runs, collects."""
  begin = time.monotonic()
  with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
    process = multiprocessing.get_context('fork').Process(
      target=run_module, args=(module, argv, out, err)
    )
    process.start()
    process.join()
    for file in (out, err):
      file.seek(0)
    texts = [file.read().decode(errors='replace') for file in (out, err)]
  return [process.exitcode, *texts, time.monotonic() - begin]


if __name__ == '__main__':
  print(json.dumps([run(m, argv) for m, *argv in json.loads(sys.argv[1])]))
