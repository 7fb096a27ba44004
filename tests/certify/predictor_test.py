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


def test_rigorous_predictors_give_rigorous_radii(made, tmp_path):
  path = str(tmp_path / 'model.lipnext')
  certify.export_predictor(path, MODEL, PARAMS, SHAPE, certificate='rigorous')
  assert certify.load_predictor(path, certificate='fast').certificate == 'fast'
  wanted = certify.rigorous_radius(MODEL, PARAMS, IMAGES)
  for file, kind in ((path, None), (made[0], 'rigorous')):
    _, radii = certify.load_predictor(file, certificate=kind)(IMAGES)
    np.testing.assert_array_equal(radii, wanted.radii)
  with pytest.raises(errors.ConfigError, match="'Rigorous' is unknown"):
    certify.load_predictor(path, certificate='Rigorous')


def test_the_manifest_says_what_the_certificate_is_about(made, loaded):
  path, manifest = made
  assert manifest == loaded.manifest
  assert manifest['lipschitz_bound'] == certify.lipschitz_bound(PARAMS)
  assert manifest['offset'] == certify.prove_constants(PARAMS).offset
  assert (manifest['colours'], manifest['certificate']) == ('grey', 'fast')
  assert manifest['config'] == {'model.depth': 2}
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
  pixels = np.round(IMAGES * 255).astype(np.uint8)
  for found, right in zip(
    predictor(pixels), predictor(pixels / 255), strict=True
  ):
    np.testing.assert_allclose(found, right, rtol=1e-5, atol=1e-6)
  for wrong in (255 * IMAGES, IMAGES * np.nan, IMAGES - 1e-3):
    with pytest.raises(ValueError, match=r'outside \[0, 1\]'):
      predictor(wrong)
  for shape in (SHAPE, (1, 8, 8, 3), (1, 8, 9, 1)):
    with pytest.raises(ValueError, match='no batch'):
      predictor(np.zeros(shape))


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
  found = certify.load_predictor(
    forge(lipschitz_bound=0.01, offset=0.0, units='mm')
  )
  assert found.manifest == loaded.manifest
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
  'num_classes': [0, -1, 6, 5.0, True, 10**30],
  'depth': [0, 3, 10**9],
  'width': [0, 15, 17, 10**9],
  'patch_size': [0, -4, 3],
  'shift_ratio': [-0.1, 0.3, '1', float('nan'), float('inf')],
  'beta': [-1.0, float('nan'), None],
  'padding': ['reflect', 3],
  'activation': ['relu', None],
  'parametrization': ['cayley', None],
  'position': [1],
  'r_init': ['ones'],
}


def test_metadata_that_does_not_fit_the_weights_is_refused(made, forge):
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


def test_weights_of_another_model_are_refused(made, forge):
  old = safetensors.numpy.load_file(made[0])
  for name, array, problem in (
    ('blocks/R', ..., 'blocks/R is missing'),
    ('x\x1b', np.ones(1, np.float32), 'instead of no array'),
    ('blocks/M', old['blocks/M'][..., :1], 'blocks/M is float32['),
    ('blocks/M', np.float64(old['blocks/M']), 'blocks/M is float64['),
    ('head/bias', old['head/bias'] * np.nan, 'head/bias is not finite'),
    ('head/kernel', 0 * old['head/kernel'], 'cannot be certified'),
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
  class Model(models.LipNeXt):
    def __call__(self, images):
      return 2 * super().__call__(images)

  path = str(tmp_path / 'x.lipnext')
  other = Model(num_classes=5, depth=2, width=16, patch_size=4)
  for model, params, shape, facts, problem in (
    (other, PARAMS, SHAPE, {}, 'its model'),
    (MODEL.clone(width=32), PARAMS, SHAPE, {}, 'instead of'),
    (MODEL, PARAMS, (12, 8, 1), {}, 'instead of'),
    (MODEL, PARAMS, SHAPE, {'resize': 4}, 'resize'),
    (MODEL, PARAMS, SHAPE, {'certificate': 'best'}, 'certificate'),
    (MODEL, PARAMS, SHAPE, {'class_names': ['a']}, 'class_names'),
    (MODEL, jax.tree.map(np.float64, PARAMS), SHAPE, {}, 'float64'),
    (MODEL, jax.tree.map(lambda p: p * np.nan, PARAMS), SHAPE, {}, 'finite'),
  ):
    with pytest.raises(ValueError, match=problem):
      certify.export_predictor(path, model, params, shape, **facts)
  assert not list(tmp_path.iterdir())
  with pytest.raises(OSError, match='directory'):
    certify.export_predictor(f'{path}/y', MODEL, PARAMS, SHAPE)


@pytest.mark.slow  # It starts a program.
def test_a_program_needs_jax_alone(made, loaded, tmp_path, run_command):
  program = str(tmp_path / 'model.program')
  certify.export_program(program, MODEL, PARAMS, SHAPE)
  code = (
    'import sys, jax.export, numpy, safetensors.numpy\n'
    'data = bytearray(open(sys.argv[1], "rb").read())\n'
    'weights = safetensors.numpy.load_file(sys.argv[2])\n'
    'images = numpy.full((7, 8, 8, 1), 0.25, numpy.float32)\n'
    'print(jax.export.deserialize(data).call(weights, images)[1].tolist())\n'
    'assert "lipnext_jax" not in sys.modules\n'
  )
  done = run_command([sys.executable, '-c', code, program, made[0]])
  _, radii = loaded(np.full((7, *SHAPE), 0.25, np.float32))
  np.testing.assert_allclose(json.loads(done.stdout), radii, rtol=1e-5)
