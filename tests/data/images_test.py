import io
import struct
import zlib

import numpy as np
from PIL import Image
import pytest

from lipnext_jax.data import images


def rgb(make):
  return Image.fromarray(make.pixels(3, 20, 30))


def test_files_decode_to_their_pixels_in_rgb(make):
  image = rgb(make)
  for data in (
    make.encode(image, 'BMP'),
    make.encode(image, 'WEBP', lossless=True),
    images.encode_png(np.asarray(image)),
  ):
    np.testing.assert_array_equal(images.decode(data), np.asarray(image))
  grey = make.pixels(1, 8, 9, 1)[..., 0]
  wanted = np.repeat(grey[..., None], 3, axis=2)
  image = Image.fromarray(grey)
  alpha = Image.merge('LA', [image, image])
  colours = np.array([[255, 0, 0], [0, 128, 7]], np.uint8)
  indices = np.array([[0, 1], [1, 1]], np.uint8)
  palette = Image.fromarray(indices).convert('P')
  palette.putpalette(colours.tobytes())
  for stored, pixels, options in (
    (image, wanted, {}),
    (alpha, wanted, {}),
    (Image.fromarray(grey > 100), np.where(wanted > 100, 255, 0), {}),
    (palette, colours[indices], {}),
    (palette, colours[indices], {'transparency': b'\x80\xff'}),
  ):
    data = make.encode(stored, 'PNG', **options)
    np.testing.assert_array_equal(images.decode(data), pixels)


def test_cmyk_is_converted_by_its_definition(make):
  # Flat, so that JPEG is exact but for rounding: R = 255(1 − C)(1 − K).
  inks = (40, 90, 200, 60)
  data = make.encode(Image.new('CMYK', (16, 16), inks), quality=100)
  left = 1 - np.divide(inks, 255)
  wanted = 255 * left[:3] * left[3]
  # Four inks rounded once by JPEG, once by the conversion.
  assert np.abs(images.decode(data) - wanted).max() <= 3


def png(size, depth, colours, rows):
  """Returns a PNG file of its parts."""
  header = struct.pack('>IIBBBBB', *size, depth, colours, 0, 0, 0)
  chunks = ((b'IHDR', header), (b'IDAT', zlib.compress(rows)), (b'IEND', b''))
  file = b'\x89PNG\r\n\x1a\n'
  for kind, data in chunks:
    check = struct.pack('>I', zlib.crc32(kind + data))
    file += struct.pack('>I', len(data)) + kind + data + check
  return file


def test_more_than_8_bits_a_channel_are_refused():
  """Pillow would cut them to 8 bits without a word."""
  # PNG's number of a kind of colours → channels.
  for colours, channels in {0: 1, 2: 3, 4: 2, 6: 4}.items():
    deep = png((4, 4), 16, colours, (b'\0' + bytes([1, 2]) * channels * 4) * 4)
    with pytest.raises(images.BadImageError, match=r'16 bits|mode I;16'):
      images.decode(deep)
    for depth in (8,) if colours else (1, 2, 4, 8):  # The same, of fewer bits.
      row = b'\0' + bytes(-(-depth * channels * 4 // 8))
      assert not images.decode(png((4, 4), depth, colours, row * 4)).any()


@pytest.mark.filterwarnings('ignore:Image size')  # Pillow only warns.
def test_damaged_files_and_other_formats_are_refused(make):
  image, jpeg = rgb(make), make.jpeg(0)
  whole = make.encode(image, 'PNG')
  flipped = bytearray(whole)
  flipped[len(whole) // 2] ^= 1
  for data, problem in (
    (b'', 'is empty'),
    (whole[:-100], 'cannot be decoded'),
    (bytes(flipped), 'cannot be decoded'),
    (make.encode(image, 'GIF'), 'is not a JPEG, PNG, BMP, WEBP image'),
    (png((9460, 9460), 8, 2, b''), 'pixels, more than'),
    (jpeg + bytes(images.MAX_BYTES), 'bytes, more than'),
    # Beyond the last two bytes, the end mark, the pixels are all there.
    *((jpeg[:n], '^is|^cannot') for n in range(61, len(jpeg) - 2, 61)),
  ):
    with pytest.raises(images.BadImageError, match=problem):
      images.decode(data)


def test_rgb_files_are_stored_as_they_are_and_others_without_loss(make):
  image = rgb(make)
  for data in (make.jpeg(1), make.encode(image, 'PNG')):
    assert images.to_stored(data) == (data, images.decode(data).shape)
  for other in (image.convert('L'), image.convert('CMYK')):
    data = make.encode(other)
    stored, shape = images.to_stored(data)
    with Image.open(io.BytesIO(stored)) as opened:
      assert (opened.format, opened.mode) == ('PNG', 'RGB')
    np.testing.assert_array_equal(images.decode(stored), images.decode(data))
    assert shape == (20, 30, 3)


def test_stored_images_are_scaled_down_only(make):
  ramp = Image.linear_gradient('L').crop((0, 0, 200, 256)).convert('RGB')
  data = make.encode(ramp, quality=100)
  stored, shape = images.to_stored(data, 100)
  assert shape == (128, 100, 3)
  # Row i has the value i, and each scaled row is the mean of two.
  wanted = 2 * np.arange(128)[:, None, None] + 0.5
  small = images.decode(stored).astype(float)
  assert np.abs(small - wanted).max() < 4  # JPEG, quality 95.
  for side in (200, 256):
    assert images.to_stored(data, side)[0] == data


def triangle_weights(length, target):
  """Returns the antialiased bilinear filter [target, length] by its definition.

  Output pixel i has its centre at (i + ½)·length/target; a triangle of half
  width max(1, length/target) around it weighs the input pixels' centres.
  """
  scale = length / target
  centres = (np.arange(target) + 0.5) * scale
  distance = np.abs(np.arange(length)[None] + 0.5 - centres[:, None])
  weights = np.maximum(0, 1 - distance / max(1.0, scale))
  return weights / weights.sum(axis=1, keepdims=True)


def test_the_shorter_side_is_resized_with_the_antialiased_triangle(make):
  for shape, size, expected in (
    ((37, 50), 20, (20, 27)),  # 20·50/37 = 27.03.
    ((30, 58), 20, (20, 38)),  # 20·58/30 = 38.67: down.
    ((58, 30), 20, (38, 20)),
    ((10, 12), 25, (25, 30)),  # Enlarged.
    ((20, 31), 20, (20, 31)),  # Untouched.
  ):
    image = make.pixels(0, *shape)
    picture = images.from_array(image)
    out = images.to_array(images.resize_shorter_side(picture, size))
    assert out.shape[:2] == expected
    weights = map(triangle_weights, shape, expected)
    oracle = np.einsum('ih,jw,hwc->ijc', *weights, image.astype(np.float64))
    # Each of the two passes rounds to a whole grey value, its weights to 22
    # bits (Pillow's fixed point): ½ + ½ and a little.
    assert np.abs(out - oracle).max() < 1.01
    if expected < shape:  # Without antialiasing, it would be noticed.
      plain = picture.resize(expected[::-1], Image.Resampling.NEAREST)
      assert np.abs(np.asarray(plain) - oracle).max() > 20
