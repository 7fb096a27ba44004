"""A certified predictor in one file: images → classes, certified radii.

The file is a safetensors file: float32 arrays by name ('blocks/M'), and
metadata whose values are JSON texts. It contains no program, so loading it runs
none of its author's code, and any framework can read it.

The loader trusts nothing in the file. It builds the model from the metadata,
refuses arrays of other names, shapes or dtypes than that model has, and proves
the constants of the certificate from the weights. The constants in the metadata
are for readers without this package.
"""

from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
import hashlib
import json
import os
from typing import Any
from typing import NamedTuple

import flax
from flax import traverse_util
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

FORMAT = 2  # Raised whenever an older loader would misread a newer file.
PLATFORMS = ('cpu', 'cuda', 'tpu')
CERTIFICATES = ('fast', 'rigorous')
"""The names of the certificates: float32, and float64 with proved rounding."""
_MODELS = {kind.__name__: kind for kind in models.MODELS.values()}
_REMEDY = 'write it again with `python -m lipnext_jax.certify --export`'
# Fields that the loader reads: name → whether a value, in metadata m, is valid.
# If the function fails, it is not.
_FIELDS: dict[str, Callable[[Any, Mapping[str, Any]], bool]] = {
  'format': lambda value, m: value == FORMAT,
  'model': lambda value, m: (
    value['name'] in _MODELS and type(value['options']) is dict
  ),
  'image_shape': lambda value, m: (
    [type(n) for n in value] == [int] * 3 and min(value) > 0
  ),
  'resize': lambda value, m: (
    type(value) is int and (value == 0 or value >= max(m['image_shape'][:2]))
  ),
  'certificate': lambda value, m: value in CERTIFICATES,
  # Names are printed, and control characters can command a terminal.
  'class_names': lambda value, m: (
    type(value) is list
    and len(value) in (0, m['model']['options']['num_classes'])
    and all(name.isprintable() for name in value)
  ),
  'versions': lambda value, m: type(value) is dict,
  'config': lambda value, m: type(value) is dict,
}


class Contents(NamedTuple):
  """Contents of a predictor file.

  Attributes:
    model: explicit model, in float32 at the highest precision of products.
    params: weights of the model, float32.
    image_shape: (H, W, ch) of the images.
    certificate: one of `CERTIFICATES`.
    class_names: name of each label; empty if they are not known.
    resize: length to which the shorter side of an image file is scaled before
      its centre is cut out; 0: files are not scaled.
    config: plain data about the training run.
    versions: versions of the packages that wrote the file.
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
    contents: model, weights and facts about them. `image_shape`, `certificate`
      and `class_names` are attributes of the predictor, too.
    lipschitz: Λ, proved from the weights.
  """

  def __init__(self, contents: Contents):
    """Proves the constants of a model; `load_predictor` does it for a file.

    Raises:
      ValueError: the constants of the weights cannot be proved.
      ConfigError: the certificate is unknown; or it is rigorous, and the model
        or the device supports fast ones alone.
    """
    model, params, *_ = self.contents = contents
    self.image_shape, self.certificate, self.class_names = contents[2:5]
    if self.certificate not in CERTIFICATES:
      raise errors.ConfigError(
        'certificate',
        self.certificate,
        'is unknown',
        f'choose {" or ".join(CERTIFICATES)}',
      )
    bounds = bound.lipschitz_bounds(params)
    constants = fast.prove_constants(params, bounds)
    self.lipschitz = constants.lipschitz
    self._certifier: Callable[[np.ndarray], Any]
    if self.certificate == 'rigorous':
      self._certifier = rigorous.rigorous_certifier(model, params, bounds)
    else:
      params = jax.device_put(params)
      self._certifier = fast.fast_certifier(model, params, constants)

  def __call__(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns classes [b] int32 and certified radii [b].

    A radius is an ℓ2 distance between images of `image_shape` with pixels in
    [0, 1], whatever the size of the files that they came from.

    Args:
      images: [b, H, W, ch], floats in [0, 1], or uint8, which is divided by
        255. Fast predictors round floats to float32 first.

    Raises:
      ValueError: images of another shape or dtype, or floats outside [0, 1].
    """
    classes, radii, _ = self.certify(images)
    return classes, np.min(radii, axis=-1)

  def certify(
    self, images: np.ndarray
  ) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """Returns classes [b], radii [b, k] against each class, rounding errors.

    The radius against the predicted class is infinite. The errors [b] are
    bounds E on the rounding of the logits; None for fast certificates. For
    Args and Raises see `__call__`.
    """
    images = np.asarray(images)
    if images.ndim != 4 or images.shape[1:] != self.image_shape:
      shape = ', '.join(map(str, self.image_shape))
      raise ValueError(f'{images.shape=} is no batch [b, {shape}].')
    images = self.to_unit(images)
    if not np.all((images >= 0) & (images <= 1)):
      raise ValueError(
        'pixels outside [0, 1]: give floats in [0, 1], or uint8.'
      )
    found = self._certifier(images)
    if self.certificate == 'rigorous':
      return found.predictions, found.rival_radii, found.logit_errors
    classes, radii = map(np.asarray, found)
    return classes, radii, None

  def to_unit(self, images: np.ndarray) -> np.ndarray:
    """Converts floats in [0, 1] or uint8 to the pixels that are certified."""
    if self.certificate == 'rigorous':
      return rigorous.to_unit64(images)
    return np.asarray(layers.to_unit(images), np.float32)


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
  """Writes the weights and metadata of a certified predictor to one file.

  Args:
    path: file to write, replaced as a whole.
    model: one of `lipnext_jax.models`, in any training precision.
    params: parameters of the model, float32.
    image_shape: (H, W, ch) of the images.
    certificate: default of `load_predictor`, 'fast' or 'rigorous'.
    class_names: see `Contents`.
    resize: see `Contents`.
    config: see `Contents`.

  Returns:
    The manifest: the metadata as plain data.

  Raises:
    ValueError: `load_predictor` could not build the model again, or the
      constants of the weights cannot be proved.
    ConfigError: safetensors is not installed.
    OSError: the file cannot be written.

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
  params = jax.tree.map(
    lambda leaf: np.asarray(leaf, order='C'),  # It is written as it lies.
    model.explicit_params(params),
  )
  explicit, channels = model.explicit(), image_shape[2]
  options = {n: getattr(explicit, n) for n in _option_types(type(model))}
  constants = fast.prove_constants(params)
  manifest = {
    'format': FORMAT,
    'model': {'name': type(model).__name__, 'options': options},
    'image_shape': list(image_shape),
    'colours': {1: 'grey', 3: 'RGB'}.get(channels, f'{channels} channels'),
    'class_names': list(class_names),
    'resize': resize,
    'certificate': certificate,
    'lipschitz_bound': constants.lipschitz,
    'offset': constants.offset,
    'units': 'ℓ2 distance between images as the network gets them (scaled and '
    'cropped to image_shape), pixels in [0, 1]',
    'versions': {p.__name__: p.__version__ for p in (jax, flax, np)},
    'config': dict(config or {}),
  }
  arrays = traverse_util.flatten_dict(params, sep='/')
  if type(_rebuild(manifest, arrays).model) is not type(model):
    raise ValueError(f'{type(model)} is not the model of that name.')
  metadata = {
    name: json.dumps(value, ensure_ascii=False)
    for name, value in manifest.items()
  }
  metadata['sha256'] = json.dumps(_digest(metadata, arrays))
  data = _import_safetensors(path).numpy.save(arrays, metadata)
  files.write_bytes(path, data)
  return manifest


def export_program(
  path: str, model: Any, params: Any, image_shape: Sequence[int]
) -> None:
  """Writes a fast predictor as a program that needs JAX alone.

  `jax.export.deserialize(data).call(weights, images)` gives classes [b] and
  radii [b] for float32 images in [0, 1] of any batch size. The weights are the
  arrays of the predictor file; the program contains the Λ that is proved from
  these weights, and is valid for no others. See docs/certificates.md.

  Args and Raises are those of `export_predictor`.
  """
  params, model = model.explicit_params(params), model.explicit()
  constants = fast.prove_constants(params).on_device()

  def predict(weights, images):
    params = traverse_util.unflatten_dict(weights, sep='/')
    predictions, radii = fast.rival_radii(model, params, images, constants)
    return predictions, jnp.min(radii, axis=-1)

  shapes = traverse_util.flatten_dict(jax.eval_shape(lambda: params), sep='/')
  (b,) = export.symbolic_shape('b')
  images = jax.ShapeDtypeStruct((b, *image_shape), np.float32)
  program = export.export(jax.jit(predict), platforms=PLATFORMS)
  files.write_bytes(path, program(shapes, images).serialize())


def load_predictor(path: str, *, certificate: str | None = None) -> Predictor:
  """Reads a predictor file and proves its constants from its weights.

  Args:
    path: file of `export_predictor`.
    certificate: 'fast' or 'rigorous'; None: as the file says. Choose 'rigorous'
      for weights that you did not train.

  Raises:
    ConfigError: the file does not exist, is damaged or not a predictor; its
      weights cannot be certified; or safetensors is not installed.
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
  """Reads and checks a predictor file, but proves nothing.

  Raises:
    ConfigError: see `load_predictor`.
  """
  if not os.path.isfile(path):
    raise errors.ConfigError('predictor', path, 'is no file', _REMEDY)
  safetensors = _import_safetensors(path)
  try:
    with safetensors.safe_open(path, framework='numpy') as file:
      texts, names = file.metadata() or {}, file.keys()
      arrays = {name: file.get_tensor(name) for name in names}
    manifest = {name: json.loads(text) for name, text in texts.items()}
    contents = _rebuild(manifest, arrays)
    if manifest.get('sha256') != _digest(texts, arrays):
      raise ValueError('its checksum does not match: it is damaged')
  except Exception as error:  # Damaged headers, JSON or sizes raise many kinds.
    problem = f'is no predictor that can be read ({errors.one_line(error)})'
    raise errors.ConfigError('predictor', path, problem, _REMEDY) from None
  return contents


def _import_safetensors(path: str) -> Any:
  """Imports safetensors, which nothing else needs; else raises ConfigError."""
  try:
    import safetensors.numpy
  except ModuleNotFoundError:
    problem = 'needs the package safetensors, which is not installed'
    remedy = 'pip install safetensors'
    raise errors.ConfigError('predictor', path, problem, remedy) from None
  return safetensors


def _option_types(kind: type[interface.CertifiedModel]) -> dict[str, type]:
  """Returns the options of a model that a file records, and their types.

  `explicit` sets `parametrization`; the other options that are left out only
  change how a program runs.
  """
  return {
    field.name: field.type
    for field in dataclasses.fields(kind)
    if field.type in (bool, int, float, str)
    and field.name not in ('parametrization', 'remat', 'stored', 'unroll')
  }


def _rebuild(
  manifest: Mapping[str, Any], arrays: Mapping[str, np.ndarray]
) -> Contents:
  """Returns the contents that metadata and arrays describe, or ValueError."""
  for name, is_valid in _FIELDS.items():
    try:
      valid = is_valid(manifest[name], manifest)
    except (AttributeError, KeyError, TypeError):
      valid = False
    if not valid:
      raise ValueError(f'its {name} cannot be {manifest.get(name)!r}')
  kind = _MODELS[manifest['model']['name']]
  options, types = manifest['model']['options'], _option_types(kind)
  for name in sorted(options.keys() | types.keys()):
    kinds = types.get(name), type(options.get(name))
    if kinds[0] is not kinds[1] and kinds != (float, int):
      raise ValueError(f'its option {name} cannot be {options.get(name)!r}')
  model = kind(**options).explicit()
  image = jax.ShapeDtypeStruct((1, *manifest['image_shape']), np.float32)
  expected = jax.eval_shape(model.init, jax.random.key(0), image)['params']
  specs, right = (
    {name: f'{x.dtype}{list(x.shape)}' for name, x in leaves.items()}
    for leaves in (arrays, traverse_util.flatten_dict(expected, sep='/'))
  )
  for name in sorted(right.keys() | specs.keys()):
    spec, wanted = specs.get(name, 'missing'), right.get(name, 'no array')
    if spec != wanted:
      raise ValueError(f'{name} is {spec} instead of {wanted}')
    if not np.all(np.isfinite(arrays[name])):
      raise ValueError(f'{name} is not finite')
  return Contents(
    model=model,
    params=traverse_util.unflatten_dict(arrays, sep='/'),
    image_shape=tuple(manifest['image_shape']),
    certificate=manifest['certificate'],
    class_names=tuple(manifest['class_names']),
    resize=manifest['resize'],
    config=manifest['config'],
    versions=manifest['versions'],
  )


def _digest(
  metadata: Mapping[str, str], arrays: Mapping[str, np.ndarray]
) -> str:
  """Returns the SHA-256 of metadata and arrays, which shows silent damage."""
  digest = hashlib.sha256()
  for name, text in sorted(metadata.items()):
    if name != 'sha256':
      digest.update(json.dumps([name, text]).encode())
  for name, array in sorted(arrays.items()):
    digest.update(json.dumps([name, array.shape]).encode())
    digest.update(np.asarray(array, order='C').data)
  return digest.hexdigest()
