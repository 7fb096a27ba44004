"""The block is the paper's: one function, one trajectory, fewer numbers.

The oracle is the equation as printed, Z = σ( M Rᵀ S( R (X + p) ) + b ), with a
square R and in float64; the model has the first k = 4⌊αC⌋ rows of it. The
shift S and the activation have their own tests.
"""

import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lipnext_jax import losses
from lipnext_jax import models
from lipnext_jax import optim
from lipnext_jax.models import layers
from lipnext_jax.models import lipnext
from lipnext_jax.models import products
from tests import networks

IMAGE = (6, 8, 3)
MODEL = models.LipNeXt(
  num_classes=4,
  depth=2,
  width=16,
  patch_size=2,
  m_init='haar',
  dtype=jnp.float64,
  precision='highest',
)
SHAPES = {  # The stem: pads to c; is square; cuts 48 values to c; is grey.
  'pads': (IMAGE, MODEL),
  'square': ((4, 6, 3), MODEL.clone(width=12, beta=1.0)),
  'cuts': ((8, 16, 3), MODEL.clone(width=20, patch_size=4, beta=0.3)),
  'grey': ((9, 6, 1), MODEL.clone(width=10, patch_size=3, beta=0.0)),
}


@pytest.fixture(autouse=True)
def in_float64():
  with jax.enable_x64(True):
    yield


def draw_square(model=MODEL, image=IMAGE):
  """Parameters of the paper's own block; biases and positions are not zero."""
  params = networks.draw(model, image, scale=0.3, dtype=np.float64)
  square = np.random.default_rng(1).normal(size=params['blocks']['M'].shape)
  params['blocks']['R'] = np.linalg.qr(square)[0]
  return params


def stored(square, alpha):
  """What the model keeps of them: without moved channels, no R."""
  blocks = dict(square['blocks'])
  r = blocks.pop('R')
  if k := 4 * int(alpha * r.shape[-1]):
    blocks['R'] = r[:, :k]
  return square | {'blocks': blocks}


def literal(model, params, images):
  """Logits of the paper's equation."""
  blocks = params['blocks']
  x = layers.patchify(images - 0.5, model.patch_size)
  u = x @ params['stem']['Q'][: model.width, : x.shape[-1]].T
  u += jnp.expand_dims(params['stem']['bias'], (0, 1, 2))
  for p, r, m, b in zip(
    *(blocks[name] for name in ('pos', 'R', 'M', 'bias')), strict=True
  ):
    y = (layers.beta_abs(u, model.beta) + jnp.expand_dims(p, 0)) @ r.T
    y = layers.spatial_shift(y, model.shift_ratio, model.padding)
    u = y @ r @ m.T + jnp.expand_dims(b, (0, 1, 2))
  z = layers.l2_pool(layers.beta_abs(u, model.beta))
  kernel = models.head_kernel({'params': params})
  return z @ kernel.T + jnp.expand_dims(params['head']['bias'], 0)


def ours(model, params, images):
  return jax.jit(model.apply)({'params': params}, images)


def draw_images(count=5, image=IMAGE):
  return np.random.default_rng(7).uniform(size=(count, *image))


def check_function(apply, model, image=IMAGE):
  square, images = draw_square(model, image), draw_images(5, image)
  want = jax.jit(literal, static_argnums=0)(model, square, images)
  found = apply(model, stored(square, model.shift_ratio), images)
  # Some ten float64 products of size 48 at most on values below 10.
  np.testing.assert_allclose(found, want, rtol=0, atol=1e-12)


@pytest.mark.parametrize('padding', layers.PADDINGS)
@pytest.mark.parametrize('shape', SHAPES)
def test_logits_are_those_of_the_paper(shape, padding):
  image, model = SHAPES[shape]
  for alpha in (1 / 8, 1 / 4, 1 / 16, 0) if model is MODEL else (1 / 8,):
    model = model.clone(shift_ratio=alpha, padding=padding)
    check_function(ours, model, image)
  q = draw_square(model, image)['stem']['Q']
  assert q.shape[0] == q.shape[1]  # An isometry, but where the stem cuts.


def change(leaf, fault):
  def apply(model, params, images):
    blocks = params['blocks'] | {leaf: fault(params['blocks'][leaf])}
    return ours(model, params | {'blocks': blocks}, images)

  return apply


right_mix = products.mix


def with_mix(mix):
  def apply(*args):
    with pytest.MonkeyPatch.context() as patch:
      patch.setattr(products, 'mix', mix)
      return ours(*args)

  return apply


FUNCTION_FAULTS = {
  'S for S − I': with_mix(
    lambda n, y, d, r, m: right_mix(n, y, d + products.product(n, y, r), r, m)
  ),
  'R for Rᵀ': with_mix(
    lambda n, y, d, r, m: right_mix(n, y, d, r.reshape(r.shape[::-1]).T, m)
  ),
  'rows of other channels': change('R', lambda r: r[:, ::-1]),
  'R off the manifold': change('R', lambda r: 1.0001 * r),
  'M transposed': change('M', lambda m: m.transpose(0, 2, 1)),
  'blocks reversed': change('M', lambda m: m[::-1]),
  'bias subtracted': change('bias', lambda b: -b),
  'p of the first block alone': change('pos', lambda p: p * [[[[1]]], [[[0]]]]),
  'another padding': lambda m, *args: ours(m.clone(padding='zero'), *args),
  'another beta': lambda m, *args: ours(m.clone(beta=0.4), *args),
  'images not centred': lambda m, p, x: ours(m, p, x + 0.5),
  'images scaled': lambda m, p, x: ours(m, p, (x - 0.5) / 0.25 + 0.5),
}


@pytest.mark.parametrize('name', FUNCTION_FAULTS)
def test_function_check_rejects(name):
  with pytest.raises(AssertionError):
    check_function(FUNCTION_FAULTS[name], MODEL)


def train(logits_fn, params):
  """Losses and weights of the recipe, but for two things.

  Without the clip, which in the literal block sees a component normal to the
  manifold that no step takes; and with the exact exponential: a truncated one
  leaves the manifold by 1e-6, where the two blocks are two functions.
  """
  tx = optim.lipnext_optimizer(
    2e-2,
    clip_norm=None,
    lookahead_period=6,
    retraction_period=10,
    thresholds=(0, 0, 0),
  )
  images = draw_images(8)
  labels = jnp.arange(8) % 4

  def loss(params):
    kernel = models.head_kernel({'params': params})
    return losses.emma_loss(logits_fn(params, images), labels, kernel, 0.5)

  def step(carry, _):
    params, state = carry
    value, grads = jax.value_and_grad(loss)(params)
    updates, state = tx.update(grads, state, params)
    return (optax.apply_updates(params, updates), state), value

  carry = jax.tree.map(jnp.asarray, params), tx.init(params)
  run = jax.jit(lambda carry: jax.lax.scan(step, carry, length=40))
  (params, state), values = run(carry)
  return values, params, optim.slow_params(state, params)


@pytest.mark.slow  # Optimizers are compiled.
def test_forty_steps_of_the_recipe_are_those_of_the_paper():
  """With circular shifts; gradients with padding are compared below."""
  model = MODEL.clone(shift_ratio=1 / 16)
  square = draw_square()
  params = stored(square, 1 / 16)
  values, *weights = train(functools.partial(literal, model), square)
  wanted = [values, *(stored(w, 1 / 16) for w in weights)]
  # A trajectory worth following.
  assert values[-1] < values[0] - 0.1
  moved = wanted[1]['blocks']['R'] - params['blocks']['R']
  assert np.max(np.abs(moved)) > 0.05

  def check_trajectory(logits_fn):
    found = train(functools.partial(logits_fn, model), params)
    close = functools.partial(np.testing.assert_allclose, rtol=0, atol=1e-9)
    jax.tree.map(close, list(found), wanted)

  check_trajectory(ours)
  # Planted: R's gradient from one of the two products with it alone.
  half = with_mix(
    lambda n, y, d, r, m: right_mix(n, y, d, jax.lax.stop_gradient(r), m)
  )
  with pytest.raises(AssertionError):
    check_trajectory(half)


def count_costs(alpha, remat):
  """Products c × c of all tokens (forward, backward), and tensors kept."""
  model = MODEL.clone(shift_ratio=alpha, remat=remat)
  params, images = stored(draw_square(), alpha), draw_images(3)
  tokens = math.prod(images.shape[:3]) // model.patch_size**2
  unit = tokens * model.width
  gradient = jax.grad(lambda p: jnp.sum(model.apply({'params': p}, images)))
  jaxpr = jax.make_jaxpr(gradient)(params)

  def work(scan):
    total = 0.0
    for e in networks.dots(scan.params['jaxpr']):
      three = [v.aval.shape for v in (*e.invars, *e.outvars)]
      if any(tokens in shape for shape in three):
        # Of [t, c] and [c, d] to [t, d]: t·c·d, whichever is the result.
        total += math.sqrt(math.prod(map(math.prod, three)))
    return total / (unit * model.width)

  forward, backward = (e for e in jaxpr.eqns if e.primitive.name == 'scan')
  left = sum(v.aval.size for v in forward.outvars if tokens in v.aval.shape)
  saved = (left - unit) / (model.depth * unit)  # The output is no residual.
  return work(forward), work(backward), saved


@pytest.mark.parametrize('alpha', [1 / 16, 1 / 8])
def test_products_and_memory_are_those_of_the_docs(alpha):
  forward, backward, saved = count_costs(alpha, 'products')
  assert forward == pytest.approx(1 + 8 * alpha)
  assert backward == pytest.approx(2 * (1 + 8 * alpha))
  assert saved == pytest.approx(1 + 4 * alpha)
  # Nothing kept but the input: the forward products that lead to d once more.
  _, recomputed, least = count_costs(alpha, 'block')
  assert recomputed > backward
  assert least == pytest.approx(1)


def gradients(logits_fn, model, params):
  def loss(params):
    logits = logits_fn(model, params, draw_images())
    weights = jnp.cos(jnp.arange(logits.size)).reshape(logits.shape)
    return jnp.sum(logits * weights)

  return jax.jit(jax.grad(loss))(params)['blocks']


def test_gradients_are_those_of_the_paper_whatever_is_kept():
  """All of M, p and b; of R what is tangent to the manifold."""

  def skew(r, g):
    a = r.mT @ g
    return a - a.mT

  model = MODEL.clone(padding='zero')
  square = draw_square()
  r = square['blocks']['R']
  want = gradients(literal, model, square)
  want['R'] = skew(r, want['R'])
  for name, gradient in want.items():
    assert np.max(np.abs(gradient)) > 1e-2, name
  for remat, unroll in itertools.product(lipnext.REMAT_POLICIES, (False, True)):
    model = model.clone(remat=remat, unroll=unroll)
    got = gradients(ours, model, stored(square, 1 / 8))
    got['R'] = skew(r[:, :8], got['R'])
    for name in want:
      np.testing.assert_allclose(
        got[name], want[name], rtol=0, atol=1e-12, err_msg=f'{remat} {unroll}'
      )
