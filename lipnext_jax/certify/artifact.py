"""A certified predictor as one file: program, weights, Λ and config.

    images [b, H, W, ch] → classes [b], certified radii [b]

The program is serialised StableHLO (`jax.export`), for CPU, CUDA and TPU at
once and any batch size; the weights are plain arrays beside it. Running it
takes jax and numpy (docs/certificates.md does so without this package), nothing
of the training or data stack, and never a pickle.

The file is a zip of `manifest.json`, `program.bin` and `weights.npz`. The
manifest says what the certificate is about and holds the SHA-256 of the other
two. Λ and the radii are its author's word: a file cannot prove where its
numbers come from.
"""

from collections.abc import Mapping
from collections.abc import Sequence
import hashlib
import io
import json
import math
import os
from typing import Any
import zipfile

import jax
from jax import export
import jax.numpy as jnp
import numpy as np

from lipnext_jax import errors
from lipnext_jax.certify import bound
from lipnext_jax.certify import fast
from lipnext_jax.certify import radius
from lipnext_jax.certify import stablehlo
from lipnext_jax.models import layers

FORMAT = 1  # Raised whenever an older loader would misread a newer file.
PLATFORMS = ('cpu', 'cuda', 'tpu')
_PARTS = ('program.bin', 'weights.npz')
_REMEDY = 'write it again with `python -m lipnext_jax.certify --export`'


def export_predictor(
  path: str,
  model: Any,
  params: Any,
  image_shape: Sequence[int],
  *,
  resize: int = 0,
  config: Mapping[str, Any] | None = None,
  platforms: Sequence[str] = PLATFORMS,
) -> dict[str, Any]:
  """Writes a certified predictor; Λ is proved here and goes with it.

  Args:
    path: the file to write, replaced as a whole.
    model: evaluated in float32 at the highest precision, whatever it trained
      in.
    params: its parameters, float32.
    image_shape: (H, W, ch).
    resize: what the shorter side of an image file is scaled to before its
      centre is cut out, as evaluation did; 0: files must have the size.
    config: plain data to keep in the manifest, for provenance.
    platforms: of `jax.export`.

  Returns:
    The manifest.

  Raises:
    ValueError: a model that `load_predictor` would refuse: it does more than
      compute, see `stablehlo`.
  """
  params, model = model.explicit_params(params), model.explicit()

  params = jax.tree.map(np.asarray, params)
  constants = fast.prove_constants(params)
  offset = constants.on_device().offset

  def predict(params, lipschitz, images):
    predictions, radii = fast.rival_radii(
      model, params, images, fast.Constants(lipschitz, offset)
    )
    return predictions, jnp.min(radii, axis=-1)

  (b,) = export.symbolic_shape('b')
  shapes = jax.tree.map(
    lambda p: jax.ShapeDtypeStruct(p.shape, p.dtype), params
  )
  program = export.export(jax.jit(predict), platforms=tuple(platforms))(
    shapes,
    jax.ShapeDtypeStruct((), np.float32),
    jax.ShapeDtypeStruct((b, *image_shape), np.float32),
  )
  stablehlo.check(program.mlir_module())
  weights = io.BytesIO()
  # Arrays in the order of the tree, whatever its names may hold.
  np.savez(weights, *jax.tree.leaves(params))
  parts = {
    'program.bin': bytes(program.serialize()),
    'weights.npz': weights.getvalue(),
  }
  manifest = {
    'format': FORMAT,
    'image_shape': list(map(int, image_shape)),
    'resize': resize,
    'num_classes': int(params['head']['kernel'].shape[0]),
    'lipschitz_bound': constants.lipschitz,
    'offset': constants.offset,  # It is in the program; see `fast`.
    'certificate': fast.CLAIM,
    'units': 'images float32 in [0, 1]; radii ℓ2 in the same units',
    'platforms': list(program.platforms),
    'jax': jax.__version__,
    'config': dict(config or {}),
    'sha256': {
      name: hashlib.sha256(data).hexdigest() for name, data in parts.items()
    },
  }
  temporary = f'{path}.tmp'
  with zipfile.ZipFile(temporary, 'w') as archive:  # Weights do not compress.
    text = json.dumps(manifest, indent=2, ensure_ascii=False)
    archive.writestr('manifest.json', text)
    for name, data in parts.items():
      archive.writestr(name, data)
  os.replace(temporary, path)
  return manifest


class Predictor:
  """A loaded artifact.

  Attributes:
    manifest: what the file says of itself: Λ, image shape, config, …
  """

  def __init__(
    self, manifest: dict[str, Any], program: export.Exported, params: Any
  ):
    """Takes the parts of a file that was checked: use `load_predictor`."""
    self.manifest = manifest
    self._call = jax.jit(program.call)
    self._params = jax.device_put(params)
    self._lipschitz = bound.float32_above(manifest['lipschitz_bound'])

  def __call__(self, images: np.ndarray) -> tuple[jax.Array, jax.Array]:
    """Classes [b] int32 and radii [b], ℓ2 in [0, 1] pixel units.

    Args:
      images: [b, H, W, ch], floats in [0, 1] or uint8, which is divided by
        255. What float32 does not hold is rounded to it first.

    Raises:
      ValueError: images of another shape, or of other whole numbers, as
        floats too.
    """
    expected = tuple(self.manifest['image_shape'])
    if images.ndim != 4 or tuple(images.shape[1:]) != expected:
      raise ValueError(
        f'{images.shape=} is no batch [b, {", ".join(map(str, expected))}].'
      )
    radius.check_units(images)
    images = jnp.float32(layers.to_unit(images))
    if not len(images):  # Programs are exported for one image or more.
      return jnp.zeros(0, jnp.int32), jnp.zeros(0)
    return self._call(self._params, self._lipschitz, images)


def load_predictor(path: str) -> Predictor:
  """Reads and verifies an artifact.

  Raises:
    ConfigError: no such file, or one that is damaged, newer than this code,
      for other devices than those at hand, whose parts do not fit each other,
      or whose program does more than compute.
  """

  def refuse(problem: str, remedy: str = _REMEDY) -> errors.ConfigError:
    return errors.ConfigError('artifact', path, problem, remedy)

  if not os.path.isfile(path):
    raise refuse('is no file')
  try:
    with zipfile.ZipFile(path) as archive:
      _check_sizes(archive, os.path.getsize(path))
      manifest = json.loads(archive.read('manifest.json'))
      if manifest['format'] != FORMAT:
        raise refuse(
          f'has format {manifest["format"]}, this code reads {FORMAT}',
          'use the version of lipnext_jax that wrote it',
        )
      parts = {name: archive.read(name) for name in _PARTS}
    for name, data in parts.items():
      if hashlib.sha256(data).hexdigest() != manifest['sha256'][name]:
        raise refuse(f'is damaged: {name} does not have its checksum')
    _check_manifest(manifest)
    program = export.deserialize(bytearray(parts['program.bin']))
    stablehlo.check(program.mlir_module())
    weights = io.BytesIO(parts['weights.npz'])
    with zipfile.ZipFile(weights) as archive:
      _check_sizes(archive, len(parts['weights.npz']))
    with np.load(weights, allow_pickle=False) as file:
      leaves = [file[name] for name in file.files]
    _check_weights(program, leaves)
    params = jax.tree.unflatten(_params_tree(program), leaves)
  except errors.ConfigError:
    raise
  except Exception as error:  # Whatever a damaged zip, JSON or program raises.
    reason = ' '.join(str(error).split())[:200]
    raise refuse(f'cannot be read ({reason})') from None
  if jax.default_backend() not in _aliases(program.platforms):
    raise refuse(
      f'was exported for {", ".join(program.platforms)}, not for '
      f'{jax.default_backend()}'
    )
  try:
    _check_signature(program, params, manifest['image_shape'])
  except Exception as error:  # Of JAX, which has many for shapes.
    reason = ' '.join(str(error).split())[:200]
    raise refuse(f'does not fit together ({reason})') from None
  return Predictor(manifest, program, params)


def _check_sizes(archive: zipfile.ZipFile, size: int) -> None:
  """Nothing is compressed in what `export_predictor` writes: no bombs.

  Raises:
    ValueError: the entries claim more bytes than the archive has.
  """
  claimed = sum(info.file_size for info in archive.infolist())
  if claimed > size:
    raise ValueError(f'{claimed} bytes in {size}: a bomb?')


def _check_manifest(manifest: dict[str, Any]) -> None:
  """Refuses fields that are missing or of another kind than was written.

  Raises:
    ValueError: naming the field.

  >>> _check_manifest({'lipschitz_bound': 0, 'resize': 0, 'certificate': ''})
  Traceback (most recent call last):
  ValueError: its lipschitz_bound is no number above 0
  """

  def check(name: str, fits: bool, wanted: str) -> None:
    if not fits:
      raise ValueError(f'its {name} is {wanted}')

  names = ('lipschitz_bound', 'resize', 'certificate', 'image_shape')
  fields: list[Any] = [manifest.get(name) for name in names]
  scale, resize, text, shape = fields
  least, most = radius.SANE  # Beyond, all radii are 0.
  held = type(scale) in (int, float) and least <= scale <= most
  check('lipschitz_bound', held, 'no number above 0')
  # Older programs know of no margin that rounding could fake.
  offset: Any = manifest.get('offset')
  tested = type(offset) in (int, float) and 0 <= offset < math.inf
  check('offset', tested, 'no number: its radii are not tested for rounding')
  # It is printed, and a terminal obeys what is not printable.
  printable = type(text) is str and text.isprintable()
  check('certificate', printable, 'no line of text')
  sides = type(shape) is list and [type(n) for n in shape] == [int] * 3
  check('image_shape', sides and min(shape) > 0, 'no [H, W, ch]')
  fits = type(resize) is int and (not resize or resize >= max(shape[:2]))
  check('resize', fits, 'neither 0 nor enough for the image')


def _check_weights(program: export.Exported, leaves: list[Any]) -> None:
  """Refuses weights that are not what the program takes: it would misread them.

  Raises:
    ValueError: naming the first array that does not fit.
  """
  expected = program.in_avals[:-2]  # Λ and the images follow.
  if len(leaves) != len(expected):
    raise ValueError(f'{len(leaves)} weights instead of {len(expected)}')
  for i, (leaf, aval) in enumerate(zip(leaves, expected, strict=True)):
    found = np.asarray(leaf)
    if found.shape != aval.shape or found.dtype != aval.dtype:
      raise ValueError(
        f'weight {i} is {found.dtype}{list(found.shape)} instead of '
        f'{aval.dtype}{list(aval.shape)}'
      )
    if not np.all(np.isfinite(found)):
      raise ValueError(f'weight {i} is not finite')


def _check_signature(
  program: export.Exported, params: Any, image_shape: Sequence[int]
) -> None:
  """Refuses a program that does not map batches to classes and radii.

  Nothing is compiled or run: shapes are compared for some sizes of batch, and
  the program is put together with its arguments.

  Raises:
    ValueError: for one, or whatever JAX has against the arguments.
  """
  if program.nr_devices != 1:
    raise ValueError(f'it is for {program.nr_devices} devices')
  scale = jax.ShapeDtypeStruct((), np.float32)
  for size in (10_007, 64, 1):
    images = jax.ShapeDtypeStruct((size, *image_shape), np.float32)
    found = jax.eval_shape(program.call, params, scale, images)
    kinds = [(leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(found)]
    if not isinstance(found, tuple) or kinds != [
      ((size,), np.dtype(np.int32)),
      ((size,), np.dtype(np.float32)),
    ]:
      raise ValueError(f'it makes {found} of {size} images')
  jax.jit(program.call).lower(params, scale, images)


def _params_tree(program: export.Exported) -> Any:
  """The structure of the first argument, (params, Λ, images)."""
  arguments, _ = jax.tree.unflatten(
    program.in_tree, [None] * len(program.in_avals)
  )
  return jax.tree.structure(arguments[0], is_leaf=lambda x: x is None)


def _aliases(platforms: Sequence[str]) -> set[str]:
  """`jax.export` says 'cuda' where `jax.default_backend` says 'gpu'."""
  return {'gpu' if platform == 'cuda' else platform for platform in platforms}
