import numpy as np
import pytest

from lipnext_jax import errors
from lipnext_jax.data import npz


def test_what_was_written_is_read(tmp_path):
  images = np.random.default_rng(0).integers(256, size=(6, 4, 4, 3))
  images = images.astype(np.uint8)
  np.savez(tmp_path / 'x.npz', image=images, label=np.arange(6))
  read_images, read_labels = npz.read_arrays(str(tmp_path), 'x.npz')
  np.testing.assert_array_equal(read_images, images)
  assert read_labels.tolist() == list(range(6))


BAD_ARRAYS = {
  'float images': (np.zeros((2, 4, 4, 1)), np.zeros(2, int)),
  'no channel axis': (np.zeros((2, 4, 4), np.uint8), np.zeros(2, int)),
  'no examples': (np.zeros((0, 4, 4, 1), np.uint8), np.zeros(0, int)),
  'too few labels': (np.zeros((2, 4, 4, 1), np.uint8), np.zeros(1, int)),
  'float labels': (np.zeros((2, 4, 4, 1), np.uint8), np.zeros(2)),
  'negative labels': (np.zeros((2, 4, 4, 1), np.uint8), np.array([0, -1])),
  'pickles': (np.array([{}, {}], object), np.zeros(2, int)),
}


@pytest.mark.parametrize('case', BAD_ARRAYS)
def test_malformed_npz_is_refused_by_directory(tmp_path, case):
  images, labels = BAD_ARRAYS[case]
  np.savez(tmp_path / 'train.npz', image=images, label=labels)
  with pytest.raises(errors.ConfigError, match=r'dataset\.data_dir'):
    npz.read_arrays(str(tmp_path), 'train.npz')


def test_missing_and_truncated_files_are_refused(tmp_path):
  with pytest.raises(errors.ConfigError, match='is no directory'):
    npz.read_arrays(str(tmp_path / 'nowhere'), 'train.npz')
  with pytest.raises(errors.ConfigError, match=r'holds no train\.npz'):
    npz.read_arrays(str(tmp_path), 'train.npz')
  images = np.zeros((9, 4, 4, 1), np.uint8)
  np.savez(tmp_path / 'whole.npz', image=images, label=[0] * 9)
  whole = (tmp_path / 'whole.npz').read_bytes()
  for cut in (0, 10, len(whole) // 2, len(whole) - 5):
    (tmp_path / 'train.npz').write_bytes(whole[:cut])
    with pytest.raises(errors.ConfigError, match=r'dataset\.data_dir'):
      npz.read_arrays(str(tmp_path), 'train.npz')
