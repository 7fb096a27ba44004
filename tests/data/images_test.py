import io
import struct
import zlib

import numpy as np
from PIL import Image
import pytest

from lipnext_jax.data import images
from lipnext_jax.data import pillow


def rgb(formats):
  return Image.fromarray(formats.pixels(3, 20, 30))


def test_rgb_files_decode_to_their_pixels(formats):
  image = rgb(formats)
  for kind in ('PNG', 'BMP'):
    np.testing.assert_array_equal(
      images.decode(formats.encode(image, kind)), np.asarray(image)
    )
  webp = formats.encode(image, 'WEBP', lossless=True)
  np.testing.assert_array_equal(images.decode(webp), np.asarray(image))
  np.testing.assert_array_equal(
    images.decode(images.encode_png(np.asarray(image))), np.asarray(image)
  )


def test_grey_palette_alpha_and_bilevel_become_rgb(formats):
  grey = formats.pixels(1, 8, 9, 1)[..., 0]
  wanted = np.repeat(grey[..., None], 3, axis=2)
  image = Image.fromarray(grey)
  decoded = images.decode(formats.encode(image, 'PNG'))
  np.testing.assert_array_equal(decoded, wanted)
  alpha = Image.merge('LA', [image, image])
  np.testing.assert_array_equal(
    images.decode(formats.encode(alpha, 'PNG')), wanted
  )
  bits = Image.fromarray(grey > 100)
  np.testing.assert_array_equal(
    images.decode(formats.encode(bits, 'PNG')),
    np.where(wanted > 100, 255, 0),
  )
  colours = np.array([[255, 0, 0], [0, 128, 7]], np.uint8)
  indices = np.array([[0, 1], [1, 1]], np.uint8)
  palette = Image.fromarray(indices).convert('P')
  palette.putpalette(colours.tobytes())
  for transparency in ({}, {'transparency': b'\x00\xff'}):
    data = formats.encode(palette, 'PNG', **transparency)
    np.testing.assert_array_equal(images.decode(data), colours[indices])


def test_cmyk_is_converted_by_its_definition(formats):
  # Flat, so that JPEG is exact but for rounding: R = 255(1 − C)(1 − K).
  inks = np.array([[40, 90, 200, 60]], np.uint8)
  flat = np.broadcast_to(inks, (16, 16, 4))
  data = formats.encode(Image.fromarray(flat.copy(), 'CMYK'), quality=100)
  amount = inks[0] / 255
  wanted = 255 * (1 - amount[:3]) * (1 - amount[3])
  decoded = images.decode(data)
  assert decoded.shape == (16, 16, 3)
  # Four inks rounded once by JPEG, once by the conversion.
  assert np.abs(decoded - wanted).max() <= 3


def chunk(kind, data):
  crc = zlib.crc32(kind + data)
  return struct.pack('>I', len(data)) + kind + data + struct.pack('>I', crc)


def png(size, depth, colours, rows, *before, interlace=0):
  """Returns a PNG file of its parts; the chunks `before` precede the header."""
  header = struct.pack('>IIBBBBB', *size, depth, colours, 0, 0, interlace)
  return (
    b'\x89PNG\r\n\x1a\n'
    + b''.join(before)
    + chunk(b'IHDR', header)
    + chunk(b'IDAT', zlib.compress(rows))
    + chunk(b'IEND', b'')
  )


CHANNELS = {0: 1, 2: 3, 4: 2, 6: 4}  # By PNG's number of a kind of colours.


@pytest.mark.parametrize('colours', CHANNELS)
def test_more_than_8_bits_a_channel_are_refused(colours):
  row = b'\0' + bytes(range(1, 1 + 2 * CHANNELS[colours])) * 4
  files = [png((4, 4), 16, colours, row * 4)]
  files += [png((1, 1), 16, colours, row[: 1 + 2 * CHANNELS[colours]])]
  files += [png((1, 4), 16, colours, row * 4, interlace=1)]
  # Where the header is not where it belongs.
  files += [png((4, 4), 16, colours, row * 4, chunk(b'tEXt', b'a\0b'))]
  for data in files:
    with pytest.raises(images.BadImageError, match=r'16 bits|cannot be|is not'):
      images.decode(data)
  for depth in (8,) if colours else (1, 2, 4, 8):  # The same, of fewer bits.
    width = -(-depth * CHANNELS[colours] * 4 // 8)
    data = png((4, 4), depth, colours, (b'\0' + bytes(width)) * 4)
    assert not images.decode(data).any()


def test_what_is_done_to_a_file_is_listed(formats):
  grey, colour = Image.new('L', (4, 4), 9), Image.new('RGB', (4, 4), (9, 8, 7))
  exif = Image.Exif()
  exif[0x0112] = 6
  for image, kind, options, done in (
    (colour, 'PNG', {}, []),
    (colour, 'JPEG', {}, []),
    (colour, 'JPEG', {'exif': exif}, ['EXIF rotation ignored']),
    (colour, 'PNG', {'icc_profile': b'x'}, ['colour profile ignored']),
    (grey, 'PNG', {}, ['grey repeated as RGB']),
    (colour.convert('RGBA'), 'WEBP', {'lossless': True}, ['alpha dropped']),
    (colour.convert('P'), 'PNG', {}, ['P converted to RGB']),
    (colour.convert('CMYK'), 'JPEG', {}, ['CMYK converted to RGB']),
    (
      colour, 'PNG', {'save_all': True, 'append_images': [grey.convert('RGB')]},
      ['first of 2 frames'],
    ),
  ):  # fmt: skip
    if kind == 'WEBP':
      image.putalpha(0)
    data = formats.encode(image, kind, **options)
    assert images.list_conversions(data) == done


def bad_files(formats):
  image, jpeg = rgb(formats), formats.jpeg(0)
  whole = formats.encode(image, 'PNG')
  middle = len(whole) // 2
  deep = Image.fromarray(formats.pixels(1, 8, 9, 1)[..., 0].astype(np.uint16))
  side = int(pillow.MAX_PIXELS**0.5) + 1
  return {
    'nothing': b'',
    'text': b'<html>404 not found</html>',
    'a cut header': jpeg[:20],
    'a cut JPEG': jpeg[:-200],
    'a cut PNG': whole[:-100],
    'a flipped bit': whole[:middle]
    + bytes([whole[middle] ^ 1])
    + whole[middle + 1 :],
    'a GIF': formats.encode(image, 'GIF'),
    'a TIFF': formats.encode(image, 'TIFF'),
    '16 bits': formats.encode(deep, 'PNG'),
    'a bomb of 70 bytes': png((100_000, 100_000), 8, 2, b''),
    'what Pillow would only warn of': png((side, side), 8, 2, b''),
    'too many bytes': jpeg + bytes(images.MAX_BYTES),
  }


def test_what_is_no_whole_image_is_refused(formats):
  for case, data in bad_files(formats).items():
    for function in (images.decode, images.to_stored):
      with pytest.raises(images.BadImageError, match=r'^(is|has|can)') as e:
        function(data)
      assert '\n' not in str(e.value), case


def test_every_cut_of_a_jpeg_is_refused(formats):
  data = formats.jpeg(0, 24, 24)
  # Beyond the last two bytes, the end mark, the pixels are all there.
  for end in range(0, len(data) - 2, 7):
    with pytest.raises(images.BadImageError):
      images.decode(data[:end])


def test_rgb_files_are_stored_as_they_are_and_others_without_loss(formats):
  image = rgb(formats)
  for data in (formats.jpeg(1), formats.encode(image, 'PNG')):
    stored = images.to_stored(data)
    assert stored.data == data
    assert stored.shape == images.decode(data).shape
  for other in (image.convert('L'), image.convert('CMYK')):
    data = formats.encode(other)
    stored = images.to_stored(data)
    with Image.open(io.BytesIO(stored.data)) as opened:
      assert (opened.format, opened.mode) == ('PNG', 'RGB')
    np.testing.assert_array_equal(
      images.decode(stored.data), images.decode(data)
    )
    assert stored.shape == (20, 30, 3)


def test_scaling_goes_down_only_and_keeps_the_content(formats):
  ramp = np.broadcast_to(
    np.linspace(0, 255, 300)[None, :, None], (200, 300, 3)
  ).astype(np.uint8)
  data = formats.encode(Image.fromarray(ramp.copy()), quality=100)
  stored = images.to_stored(data, 100)
  assert stored.shape == (100, 150, 3)
  small = images.decode(stored.data).astype(float)
  # Each pixel of a ramp is the mean of the pixels it covers.
  wanted = ramp.reshape(100, 2, 150, 2, 3).mean(axis=(1, 3))
  assert np.abs(small - wanted).max() < 4  # JPEG, quality 95.
  for side in (200, 256):
    assert images.to_stored(data, side).data == data
