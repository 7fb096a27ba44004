"""An artifact is the predictor: same answers, refused when it is not whole."""

import io
import json
import subprocess
import sys
import zipfile

import jax
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


def test_a_pickle_in_the_weights_is_not_opened(made, tmp_path):
  """Checksums of the forger's own making do not help him."""
  opened = tmp_path / 'opened'

  class Bomb:
    def __reduce__(self):
      return (open, (str(opened), 'w'))

  def change(members):
    file = io.BytesIO()
    np.savez(file, np.array([Bomb()], dtype=object))
    members['weights.npz'] = file.getvalue()
    manifest = json.loads(members['manifest.json'])
    digest = artifact.hashlib.sha256(file.getvalue()).hexdigest()
    manifest['sha256']['weights.npz'] = digest
    members['manifest.json'] = json.dumps(manifest).encode()

  target = str(tmp_path / 'forged.lipnext')
  rewrite(made[0], target, change)
  with pytest.raises(errors.ConfigError, match='cannot be read'):
    artifact.load_predictor(target)
  assert not opened.exists()


def test_an_artifact_for_other_devices_is_refused(made, tmp_path):
  _, model, params, _, _ = made
  path = str(tmp_path / 'tpu.lipnext')
  artifact.export_predictor(path, model, params, (8, 8, 1), platforms=('tpu',))
  with pytest.raises(errors.ConfigError, match='exported for tpu, not for cpu'):
    artifact.load_predictor(path)
