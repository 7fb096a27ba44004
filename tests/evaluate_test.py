import jax
import numpy as np
import pytest

from lipnext_jax import certify
from lipnext_jax import config as config_lib
from lipnext_jax import evaluate
from lipnext_jax import models
from lipnext_jax.certify import norms
from lipnext_jax.data import pipeline
from lipnext_jax.data import sources
from lipnext_jax.data import views
from lipnext_jax.models import registry
from lipnext_jax.parallel import mesh as mesh_lib
from tests import networks


@pytest.fixture(scope='module')
def setup():
  """Mesh, model, weights, a split of 37 examples and its images."""
  config = config_lib.default_config()
  config.model.update(depth=2, width=16, patch_size=4)
  mesh = mesh_lib.make_mesh(config.mesh)
  model = registry.build_model(config.model, 10)
  source = views.View(sources.load_dataset(config.dataset).test, range(37))
  images = np.stack([source[i]['image'] for i in range(37)])
  params = jax.device_put(networks.draw(model, images.shape[1:], scale=0.0))
  return mesh, model, params, source, images


def run(setup, batch_size, lipschitz=1.0, model=None):
  mesh, own, params, source, _ = setup
  batches = pipeline.eval_batches(source, batch_size=batch_size)
  constants = certify.Constants(lipschitz, 0.0)
  return evaluate.Evaluator(model or own, mesh).certify_fast(
    params, batches, constants
  )


def test_every_example_is_counted_once_whatever_the_batch(setup):
  results = [run(setup, size) for size in (8, 16, 64)]
  for result in results:
    assert result.ids.tolist() == list(range(37))
    labels = [int(setup[3][i]['label']) for i in range(37)]
    assert result.labels.tolist() == labels
    np.testing.assert_array_equal(result.predictions, results[0].predictions)
    np.testing.assert_allclose(result.radii, results[0].radii, atol=1e-6)


def direct(setup, lipschitz):
  """Certifies in float32 without an `Evaluator`."""
  _, model, params, _, images = setup
  variables = {'params': params}
  _, radii = certify.certified_radius(
    model.explicit().apply(variables, images),
    models.head_kernel(variables),
    lipschitz,
    certify.margin_floor(images, certify.Constants(lipschitz, 0.0)),
  )
  return radii


def test_radii_are_those_of_the_certificate_in_float32(setup):
  low = setup[1].clone(dtype=jax.numpy.bfloat16)  # It trains in bfloat16.
  result = run(setup, 8, lipschitz=1.25, model=low)
  assert result.lipschitz_bound == 1.25
  np.testing.assert_allclose(
    result.radii, direct(setup, 1.25), rtol=1e-5, atol=1e-6
  )
  # float32 rounds 1 + 1e-12 to 1; the device must get a larger number.
  exact, above = run(setup, 8, 1.0).radii, run(setup, 8, 1 + 1e-12).radii
  assert np.all(above[exact > 0] <= exact[exact > 0])
  assert np.mean(above < direct(setup, 1.0)) > 0.3


def test_summary_counts_strictly():
  result = evaluate.Evaluation(
    ids=np.arange(4),
    labels=np.array([0, 1, 1, 0]),
    predictions=np.array([0, 1, 0, 0]),
    radii=np.array([0.25, 0.5, 2.0, 0.1], np.float32),
    lipschitz_bound=1.5,
    lipschitz_bounds={'R': [1.5, 1.0]},
  )
  assert result.summary([0.25, 36 / 255]) == {
    'examples': 4,
    'clean': 75.0,
    'cra': {'0.25': 25.0, '0.141176': 50.0},
    'lipschitz_bound': 1.5,
    'certificate': 'fast',
    'lipschitz_bounds': {'R': [1.5, 1.0]},
  }


def run_rigorous(setup, batch_size, fsdp=1, source=None):
  _, model, params, own, _ = setup
  config = config_lib.default_config().mesh
  config.fsdp = fsdp
  batches = pipeline.eval_batches(source or own, batch_size=batch_size)
  return evaluate.Evaluator(
    model, mesh_lib.make_mesh(config), 'rigorous'
  ).certify(params, batches)


def test_rigorous_evaluation_is_the_rigorous_certificate(setup):
  _, model, params, _, images = setup
  direct = certify.rigorous_radius(model, params, images)
  for result in (
    run_rigorous(setup, 8),
    run_rigorous(setup, 40),
    run_rigorous(setup, 16, fsdp=4),
  ):
    assert result.ids.tolist() == list(range(37))
    np.testing.assert_array_equal(result.predictions, direct.predictions)
    # Sums in another order differ by at most E, over distances above 0.1.
    largest = np.max(direct.logit_errors)
    np.testing.assert_allclose(result.radii, direct.radii, atol=40 * largest)
    assert result.radii.dtype == np.float64
    assert result.lipschitz_bound == direct.lipschitz
    assert result.lipschitz_bounds == certify.lipschitz_bounds(params)
    assert result.logit_error == pytest.approx(largest, rel=1e-6)
    summary = result.summary([0.25])
    assert summary['certificate'] == 'rigorous'
    assert summary['logit_error'] == result.logit_error


def test_monitoring_uses_the_constant_of_training_and_proves_nothing(
  setup, monkeypatch
):
  mesh, model, params, source, _ = setup
  batches = list(pipeline.eval_batches(source, batch_size=40))
  evaluator = evaluate.Evaluator(model, mesh)
  with monkeypatch.context() as patch:
    patch.delattr(norms, 'spectral_norm_bound')
    result = evaluator.monitor(params, batches)
  assert result.lipschitz_bound == 1.0
  np.testing.assert_array_equal(result.radii, run(setup, 40).radii)
  # Certification proves the bound.
  result = evaluator.certify(params, batches)
  assert result.lipschitz_bounds == certify.lipschitz_bounds(params)
  assert result.lipschitz_bound == pytest.approx(
    certify.lipschitz_bound(params), rel=1e-14
  )


def test_widening_keeps_numbers_that_float32_calls_subnormal(setup):
  """XLA would convert them to zeros, which makes another model."""
  mesh = setup[0]
  stored = np.float32([[1e-40, -1e-45, 1e-38, 1 / 3]]).repeat(8, 0)
  p = jax.device_put(stored, mesh_lib.batch_sharding(mesh))
  with jax.enable_x64(True):
    wide = evaluate.widen(p, stored)
    on_device = np.asarray(p.astype(np.float64))
  assert wide.sharding == p.sharding
  np.testing.assert_array_equal(np.asarray(wide), stored.astype(np.float64))
  if mesh.devices.flat[0].platform == 'cpu':  # Shows that XLA does so.
    assert np.any(on_device != stored.astype(np.float64))


def test_rigorous_evaluation_divides_bytes_in_float64(setup):
  _, model, params, _, _ = setup
  images = np.arange(5 * 64).reshape(5, 8, 8, 1).astype(np.uint8)
  source = views.ArraySource(images, np.zeros(5, int))
  result = run_rigorous(setup, 8, source=source)
  direct = certify.rigorous_radius(model, params, images / 255)
  np.testing.assert_allclose(
    result.radii, direct.radii, atol=40 * np.max(direct.logit_errors)
  )
  narrow = certify.rigorous_radius(
    model, params, images.astype(np.float32) / np.float32(255)
  )
  assert np.max(np.abs(narrow.radii - direct.radii)) > 1e-10
