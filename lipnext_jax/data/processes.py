"""How worker processes end."""

import multiprocessing
import os
import signal
import threading


def end_with_parent(*left_to_parent: int) -> None:
  """Lets this worker process end with its parent, even a killed one.

  Args:
    *left_to_parent: signals that this process ignores from now on. Clusters
      and terminals send theirs to all processes of a job at once, but the
      parent decides when its workers end.
  """
  for signum in left_to_parent:
    signal.signal(signum, signal.SIG_IGN)
  threading.Thread(target=_follow_parent, daemon=True).start()


def _follow_parent() -> None:
  parent = multiprocessing.parent_process()
  if parent is not None:
    parent.join()  # Returns when it is gone, even if it was killed.
    os._exit(1)
