"""The shards of a set as jobs: in parallel, each one redone never.

In the working folder, progress/plan.json says what the shards there are of,
and progress/SHARD.json what a finished shard holds; a shard without it is not
finished.
"""

from collections.abc import Iterator
from collections.abc import Sequence
from concurrent import futures
from concurrent.futures import process
import contextlib
import fcntl
import hashlib
import json
import multiprocessing
import os
import shutil
import signal
import sys
import threading
from typing import Any
from typing import NamedTuple

import numpy as np
import tqdm

from lipnext_jax import errors
from lipnext_jax import files
from lipnext_jax.data import official
from lipnext_jax.data import records
from lipnext_jax.data.formats import layouts

# Of ImageNet: 140 MB, a thousandth of the set.
EXAMPLES_PER_SHARD = 1250


class Job(NamedTuple):
  """One shard, with all that a worker needs."""

  path: str
  result_path: str
  items: Sequence[layouts.Item]
  official_set: official.OfficialSet
  class_names: dict[str, list[str]]
  resize: int


@contextlib.contextmanager
def locked(path: str) -> Iterator[None]:
  """One process at a time; the system lets go of the lock when it dies.

  Args:
    path: of the lock file.

  Raises:
    DataError: another process has it.
  """
  with open(path, 'w') as file:
    try:
      fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
      raise errors.DataError(
        f'{os.path.dirname(path)}: another process is preparing this set'
      ) from None
    yield


def start_or_continue(
  work: str, contents: layouts.Contents, resize: int
) -> None:
  """Makes the working folder; empties it if its shards are of other items.

  Args:
    work: the folder.
    contents: what is to be stored.
    resize: see `images.to_stored`.
  """
  path = os.path.join(work, 'progress', 'plan.json')
  plan = _plan(contents, resize)
  if os.path.exists(path):
    with open(path, encoding='utf-8') as file:
      if json.load(file) == plan:
        return
    print(
      f'{work} was begun with other data or another --resize: starting over',
      file=sys.stderr,
    )
  shutil.rmtree(work, ignore_errors=True)
  os.makedirs(os.path.dirname(path))
  files.write_json(path, plan)


def write_splits(
  work: str,
  contents: layouts.Contents,
  official_set: official.OfficialSet,
  *,
  resize: int,
  workers: int,
  redo_bad: bool = False,
) -> dict[str, list[records.ShardResult]]:
  """Writes the shards that are not there yet, with a progress bar.

  Args:
    work: the working folder.
    contents: what is to be stored.
    official_set: what its examples must be like.
    resize: see `images.to_stored`.
    workers: processes; 0: none but this one.
    redo_bad: write the shards anew that left something out: the source may
      have been mended since.

  Returns:
    Split → what its shards hold, in order.

  Raises:
    DataError: a shard cannot be written, or a worker died.
  """
  jobs = {
    split: _split_jobs(work, split, contents, official_set, resize)
    for split in contents.splits
  }
  everything = [job for split in jobs.values() for job in split]
  pending = [job for job in everything if not _is_done(job, redo_bad)]
  todo = sum(len(job.items) for job in pending)
  total = sum(len(job.items) for job in everything)
  with tqdm.tqdm(
    total=total,
    initial=total - todo,
    unit=' images',
    desc=official_set.name,
  ) as bar:
    for size in _run(pending, workers):
      bar.update(size)
  return {
    split: [_read_result(job) for job in split_jobs]
    for split, split_jobs in jobs.items()
  }


def _plan(contents: layouts.Contents, resize: int) -> dict[str, Any]:
  """What two runs must share to share their shards."""
  digest = hashlib.sha256()
  for split, items in contents.splits.items():
    digest.update(split.encode())
    for item in items:
      content = item.content
      size = len(content) if isinstance(content, bytes) else content.size
      labels = sorted(item.labels.items())
      digest.update(f'{item.key} {labels} {size}\n'.encode())
  return {
    'resize': resize,
    'examples_per_shard': EXAMPLES_PER_SHARD,
    'items': digest.hexdigest(),
  }


def _split_jobs(work, split, contents, official_set, resize) -> list[Job]:
  items = contents.splits[split]
  count = -(-len(items) // EXAMPLES_PER_SHARD)
  bounds = np.linspace(0, len(items), count + 1).astype(int)
  paths = records.shard_paths(work, official_set.name, split, count)
  return [
    Job(
      path=path,
      result_path=os.path.join(
        work, 'progress', os.path.basename(path) + '.json'
      ),
      items=items[start:end],
      official_set=official_set,
      class_names=contents.class_names,
      resize=resize,
    )
    for path, start, end in zip(paths, bounds[:-1], bounds[1:], strict=True)
  ]


def _run(pending: Sequence[Job], workers: int) -> Iterator[int]:
  """Does the jobs; yields the number of examples of each when it is done."""
  if not workers:
    yield from map(_write, pending)
    return
  # Spawned: a fork would copy the locks of threads that it does not have.
  context = multiprocessing.get_context('spawn')
  pool = futures.ProcessPoolExecutor(
    workers, mp_context=context, initializer=_start_worker
  )
  try:
    for done in futures.as_completed([pool.submit(_write, j) for j in pending]):
      yield done.result()
  except process.BrokenProcessPool:
    raise errors.DataError(
      'a worker process died, perhaps for want of memory; the same command '
      'continues, and fewer --workers need less'
    ) from None
  finally:
    pool.shutdown(cancel_futures=True)


def _start_worker() -> None:
  """Leaves Ctrl-C to the parent, and ends with it, however that ends."""
  signal.signal(signal.SIGINT, signal.SIG_IGN)
  threading.Thread(target=_follow_parent, daemon=True).start()


def _follow_parent() -> None:
  parent = multiprocessing.parent_process()
  assert parent is not None  # This is a worker.
  parent.join()
  os._exit(1)


def _write(job: Job) -> int:
  try:
    result = records.write_shard(
      job.path, job.items, job.official_set, job.class_names, job.resize
    )
  except (OSError, RuntimeError) as error:  # A full disk, say.
    raise errors.DataError(f'{job.path}: cannot be written ({error})') from None
  files.write_json(job.result_path, result._asdict())
  return len(job.items)


def _is_done(job: Job, redo_bad: bool) -> bool:
  if not os.path.exists(job.result_path):
    return False
  return not (redo_bad and _read_result(job).bad)


def _read_result(job: Job) -> records.ShardResult:
  with open(job.result_path, encoding='utf-8') as file:
    fields = json.load(file)
  fields['bad'] = [records.BadItem(*item) for item in fields['bad']]
  return records.ShardResult(**fields)
