import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lipnext_jax import certify
from lipnext_jax import config as config_lib
from lipnext_jax import evaluate
from lipnext_jax import models
from lipnext_jax.certify import norms
from lipnext_jax.data import pipeline
from lipnext_jax.data import views
from lipnext_jax.parallel import mesh as mesh_lib
from tests import networks

MODEL = models.LipNeXt(10, depth=2, width=16, patch_size=4)
RNG = np.random.default_rng(0)
IMAGES = RNG.uniform(size=(37, 8, 8, 1)).astype(np.float32)
LABELS = RNG.integers(0, 10, size=37)


@pytest.fixture(scope='module')
def params():
  return jax.device_put(networks.draw(MODEL, IMAGES.shape[1:], scale=0.0))


def make_mesh(fsdp=1):
  config = config_lib.default_config().mesh
  config.fsdp = fsdp
  return mesh_lib.make_mesh(config)


def batches(size, images=IMAGES):
  source = views.ArraySource(images, LABELS)
  return pipeline.eval_batches(source, batch_size=size)


def certify_fast(params, batch_size, lipschitz=1.0, model=MODEL):
  evaluator = evaluate.Evaluator(model, make_mesh())
  constants = certify.Constants(lipschitz, 0.0)
  return evaluator.certify_fast(params, batches(batch_size), constants)


def test_radii_are_those_of_the_certificate_in_float32(params):
  def direct(lipschitz):
    variables = {'params': params}
    constants = certify.Constants(lipschitz, 0.0)
    return certify.certified_radius(
      MODEL.explicit().apply(variables, IMAGES),
      models.head_kernel(variables),
      lipschitz,
      certify.margin_floor(IMAGES, constants),
    )

  low = MODEL.clone(dtype=jnp.bfloat16)  # It trains in bfloat16.
  predictions, radii = direct(1.25)
  for size in (8, 64):
    result = certify_fast(params, size, lipschitz=1.25, model=low)
    assert result.lipschitz_bound == 1.25
    np.testing.assert_array_equal(result.ids, range(37))
    np.testing.assert_array_equal(result.labels, LABELS)
    np.testing.assert_array_equal(result.predictions, predictions)
    np.testing.assert_allclose(result.radii, radii, rtol=1e-5, atol=1e-6)
  # float32 rounds 1 + 1e-12 to 1; the device must get a larger number.
  exact, above = (
    certify_fast(params, 8, lipschitz).radii for lipschitz in (1.0, 1 + 1e-12)
  )
  assert np.all(above[exact > 0] <= exact[exact > 0])
  assert np.mean(above < direct(1.0)[1]) > 0.3


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


def certify_rigorous(params, batch_size, fsdp=1, images=IMAGES):
  evaluator = evaluate.Evaluator(MODEL, make_mesh(fsdp), 'rigorous')
  return evaluator.certify(params, batches(batch_size, images))


def test_rigorous_evaluation_is_the_rigorous_certificate(params):
  direct = certify.rigorous_radius(MODEL, params, IMAGES)
  for result in (
    certify_rigorous(params, 8),
    certify_rigorous(params, 40),
    certify_rigorous(params, 16, fsdp=4),
  ):
    np.testing.assert_array_equal(result.ids, range(37))
    np.testing.assert_array_equal(result.predictions, direct.predictions)
    # Sums in another order differ by at most E, over distances above 0.1.
    largest = np.max(direct.logit_errors)
    np.testing.assert_allclose(result.radii, direct.radii, atol=40 * largest)
    assert result.radii.dtype == np.float64
    assert result.lipschitz_bound == direct.lipschitz
    assert result.lipschitz_bounds == certify.lipschitz_bounds(params)
    assert result.logit_error == pytest.approx(largest, rel=1e-6, abs=0)
    summary = result.summary([0.25])
    assert summary['certificate'] == 'rigorous'
    assert summary['logit_error'] == result.logit_error


def test_rigorous_evaluation_divides_bytes_in_float64(params):
  rng = np.random.default_rng(1)
  images = rng.integers(0, 256, size=IMAGES.shape, dtype=np.uint8)
  result = certify_rigorous(params, 8, images=images)
  direct, narrow = (
    certify.rigorous_radius(MODEL, params, images / white)
    for white in (255, np.float32(255))
  )
  atol = 40 * np.max(direct.logit_errors)
  np.testing.assert_allclose(result.radii, direct.radii, atol=atol)
  assert np.max(np.abs(narrow.radii - direct.radii)) > 1e-10


def test_monitoring_uses_the_constant_of_training_and_proves_nothing(
  params, monkeypatch
):
  evaluator = evaluate.Evaluator(MODEL, make_mesh())
  with monkeypatch.context() as patch:
    patch.delattr(norms, 'spectral_norm_bound')
    result = evaluator.monitor(params, batches(40))
  assert result.lipschitz_bound == 1.0
  np.testing.assert_array_equal(result.radii, certify_fast(params, 40).radii)
  # Certification proves the bound.
  result = evaluator.certify(params, batches(40))
  assert result.lipschitz_bounds == certify.lipschitz_bounds(params)
  proved = certify.lipschitz_bound(params)
  assert result.lipschitz_bound == pytest.approx(proved, rel=1e-14)


def test_widening_keeps_numbers_that_float32_calls_subnormal():
  """XLA would convert them to zeros, which makes another model."""
  stored = np.float32([[1e-40, -1e-45, 1e-38, 1 / 3]]).repeat(8, 0)
  p = jax.device_put(stored, mesh_lib.batch_sharding(make_mesh()))
  with jax.enable_x64(True):
    wide = evaluate.widen(p, stored)
    on_device = np.asarray(p.astype(np.float64))
  assert wide.sharding == p.sharding
  np.testing.assert_array_equal(wide, stored.astype(np.float64))
  assert np.any(on_device != stored)  # Shows that XLA does so, on CPUs.
