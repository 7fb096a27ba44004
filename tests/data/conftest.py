"""Makes small archives in exactly the official formats."""

import gzip
import io
import pathlib
import pickle
import pickletools
import struct
import tarfile
import types
import zipfile

import numpy as np
from PIL import Image
import pytest

from lipnext_jax.data import formats
from lipnext_jax.data import official
from lipnext_jax.data import shards


def pixels(seed, height, width, channels=3):
  rng = np.random.default_rng(seed)
  return rng.integers(256, size=(height, width, channels)).astype(np.uint8)


def encode(image, kind='JPEG', **options):
  file = io.BytesIO()
  image.save(file, kind, **options)
  return file.getvalue()


def jpeg(seed, height=64, width=64):
  return encode(Image.fromarray(pixels(seed, height, width)))


# Python 3's opcode of bytes → Python 2's of a string, with equal arguments.
STRINGS = {'SHORT_BINBYTES': b'U', 'BINBYTES': b'T'}


def python2_pickle(value):
  """Pickles like Python 2 and its NumPy, which wrote the official batches."""
  data = bytearray(pickle.dumps(value, protocol=3))
  data[1] = 2  # The protocol.
  for opcode, _, at in pickletools.genops(bytes(data)):
    if opcode.name in STRINGS:
      data[at : at + 1] = STRINGS[opcode.name]
  return bytes(data).replace(b'numpy._core', b'numpy.core')


def tar_bytes(members, mode='w'):
  """Returns a tar of `members`: name → bytes, or a TarInfo."""
  file = io.BytesIO()
  with tarfile.open(None, mode, file) as tar:
    for name, data in members.items():
      if isinstance(data, tarfile.TarInfo):
        tar.addfile(data)
      else:
        info = tarfile.TarInfo(name)
        info.size = len(data)
        tar.addfile(info, io.BytesIO(data))
  return file.getvalue()


def write_tar(path, members, mode='w'):
  path.write_bytes(tar_bytes(members, mode))
  return str(path)


def cifar_files(name):
  """Returns file → bytes of both archives, and split → [(image, labels)]."""
  keys, classes = [b'labels'], {'label': 10}
  batches = [*(f'data_batch_{i}' for i in range(1, 6)), 'test_batch']
  if name == 'cifar100':
    keys = [b'coarse_labels', b'fine_labels']
    classes = {'coarse_label': 20, 'label': 100}
    batches = ['train', 'test']
  python, binary, truth = {}, {}, {'train': [], 'test': []}
  for number, batch in enumerate(batches):
    images = np.stack([pixels(100 * number + i, 32, 32) for i in range(4)])
    rows = images.transpose(0, 3, 1, 2).reshape(4, -1)
    labels = np.arange(number, number + 28, 7)[:, None] % [*classes.values()]
    columns = map(np.ndarray.tolist, labels.T)
    values = {b'data': rows, **dict(zip(keys, columns, strict=True))}
    python[batch] = python2_pickle(values)
    binary[f'{batch}.bin'] = np.hstack([labels, rows]).astype('u1').tobytes()
    truth['test' if 'test' in batch else 'train'] += [
      (image, dict(zip(classes, of_image, strict=True)))
      for image, of_image in zip(images, labels.tolist(), strict=True)
    ]
  return python, binary, truth


# Not sorted, as the official ones; only the first three have images here.
TINY_WNIDS = ['n02124075', 'n01443537', 'n04067472']
TINY_WNIDS += [f'n{90000000 - i}' for i in range(197)]


def tiny_files():
  files = {'wnids.txt': '\n'.join(TINY_WNIDS).encode() + b'\n'}
  for number, wnid in enumerate(TINY_WNIDS[:3]):
    files[f'train/{wnid}/{wnid}_boxes.txt'] = b''
    for i in range(3):
      name = f'train/{wnid}/images/{wnid}_{i}.JPEG'
      files[name] = jpeg(10 * number + i)
  lines = []
  for i in (0, 1, 2, 10):
    files[f'val/images/val_{i}.JPEG'] = jpeg(500 + i)
    lines.append(f'val_{i}.JPEG\t{TINY_WNIDS[i % 3]}\t0\t32\t44\t62')
  files['val/val_annotations.txt'] = '\n'.join(lines).encode()
  files['test/images/test_0.JPEG'] = jpeg(900)
  return files


def write_zip(path, files):
  """Writes a zip of `files`; names of folders end with a slash."""
  with zipfile.ZipFile(path, 'w', zipfile.ZIP_DEFLATED) as archive:
    for name, data in files.items():
      archive.writestr(name, data)
  return str(path)


def tree(directory, files):
  for name, data in files.items():
    path = pathlib.Path(directory, name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
  return str(directory)


def imagenet_files():
  """Returns class → file → bytes, validation file → bytes, and their labels."""
  wnids = official.imagenet_words('labels.txt')
  train = {}
  for number, label in enumerate((0, 2, 999)):  # 0 and 2: of the 400.
    train[wnids[label]] = {
      f'{wnids[label]}_{i}.JPEG': jpeg(40 * number + i, 40 + 8 * i, 56)
      for i in range(3)
    }
  # What the official archive has, too: CMYK, grey, and a PNG by another name.
  image = Image.fromarray(pixels(7, 48, 40))
  odd = [encode(image.convert(mode)) for mode in ('CMYK', 'L')]
  odd.append(encode(image, 'PNG'))
  train[wnids[0]] = dict(zip(train[wnids[0]], odd, strict=True))
  truth = official.imagenet_words('validation_labels.txt')
  labels, validation, number = [999, 0, 2, 0], {}, 0
  for label in labels:  # The next official image of this class.
    number = truth.index(wnids[label], number) + 1
    image = jpeg(700 + len(validation), 50, 60)
    validation[f'ILSVRC2012_val_{number:08d}.JPEG'] = image
  return train, validation, labels


def imagenet(directory, train, validation):
  directory.mkdir(exist_ok=True)
  inner = {f'{wnid}.tar': tar_bytes(files) for wnid, files in train.items()}
  write_tar(directory / 'ILSVRC2012_img_train.tar', inner)
  write_tar(directory / 'ILSVRC2012_img_val.tar', validation)
  return str(directory)


def cifar(directory, name='cifar10', files=None, kind='python'):
  """Writes an archive of a set, by default the Python one."""
  files = cifar_files(name)[0] if files is None else files
  archive = f'{name.replace("cifar", "cifar-")}-{kind}'
  ending = {'python': 'batches-py', 'binary': 'batches-bin'}[kind]
  root = f'cifar-10-{ending}' if name == 'cifar10' else archive
  members = {f'{root}/{file}': data for file, data in files.items()}
  return write_tar(directory / f'{archive}.tar.gz', members, 'w:gz')


def tiny(directory, files=None):
  files = tiny_files() if files is None else files
  members = {f'tiny-imagenet-200/{name}': files[name] for name in files}
  return write_zip(directory / 'tiny-imagenet-200.zip', members)


FORM = shards.Form(
  official.SETS['cifar10'], {'label': official.class_names('cifar10')}
)


def items(count):
  """Returns examples as the reader of CIFAR-10 lists them; the labels count."""
  return [
    formats.Item(f'train_{i:05d}', {'label': i % 10}, pixels(i, 32, 32))
    for i in range(count)
  ]


def idx_files():
  """Returns file → bytes of the four files, and prefix → images, labels."""
  files, truth = {}, {}
  for prefix, count in (('train', 12), ('t10k', 5)):
    images = np.stack([pixels(count + i, 28, 28, 1) for i in range(count)])
    labels = (7 * np.arange(count) % 10).astype(np.uint8)
    header = struct.pack('>4i', 2051, count, 28, 28)
    files[f'{prefix}-images-idx3-ubyte'] = header + images.tobytes()
    header = struct.pack('>2i', 2049, count)
    files[f'{prefix}-labels-idx1-ubyte'] = header + labels.tobytes()
    truth[prefix] = images, labels
  return files, truth


def gzipped(files, level=9):
  return {
    f'{name}.gz': gzip.compress(data, level, mtime=0)
    for name, data in files.items()
  }


def archive(directory, name):
  """Writes a small official archive of any set."""
  if name == 'imagenet':
    return imagenet(directory / 'tars', *imagenet_files()[:2])
  if name == 'tiny_imagenet':
    return tiny(directory)
  if name in official.IDX_CHECKSUMS:
    return tree(directory / 'idx', gzipped(idx_files()[0]))
  return cifar(directory, name)


@pytest.fixture(scope='session')
def make():
  """The functions of this file, which make archives."""
  return types.SimpleNamespace(**globals())
