"""The stem and a block alone: what they keep of distances, and the equation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lipnext_jax.models import blocks
from lipnext_jax.models import layers

GRID = (3, 4)
WIDTH = 16


@pytest.fixture(autouse=True)
def in_float64():
  with jax.enable_x64(True):
    yield


def make_stem(width, patch_size=2):
  return blocks.Stem(
    width=width,
    patch_size=patch_size,
    dtype=jnp.float64,
    precision=jax.lax.Precision.HIGHEST,
    r_init='haar',
    parametrization='none',
  )


def start(module, *args):
  """Its parameters, orthogonal in float64."""
  params = module.init(jax.random.key(0), *args)['params']

  def exact(path, leaf):
    if path[-1].key in ('Q', 'R', 'M'):
      return np.linalg.qr(np.asarray(leaf, np.float64))[0]
    return np.random.default_rng(0).normal(size=leaf.shape)

  return jax.tree_util.tree_map_with_path(exact, params)


def pairs(shape):
  rng = np.random.default_rng(1)
  return rng.uniform(size=(5, *shape)), rng.uniform(size=(5, *shape))


def ratios(stem, params, x, y):
  """‖stem(x) − stem(y)‖ / ‖x − y‖ of each pair."""
  fx, fy = (stem.apply({'params': params}, z) for z in (x, y))

  def norm(z):
    return np.sqrt(np.sum(np.square(z), axis=(1, 2, 3)))

  return norm(fx - fy) / norm(x - y)


@pytest.mark.parametrize(('width', 'side'), [(16, 16), (12, 12), (8, 12)])
def test_the_stem_is_an_isometry_where_its_patches_fit(width, side):
  """12 values a patch: into 16 or 12 channels; of 12, 8 are kept."""
  stem = make_stem(width)
  x, y = pairs((4, 6, 3))
  params = start(stem, x)
  assert params['Q'].shape == (side, side)
  found = ratios(stem, params, x, y)
  if width >= 12:
    np.testing.assert_allclose(found, 1, rtol=1e-12)
  else:
    assert np.all(found < 1 - 1e-3)
  params['Q'] = (
    1.001 * params['Q']
  )  # And a weight that is not orthogonal shows.
  scaled = ratios(stem, params, x, y)
  np.testing.assert_allclose(scaled, 1.001 * found, rtol=1e-12)


def test_an_image_that_no_patch_tiles_raises():
  with pytest.raises(ValueError, match='patch_size=2 must divide'):
    make_stem(16).init(jax.random.key(0), jnp.zeros((1, 7, 8, 3)))


def make_block(**options):
  return blocks.Block(
    grid=GRID,
    beta=0.5,
    padding='circular',
    dtype=jnp.float64,
    precision=jax.lax.Precision.HIGHEST,
    r_init='haar',
    m_init='haar',
    activation='beta_abs',
    parametrization='none',
    **{'shift_ratio': 1 / 8, 'form': 'literal', 'position': True} | options,
  )


def equation(params, u, alpha=1 / 8, position=True):
  """M Rᵀ S( R (σ(u) + p) ) + b."""
  r, m = params['R'], params['M']
  x = np.where(np.arange(WIDTH) < WIDTH // 2, np.abs(u), u)
  x = x.reshape(-1, *GRID, WIDTH)
  if position:
    x = x + params['pos']
  y = np.asarray(layers.spatial_shift(jnp.asarray(x @ r.T), alpha))
  return (y @ r @ m.T).reshape(u.shape) + params['bias']


@pytest.mark.parametrize('form', ['literal', 'fused', 'moved'])
@pytest.mark.parametrize('alpha', [1 / 8, 1 / 16])
def test_a_block_is_the_papers(form, alpha):
  u = np.random.default_rng(2).normal(size=(2 * 12, WIDTH))
  block = make_block(form=form, shift_ratio=alpha)
  params = start(block, u, None)
  v, _ = block.apply({'params': params}, u, None)
  # Three float64 products of size 16, on values below 10.
  close = {'rtol': 0, 'atol': 1e-13}
  np.testing.assert_allclose(v, equation(params, u, alpha), **close)
  for other in ({'alpha': 3 / 16}, {'position': False}):
    wrong = equation(params, u, **({'alpha': alpha} | other))
    with pytest.raises(AssertionError):
      np.testing.assert_allclose(v, wrong, **close)


def test_a_position_that_is_not_trained_has_no_gradient():
  u = np.random.default_rng(2).normal(size=(2 * 12, WIDTH))
  for position in (True, False):
    block = make_block(position=position)
    params = start(block, u, None)
    grads = jax.grad(
      lambda p, block=block: jnp.sum(
        block.apply({'params': p}, u, None)[0] ** 3
      )
    )(params)
    assert grads['R'].any()
    assert grads['pos'].any() == position
