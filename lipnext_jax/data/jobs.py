"""Writes the shards of a set in parallel; finished shards are skipped.

In the working folder, progress/SHARD.json, written after a shard, describes its
contents. A shard without this file is unfinished.
"""

from collections.abc import Iterator
from collections.abc import Sequence
from concurrent import futures
from concurrent.futures import process
import hashlib
import multiprocessing
import os
import signal
import threading
from typing import NamedTuple

import numpy as np
import tqdm

from lipnext_jax import errors
from lipnext_jax import files
from lipnext_jax.data import records
from lipnext_jax.data.formats import archives

EXAMPLES_PER_SHARD = 1250  # 140 MB of ImageNet, a thousandth of the set.


class _Job(NamedTuple):
  """A shard to be written."""

  path: str
  items: Sequence[archives.Item]
  form: records.Form

  @property
  def result_path(self) -> str:
    """Path of the description of the finished shard."""
    work, name = os.path.split(self.path)
    return os.path.join(work, 'progress', f'{name}.json')


def digest(splits: dict[str, list[archives.Item]], form: records.Form) -> str:
  """Identifies examples by their names, labels, sizes in bytes and `form`."""
  found = hashlib.sha256(f'{form.resize} {EXAMPLES_PER_SHARD}\n'.encode())
  for split, items in splits.items():
    for item in items:
      content = item.content
      size = len(content) if isinstance(content, bytes) else content.size
      found.update(f'{split} {item.key} {item.labels} {size}\n'.encode())
  return found.hexdigest()[:16]


def write_splits(
  work: str,
  splits: dict[str, list[archives.Item]],
  form: records.Form,
  *,
  workers: int,
) -> dict[str, list[records.ShardResult]]:
  """Writes the unfinished shards of a set, with a progress bar.

  Shards with bad images are written again, as the source may have been mended.

  Args:
    work: working folder, whose name has the `digest` of the examples.
    splits: examples to be stored, by split.
    form: form in which they are stored.
    workers: number of worker processes; 0: this process writes.

  Returns:
    The contents of the shards in order, by split.

  Raises:
    DataError: a shard cannot be written, or a worker died.
  """
  os.makedirs(os.path.join(work, 'progress'), exist_ok=True)
  name = form.official_set.name
  jobs: dict[str, list[_Job]] = {}
  for split, items in splits.items():
    count = -(-len(items) // EXAMPLES_PER_SHARD)
    bounds = np.linspace(0, len(items), count + 1).astype(int)
    paths = records.shard_paths(work, name, split, count)
    jobs[split] = [
      _Job(path, items[start:end], form)
      for path, start, end in zip(paths, bounds[:-1], bounds[1:], strict=True)
    ]
  pending = [j for of_split in jobs.values() for j in of_split if _is_due(j)]
  total = sum(len(items) for items in splits.values())
  done = total - sum(len(job.items) for job in pending)
  with tqdm.tqdm(total=total, initial=done, unit=' images', desc=name) as bar:
    for size in _run(pending, workers):
      bar.update(size)
  return {split: list(map(_read_result, jobs[split])) for split in splits}


def _run(pending: Sequence[_Job], workers: int) -> Iterator[int]:
  """Writes the shards; yields the number of examples of each finished one."""
  if not workers:
    yield from map(_write, pending)
    return
  pool = futures.ProcessPoolExecutor(
    workers,
    # A fork would copy locks that other threads hold.
    mp_context=multiprocessing.get_context('spawn'),
    initializer=_start_worker,
  )
  try:
    for done in futures.as_completed([pool.submit(_write, j) for j in pending]):
      yield done.result()
  except process.BrokenProcessPool:
    raise errors.DataError(
      'a worker process died; it may have run out of memory, of which fewer '
      '--workers need less. The same command continues'
    ) from None
  finally:
    pool.shutdown(cancel_futures=True)


def _start_worker() -> None:
  """Leaves Ctrl-C to the parent, and ends with the parent if that is killed."""
  signal.signal(signal.SIGINT, signal.SIG_IGN)
  threading.Thread(target=_follow_parent, daemon=True).start()


def _follow_parent() -> None:
  parent = multiprocessing.parent_process()
  assert parent is not None  # This is a worker.
  parent.join()
  os._exit(1)


def _write(job: _Job) -> int:
  """Writes a shard and its description; returns its number of examples."""
  try:
    result = records.write_shard(job.path, job.items, job.form)
  except (OSError, RuntimeError) as error:  # A full disk, for example.
    raise errors.DataError(f'{job.path}: cannot be written ({error})') from None
  files.write_json(job.result_path, result._asdict())
  return len(job.items)


def _is_due(job: _Job) -> bool:
  return not os.path.exists(job.result_path) or bool(_read_result(job).bad)


def _read_result(job: _Job) -> records.ShardResult:
  return records.ShardResult(**files.read_json(job.result_path))
