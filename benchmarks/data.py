"""Images/s of every stage of the ImageNet pipeline, and of the whole of it.

    taskset -c 0 python -m benchmarks.data --workers 1

Times the stages one by one on one core, adds them up, and runs the same work
through the real pipeline with worker processes. The images are JPEGs of smooth
noise with 500×375 pixels and about 100 kB. The rate at which Pillow alone
decodes them bounds every pipeline. `--height 288` stands for a set that was
prepared with `--resize=288`.

Times are CPU seconds of the processes that do the work, so that other load on
the machine does not count.
"""

import argparse
from collections.abc import Callable
from collections.abc import Sequence
import contextlib
import functools
import io
import math
import statistics
import time
from typing import Any

import numpy as np
from PIL import Image
import psutil

from lipnext_jax import config as config_lib
from lipnext_jax.data import images
from lipnext_jax.data import pipeline
from lipnext_jax.data import randaugment
from lipnext_jax.data import transforms
from lipnext_jax.data import views

_CROP, _SMALLEST, _LARGEST = 224, 224, 288  # The recipe's.
_TARGET = 2400  # Images/s that the paper trains at.


def make_jpegs(count: int, height: int) -> list[bytes]:
  """Makes JPEGs of smooth noise at quality 90; 500×375 pixels take 100 kB."""
  rng = np.random.default_rng(0)
  width = 4 * height // 3
  jpegs = []
  for _ in range(count):
    coarse = rng.integers(256, size=(12, 16, 3)).astype(np.uint8)
    smooth = Image.fromarray(coarse).resize(
      (width, height), Image.Resampling.BICUBIC
    )
    noise = rng.normal(scale=20, size=(height, width, 1))
    noisy = np.clip(np.asarray(smooth) + noise, 0, 255).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noisy).save(buffer, 'JPEG', quality=90)
    jpegs.append(buffer.getvalue())
  return jpegs


def decode_raw(jpeg: bytes) -> Image.Image:
  """Decodes with Pillow alone."""
  image = Image.open(io.BytesIO(jpeg))
  image.load()
  return image


class JpegSource(views.Source):
  """A source as long as ImageNet that repeats a few JPEGs in memory.

  Grain's shuffle is slow on short sources: 0.2 ms an example for 64 of them,
  1 µs for ImageNet's.
  """

  def __init__(self, jpegs: Sequence[bytes]):
    self._jpegs = jpegs

  def __len__(self) -> int:
    return 1_281_167

  def __getitem__(self, index: int):
    image = images.decode(self._jpegs[index % len(self._jpegs)])
    return {'image': image, 'label': np.int32(0)}


def seconds_each(
  stage: Callable[[Any], Any], inputs: Sequence[Any], repeats: int
) -> float:
  """Returns the median CPU seconds of a stage for one input."""
  times = []
  for _ in range(repeats):
    start = time.process_time()
    for value in inputs:
      stage(value)
    times.append((time.process_time() - start) / len(inputs))
  return statistics.median(times)


def time_stages(jpegs: Sequence[bytes], repeats: int) -> dict[str, float]:
  """Returns CPU seconds an image of every stage, in the pipeline's order."""
  rng = np.random.default_rng(0)
  arrays = [images.decode(jpeg) for jpeg in jpegs]
  pictures = [images.from_array(image) for image in arrays]
  resize = transforms.random_resize(_SMALLEST, _LARGEST)
  resized = [resize(picture, rng) for picture in pictures]
  augment = randaugment.randaugment(1.0, 2, 9)
  small = [images.to_array(picture) for picture in resized]
  crop, flip = transforms.crop_to(_CROP, _CROP), transforms.flip
  cropped = [flip(crop(image, rng), rng) for image in small]
  groups = [cropped[i : i + 16] for i in range(0, len(cropped), 16)]
  each = functools.partial(seconds_each, repeats=repeats)
  stack = sum(each(np.stack, [group]) for group in groups)
  return {
    'decode to an array': each(images.decode, jpegs),
    'to Pillow': each(images.from_array, arrays),
    'resize': each(lambda picture: resize(picture, rng), pictures),
    'RandAugment': each(lambda picture: augment(picture, rng), resized),
    'to an array again': each(images.to_array, resized),
    'crop, flip': each(lambda image: flip(crop(image, rng), rng), small),
    'batch': stack / len(cropped),
  }


def cpu_seconds() -> float:
  """Returns the CPU seconds of this process and its children so far."""
  processes = [psutil.Process(), *psutil.Process().children()]
  return sum(sum(process.cpu_times()[:2]) for process in processes)


def time_grain(
  jpegs: Sequence[bytes], workers: int, batch: int, batches: int
) -> tuple[float, float]:
  """Returns CPU seconds and seconds an image of the real pipeline."""
  augment = config_lib.default_config().augment
  augment.resize.min, augment.resize.max = _SMALLEST, _LARGEST
  augment.randaugment.probability, augment.flip = 1.0, True
  shape = (_CROP, _CROP, 3)
  steps = transforms.build_transforms(augment, shape)
  stream = pipeline.Stream(JpegSource(jpegs), shape, steps, batch)
  with contextlib.closing(
    pipeline.train_batches([stream], seed=0, workers=workers)
  ) as stream_of_batches:
    for _ in range(2 * max(workers, 1) + 2):  # Starts workers, fills buffers.
      next(stream_of_batches)
    start, cpu_start = time.perf_counter(), cpu_seconds()
    for _ in range(batches):
      next(stream_of_batches)
    wall = time.perf_counter() - start
    cpu = cpu_seconds() - cpu_start
  return cpu / (batch * batches), wall / (batch * batches)


def print_stages(args: argparse.Namespace, jpegs: Sequence[bytes]) -> None:
  """Prints the stages, their sum, and the rate of the whole pipeline."""
  stages = time_stages(jpegs, args.repeats)
  cpu, wall = time_grain(jpegs, args.workers, args.batch, args.batches)
  again = time_stages(jpegs, args.repeats)  # Averages out changes of speed.
  stages = {name: (stages[name] + again[name]) / 2 for name in stages}
  raw = seconds_each(decode_raw, jpegs, args.repeats)
  total = sum(stages.values())
  print(f'{"stage":22}  {"ms":>6}  {"images/s":>8}')
  print(f'{"(Pillow decode alone)":22}  {1e3 * raw:6.3f}  {1 / raw:8.0f}')
  for name, seconds in stages.items():
    print(f'{name:22}  {1e3 * seconds:6.3f}  {1 / seconds:8.0f}')
  print(f'{"sum of the parts":22}  {1e3 * total:6.3f}  {1 / total:8.0f}')
  name = f'Grain, {args.workers} workers'
  print(f'{name:22}  {1e3 * cpu:6.3f}  {1 / cpu:8.0f}  per core')
  print(f'{"":22}  {1e3 * wall:6.3f}  {1 / wall:8.0f}  on the clock')
  print(f'{100 * total / cpu:.0f} per cent of the sum of the parts')
  print(f'{math.ceil(_TARGET * cpu)} cores feed {_TARGET} images/s')


def main() -> None:
  """Parses the command line and prints the table."""
  parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
  parser.add_argument('--height', type=int, default=375, help='of the JPEGs')
  parser.add_argument('--images', type=int, default=64, help='different JPEGs')
  parser.add_argument('--repeats', type=int, default=5, help='take the median')
  parser.add_argument('--batch', type=int, default=128)
  parser.add_argument('--batches', type=int, default=8, help='in the pipeline')
  parser.add_argument('--workers', type=int, default=1)
  args = parser.parse_args()
  jpegs = make_jpegs(args.images, args.height)
  size = statistics.mean(len(jpeg) for jpeg in jpegs) / 1000
  width = 4 * args.height // 3
  print(f'JPEGs of {width}×{args.height} pixels, {size:.0f} kB on average')
  print_stages(args, jpegs)


if __name__ == '__main__':
  main()
