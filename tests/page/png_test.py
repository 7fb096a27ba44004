import base64
import struct
import zlib

import numpy as np
import pytest

from lipnext_jax.page import png


def decode(data):
  """PNG → [H, W, ch] uint8, by the letter of the specification."""
  assert data[:8] == b'\x89PNG\r\n\x1a\n'
  at, chunks = 8, []
  while at < len(data):
    (length,) = struct.unpack('>I', data[at : at + 4])
    name, body = data[at + 4 : at + 8], data[at + 8 : at + 8 + length]
    (crc,) = struct.unpack('>I', data[at + 8 + length : at + 12 + length])
    assert crc == zlib.crc32(name + body)
    chunks.append((name, body))
    at += 12 + length
  assert [name for name, _ in chunks] == [b'IHDR', b'IDAT', b'IEND']
  width, height, depth, colour, *rest = struct.unpack('>2I5B', chunks[0][1])
  assert (depth, rest) == (8, [0, 0, 0])
  channels = {0: 1, 2: 3}[colour]
  rows = np.frombuffer(zlib.decompress(chunks[1][1]), np.uint8)
  rows = rows.reshape(height, 1 + width * channels)
  assert not rows[:, 0].any()  # No filter.
  return rows[:, 1:].reshape(height, width, channels)


@pytest.mark.parametrize('channels', [1, 3])
def test_pixels_survive(channels):
  image = np.random.default_rng(0).integers(0, 256, (5, 7, channels), np.uint8)
  np.testing.assert_array_equal(decode(png.encode(image)), image)
  # Floats in [0, 1] are the same grey levels.
  np.testing.assert_array_equal(decode(png.encode(image / 255)), image)


def test_values_outside_are_clipped_and_other_channels_averaged():
  image = np.array([[[-1.0, -1.0], [2.0, 2.0], [np.nan, np.nan]]])
  assert decode(png.encode(image)).ravel().tolist() == [0, 255, 0]
  four = np.array([[[0, 100, 100, 200]]], np.uint8)
  assert decode(png.encode(four)).ravel().tolist() == [100]


def test_a_data_uri_holds_the_file():
  image = np.zeros((2, 2, 1), np.uint8)
  head, body = png.data_uri(image).split(',')
  assert head == 'data:image/png;base64'
  assert base64.b64decode(body) == png.encode(image)


@pytest.mark.parametrize('shape', [(2, 2), (0, 2, 1)])
def test_what_is_no_image_is_refused(shape):
  with pytest.raises(ValueError, match='a PNG needs'):
    png.encode(np.zeros(shape))
