"""The forms of a block: one function on the manifold, told apart next to it."""

import functools
import math

import flax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lipnext_jax import certify
from lipnext_jax import models
from lipnext_jax.aot import flops
from lipnext_jax.models import forms
from lipnext_jax.models import layers
from lipnext_jax.models import sharded

GRID = (3, 4)
WIDTH = 16


def oracle(x, r, m, alpha, padding):
  """M Rᵀ S R x in float64, channel by channel; x [b, h, w, c]."""
  y = np.einsum('dc,bhwc->bhwd', r, x)
  moved = int(alpha * WIDTH)
  for group, (axis, step) in enumerate(((1, -1), (1, 1), (2, -1), (2, 1))):
    for channel in range(group * moved, (group + 1) * moved):
      rolled = np.roll(y[..., channel], step, axis)
      if padding == 'zero':
        edge = [slice(None)] * 3
        edge[axis] = -1 if step < 0 else 0
        rolled[tuple(edge)] = 0
      y[..., channel] = rolled
  return np.einsum('ec,dc,bhwd->bhwe', m, r, y)


def draw(seed=0):
  """x [b, h, w, c] and two Haar matrices that are orthogonal in float64."""
  rng = np.random.default_rng(seed)
  x = rng.normal(size=(2, *GRID, WIDTH))
  r, m = (np.linalg.qr(rng.normal(size=(WIDTH, WIDTH)))[0] for _ in range(2))
  return x, r, m


def mix64(form, x, r, m, alpha, padding):
  with jax.enable_x64(True):
    return np.asarray(
      forms.mix(
        form,
        jnp.asarray(x),
        jnp.asarray(r),
        jnp.asarray(m),
        grid=GRID,
        shift_ratio=alpha,
        padding=padding,
        product=layers.token_product,
        matrix_product=layers.token_product,
      )
    )


moved64 = functools.partial(mix64, 'moved')


def check_form(form, alpha=1 / 8, padding='circular', seed=0):
  x, r, m = draw(seed)
  np.testing.assert_allclose(
    form(x, r, m, alpha, padding),
    oracle(x, r, m, alpha, padding),
    # Four float64 products of size 16 on values below 5, and qr's own 1e-15.
    rtol=0,
    atol=1e-13,
  )


@pytest.mark.parametrize('padding', layers.PADDINGS)
@pytest.mark.parametrize('alpha', [0, 1 / 16, 1 / 8, 3 / 16, 1 / 4])
@pytest.mark.parametrize('form', ['literal', 'fused', 'moved'])
def test_every_form_is_the_papers_on_the_manifold(form, alpha, padding):
  check_form(functools.partial(mix64, form), alpha, padding)


def without_the_difference(x, r, m, alpha, padding):
  """Planted: M x + M Rₛᵀ S Rₛ x."""
  still = moved64(x, r, m, alpha, padding) - np.einsum('ec,bhwc->bhwe', m, x)
  rows = r[: 4 * int(alpha * WIDTH)]
  return still + np.einsum('ec,bhwc->bhwe', m + m @ rows.T @ rows, x)


FORM_FAULTS = {
  'S for S − I': without_the_difference,
  'R transposed': lambda x, r, m, *a: moved64(x, r.T, m, *a),
  'M transposed': lambda x, r, m, *a: moved64(x, r, m.T, *a),
  'other rows': lambda x, r, m, *a: moved64(x, r[::-1], m, *a),
  'R off the manifold': lambda x, r, m, *a: moved64(x, 1.001 * r, m, *a),
  'another α': lambda x, r, m, alpha, p: moved64(x, r, m, alpha / 2, p),
  'another padding': lambda x, r, m, alpha, p: moved64(x, r, m, alpha, 'zero'),
}


@pytest.mark.parametrize('name', FORM_FAULTS)
def test_form_check_rejects(name):
  with pytest.raises(AssertionError):
    check_form(FORM_FAULTS[name])


def test_other_rows_of_r_are_of_no_consequence():
  """Turned among themselves, they leave the paper's own form as it is."""
  x, r, m = draw()
  rest = WIDTH - 8
  turn = np.linalg.qr(np.random.default_rng(1).normal(size=(rest, rest)))[0]
  turned = np.concatenate([r[:8], turn @ r[8:]])
  assert np.abs(turned - r).max() > 0.1
  before, after = (oracle(x, q, m, 1 / 8, 'circular') for q in (r, turned))
  np.testing.assert_allclose(after, before, rtol=0, atol=1e-13)


def test_next_to_the_manifold_the_forms_are_apart_by_the_bound():
  x, r, m = draw()
  r = r + 1e-3 * np.random.default_rng(2).normal(size=r.shape)
  gap = moved64(x, r, m, 1 / 8, 'circular') - oracle(x, r, m, 1 / 8, 'circular')
  defect = np.linalg.norm(r.T @ r - np.eye(WIDTH), 2)
  largest = np.linalg.norm(gap, axis=-1) / np.linalg.norm(x, axis=-1)
  assert largest.max() <= defect * (1 + 1e-12)  # ‖M‖ = 1.
  assert largest.max() > defect / 3  # And no better than that.


# ── In the model ─────────────────────────────────────────────────────────────

IMAGE = (6, 8, 3)


def build(form, **options):
  return models.LipNeXt(
    4, depth=2, width=WIDTH, patch_size=2, m_init='haar', form=form, **options
  )


def random_params():
  """Parameters, in float64; biases and positions are not zero."""
  rng = np.random.default_rng(5)
  model = build('literal')
  shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, *IMAGE)))

  def fill(path, leaf):
    drawn = rng.normal(size=leaf.shape)
    if path[-1].key in ('R', 'M', 'Q'):
      return np.linalg.qr(drawn)[0]
    return 0.3 * drawn

  return jax.tree_util.tree_map_with_path(fill, shapes['params'])


def gradients(model, params):
  model = model.clone(dtype=jnp.float64)
  images = np.random.default_rng(6).uniform(size=(3, *IMAGE))

  def loss(params):
    f = model.apply({'params': params}, images)
    return jnp.sum(f * jnp.cos(jnp.arange(f.size)).reshape(f.shape))

  with jax.enable_x64(True):
    return jax.device_get(jax.jit(jax.value_and_grad(loss))(params))


def tangent(params, grads):
  """Matrices' gradients as skew(XᵀG), the others' as they are."""

  def project(path, x, g):
    if path[-1].key not in ('R', 'M', 'Q'):
      return g
    omega = np.swapaxes(x, -1, -2) @ g
    return (omega - np.swapaxes(omega, -1, -2)) / 2

  return jax.tree_util.tree_map_with_path(project, params, grads)


def check_step(model, params, expected):
  loss, grads = gradients(model, params)
  np.testing.assert_allclose(loss, expected[0], rtol=1e-12)
  close = functools.partial(np.testing.assert_allclose, rtol=0, atol=1e-12)
  jax.tree.map(close, tangent(params, grads), tangent(params, expected[1]))
  return grads


@pytest.mark.parametrize('remat', models.lipnext.REMAT_POLICIES)
@pytest.mark.parametrize('padding', layers.PADDINGS)
def test_steps_on_the_manifold_are_those_of_the_papers_form(padding, remat):
  """The loss, and the gradient along the manifold: all that a step uses."""
  params = random_params()
  expected = gradients(build('literal', padding=padding), params)
  for leaf in jax.tree.leaves(tangent(params, expected[1])):
    assert np.abs(leaf).max() > 1e-3  # None is trivially zero.
  model = build('moved', padding=padding, remat=remat)
  grads = check_step(model, params, expected)
  # Half of the rows of R move at α = 1/8; nothing asks for the others.
  assert not grads['blocks']['R'][:, 8:].any()
  assert np.abs(expected[1]['blocks']['R'][:, 8:]).max() > 1e-3
  with pytest.raises(AssertionError):
    check_step(model.clone(shift_ratio=1 / 16), params, expected)


def split(shares):
  """A layout of rows over so many devices, which need not exist."""
  mesh = jax.sharding.AbstractMesh((1, shares, 1), ('data', 'rows', 'width'))
  return sharded.Layout(mesh, ('data',), 'rows', 'width')


@pytest.mark.parametrize('remat', models.lipnext.REMAT_POLICIES)
@pytest.mark.parametrize('unroll', [False, True])
def test_the_rows_that_are_read_are_enough(remat, unroll):
  """The loss and every gradient to the bit; what is left out has none."""
  model = build('moved', remat=remat, unroll=unroll)
  params = random_params()
  read = model.working_params(params)
  assert read['blocks']['R'].shape == (2, 8, WIDTH)
  expected = gradients(model, params)
  assert not expected[1]['blocks']['R'][:, 8:].any()
  expected[1]['blocks']['R'] = expected[1]['blocks']['R'][:, :8]
  jax.tree.map(np.testing.assert_array_equal, gradients(model, read), expected)
  assert model.working_params(read)['blocks']['R'].shape == (2, 8, WIDTH)


def test_fewer_rows_than_are_read_are_refused():
  params = random_params()
  params['blocks']['R'] = params['blocks']['R'][:, :7]
  with pytest.raises(flax.errors.ScopeParamShapeError):
    gradients(build('moved'), params)
  params['blocks']['R'] = random_params()['blocks']['R'][:, :8]
  with pytest.raises(flax.errors.ScopeParamShapeError):
    gradients(build('fused'), params)


@pytest.mark.parametrize(
  ('options', 'shares', 'rows'),
  [
    ({'form': 'moved'}, 4, 8),
    ({'form': 'moved'}, 16, 16),
    ({'form': 'moved', 'shift_ratio': 1 / 16}, 1, 4),
    ({'form': 'moved', 'shift_ratio': 1 / 16}, 8, 8),
    ({'form': 'moved', 'shift_ratio': 0.0}, 1, 1),
    ({'form': 'moved', 'shift_ratio': 0.0}, 8, 8),
    ({'form': 'moved', 'parametrization': 'cayley'}, 1, None),
    ({'form': 'fused'}, 8, WIDTH),
    ({'form': 'auto'}, 8, WIDTH),
  ],
  ids=str,
)
def test_rows_are_shared_evenly(options, shares, rows):
  model = build(**options)
  shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, *IMAGE)))
  read = model.clone(layout=split(shares)).working_params
  blocks = jax.eval_shape(read, shapes['params'])['blocks']
  if rows is None:  # All of what R is computed from.
    assert blocks == shapes['params']['blocks']
  else:
    assert blocks['R'].shape == (2, rows, WIDTH)
    assert blocks['M'].shape == (2, WIDTH, WIDTH)


def test_what_is_certified_is_a_form_that_lambda_covers():
  """R scaled by 1.001, which stretches M Rᵀ S R x but hardly M x."""
  params = jax.tree.map(jnp.float32, random_params())
  params['blocks']['R'] = 1.001 * params['blocks']['R']
  model = build('moved')
  images = jax.random.uniform(jax.random.key(0), (2, *IMAGE))
  logits = {
    name: m.apply({'params': params}, images)
    for name, m in (
      ('moved', model),
      ('explicit', model.explicit()),
      ('literal', build('literal', precision='highest')),
    )
  }
  np.testing.assert_allclose(
    logits['explicit'], logits['literal'], rtol=0, atol=1e-5
  )
  assert np.abs(logits['moved'] - logits['literal']).max() > 1e-3
  assert certify.lipschitz_bound(params) > 1.001**4  # Of both blocks.
  for form in ('fused', 'literal'):
    assert build(form).explicit().form == form


def products(jaxpr):
  """All that multiply, in inner jaxprs too."""
  for e in flops.open_jaxpr(jaxpr).eqns:
    if e.primitive.name == 'dot_general':
      yield e
    for inner in flops.inner_jaxprs(e):
      yield from products(inner)


def count_products(**options):
  """Of token tensors with a matrix, and what forward leaves for backward."""
  model = build(**options)
  params = jax.tree.map(jnp.float32, random_params())
  images = jnp.zeros((3, *IMAGE))
  jaxpr = jax.make_jaxpr(
    jax.grad(lambda p: jnp.sum(model.apply({'params': p}, images)))
  )(params)
  tokens = 36  # 3 images of 12.

  def work(scan):
    shapes = [
      [v.aval.shape for v in (*e.invars, *e.outvars)]
      for e in products(scan.params['jaxpr'])
    ]
    # Of [t, c] and [c, d] to [t, d]: t·c·d, whichever is the result.
    return sum(
      math.sqrt(math.prod(map(math.prod, three)))
      for three in shapes
      if any(tokens in s for s in three)
    )

  forward, backward = (e for e in jaxpr.eqns if e.primitive.name == 'scan')
  left = sum(v.aval.size for v in forward.outvars if tokens in v.aval.shape)
  unit = tokens * WIDTH
  saved = left - unit  # The last block's output is no residual.
  return [work(s) / (unit * WIDTH) for s in (forward, backward)], saved / (
    2 * unit
  )


@pytest.mark.parametrize('alpha', [1 / 16, 1 / 8])
def test_products_and_memory_are_those_of_the_docstring(alpha):
  """In products c × c of all tokens, and in tensors [tokens, c] a block."""
  products, saved = count_products(
    form='moved', shift_ratio=alpha, remat='products'
  )
  assert products == pytest.approx([1 + 8 * alpha, 2 * (1 + 8 * alpha)])
  assert saved == pytest.approx(1 + 4 * alpha)
  products, saved = count_products(
    form='fused', shift_ratio=alpha, remat='products'
  )
  assert (products, saved) == (pytest.approx([2, 4]), 2)


def precisions(model):
  """Of every product that a forward pass computes."""
  images = jnp.zeros((3, *IMAGE))
  params = jax.tree.map(jnp.float32, random_params())
  # A new lambda: the trace of an equal, patched model must not be found.
  with jax.default_matmul_precision('default'):  # As users have it.
    jaxpr = jax.make_jaxpr(lambda x: model.apply({'params': params}, x))(images)
  return {e.params['precision'] for e in products(jaxpr)}


@pytest.mark.parametrize('form', ['literal', 'fused', 'moved'])
def test_matrices_are_multiplied_as_precisely_as_tokens(form, monkeypatch):
  """A default precision there would be tf32 in a certificate, on a GPU."""
  highest = {(jax.lax.Precision.HIGHEST,) * 2}
  assert precisions(build(form).explicit()) == highest
  assert precisions(build(form, precision='highest')) == highest
  if form == 'literal':  # No such product.
    return
  mix = forms.mix
  monkeypatch.setattr(
    forms,
    'mix',
    lambda *a, **k: mix(*a, **k | {'matrix_product': layers.token_product}),
  )
  assert precisions(build(form, precision='highest')) > highest  # And others.


def test_an_unknown_form_is_refused():
  with pytest.raises(ValueError, match="form='quick' must be one of"):
    build('quick').init(jax.random.key(0), jnp.zeros((1, *IMAGE)))
