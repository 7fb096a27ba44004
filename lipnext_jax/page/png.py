"""Images as PNG data URIs, with the standard library alone.

The format is that of the W3C's PNG specification: signature, then chunks of
(length, type, data, CRC-32).
"""

import base64
import struct
import zlib

import numpy as np

_GREY, _RGB = 0, 2  # Colour types.


def encode(image: np.ndarray) -> bytes:
  r"""An image as the bytes of a PNG file, 8 bits a channel.

  Args:
    image: [H, W, ch] float in [0, 1] (clipped) or uint8. One channel is grey,
      three are red, green and blue; any other number is shown as its mean.

  Raises:
    ValueError: not three axes, or an empty one.

  >>> encode(np.zeros((2, 3, 1)))[:8]
  b'\x89PNG\r\n\x1a\n'
  """
  image = np.asarray(image)
  if image.ndim != 3 or not image.size:
    raise ValueError(f'a PNG needs [H, W, ch], got {image.shape=}.')
  if image.dtype != np.uint8:
    finite = np.nan_to_num(image.astype(np.float64), nan=0.0)
    image = np.rint(255 * np.clip(finite, 0, 1)).astype(np.uint8)
  if image.shape[-1] not in (1, 3):
    image = np.rint(image.mean(axis=-1, keepdims=True)).astype(np.uint8)
  height, width, channels = image.shape
  colour = _RGB if channels == 3 else _GREY
  header = struct.pack('>2I5B', width, height, 8, colour, 0, 0, 0)
  # Each row begins with its filter, 0: the bytes as they are.
  rows = np.pad(image.reshape(height, -1), ((0, 0), (1, 0)))
  chunks = ((b'IHDR', header), (b'IDAT', zlib.compress(rows.tobytes(), 9)))
  return b'\x89PNG\r\n\x1a\n' + b''.join(
    _chunk(name, data) for name, data in (*chunks, (b'IEND', b''))
  )


def _chunk(name: bytes, data: bytes) -> bytes:
  crc = zlib.crc32(name + data)
  return struct.pack('>I', len(data)) + name + data + struct.pack('>I', crc)


def data_uri(image: np.ndarray) -> str:
  """`encode` as the `src` of an `<img>`: nothing is fetched to show it.

  >>> data_uri(np.zeros((1, 1, 3)))[:30]
  'data:image/png;base64,iVBORw0K'
  """
  return 'data:image/png;base64,' + base64.b64encode(encode(image)).decode()
