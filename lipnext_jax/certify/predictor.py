"""A certified predictor in one file: weights, and what rebuilds their model.

    images [b, H, W, ch] → classes [b], certified radii [b]

The file is a safetensors file: float32 arrays by name ('blocks/M') and
metadata whose values are JSON texts. There is no program in it, so loading it
runs nothing of its author's, and any framework can read it for years.

Nothing in the file is taken on trust. Names, shapes and dtypes are those of the
model that this package builds from the metadata, or the file is refused; Λ and
the offset of the rounding test are proved again from the weights. What it
states of them is for readers without this package.
"""

from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
import hashlib
import json
import os
from typing import Any
from typing import NamedTuple

import flax
import jax
from jax import export
import jax.numpy as jnp
import numpy as np

from lipnext_jax import errors
from lipnext_jax import files
from lipnext_jax import models
from lipnext_jax.certify import bound
from lipnext_jax.certify import fast
from lipnext_jax.certify import rigorous
from lipnext_jax.models import interface
from lipnext_jax.models import layers
from lipnext_jax.optim import trees

FORMAT = 2  # Raised whenever an older loader would misread a newer file.
PLATFORMS = ('cpu', 'cuda', 'tpu')
CERTIFICATES = ('fast', 'rigorous')
"""The names of the certificates: float32, and float64 with proved rounding."""
UNITS = (
  'ℓ2 distance between images as the network gets them (scaled and cropped to '
  'image_shape), pixels in [0, 1]'
)
MODELS: dict[str, type[interface.CertifiedModel]] = {
  kind.__name__: kind for kind in models.MODELS.values()
}
_PACKAGES = (jax, flax, np)
# Types of the metadata that a loader reads.
_KINDS = {
  'model': dict,
  'image_shape': list,
  'resize': int,
  'certificate': str,
  'class_names': list,
  'versions': dict,
  'config': dict,
}
_REMEDY = 'write it again with `python -m lipnext_jax.certify --export`'


class Contents(NamedTuple):
  """A model that is ready to be certified, and what its users need to know.

  Attributes:
    model: the explicit model: float32, products at the highest precision.
    params: its weights, float32.
    image_shape: (H, W, ch) of the images.
    certificate: one of `CERTIFICATES`.
    class_names: the name of each label; empty if they are not known.
    resize: what the shorter side of an image file is scaled to before its
      centre is cut out, as evaluation did; 0: files must have the size.
    config: plain data, for provenance.
    versions: packages that wrote the file.
  """

  model: interface.CertifiedModel
  params: Any
  image_shape: tuple[int, ...]
  certificate: str = 'fast'
  class_names: tuple[str, ...] = ()
  resize: int = 0
  config: Mapping[str, Any] = {}
  versions: Mapping[str, str] = {}


class Predictor:
  """A certified model: images → classes, radii.

  Attributes:
    model: the explicit model.
    params: its weights.
    image_shape: (H, W, ch) of the images.
    certificate: 'fast' or 'rigorous'.
    class_names: the name of each label; empty if they are not known.
    lipschitz: Λ, proved from the weights.
    offset: of the rounding test of fast certificates, from the weights, too.
    versions: packages that wrote the file.
    manifest: all of this but the weights, as plain data.
  """

  def __init__(self, contents: Contents):
    """Proves the constants of a model: `load_predictor` does it for a file.

    Args:
      contents: the model, its weights, and how to certify.

    Raises:
      ValueError: weights whose constants cannot be proved.
      ConfigError: a rigorous certificate of a model, or on a device, that has
        none.
    """
    self.model, self.params, self.image_shape = contents[:3]
    self.certificate, self.class_names = contents[3:5]
    self.versions = contents.versions
    bounds = bound.lipschitz_bounds(self.params)
    constants = fast.prove_constants(self.params, bounds)
    self.lipschitz, self.offset = constants
    self.manifest = _describe(contents, constants)
    if self.certificate == 'rigorous':
      self._rigorous = rigorous.rigorous_certifier(
        self.model, self.params, bounds
      )
    else:
      params = jax.device_put(self.params)
      self._fast = fast.fast_certifier(self.model, params, constants)

  def __call__(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns classes [b] int32 and certified radii [b].

    A radius is an ℓ2 distance in [0, 1] pixel units, between images of
    `image_shape`: not in the pixels of a file before it was scaled.

    Args:
      images: [b, H, W, ch], floats in [0, 1] or uint8, which is divided by
        255. Fast predictors round to float32 first.

    Raises:
      ValueError: images of another shape or dtype, or floats outside [0, 1].
    """
    classes, radii, _ = self.certify(images)
    return classes, np.min(radii, axis=-1)

  def certify(
    self, images: np.ndarray
  ) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """Returns classes [b], radii [b, k] against each class, rounding bounds.

    The radius against the class itself is infinite. The bounds [b] are those
    on the rounding of the logits; fast certificates have None.

    Args:
      images: see `__call__`.

    Raises:
      ValueError: see `__call__`.
    """
    images = _check_images(images, self.image_shape)
    if self.certificate == 'rigorous':
      found = self._rigorous(images)
      return found.predictions, found.rival_radii, found.logit_errors
    unit = np.asarray(layers.to_unit(images), np.float32)
    classes, radii = self._fast(unit)
    return np.asarray(classes), np.asarray(radii), None


def export_predictor(
  path: str,
  model: Any,
  params: Any,
  image_shape: Sequence[int],
  *,
  certificate: str = 'fast',
  class_names: Sequence[str] = (),
  resize: int = 0,
  config: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
  """Writes weights and metadata of a certified predictor to one file.

  Args:
    path: the file to write, replaced as a whole.
    model: one of `MODELS`, in any training precision.
    params: its parameters, float32.
    image_shape: (H, W, ch).
    certificate: what `load_predictor` gives by default: 'fast' (float32, any
      device) or 'rigorous' (float64, a LipNeXt on a CPU or GPU).
    class_names: the name of each label, if known.
    resize: what the shorter side of an image file is scaled to before its
      centre is cut out, as evaluation did; 0: files must have the size.
    config: plain data to keep in the metadata, for provenance.

  Returns:
    The manifest: the metadata as plain data.

  Raises:
    ValueError: a model that `load_predictor` could not build again, or weights
      whose constants cannot be proved.
    ConfigError: safetensors is not installed.
    WorkdirError: the file cannot be written.

  >>> import tempfile
  >>> model = models.LipNeXt(num_classes=2, depth=1, width=8, patch_size=2)
  >>> params = model.init(jax.random.key(0), np.zeros((1, 4, 4, 1)))['params']
  >>> with tempfile.TemporaryDirectory() as folder:
  ...   path = f'{folder}/model.lipnext'
  ...   manifest = export_predictor(path, model, params, (4, 4, 1))
  ...   predictor = load_predictor(path)
  >>> classes, radii = predictor(np.zeros((3, 4, 4, 1), np.uint8))
  >>> classes.shape, radii.shape, manifest['certificate']
  ((3,), (3,), 'fast')
  """
  contents = Contents(
    model=model.explicit(),
    params=jax.tree.map(_to_host, model.explicit_params(params)),
    image_shape=tuple(image_shape),
    certificate=certificate,
    class_names=tuple(class_names),
    resize=resize,
    config=dict(config or {}),
    versions={p.__name__: p.__version__ for p in _PACKAGES},
  )
  manifest = _describe(contents, fast.prove_constants(contents.params))
  arrays = _flatten(contents.params)
  _check_metadata(manifest)
  rebuilt = _build_model(manifest)
  if type(rebuilt) is not type(model):
    raise ValueError(f'{type(model)} is not the model of that name.')
  _check_arrays(_expect(rebuilt, image_shape), arrays)
  metadata = {
    name: json.dumps(value, ensure_ascii=False)
    for name, value in manifest.items()
  }
  metadata['sha256'] = json.dumps(_digest(metadata, arrays))
  temporary = f'{path}.tmp'
  safetensors = _import_safetensors(path)
  try:
    safetensors.numpy.save_file(arrays, temporary, metadata)
  except safetensors.SafetensorError as error:  # As it names lack of disk, too.
    raise errors.WorkdirError(f'{path}: cannot be written ({error})') from None
  os.replace(temporary, path)
  return manifest


def export_program(
  path: str,
  model: Any,
  params: Any,
  image_shape: Sequence[int],
  *,
  platforms: Sequence[str] = PLATFORMS,
) -> None:
  """Writes the fast predictor as a program, for people with JAX alone.

  `jax.export.deserialize(data).call(weights, images)` gives classes [b] and
  radii [b] of float32 images in [0, 1], any batch size. The weights are those
  of the predictor file, by their names there; Λ, proved from these weights, is
  in the program, so that others have no radii. JAX promises to run a program
  for six months after it was written. Run only programs that you trust.

  Args:
    path: the file to write, replaced as a whole.
    model: any certified model.
    params: its parameters, float32.
    image_shape: (H, W, ch).
    platforms: of `jax.export`.

  Raises:
    ValueError: weights whose constants cannot be proved.
  """
  params, model = model.explicit_params(params), model.explicit()
  constants = fast.prove_constants(params).on_device()

  def predict(weights, images):
    predictions, radii = fast.rival_radii(
      model, _unflatten(params, weights), images, constants
    )
    return predictions, jnp.min(radii, axis=-1)

  shapes = _flatten(jax.eval_shape(lambda: params))
  (b,) = export.symbolic_shape('b')
  images = jax.ShapeDtypeStruct((b, *image_shape), np.float32)
  program = export.export(jax.jit(predict), platforms=tuple(platforms))
  files.write_bytes(path, program(shapes, images).serialize())


def load_predictor(path: str, *, certificate: str | None = None) -> Predictor:
  """Reads a predictor file, and proves its constants from its weights.

  Args:
    path: a file of `export_predictor`.
    certificate: 'fast' or 'rigorous', instead of what the file says. Weights
      that you did not train: choose 'rigorous'.

  Raises:
    ConfigError: no such file, one that is damaged or no predictor, weights
      that cannot be certified, or no safetensors installed.
  """
  contents = read_contents(path)
  if certificate is not None:
    contents = contents._replace(certificate=certificate)
  try:
    return Predictor(contents)
  except ValueError as error:
    problem = f'holds weights that cannot be certified ({error})'
    raise errors.ConfigError('predictor', path, problem, _REMEDY) from None


def read_contents(path: str) -> Contents:
  """Reads and checks a predictor file; proves nothing yet.

  Raises:
    ConfigError: see `load_predictor`.
  """

  def refuse(problem: str, remedy: str = _REMEDY) -> errors.ConfigError:
    return errors.ConfigError('predictor', path, problem, remedy)

  if not os.path.isfile(path):
    raise refuse('is no file')
  safetensors = _import_safetensors(path)
  try:
    with safetensors.safe_open(path, framework='numpy') as file:
      texts = file.metadata() or {}
      manifest = {name: json.loads(text) for name, text in texts.items()}
      if 'format' not in manifest:
        raise ValueError('its metadata name no format')
      if manifest['format'] != FORMAT:
        raise refuse(
          f'has format {manifest["format"]!r}, this code reads {FORMAT}',
          'use the version of lipnext_jax that wrote it',
        )
      _check_metadata(manifest)
      model = _build_model(manifest)
      expected = _expect(model, tuple(manifest['image_shape']))
      names = file.keys()
      arrays = {name: file.get_tensor(name) for name in names}
    _check_arrays(expected, arrays)
    if manifest.get('sha256') != _digest(texts, arrays):
      raise ValueError('it does not have its checksum: it is damaged')
  except errors.ConfigError:
    raise
  except Exception as error:  # Whatever damaged headers, JSON or sizes raise.
    reason = ' '.join(str(error).split())[:200]
    raise refuse(f'is no predictor that can be read ({reason})') from None
  return Contents(
    model=model,
    params=_unflatten(expected, arrays),
    image_shape=tuple(manifest['image_shape']),
    certificate=manifest['certificate'],
    class_names=tuple(manifest['class_names']),
    resize=manifest['resize'],
    config=manifest['config'],
    versions=manifest['versions'],
  )


def _import_safetensors(path: str) -> Any:
  """Imports safetensors, which only predictor files need.

  Raises:
    ConfigError: it is not installed.
  """
  try:
    import safetensors
    import safetensors.numpy
  except ModuleNotFoundError:
    raise errors.ConfigError(
      'predictor',
      path,
      'needs the package safetensors, which is not installed',
      'pip install safetensors',
    ) from None
  return safetensors


def _to_host(leaf: jax.typing.ArrayLike) -> np.ndarray:
  return np.asarray(leaf, order='C')  # As safetensors expects it in memory.


def _fields(kind: type[interface.CertifiedModel]) -> dict[str, type]:
  """Returns the options that decide a model's function, and their types.

  Left out is what `explicit` sets, and what only changes how a program runs.
  """
  return {
    field.name: field.type
    for field in dataclasses.fields(kind)
    if field.type in (bool, int, float, str)
    and field.name not in ('parametrization', 'remat', 'stored', 'unroll')
  }


def _build_model(manifest: Mapping[str, Any]) -> interface.CertifiedModel:
  """Builds the explicit model that metadata describe.

  Raises:
    ValueError: an unknown model, or options that are not those of it.
  """
  name, options = manifest['model']['name'], manifest['model']['options']
  if name not in MODELS:
    raise ValueError(f'its model is {name!r}, none of {", ".join(MODELS)}')
  fields = _fields(MODELS[name])
  if sorted(options) != sorted(fields):
    odd = sorted(set(options) ^ set(fields))
    raise ValueError(f'its model has the wrong options {odd}')
  for option, kind in fields.items():
    found = type(options[option])
    if found is not kind and (kind, found) != (float, int):
      raise ValueError(f'its option {option} is no {kind.__name__}')
  names = manifest['class_names']
  if len(names) not in (0, options['num_classes']):
    raise ValueError(f'its class_names are {len(names)}')
  return MODELS[name](**options).explicit()


def _describe(contents: Contents, constants: fast.Constants) -> dict[str, Any]:
  """Returns the metadata of a file as plain data."""
  model, shape = contents.model, contents.image_shape
  options = {name: getattr(model, name) for name in _fields(type(model))}
  return {
    'format': FORMAT,
    'model': {'name': type(model).__name__, 'options': options},
    'image_shape': list(shape),
    'colours': {1: 'grey', 3: 'RGB'}.get(shape[2], f'{shape[2]} channels'),
    'class_names': list(contents.class_names),
    'resize': contents.resize,
    'certificate': contents.certificate,
    'lipschitz_bound': constants.lipschitz,
    'offset': constants.offset,
    'units': UNITS,
    'versions': dict(contents.versions),
    'config': dict(contents.config),
  }


def _check_metadata(manifest: Mapping[str, Any]) -> None:
  """Refuses fields that are missing or of another kind than is written.

  Raises:
    ValueError: naming the field.
  """
  fits = {
    name: type(manifest.get(name)) is kind for name, kind in _KINDS.items()
  }
  if all(fits.values()):
    shape, size = manifest['image_shape'], manifest['resize']
    sides = [type(n) for n in shape] == [int] * 3 and min(shape) > 0
    options = manifest['model'].get('options')
    # Names are printed, and a terminal obeys what is not printable.
    names = manifest['class_names']
    texts = all(type(name) is str and name.isprintable() for name in names)
    fits |= {
      'model': type(options) is dict and 'name' in manifest['model'],
      'image_shape': sides,
      'resize': sides and (size == 0 or size >= max(shape[:2])),
      'certificate': manifest['certificate'] in CERTIFICATES,
      'class_names': texts,
    }
  for name, right in fits.items():
    if not right:
      raise ValueError(f'its {name} cannot be {manifest.get(name)!r}')


def _expect(model: interface.CertifiedModel, image_shape: Sequence[int]) -> Any:
  """Returns the shapes and dtypes of a model's parameters."""
  image = jax.ShapeDtypeStruct((1, *image_shape), np.float32)
  return jax.eval_shape(model.init, jax.random.key(0), image)['params']


def _flatten(params: Any) -> dict[str, Any]:
  """Returns the leaves of a tree by their names, 'blocks/M'."""
  leaves = jax.tree_util.tree_leaves_with_path(params)
  return {trees.path_name(path): leaf for path, leaf in leaves}


def _unflatten(tree: Any, leaves: Mapping[str, Any]) -> Any:
  """Returns `tree` with the leaves of these names."""
  return jax.tree.map_with_path(
    lambda path, _: leaves[trees.path_name(path)], tree
  )


def _check_arrays(expected: Any, arrays: Mapping[str, np.ndarray]) -> None:
  """Refuses weights that are not those of the model.

  Raises:
    ValueError: naming the first array that does not fit.
  """
  wanted = _flatten(expected)
  for name in sorted(wanted.keys() | arrays.keys()):
    if name not in arrays:
      raise ValueError(f'the array {name} is missing')
    if name not in wanted:
      raise ValueError(f'it holds {name!r}, which its model has not')
    found, right = arrays[name], wanted[name]
    if found.shape != right.shape or found.dtype != right.dtype:
      raise ValueError(
        f'{name} is {found.dtype}{list(found.shape)} instead of '
        f'{right.dtype}{list(right.shape)}'
      )
    if not np.all(np.isfinite(found)):
      raise ValueError(f'{name} is not finite')


def _digest(
  metadata: Mapping[str, str], arrays: Mapping[str, np.ndarray]
) -> str:
  """Returns the SHA-256 of metadata and arrays, against silent damage."""
  digest = hashlib.sha256()
  for name, text in sorted(metadata.items()):
    if name != 'sha256':
      digest.update(json.dumps([name, text]).encode())
  for name, array in sorted(arrays.items()):
    digest.update(json.dumps([name, array.shape]).encode())
    digest.update(np.asarray(array, order='C').data)
  return digest.hexdigest()


def _check_images(
  images: np.ndarray, image_shape: tuple[int, ...]
) -> np.ndarray:
  """Refuses what is no batch of floats in [0, 1] or of bytes.

  Raises:
    ValueError: saying what it is.
  """
  images = np.asarray(images)
  if images.ndim != 4 or images.shape[1:] != image_shape:
    expected = ', '.join(map(str, image_shape))
    raise ValueError(f'{images.shape=} is no batch [b, {expected}].')
  if images.dtype == np.uint8:
    return images
  if not jnp.issubdtype(images.dtype, jnp.floating):
    raise ValueError(f'{images.dtype} images: give floats in [0, 1], or uint8.')
  if not np.all((images >= 0) & (images <= 1)):
    raise ValueError(
      'images with values outside [0, 1]: give floats in [0, 1], or uint8.'
    )
  return images
