"""Files become the images that the model was trained on, or a reason."""

import io
import os

import numpy as np
from PIL import Image
import pytest

from lipnext_jax.data import inputs

GREY = inputs.Preprocessing((8, 8, 1), 0)
COLOUR = inputs.Preprocessing((4, 6, 3), 0)


def pixels(shape, seed=0):
  return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def save(path, array):
  Image.fromarray(array).save(path)
  return str(path)


def test_grey_and_colour_files_keep_their_values(tmp_path):
  grey, colour = pixels((8, 8)), pixels((4, 6, 3))
  found = inputs.read(save(tmp_path / 'a.png', grey), GREY)
  assert found.dtype == np.float64
  np.testing.assert_array_equal(found, grey[..., None] / 255)
  found = inputs.read(save(tmp_path / 'b.png', colour), COLOUR)
  np.testing.assert_array_equal(found, colour / 255)


def test_colours_become_grey_by_their_luma(tmp_path):
  colour = pixels((8, 8, 3))
  found = inputs.read(save(tmp_path / 'a.png', colour), GREY)
  expected = np.asarray(Image.fromarray(colour).convert('L'))
  # Pillow rounds weights of 16 bits: one level of difference at most.
  assert np.max(np.abs(255 * found[..., 0] - expected)) <= 1
  reversed_channels = inputs.read(
    save(tmp_path / 'b.png', colour[..., ::-1].copy()), GREY
  )
  assert np.max(np.abs(255 * reversed_channels[..., 0] - expected)) > 10


def test_photographs_are_scaled_and_cut_where_the_model_says_so(tmp_path):
  path = save(tmp_path / 'a.png', np.full((30, 40, 3), 51, np.uint8))
  found = inputs.read(path, inputs.Preprocessing((8, 8, 3), 10))
  np.testing.assert_array_equal(found, np.full((8, 8, 3), 0.2))
  with pytest.raises(inputs.BadInputError, match=r'30×40 pixels.*--resize'):
    inputs.read(path, inputs.Preprocessing((8, 8, 3), 0))


@pytest.mark.parametrize(
  'array',
  [
    pixels((8, 8)),
    pixels((8, 8, 1)),
    np.random.default_rng(0).random((8, 8, 1)),
    np.float32(np.random.default_rng(0).random((8, 8, 1))),
  ],
)
def test_arrays_are_taken_as_they_are(tmp_path, array):
  np.save(tmp_path / 'a.npy', array)
  found = inputs.read(str(tmp_path / 'a.npy'), GREY)
  scale = 255 if array.dtype == np.uint8 else 1
  expected = array.reshape(8, 8, 1).astype(np.float64) / scale
  np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(
  ('array', 'problem'),
  [
    (np.zeros((8, 9, 1)), 'has shape'),
    (np.zeros((8, 8, 1), np.int64), 'holds int64'),
    (np.zeros((8, 8, 1), np.longdouble), 'holds float128'),
    (np.full((8, 8, 1), 1.5), 'outside'),
    (np.full((8, 8, 1), np.nan), 'outside'),
    (np.array([[None] * 8] * 8), 'Python objects'),
  ],
)
def test_arrays_that_do_not_fit_are_refused(tmp_path, array, problem):
  np.save(tmp_path / 'a.npy', array)
  with pytest.raises(inputs.BadInputError, match=problem):
    inputs.read(str(tmp_path / 'a.npy'), GREY)


def test_files_that_are_no_images_are_refused(tmp_path):
  text = tmp_path / 'a.txt'
  text.write_text('no image')
  whole = save(tmp_path / 'b.png', pixels((8, 8)))
  cut = tmp_path / 'cut.png'
  with open(whole, 'rb') as file:
    cut.write_bytes(file.read()[:60])
  for path in (text, cut, tmp_path / 'missing.png', tmp_path):
    with pytest.raises(inputs.BadInputError, match=r'is no|cannot be'):
      inputs.read(str(path), GREY)


def test_names_folders_and_standard_input_are_expanded(tmp_path):
  (tmp_path / 'f' / 'sub').mkdir(parents=True)
  for name in ('f/b.png', 'f/a.png', 'f/.hidden', 'f/sub/c.png'):
    (tmp_path / name).touch()
  stdin = io.StringIO(f'x.png\n\n{tmp_path}/f\n')
  found = list(inputs.expand(['first.png', '-'], stdin))
  below = [f'{tmp_path}/f/{name}' for name in ('a.png', 'b.png', 'sub/c.png')]
  assert found == ['first.png', 'x.png', *below]


def test_an_image_too_long_to_be_scaled_is_refused_not_scaled(tmp_path):
  path = str(tmp_path / 'thin.png')
  Image.new('1', (1, 8000)).save(path)
  assert os.path.getsize(path) < 200
  with pytest.raises(inputs.BadInputError, match=r'1×8000 .* crop it'):
    inputs.read(path, inputs.Preprocessing((224, 224, 3), 256))


def test_an_archive_of_arrays_by_the_name_of_one_is_refused(tmp_path):
  np.savez(tmp_path / 'a.npz', pixels((8, 8)))
  os.rename(tmp_path / 'a.npz', tmp_path / 'a.npy')
  with pytest.raises(inputs.BadInputError, match='several arrays'):
    inputs.read(str(tmp_path / 'a.npy'), GREY)


def test_scaling_and_colours_are_noted(tmp_path):
  colour = save(tmp_path / 'a.png', pixels((8, 8, 3)))
  grey = save(tmp_path / 'b.png', pixels((8, 8)))
  down, up = (
    inputs.Preprocessing((4, 4, 3), 4),
    inputs.Preprocessing((9, 9, 3), 16),
  )
  for path, how, done in (
    (colour, GREY, ['colours weighed to grey']),
    (grey, GREY, []),
    (colour, inputs.Preprocessing((8, 8, 3), 8), []),
    (colour, down, ['scaled down by 2']),
    (
      colour, up,
      ['scaled up by 2, where its own pixels have a smaller radius', 'cropped'],
    ),
    (grey, inputs.Preprocessing((8, 8, 3), 0), ['grey repeated as RGB']),
  ):  # fmt: skip
    assert inputs.read_noting(path, how)[1] == done


@pytest.mark.parametrize(
  'dtype', [np.uint8, np.float16, np.float32, np.float64]
)
def test_what_is_done_to_an_array_is_noted(tmp_path, dtype):
  np.save(tmp_path / 'a.npy', np.ones((8, 8), dtype))
  found, (done,) = inputs.read_noting(str(tmp_path / 'a.npy'), GREY)
  scale = 255 if dtype == np.uint8 else 1
  assert found.max() == 1 / scale
  assert done == f'{np.dtype(dtype)} array ' + (
    '/ 255' if scale > 1 else 'as it is'
  )


@pytest.mark.parametrize('name', ['pipe.png', 'pipe.npy'])
def test_a_pipe_is_an_error_and_no_hang(tmp_path, name):
  os.mkfifo(tmp_path / name)
  with pytest.raises(inputs.BadInputError, match='no regular file'):
    inputs.read(str(tmp_path / name), GREY)
