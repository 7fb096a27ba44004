"""An artifact is the predictor: same answers, refused when it is not whole."""

import dataclasses
import hashlib
import io
import json
import re
import subprocess
import sys
import zipfile

import jax
from jax import export
import numpy as np
import pytest

from lipnext_jax import certify
from lipnext_jax import errors
from lipnext_jax import models
from lipnext_jax.certify import artifact


@pytest.fixture(scope='module')
def made(tmp_path_factory):
  """(path, model, params, images, manifest)."""
  model = models.LipNeXt(num_classes=5, depth=2, width=16, patch_size=4)
  images = np.random.default_rng(0).random((7, 8, 8, 1)).astype(np.float32)
  params = model.init(jax.random.key(0), images)['params']
  params = jax.tree.map(lambda p: p * np.float32(1.001), params)  # Λ is not 1.
  path = str(tmp_path_factory.mktemp('artifact') / 'model.lipnext')
  manifest = artifact.export_predictor(
    path, model, params, (8, 8, 1), config={'model.depth': 2}
  )
  return path, model, params, images, manifest


def test_a_round_trip_gives_the_same_classes_and_radii(made):
  path, model, params, images, _ = made
  predictor = artifact.load_predictor(path)
  narrow = model.clone(precision='highest')
  classes, radii = certify.certified_radius(
    narrow.apply({'params': params}, images),
    models.head_kernel({'params': params}),
    certify.lipschitz_bound(params),
  )
  for size in (1, 7):  # Any batch size.
    found, found_radii = predictor(images[:size])
    np.testing.assert_array_equal(found, classes[:size])
    np.testing.assert_allclose(found_radii, radii[:size], rtol=1e-5, atol=1e-6)
  assumed = certify.certified_radius(
    narrow.apply({'params': params}, images),
    models.head_kernel({'params': params}),
  )[1]
  assert np.max(np.abs(assumed - radii)) > 1e-4  # An assumed 1 would show.


def test_the_manifest_says_what_the_certificate_is_about(made):
  _, _, params, _, manifest = made
  assert manifest['lipschitz_bound'] == certify.lipschitz_bound(params)
  assert manifest['platforms'] == ['cpu', 'cuda', 'tpu']
  assert manifest['image_shape'] == [8, 8, 1]
  assert manifest['num_classes'] == 5
  assert manifest['config'] == {'model.depth': 2}
  assert artifact.load_predictor(made[0]).manifest == manifest


def test_lipschitz_is_rounded_up_on_its_way_into_float32(made):
  program_call = []
  predictor = artifact.load_predictor(made[0])
  manifest = {**predictor.manifest, 'lipschitz_bound': 1 + 1e-12}

  class Program:
    def call(self, params, lipschitz, images):
      program_call.append(params)
      return lipschitz, images

  lipschitz, _ = artifact.Predictor(manifest, Program(), {})(made[3])
  assert float(lipschitz) > 1
  assert program_call


def test_loading_needs_no_training_stack(made):
  """Neither flax' training, optimizer, data nor checkpoint libraries."""
  path = made[0]
  code = f"""
import sys
BLOCKED = ('grain', 'ml_collections', 'sklearn', 'tensorboardX', 'tqdm', 'PIL',
           'tensorflow_datasets')
class Blocker:
  def find_spec(self, name, path=None, target=None):
    if name.split('.')[0] in BLOCKED:
      raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Blocker())
import numpy as np
from lipnext_jax import certify
classes, radii = certify.load_predictor({path!r})(np.full((1, 8, 8, 1), 0.5))
print(classes.shape, radii.shape)
"""
  done = subprocess.run(
    [sys.executable, '-c', code], capture_output=True, text=True, check=False
  )
  assert done.stdout.split('\n')[0] == '(1,) (1,)', done.stderr


def test_another_shape_of_image_is_refused(made):
  predictor = artifact.load_predictor(made[0])
  with pytest.raises(ValueError, match='no batch'):
    predictor(np.zeros((8, 8, 1)))
  with pytest.raises(ValueError, match='no batch'):
    predictor(np.zeros((1, 8, 8, 3)))


def test_bytes_are_divided_by_255_and_no_other_whole_numbers_taken(made):
  predictor = artifact.load_predictor(made[0])
  pixels = np.round(made[3] * 255).astype(np.uint8)
  for found, wanted in zip(
    predictor(pixels), predictor(pixels / np.float32(255)), strict=True
  ):
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6)
  for dtype in (np.int64, np.int8, np.uint16, bool, np.complex64, np.float32):
    with pytest.raises(ValueError, match='give floats'):
      predictor(pixels.astype(dtype))
  assert [len(found) for found in predictor(pixels[:0])] == [0, 0]


def test_crafted_constants_certify_nothing_in_a_predictor(made, tmp_path):
  """The head's bias grows by 2²⁴; what Λ says stays the same."""
  params = made[2] | {'head': {'kernel': made[2]['head']['kernel']}}
  params['head']['bias'] = made[2]['head']['bias'] + np.float32(2**24)
  path = str(tmp_path / 'crafted.lipnext')
  artifact.export_predictor(path, made[1], params, (8, 8, 1))
  assert not np.any(artifact.load_predictor(path)(made[3])[1])
  assert np.any(artifact.load_predictor(made[0])(made[3])[1])


def rewrite(path, target, change):
  """A copy of the artifact with some of its members changed."""
  with zipfile.ZipFile(path) as archive:
    members = {name: archive.read(name) for name in archive.namelist()}
  change(members)
  with zipfile.ZipFile(target, 'w') as archive:
    for name, data in members.items():
      archive.writestr(name, data)


def flip(name):
  def change(members):
    data = bytearray(members[name])
    data[len(data) // 2] ^= 1
    members[name] = bytes(data)

  return change


def newer(members):
  manifest = json.loads(members['manifest.json'])
  members['manifest.json'] = json.dumps(manifest | {'format': 2}).encode()


@pytest.mark.parametrize(
  ('change', 'problem'),
  [
    (flip('program.bin'), 'program.bin does not have its checksum'),
    (flip('weights.npz'), 'weights.npz does not have its checksum'),
    (newer, 'has format 2'),
    (lambda members: members.pop('weights.npz'), 'cannot be read'),
    (lambda members: members.update({'manifest.json': b'{'}), 'cannot be read'),
  ],
)
def test_a_file_that_is_not_whole_is_refused(made, tmp_path, change, problem):
  target = str(tmp_path / 'copy.lipnext')
  rewrite(made[0], target, change)
  with pytest.raises(errors.ConfigError, match=problem):
    artifact.load_predictor(target)


def test_what_is_no_artifact_is_refused(tmp_path):
  with pytest.raises(errors.ConfigError, match='is no file'):
    artifact.load_predictor(str(tmp_path / 'none'))
  path = tmp_path / 'text'
  path.write_text('not a zip')
  with pytest.raises(errors.ConfigError, match='cannot be read'):
    artifact.load_predictor(str(path))


def forge(made, tmp_path, *, program=None, weights=None, **fields):
  """A copy with other parts and fields, and checksums that fit them.

  Args:
    made: the fixture.
    tmp_path: where to.
    program: an Exported.
    weights: arrays.
    **fields: of the manifest; ...: left out.
  """

  def change(members):
    if program is not None:
      members['program.bin'] = bytes(program.serialize())
    if weights is not None:
      file = io.BytesIO()
      np.savez(file, *weights)
      members['weights.npz'] = file.getvalue()
    manifest = json.loads(members['manifest.json']) | fields
    manifest['sha256'] = {
      name: hashlib.sha256(members[name]).hexdigest()
      for name in ('program.bin', 'weights.npz')
    }
    manifest = {k: v for k, v in manifest.items() if v is not ...}
    members['manifest.json'] = json.dumps(manifest).encode()

  target = str(tmp_path / 'forged.lipnext')
  rewrite(made[0], target, change)
  return target


def refusal(path):
  with pytest.raises(errors.ConfigError) as info:
    artifact.load_predictor(path)
  assert info.value.exit_code == 2
  assert len(str(info.value).splitlines()) == 1
  return str(info.value)


def test_a_forgery_of_the_same_parts_is_the_predictor(made, tmp_path):
  """Else the tests below would pass for another reason."""
  path = forge(made, tmp_path, program=export_of(made), weights=leaves(made))
  classes, radii = artifact.load_predictor(path)(made[3])
  np.testing.assert_array_equal(classes, np.full(7, 3))
  np.testing.assert_allclose(radii, 1 / 1.001**4, rtol=0.1)


def leaves(made):
  with (
    zipfile.ZipFile(made[0]) as archive,
    np.load(io.BytesIO(archive.read('weights.npz'))) as file,
  ):
    return [file[name] for name in file.files]


def answer(params, lipschitz, images):
  """What a program may be: it has the right arguments and results."""
  del params
  ones = images.sum((1, 2, 3)) * 0 + 1
  return ones.astype(np.int32) * 3, ones / lipschitz


def export_of(made, function=answer, shape=('b', 8, 8, 1), calls=()):
  """Another program that takes the weights of the artifact."""
  (b,) = export.symbolic_shape('b')
  shapes = jax.tree.map(
    lambda p: jax.ShapeDtypeStruct(p.shape, p.dtype), made[2]
  )
  checks = [export.DisabledSafetyCheck.custom_call(name) for name in calls]
  return export.export(
    jax.jit(function, keep_unused=True),
    platforms=['cpu'],
    disabled_checks=checks,
  )(
    shapes,
    jax.ShapeDtypeStruct((), np.float32),
    jax.ShapeDtypeStruct([b if n == 'b' else n for n in shape], np.float32),
  )


@pytest.mark.parametrize(
  'values',
  [
    {'lipschitz_bound': [..., None, 'x', '1', [], True, float('nan')]},
    {'lipschitz_bound': [float('inf'), 0, 0.0, -1, 1e-300, 1e300, 10**400]},
    {'offset': [..., None, '1', -1.0, True, float('inf'), float('nan')]},
    {'resize': [..., None, '8', 8.0, -1, 7, True, [8]]},
    {'certificate': [..., None, 3, ['fast'], 'fast\nproved', '\x1b[2J']},
    {'image_shape': [..., None, 'abc', [8, 8], [8, 8, 1, 1], [8, 8, 1.0]]},
    {'image_shape': [[8, 8, 0], [-8, 8, 1], [8, 8, True], {'8': 8}, 8]},
  ],
  ids=lambda values: next(iter(values)),
)
def test_fields_of_another_kind_are_refused_by_name(made, tmp_path, values):
  ((name, wrong),) = values.items()
  for value in wrong:
    assert f'its {name} is ' in refusal(forge(made, tmp_path, **{name: value}))


def test_an_image_shape_of_another_model_is_refused(made, tmp_path):
  for shape in ([8, 8, 3], [9, 8, 1]):
    assert 'fit together' in refusal(forge(made, tmp_path, image_shape=shape))


@pytest.mark.parametrize(
  ('change', 'problem'),
  [
    (lambda x: x[:-1], 'weights instead of'),
    (lambda x: [*x, x[0]], 'weights instead of'),
    (lambda x: [], '0 weights instead of'),
    (lambda x: [x[0][..., :1], *x[1:]], r'weight 0 is float32\['),
    (lambda x: [np.float64(x[0]), *x[1:]], r'weight 0 is float64\['),
    (lambda x: [x[0].astype('S4'), *x[1:]], r'weight 0 is \|S4\['),
    (lambda x: [*x[:-1], np.full_like(x[-1], np.nan)], 'is not finite'),
    (lambda x: [*x[:-1], np.full_like(x[-1], np.inf)], 'is not finite'),
  ],
)
def test_weights_that_the_program_would_misread_are_refused(
  made, tmp_path, change, problem
):
  path = forge(made, tmp_path, weights=change(leaves(made)))
  assert re.search(problem, refusal(path))


def call_python(params, lipschitz, images):
  """Calls what JAX registers for callbacks, with an index of our choice."""
  del params
  ones = images.sum((1, 2, 3)) / lipschitz
  kind = jax.ShapeDtypeStruct(ones.shape, ones.dtype)
  name = 'xla_ffi_python_cpu_callback'
  radii = jax.ffi.ffi_call(name, kind)(ones, index=np.uint64(7))
  return ones.astype(np.int32), radii


def test_a_program_that_calls_a_library_is_refused_unrun(made, tmp_path):
  """Run, this one reads memory that is not its own."""
  name = 'xla_ffi_python_cpu_callback'
  program = export_of(made, call_python, (4, 8, 8, 1), [name])
  message = refusal(forge(made, tmp_path, program=program))
  assert f'it calls {name}' in message


def test_a_model_that_calls_a_library_is_not_exported(made, tmp_path):
  class Model(models.LipNeXt):
    def __call__(self, images):
      logits = super().__call__(images)
      return logits + jax.numpy.linalg.svd(logits)[1].sum()

  model = Model(num_classes=5, depth=2, width=16, patch_size=4)
  path = tmp_path / 'x.lipnext'
  with pytest.raises(ValueError, match='calls lapack_'):
    artifact.export_predictor(
      str(path), model, made[2], (8, 8, 1), platforms=['cpu']
    )
  assert not path.exists()


SIGNATURES = {
  'one size of batch': {'shape': (64, 8, 8, 1)},
  'other images': {'shape': ('b', 8, 9, 1)},
  'classes alone': {'function': lambda *x: answer(*x)[0]},
  'a list': {'function': lambda *x: list(answer(*x))},
  'floats as classes': {'function': lambda *x: (answer(*x)[1],) * 2},
  'half the radii': {'function': lambda *x: (answer(*x)[0], answer(*x)[1][:1])},
}


@pytest.mark.parametrize('case', SIGNATURES)
def test_a_program_with_another_signature_is_refused(made, tmp_path, case):
  program = export_of(made, **SIGNATURES[case])
  message = refusal(forge(made, tmp_path, program=program))
  assert 'does not fit together' in message


@pytest.mark.parametrize(
  'change',
  [
    {'module_kept_var_idx': (0, 1)},
    {'module_kept_var_idx': tuple(range(9, 60))},
    {'nr_devices': 4},
  ],
)
def test_a_program_at_odds_with_its_own_header_is_refused(
  made, tmp_path, change
):
  program = dataclasses.replace(export_of(made), **change)
  refusal(forge(made, tmp_path, program=program))


def test_a_pickle_in_the_weights_is_not_opened(made, tmp_path):
  """Checksums of the forger's own making do not help him."""
  opened = tmp_path / 'opened'

  class Bomb:
    def __reduce__(self):
      return (open, (str(opened), 'w'))

  target = forge(made, tmp_path, weights=[np.array([Bomb()], dtype=object)])
  with pytest.raises(errors.ConfigError, match='cannot be read'):
    artifact.load_predictor(target)
  assert not opened.exists()


def test_an_artifact_for_other_devices_is_refused(made, tmp_path):
  _, model, params, _, _ = made
  path = str(tmp_path / 'tpu.lipnext')
  artifact.export_predictor(path, model, params, (8, 8, 1), platforms=('tpu',))
  with pytest.raises(errors.ConfigError, match='exported for tpu, not for cpu'):
    artifact.load_predictor(path)
