"""Times compiled calls in turns, and prints Markdown tables."""

import statistics
import time

import jax


def samples(calls, repeats):
  """Returns the wall times of every call in seconds, [len(calls)][repeats].

  The calls take turns, so that other load on the machine slows all of them.
  """
  for call in calls:
    jax.block_until_ready(call())
  times: list[list[float]] = [[] for _ in calls]
  for _ in range(repeats):
    for call, took in zip(calls, times, strict=True):
      begin = time.perf_counter()
      jax.block_until_ready(call())
      took.append(time.perf_counter() - begin)
  return times


def fastest(calls, repeats):
  """Returns the shortest time of every call."""
  return [min(took) for took in samples(calls, repeats)]


def medians(calls, repeats):
  """Returns the median time of every call."""
  return [statistics.median(took) for took in samples(calls, repeats)]


def table(head, rows, title=None):
  """Prints a Markdown table; short rows end in empty cells."""
  if title:
    print(title)
  print('| ' + ' | '.join(head) + ' |')
  print('|' + '---|' * len(head))
  for row in rows:
    cells = [*map(str, row), *[''] * (len(head) - len(row))]
    print('| ' + ' | '.join(cells) + ' |', flush=True)
  print(flush=True)
