"""Writes ArrayRecord sets in the layout of TFDS, shard by shard in parallel.

`tfds.data_source(name, split=…, data_dir=…, download=False)` reads them. In the
working folder, progress/SHARD.json, written after a shard, describes its
contents. A shard without this file is unfinished.
"""

from collections.abc import Mapping
from collections.abc import Sequence
from concurrent import futures
import hashlib
import itertools
import os
from typing import NamedTuple

from array_record.python import array_record_module
import numpy as np
import tensorflow_datasets as tfds
import tqdm

from lipnext_jax import errors
from lipnext_jax import files
from lipnext_jax.data import archives
from lipnext_jax.data import formats
from lipnext_jax.data import images
from lipnext_jax.data import official
from lipnext_jax.data import records

EXAMPLES_PER_SHARD = 1250  # 140 MB of ImageNet, a thousandth of the set.


class Form(NamedTuple):
  """The form in which the examples of a set are stored."""

  official_set: official.OfficialSet
  class_names: dict[str, list[str]]  # Label feature → names by label.
  resize: int = 0  # `shorter_side` of `images.to_stored`.

  def features(self) -> tfds.features.FeaturesDict:
    """Returns the features of the set, as TFDS declares them."""
    facts = self.official_set
    return tfds.features.FeaturesDict(
      {
        **({facts.key: tfds.features.Text()} if facts.key else {}),
        'image': tfds.features.Image(
          shape=facts.image_shape,
          dtype=np.uint8,
          encoding_format=facts.encoding,
        ),
        **{
          name: tfds.features.ClassLabel(names=names)
          for name, names in sorted(self.class_names.items())
        },
      }
    )


class Shard(NamedTuple):
  """The contents of a written shard."""

  labels: list[int]  # Labels of the stored examples, in order.
  num_bytes: int  # Size of the stored images.
  bad: dict[str, str]  # Key of an example that was left out → its problem.


def digest(
  splits: Mapping[str, Sequence[formats.Item]], resize: int = 0
) -> str:
  """Identifies examples by their names, labels, sizes in bytes and `resize`."""
  found = hashlib.sha256(f'{resize} {EXAMPLES_PER_SHARD}\n'.encode())
  for split, items in splits.items():
    for item in items:
      content = item.content
      size = len(content) if isinstance(content, bytes) else content.size
      found.update(f'{split} {item.key} {item.labels} {size}\n'.encode())
  return found.hexdigest()[:16]


def write_splits(
  work: str,
  splits: Mapping[str, Sequence[formats.Item]],
  form: Form,
  workers: int = 0,
) -> dict[str, list[Shard]]:
  """Writes the unfinished shards of a set, with a progress bar.

  Shards with bad images are written again, as the source may have been mended.

  Args:
    work: working folder, whose name has the `digest` of the examples.
    splits: examples to be stored, by split.
    form: form in which they are stored.
    workers: number of threads. Pillow releases the interpreter lock.

  Raises:
    DataError: a shard cannot be written.
  """
  progress = os.path.join(work, 'progress')
  os.makedirs(progress, exist_ok=True)
  name = form.official_set.name
  paths: dict[str, list[str]] = {}  # Of the shards, by split.
  parts: dict[str, Sequence[formats.Item]] = {}  # Their examples, by path.
  for split, items in splits.items():
    count = -(-len(items) // EXAMPLES_PER_SHARD)
    template = _template(work, name, split)
    paths[split] = [*map(os.fspath, template.sharded_filepaths(count))]
    bounds = np.linspace(0, len(items), count + 1).astype(int)
    ranges = itertools.pairwise(bounds)
    for path, (start, end) in zip(paths[split], ranges, strict=True):
      parts[path] = items[start:end]

  def description(path: str) -> str:
    return os.path.join(progress, f'{os.path.basename(path)}.json')

  def write(path: str) -> Shard:
    try:
      shard = write_shard(path, parts[path], form)
    except (OSError, RuntimeError) as error:  # A full disk, for example.
      raise errors.DataError(f'{path}: cannot be written ({error})') from None
    files.write_json(description(path), shard._asdict())
    return shard

  shards = {
    path: Shard(**files.read_json(description(path)))
    for path in parts
    if os.path.exists(description(path))
  }
  missing = [path for path in parts if path not in shards or shards[path].bad]
  left = sum(len(parts[path]) for path in missing)
  total = sum(map(len, splits.values()))
  # What is there already does not count in the rate.
  bar = tqdm.tqdm(total=total, initial=total - left, unit=' images', desc=name)
  with bar, futures.ThreadPoolExecutor(max(workers, 1)) as pool:
    # An error cancels the shards that wait.
    for path, shard in zip(missing, pool.map(write, missing), strict=True):
      shards[path] = shard
      bar.update(len(parts[path]))
  return {split: [shards[path] for path in paths[split]] for split in splits}


def write_shard(path: str, items: Sequence[formats.Item], form: Form) -> Shard:
  """Writes a shard, which appears when it is complete.

  Images that are damaged or do not fit the set are left out.
  """
  features, key = form.features(), form.official_set.key
  labels, num_bytes, bad = [], 0, {}
  temporary = f'{path}.part'
  # Groups of one record, for random access.
  writer = array_record_module.ArrayRecordWriter(temporary, 'group_size:1')
  for item in items:
    try:
      image = _encode(item.content, form)
    except (images.BadImageError, errors.DataError) as error:
      bad[item.key] = str(error)
      continue
    example = {'image': image, **item.labels}
    if key:
      example[key] = item.key
    writer.write(features.serialize_example(features.encode_example(example)))
    labels.append(item.labels['label'])
    num_bytes += len(image)
  writer.close()
  os.replace(temporary, path)
  return Shard(labels, num_bytes, bad)


def write_metadata(
  directory: str, form: Form, shards: Mapping[str, Sequence[Shard]]
) -> None:
  """Writes the JSON files that make a folder of shards a TFDS set.

  The labels of every split are written beside its shards, too.
  """
  facts = form.official_set
  info = tfds.core.DatasetInfo(
    builder=tfds.core.DatasetIdentity(
      name=facts.name,
      version=tfds.core.Version(facts.version),
      data_dir=directory,
      module_name=__name__,
    ),
    features=form.features(),
    supervised_keys=('image', 'label'),
    homepage=facts.homepage,
  )
  info.set_file_format('array_record')
  infos = []
  for split, of_split in shards.items():
    infos.append(
      tfds.core.SplitInfo(
        name=split,
        shard_lengths=[len(shard.labels) for shard in of_split],
        num_bytes=sum(shard.num_bytes for shard in of_split),
        filename_template=_template(directory, facts.name, split),
      )
    )
    labels = [label for shard in of_split for label in shard.labels]
    path = records.labels_path(directory, split)
    np.save(path, np.array(labels, np.int32))
  info.set_splits(tfds.core.SplitDict(infos))
  info.write_to_directory(directory)


def _template(directory, name, split) -> tfds.core.ShardedFileTemplate:
  return tfds.core.ShardedFileTemplate(
    dataset_name=name,
    data_dir=directory,
    filetype_suffix='array_record',
    split=split,
  )


def _encode(content: archives.Content | np.ndarray, form: Form) -> bytes:
  """Returns the image file to store; raises if the image does not fit."""
  if isinstance(content, np.ndarray):
    data, shape = images.encode_png(content), content.shape
  else:
    data, shape = images.to_stored(archives.read(content), form.resize)
  wanted = form.official_set.image_shape
  if wanted and shape != wanted:
    raise images.BadImageError(f'is {list(shape)} instead of {list(wanted)}')
  return data
