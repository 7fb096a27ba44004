import pickle
import zipfile

import numpy as np
import pytest

from lipnext_jax.data import npz

IMAGES = np.random.default_rng(0).integers(256, size=(6, 4, 5, 3))
IMAGES = IMAGES.astype(np.uint8)
LABELS = np.arange(6) % 3


def write(path, **arrays):
  """Writes a file, and the folder that it unzips to."""
  np.savez(path / 'x.npz', **arrays)
  with zipfile.ZipFile(path / 'x.npz') as archive:
    archive.extractall(path / 'x')
  return str(path / 'x.npz'), str(path / 'x')


def test_files_and_folders_hold_the_same_examples(tmp_path):
  paths = write(tmp_path, image=np.asfortranarray(IMAGES), label=LABELS)
  np.savez_compressed(tmp_path / 'y.npz', image=IMAGES, label=LABELS)
  for path in (*paths, str(tmp_path / 'y.npz')):
    source = npz.NpzSource(path)
    pickled = pickle.dumps(source)
    assert len(pickled) < 500  # Worker processes get the path.
    for copy in (source, pickle.loads(pickled)):
      assert len(copy) == 6
      for i in range(6):
        np.testing.assert_array_equal(copy[i]['image'], IMAGES[i])
        assert copy[i]['label'] == LABELS[i]
        assert copy[i]['label'].dtype == np.int32
        assert type(copy[i]['image']) is np.ndarray


def test_a_folder_is_mapped_into_memory_and_not_read(tmp_path):
  _, folder = write(tmp_path, image=IMAGES, label=LABELS)
  images = npz.NpzSource(folder).images
  assert isinstance(images, np.memmap)
  assert not images.flags.writeable


def test_a_file_is_preferred_to_the_folder_beside_it(tmp_path):
  file, folder = write(tmp_path, image=IMAGES, label=LABELS)
  assert npz.find(str(tmp_path), 'x') == file
  (tmp_path / 'x.npz').unlink()
  assert npz.find(str(tmp_path), 'x') == folder


BAD = {
  'float images': ({'image': IMAGES / 255, 'label': LABELS}, 'float64'),
  'no images': ({'label': LABELS}, 'image'),
  'no channel axis': ({'image': IMAGES[..., 0], 'label': LABELS}, '`image`'),
  'no examples': ({'image': IMAGES[:0], 'label': LABELS[:0]}, '`image`'),
  'no labels': ({'image': IMAGES}, 'label'),
  'too few labels': ({'image': IMAGES, 'label': LABELS[1:]}, '`label`'),
  'float labels': ({'image': IMAGES, 'label': LABELS / 1}, '`label`'),
  'negative labels': ({'image': IMAGES, 'label': LABELS - 1}, 'label -1'),
  'pickles': ({'image': np.array([{}]), 'label': LABELS[:1]}, 'cannot be'),
}


@pytest.mark.parametrize('case', BAD)
def test_malformed_arrays_are_refused_in_one_line(tmp_path, case):
  arrays, reason = BAD[case]
  for path in write(tmp_path, **arrays):
    with pytest.raises(ValueError, match=reason) as info:
      npz.NpzSource(path)
    assert '\n' not in str(info.value)


def test_cut_files_are_refused(tmp_path):
  for path, name in zip(
    write(tmp_path, image=IMAGES, label=LABELS),
    ('x.npz', 'x/image.npy'),
    strict=True,
  ):
    whole = (tmp_path / name).read_bytes()
    for cut in (0, 10, len(whole) // 2, len(whole) - 5):
      (tmp_path / name).write_bytes(whole[:cut])
      with pytest.raises(ValueError, match='cannot be read'):
        npz.NpzSource(path)
