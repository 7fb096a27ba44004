"""Wall times of compiled calls, taken in turns, and Markdown tables."""

import statistics
import time

import jax


def samples(calls, repeats):
  """Wall times of every call, in seconds: [len(calls)][repeats].

  Others share the machine, for minutes at a time: what is to be compared is
  measured side by side, one of each and again.
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
  """The least of `samples`, call by call."""
  return [min(took) for took in samples(calls, repeats)]


def medians(calls, repeats):
  """The median of `samples`, call by call."""
  return [statistics.median(took) for took in samples(calls, repeats)]


def table(head, rows):
  """Prints a Markdown table."""
  print('| ' + ' | '.join(head) + ' |')
  print('|' + '---|' * len(head))
  for row in rows:
    print('| ' + ' | '.join(map(str, row)) + ' |', flush=True)
  print(flush=True)
