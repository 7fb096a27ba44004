import io
import os

import numpy as np
from PIL import Image
import pytest

from lipnext_jax.data import inputs

GREY = inputs.Preprocessing((8, 8, 1), 0)
COLOUR = inputs.Preprocessing((4, 6, 3), 0)


def pixels(shape):
  return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def save(path, array):
  Image.fromarray(array).save(path)
  return str(path)


def test_files_keep_their_values_and_colours_become_grey_by_luma(tmp_path):
  grey, colour = pixels((8, 8)), pixels((4, 6, 3))
  found, _ = inputs.read(save(tmp_path / 'a.png', grey), GREY)
  assert found.dtype == np.float64
  np.testing.assert_array_equal(found, grey[..., None] / 255)
  found, _ = inputs.read(save(tmp_path / 'b.png', colour), COLOUR)
  np.testing.assert_array_equal(found, colour / 255)

  colour = pixels((8, 8, 3))
  luma = colour @ np.array([299, 587, 114]) / 1000  # ITU-R 601-2.
  found, _ = inputs.read(save(tmp_path / 'c.png', colour), GREY)
  # Pillow rounds weights of 16 bits, and the result.
  assert np.max(np.abs(255 * found[..., 0] - luma)) <= 0.51
  blue_first = colour @ np.array([114, 587, 299]) / 1000
  assert np.max(np.abs(255 * found[..., 0] - blue_first)) > 10


def test_photographs_are_scaled_and_cut_where_the_model_says_so(tmp_path):
  path = save(tmp_path / 'a.png', np.full((30, 40, 3), 51, np.uint8))
  found, _ = inputs.read(path, inputs.Preprocessing((8, 8, 3), 10))
  np.testing.assert_array_equal(found, np.full((8, 8, 3), 0.2))
  with pytest.raises(inputs.BadInputError, match=r'30×40 pixels.*--resize'):
    inputs.read(path, inputs.Preprocessing((8, 8, 3), 0))


@pytest.mark.parametrize('dtype', ['uint8', 'float16', 'float32', 'float64'])
def test_arrays_are_taken_as_they_are(tmp_path, dtype):
  scale, way = (255, '/ 255') if dtype == 'uint8' else (1, 'as it is')
  for shape in ((8, 8), (8, 8, 1)):
    array = (pixels(shape) * (scale / 300)).astype(dtype)
    np.save(tmp_path / 'a.npy', array)
    found, done = inputs.read(str(tmp_path / 'a.npy'), GREY)
    expected = array.reshape(8, 8, 1).astype(np.float64) / scale
    np.testing.assert_array_equal(found, expected)
    assert done == [f'{dtype} array {way}']


def test_files_that_do_not_fit_are_refused(tmp_path):
  os.truncate(save(tmp_path / 'cut.png', pixels((8, 8))), 60)
  np.zeros((8, 8)).dump(tmp_path / 'pickle.npy')
  cases = {
    'cut.png': 'cannot be decoded',
    'missing.png': 'cannot be read',
    'pickle.npy': r'pickled \(object\) data',
  }
  for name, array, problem in (
    ('shape', np.zeros((8, 9, 1)), 'has shape'),
    ('int', np.zeros((8, 8, 1), np.int64), 'holds int64'),
    ('large', np.full((8, 8, 1), 1.5), 'outside'),
    ('nan', np.full((8, 8, 1), np.nan), 'outside'),
  ):
    np.save(tmp_path / f'{name}.npy', array)
    cases[f'{name}.npy'] = problem
  for name, problem in cases.items():
    with pytest.raises(inputs.BadInputError, match=problem):
      inputs.read(os.path.join(tmp_path, name), GREY)


def test_names_folders_and_standard_input_are_expanded(tmp_path):
  (tmp_path / 'f' / 'sub').mkdir(parents=True)
  for name in ('f/b.png', 'f/a.png', 'f/.hidden', 'f/sub/c.png'):
    (tmp_path / name).touch()
  stdin = io.StringIO(f'x.png\n\n{tmp_path}/f\n')
  found = list(inputs.expand(['first.png', '-'], stdin))
  below = [f'{tmp_path}/f/{name}' for name in ('a.png', 'b.png', 'sub/c.png')]
  assert found == ['first.png', 'x.png', *below]


def test_whatever_is_done_to_a_file_is_noted(tmp_path):
  rgb, grey = map(Image.fromarray, (pixels((8, 8, 3)), pixels((8, 8))))
  exif = Image.Exif()
  exif[0x0112] = 6
  clear = rgb.convert('RGBA')
  clear.putalpha(0)
  two = {'save_all': True, 'append_images': [rgb.rotate(90)]}
  as_it_is = inputs.Preprocessing((8, 8, 3), 0)
  up = 'scaled up by 2, where its own pixels have a smaller radius'
  for image, kind, options, how, done in (
    (rgb, 'PNG', {}, GREY, ['colours weighed to grey']),
    (grey, 'PNG', {}, GREY, []),
    (grey, 'PNG', {}, as_it_is, ['grey repeated as RGB']),
    (rgb, 'PNG', {}, inputs.Preprocessing((8, 8, 3), 8), []),
    (rgb, 'PNG', {}, inputs.Preprocessing((4, 4, 3), 4), ['scaled down by 2']),
    (rgb, 'PNG', {}, inputs.Preprocessing((9, 9, 3), 16), [up, 'cropped']),
    (rgb, 'JPEG', {}, as_it_is, []),
    (rgb, 'JPEG', {'exif': exif}, as_it_is, ['EXIF rotation ignored']),
    (rgb, 'PNG', {'icc_profile': b'x'}, as_it_is, ['colour profile ignored']),
    (clear, 'WEBP', {'lossless': True}, as_it_is, ['alpha dropped']),
    (rgb.convert('CMYK'), 'JPEG', {}, as_it_is, ['CMYK converted to RGB']),
    (rgb, 'PNG', two, as_it_is, ['first of 2 frames']),
  ):
    image.save(tmp_path / 'image', kind, **options)
    assert inputs.read(str(tmp_path / 'image'), how)[1] == done
