"""Runs command lines, each in a process of its own, without its start-up time.

Takes a JSON list of [module, argument, …], and writes one of [exit code,
stdout, stderr, seconds]. Everything slow is imported once, and forked; the
module itself then runs as with `python -m`.
"""

import json
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


def run(module, argv):
  """Forks, runs, collects."""
  begin = time.monotonic()
  with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
    child = os.fork()
    if not child:
      signal.alarm(SECONDS)
      os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
      os.dup2(out.fileno(), 1)
      os.dup2(err.fileno(), 2)
      code = 70
      try:
        sys.argv = [module, *argv]
        runpy.run_module(module, run_name='__main__', alter_sys=True)
        code = 0
      except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
      except BaseException:
        sys.excepthook(*sys.exc_info())
      finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code or 0)
    _, status = os.waitpid(child, 0)
    texts = []
    for file in (out, err):
      file.seek(0)
      texts.append(file.read().decode(errors='replace'))
  return [os.waitstatus_to_exitcode(status), *texts, time.monotonic() - begin]


if __name__ == '__main__':
  print(json.dumps([run(m, argv) for m, *argv in json.loads(sys.argv[1])]))
