import multiprocessing
import os
import signal
import subprocess
import sys

from lipnext_jax.data import processes


def _report(pipe):
  processes.end_with_parent(signal.SIGTERM)
  pipe.send('ready')
  pipe.recv()
  pipe.send('at work')


def test_signals_that_are_left_to_the_parent_end_no_worker():
  context = multiprocessing.get_context('fork')
  mine, theirs = context.Pipe()
  process = context.Process(target=_report, args=(theirs,))
  process.start()
  assert mine.recv() == 'ready'
  os.kill(process.pid, signal.SIGTERM)
  mine.send('go on')
  assert mine.recv() == 'at work'
  process.join()


def test_workers_end_with_a_parent_that_is_killed():
  script = """
import multiprocessing, time
from lipnext_jax.data import processes
def work():
  processes.end_with_parent()
  print('started', flush=True)
  time.sleep(60)
multiprocessing.get_context('fork').Process(target=work).start()
time.sleep(60)
"""
  with subprocess.Popen(
    (sys.executable, '-c', script), stdout=subprocess.PIPE, text=True
  ) as parent:
    assert parent.stdout.readline() == 'started\n'
    parent.kill()
    # The worker holds the pipe, too: it closes when that is gone.
    parent.communicate(timeout=30)
