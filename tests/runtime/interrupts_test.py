import os
import signal
import sys

import pytest

from lipnext_jax.runtime import interrupts


@pytest.mark.parametrize('signum', interrupts.SIGNALS)
def test_the_first_signal_is_remembered_until_the_step_ends(signum):
  before = signal.getsignal(signum)
  with interrupts.Interrupts() as watching:
    assert watching.received(step=1) is None
    os.kill(os.getpid(), signum)
    assert watching.received(step=2) == signum
    assert watching.received(step=3) == signum
  assert signal.getsignal(signum) is before


def test_the_second_signal_ends_the_process_at_once(run_command):
  code = """
import os, signal, time
from lipnext_jax.runtime import interrupts
with interrupts.Interrupts() as watching:
  os.kill(os.getpid(), signal.SIGINT)
  print(watching.received(1), flush=True)
  os.kill(os.getpid(), signal.SIGTERM)
  time.sleep(60)
"""
  done = run_command([sys.executable, '-c', code], code=143)
  assert done.stdout.split() == [str(int(signal.SIGINT))]
