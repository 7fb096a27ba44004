"""Tests that a predictor file gives the model's radii, and is not trusted."""

import json
import sys

import jax
from jax import export
import numpy as np
import pytest
import safetensors
import safetensors.numpy

from lipnext_jax import certify
from lipnext_jax import errors
from lipnext_jax import models
from lipnext_jax import trees
from lipnext_jax.certify import predictor as predictor_lib
from tests import networks

SHAPE = (8, 8, 1)
NAMES = ('a', 'b', 'c', 'd', 'é')
MODEL = models.LipNeXt(num_classes=5, depth=2, width=16, patch_size=4)
IMAGES = np.random.default_rng(0).random((7, *SHAPE)).astype(np.float32)
PARAMS = jax.tree.map(  # Λ is not 1.
  lambda p: np.ascontiguousarray(p * np.float32(1.001)),
  networks.draw(MODEL, SHAPE, scale=0.0),
)


@pytest.fixture(scope='module')
def made(tmp_path_factory):
  """Returns (path, manifest)."""
  path = str(tmp_path_factory.mktemp('predictor') / 'model.lipnext')
  params = jax.tree.map(np.asfortranarray, PARAMS)  # They lie elsewise.
  manifest = certify.export_predictor(
    path, MODEL, params, SHAPE, class_names=NAMES, config={'model.depth': 2}
  )
  return path, manifest


@pytest.fixture(scope='module')
def loaded(made):
  return certify.load_predictor(made[0])


@pytest.mark.parametrize(
  'model',
  [
    models.LiResNet(2, 1, 4, 1, dense_depth=1, dense_width=8).explicit(),
    models.BRONet(2, 1, 4, 1, dense_depth=1, dense_width=8, beta=1).explicit(),
    models.LipNeXt(
      2, depth=1, width=8, patch_size=2, parametrization='cayley', unroll=True,
      dtype=jax.numpy.bfloat16, padding='zero', pool='neck', neck_width=8,
    ),
  ],
  ids=lambda model: type(model).__name__,
)  # fmt: skip
def test_every_model_is_built_again_as_it_is_certified(model, tmp_path):
  images = np.random.default_rng(0).random((3, 4, 4, 3)).astype(np.float32)
  params = model.init(jax.random.key(0), images)['params']
  path, program = str(tmp_path / 'model.lipnext'), tmp_path / 'model.program'
  certify.export_predictor(path, model, params, (4, 4, 3))
  certify.export_program(str(program), model, params, (4, 4, 3))
  exported = export.deserialize(bytearray(program.read_bytes()))
  assert exported.platforms == predictor_lib.PLATFORMS
  assert str(exported.out_avals[1].shape) == '(b,)'  # Any batch size.
  weights = safetensors.numpy.load_file(path)
  explicit = model.explicit_params(params)
  classes, radii = certify.fast_certifier(model, explicit)(images)
  radii = np.min(radii, axis=-1)
  for found in (
    certify.load_predictor(path)(images),
    exported.call(weights, images),
  ):
    np.testing.assert_array_equal(found[0], classes)
    np.testing.assert_allclose(found[1], radii, rtol=1e-5)


def test_the_file_or_its_user_chooses_the_certificate(made, tmp_path):
  path = str(tmp_path / 'model.lipnext')
  certify.export_predictor(path, MODEL, PARAMS, SHAPE, certificate='rigorous')
  assert certify.load_predictor(path).certificate == 'rigorous'
  assert certify.load_predictor(path, certificate='fast').certificate == 'fast'
  with pytest.raises(errors.ConfigError, match="'Rigorous' is unknown"):
    certify.load_predictor(path, certificate='Rigorous')


def test_the_manifest_says_what_the_certificate_is_about(made, loaded):
  path, manifest = made
  assert manifest['lipschitz_bound'] == certify.lipschitz_bound(PARAMS)
  assert manifest['offset'] == certify.prove_constants(PARAMS).offset
  assert (manifest['colours'], manifest['certificate']) == ('grey', 'fast')
  assert manifest['config'] == loaded.contents.config == {'model.depth': 2}
  assert loaded.contents.versions == manifest['versions']
  assert manifest['versions']['jax'] == jax.__version__
  assert loaded.lipschitz == manifest['lipschitz_bound']
  assert (loaded.class_names, loaded.image_shape) == (NAMES, SHAPE)
  # Any framework finds the names and plain JSON.
  arrays = safetensors.numpy.load_file(path)
  for name, leaf in trees.named_leaves(PARAMS).items():
    np.testing.assert_array_equal(arrays.pop(name), leaf)
  assert not arrays
  with safetensors.safe_open(path, framework='numpy') as file:
    texts = file.metadata()
  stated = {name: json.loads(text) for name, text in texts.items()}
  assert {**manifest, 'sha256': stated['sha256']} == stated


@pytest.mark.parametrize('certificate', predictor_lib.CERTIFICATES)
def test_images_are_floats_in_unit_pixels_or_bytes(made, certificate):
  predictor = certify.load_predictor(made[0], certificate=certificate)
  certifier = getattr(certify, f'{certificate}_certifier')(MODEL, PARAMS)
  pixels = np.round(IMAGES * 255).astype(np.uint8)
  classes, radii = predictor(pixels / 255)
  for found in (predictor(pixels), certifier(pixels)):
    np.testing.assert_array_equal(found[0], classes)
    nearest = np.reshape(found[1], (len(pixels), -1)).min(axis=1)
    np.testing.assert_allclose(nearest, radii, rtol=1e-4, atol=1e-5)
  assert len(certifier(IMAGES[:0])[0]) == 0
  for wrong in (255 * IMAGES, IMAGES * np.nan, IMAGES - 1e-3):
    with pytest.raises(ValueError, match=r'outside \[0, 1\]'):
      predictor(wrong)
  for shape in (SHAPE, (1, 8, 8, 3), (1, 8, 9, 1)):
    with pytest.raises(ValueError, match='no batch'):
      predictor(np.zeros(shape))
  for dtype in (np.int64, np.uint16, bool, np.complex64):
    with pytest.raises(ValueError, match=r'floats in \[0, 1\]|float64 does'):
      certifier(pixels.astype(dtype))
  for floats in (np.float64(pixels), np.full_like(IMAGES, 7)):
    with pytest.raises(ValueError, match='whole numbers above 1'):
      certifier(floats)


def check_refused(path, problem):
  with pytest.raises(errors.ConfigError) as info:
    certify.load_predictor(str(path))
  assert info.value.exit_code == 2
  assert len(str(info.value).splitlines()) == 1
  assert problem in str(info.value)


def test_loading_needs_safetensors(made, monkeypatch):
  monkeypatch.setitem(sys.modules, 'safetensors', None)
  check_refused(made[0], 'pip install safetensors')


@pytest.fixture
def forge(made, tmp_path):
  """Writes a copy with other arrays and metadata; ... leaves one out."""

  def replace(old, changes):
    new = {**old, **changes}
    return {name: value for name, value in new.items() if value is not ...}

  def forge(*, arrays=(), sign=True, **fields):
    found = replace(safetensors.numpy.load_file(made[0]), dict(arrays))
    with safetensors.safe_open(made[0], framework='numpy') as file:
      fields = {
        name: value if value is ... else json.dumps(value)
        for name, value in fields.items()
      }
      texts = replace(file.metadata(), fields)
    if sign:
      texts['sha256'] = json.dumps(predictor_lib._digest(texts, found))
    path = str(tmp_path / 'forged.lipnext')
    safetensors.numpy.save_file(found, path, texts)
    return path

  return forge


def test_constants_come_from_the_weights_not_from_the_file(loaded, forge):
  """A signed file with smaller constants gets the radii that are proved."""
  found = certify.load_predictor(forge(lipschitz_bound=0.01, offset=0.0))
  for ours, theirs in zip(found(IMAGES), loaded(IMAGES), strict=True):
    np.testing.assert_array_equal(ours, theirs)
  path = forge(arrays={'blocks/M': 3 * PARAMS['blocks']['M']})
  assert certify.load_predictor(path).lipschitz > 8 * loaded.lipschitz


FIELDS = {
  'format': [..., 1, '2'],
  'resize': [..., '8', 8.0, -1, 7, True],
  'certificate': [..., 'assumed', ['fast'], 'fast\x1b[2J'],
  'image_shape': [..., 'abc', [8, 8], [8, 8, 1.0], [8, 8, 0], {'8': 8}, 8],
  'class_names': [..., None, 'abcde', list('abcd'), ['a\n'] * 5, [1] * 5],
  'config': [..., []],
  'versions': [..., None],
  'model': [..., 3, {}, {'name': 'LipNeXt'}, {'name': 'Flax', 'options': {}}],
}
OPTIONS = {
  'num_classes': [0, 6, 5.0, True, 10**30],
  'depth': [0, 3, 10**9],
  'width': [0, 17],
  'patch_size': [-4, 3],
  'shift_ratio': [-0.1, 0.3, '1', float('nan')],
  'beta': [-1.0, None],
  'padding': ['reflect'],
  'parametrization': ['cayley'],
  'position': [1],
}


def test_contents_that_do_not_fit_each_other_are_refused(made, forge):
  """Such files are not read, let alone certified."""
  for name, values in FIELDS.items():
    for value in values:
      check_refused(forge(**{name: value}), f'its {name} cannot be ')
  options = made[1]['model']['options']
  for option, values in OPTIONS.items():
    for value in values:
      model = {'name': 'LipNeXt', 'options': options | {option: value}}
      path = forge(model=model, class_names=[])
      check_refused(path, 'is no predictor that can be read')
  for name, kept in (('LipNeXt', {'num_classes': 5}), ('BRONet', options)):
    path = forge(model={'name': name, 'options': kept})
    check_refused(path, 'its option ')
  for shape in ([8, 8, 9], [12, 8, 1], [9, 8, 1], [10**9] * 3):
    check_refused(forge(image_shape=shape), 'is no predictor that can be read')
  matrix, head = PARAMS['blocks']['M'], PARAMS['head']
  for name, array, problem in (
    ('blocks/R', ..., 'blocks/R is missing'),
    ('x\x1b', np.ones(1, np.float32), 'instead of no array'),
    ('blocks/M', matrix[..., :1], 'blocks/M is float32['),
    ('blocks/M', np.float64(matrix), 'blocks/M is float64['),
    ('head/bias', head['bias'] * np.nan, 'head/bias is not finite'),
    ('head/kernel', 0 * head['kernel'], 'cannot be certified'),
  ):
    check_refused(forge(arrays={name: array}), problem)


def test_damaged_and_foreign_files_are_refused(made, forge, tmp_path):
  with open(made[0], 'rb') as file:
    data = file.read()
  path = tmp_path / 'damaged.lipnext'
  flipped = data[:-9] + bytes([data[-9] ^ 1]) + data[-8:]
  cut, extended, endless = data[:-1], data + b'\0', b'\xff' * 8 + data[8:]
  for damaged in (cut, data[:5], extended, endless, flipped):
    path.write_bytes(damaged)
    check_refused(path, 'is no predictor that can be read')
  path = forge(config={'seed': 1}, sign=False)
  check_refused(path, 'its checksum does not match')
  for metadata in (None, {'format': 'pt'}, {'format': '[' * 10**5}):
    safetensors.numpy.save_file({'x': np.ones(2)}, path, metadata)
    check_refused(path, 'is no predictor that can be read')
  for missing in (tmp_path / 'none', tmp_path):
    check_refused(missing, 'is no file')


def test_what_could_not_be_loaded_is_not_written(tmp_path):
  class LipNeXt(models.LipNeXt):
    """A model of the same name."""

  path = str(tmp_path / 'x.lipnext')
  other = LipNeXt(num_classes=5, depth=2, width=16, patch_size=4)
  for model, params, names, problem in (
    (other, PARAMS, [], 'is not the model of that name'),
    (MODEL, PARAMS, ['a'], 'class_names'),
    (MODEL, jax.tree.map(np.float64, PARAMS), [], 'float64'),
    (MODEL, jax.tree.map(lambda p: p * np.nan, PARAMS), [], 'finite'),
  ):
    with pytest.raises(ValueError, match=problem):
      certify.export_predictor(path, model, params, SHAPE, class_names=names)
  assert not list(tmp_path.iterdir())
  with pytest.raises(OSError, match='directory'):
    certify.export_predictor(f'{path}/y', MODEL, PARAMS, SHAPE)
