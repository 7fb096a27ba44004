"""LipNeXt against the paper's equations; its constant: `interface_test`.

The oracle is a transcription of

    Z = σ( M (Y + Rᵀ (S − I) R Y) + b ),   Y = X + p

token by token in float64; it shares no code with the package.
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lipnext_jax.aot import flops
from lipnext_jax.models import layers
from lipnext_jax.models import LipNeXt
from lipnext_jax.models import lipnext
from lipnext_jax.optim import orthogonal_labels

# ── The equations, in NumPy ──────────────────────────────────────────────────


def rectify(z, beta):
  return [abs(v) if i + 1 <= beta * len(z) else v for i, v in enumerate(z)]


def oracle(params, image, *, patch, alpha, beta, padding):
  """Logits of one image [H, W, ch], one token after the other."""
  stem, blocks, head = params['stem'], params['blocks'], params['head']
  c = stem['bias'].shape[0]
  h, w = image.shape[0] // patch, image.shape[1] // patch
  x = {}
  for i in range(h):
    for j in range(w):
      rows = slice(i * patch, (i + 1) * patch)
      columns = slice(j * patch, (j + 1) * patch)
      values = (image[rows, columns] - 0.5).reshape(-1)
      padded = np.zeros(len(stem['Q']))
      padded[: len(values)] = values
      x[i, j] = np.array(rectify((stem['Q'] @ padded)[:c] + stem['bias'], beta))

  k = math.floor(alpha * c)
  for r, m, b, p in zip(
    blocks['R'], blocks['M'], blocks['bias'], blocks['pos'], strict=True
  ):
    x = {t: v + p[t][0] for t, v in x.items()}
    y = {t: r @ v for t, v in x.items()}
    shifted = {t: v.copy() for t, v in y.items()}
    for (i, j), target in shifted.items():
      for g, (di, dj) in enumerate(((1, 0), (-1, 0), (0, 1), (0, -1))):
        source = (i + di, j + dj)
        if padding == 'circular':
          source = (source[0] % h, source[1] % w)
        group = slice(g * k, (g + 1) * k)
        target[group] = y[source][group] if source in y else 0
    x = {
      t: np.array(rectify(m @ (v + r.T @ (shifted[t] - y[t])) + b, beta))
      for t, v in x.items()
    }

  pooled = np.sqrt(sum(v**2 for v in x.values()))
  rows = [row / math.sqrt(sum(row**2)) for row in head['kernel']]
  return np.array([row @ pooled for row in rows]) + head['bias']


# ── Models ───────────────────────────────────────────────────────────────────

# Stem with 3k² <= C, cut (3k² > C), grey, square; grids that are not square.
SHAPES = {
  'wide': ((8, 12, 3), {'depth': 3, 'width': 16, 'patch_size': 2}),
  'cut': ((8, 16, 3), {'depth': 2, 'width': 20, 'patch_size': 4}),
  'square': ((4, 6, 3), {'depth': 2, 'width': 12, 'patch_size': 2}),
  'grey': ((9, 6, 1), {'depth': 1, 'width': 10, 'patch_size': 3}),
}
OPTIONS = {
  'wide': {'shift_ratio': 1 / 8, 'beta': 0.5},
  'cut': {'shift_ratio': 1 / 16, 'beta': 0.3, 'padding': 'zero'},
  'square': {'shift_ratio': 1 / 4, 'beta': 1.0, 'padding': 'zero'},
  'grey': {'shift_ratio': 1 / 8, 'beta': 0.0},
}
CLASSES = 4


def build(shape='wide', **options):
  """(model, one image's shape), with M random too."""
  image, sizes = SHAPES[shape]
  options = {**OPTIONS[shape], **sizes, **options}
  return LipNeXt(CLASSES, m_init='haar', **options), image


def random_params(model, image, seed=0, spread=0.3):
  """Float32 parameters: orthogonal where they should be, no bias at zero."""
  rng = np.random.default_rng(seed)
  shapes = jax.eval_shape(
    model.init, jax.random.key(0), jnp.zeros((1, *image))
  )['params']

  def draw(label, leaf):
    a = rng.normal(size=leaf.shape)
    if label == 'orthogonal':  # The rows.
      q = np.linalg.qr(np.swapaxes(a, -1, -2))[0]
      return np.swapaxes(q, -1, -2).astype(np.float32)
    return (spread * a).astype(np.float32)

  return jax.tree.map(draw, orthogonal_labels(shapes), shapes)


def images(image, n=3, seed=7):
  return np.random.default_rng(seed).uniform(size=(n, *image))


def to_float64(params):
  return jax.tree.map(lambda a: np.asarray(a, np.float64), params)


@functools.cache
def compiled(model):
  # A new lambda: jit must not find the trace of an equal, patched model.
  model = model.clone(dtype=jnp.float64)
  return jax.jit(lambda params, x: model.apply({'params': params}, x))


def apply64(model, params, x, compiled=compiled):
  """Logits in float64 of float32-valued parameters."""
  with jax.enable_x64(True):
    return np.asarray(compiled(model)(to_float64(params), x))


def check_equations(apply, model, params, x):
  got = apply(model, params, x)
  expected = [
    oracle(
      to_float64(params),
      image,
      patch=model.patch_size,
      alpha=model.shift_ratio,
      beta=model.beta,
      padding=model.padding,
    )
    for image in x
  ]
  # Ten float64 products of size <= 48 on values below 10.
  np.testing.assert_allclose(got, expected, rtol=0, atol=1e-12)


# ── The function ─────────────────────────────────────────────────────────────


@pytest.mark.parametrize('shape', SHAPES)
def test_forward_pass_is_the_papers(shape):
  model, image = build(shape)
  params = random_params(model, image)
  check_equations(apply64, model, params, images(image))


def swap_leaf(name, change):
  def fault(model, params, x):
    blocks = {**params['blocks'], name: change(params['blocks'][name])}
    return apply64(model, {**params, 'blocks': blocks}, x)

  return fault


def patched(target, replacement):
  def fault(model, params, x):
    with pytest.MonkeyPatch.context() as patch:
      patch.setattr(layers, target, replacement)
      return apply64(model, params, x, compiled.__wrapped__)

  return fault


rectified = layers.beta_abs
EQUATION_FAULTS = {
  'M transposed': swap_leaf('M', lambda m: m.transpose(0, 2, 1)),
  'blocks reversed': swap_leaf('M', lambda m: m[::-1]),
  'no position after the first block': swap_leaf(
    'pos', lambda p: np.stack([p[0], 0 * p[1], 0 * p[2]])
  ),
  'bias subtracted': swap_leaf('bias', lambda b: -b),
  'no shift': patched('spatial_shift', lambda x, *a: x),
  'activation of the last channels': patched(
    'beta_abs', lambda x, b: rectified(x[..., ::-1], b)[..., ::-1]
  ),
  'pool averages': patched(
    'l2_pool', lambda x: jnp.sqrt(jnp.mean(jnp.square(x), axis=(1, 2)))
  ),
  'images not centred': lambda model, params, x: apply64(
    model, params, x + 0.5
  ),
  'images scaled': lambda model, params, x: apply64(
    model, params, (x - 0.5) / 0.25 + 0.5
  ),
}


@pytest.mark.parametrize('name', EQUATION_FAULTS)
def test_equation_check_rejects(name):
  model, image = build()
  params = random_params(model, image)
  with pytest.raises(AssertionError):
    check_equations(EQUATION_FAULTS[name], model, params, images(image))


def test_bf16_computes_in_bf16_and_keeps_float32_outside():
  model, image = build(dtype=jnp.bfloat16)
  params, x = random_params(model, image), jnp.float32(images(image))
  jaxpr = jax.make_jaxpr(model.apply)({'params': params}, x)
  inner, head = dots(jaxpr.jaxpr)[:-1], dots(jaxpr.jaxpr)[-1]
  assert {str(v.aval.dtype) for e in inner for v in e.invars} == {'bfloat16'}
  assert {str(v.aval.dtype) for v in head.invars} == {'float32'}
  f = jax.jit(model.apply)({'params': params}, x)
  assert f.dtype == jnp.float32
  exact = apply64(model, params, np.asarray(x, np.float64))
  # About 11 roundings of 2⁻⁹ on features of norm 15, random signs.
  np.testing.assert_allclose(f, exact, rtol=0, atol=0.2)
  assert np.max(np.abs(f - exact)) > 1e-4  # It is not float32.
  init = jax.eval_shape(model.init, jax.random.key(0), x)
  assert {str(a.dtype) for a in jax.tree.leaves(init)} == {'float32'}
  gradients = jax.eval_shape(
    jax.grad(lambda p: jnp.sum(model.apply({'params': p}, x))), params
  )
  assert {str(a.dtype) for a in jax.tree.leaves(gradients)} == {'float32'}


def test_a_nan_pixel_reaches_the_logits():
  model, image = build()
  x = images(image)
  x[1, 0, 0, 0] = np.nan
  f = apply64(model, random_params(model, image), x)
  np.testing.assert_array_equal(np.isnan(f).all(axis=1), [False, True, False])


def test_init_starts_as_documented():
  model, image = build()
  model = model.clone(m_init='identity')
  params = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, *image)))
  blocks = params['params']['blocks']
  np.testing.assert_array_equal(blocks['M'], np.stack([np.eye(16)] * 3))
  assert np.all(blocks['bias'] == 0)
  assert np.all(blocks['pos'] == 0)
  for i, r in enumerate(blocks['R']):
    np.testing.assert_allclose(r @ r.T, np.eye(8), rtol=0, atol=2e-6)
    for other in blocks['R'][:i]:  # Every block draws its own.
      assert np.max(np.abs(r - other)) > 0.1


# ── Structure ────────────────────────────────────────────────────────────────


def equations(jaxpr):
  """All equations of a jaxpr, those of its inner jaxprs included."""
  for equation in flops.open_jaxpr(jaxpr).eqns:
    yield equation
    for inner in flops.inner_jaxprs(equation):
      yield from equations(inner)


def dots(jaxpr):
  return [e for e in equations(jaxpr) if e.primitive.name == 'dot_general']


def gradient_jaxpr(**options):
  model, image = build(**options)
  params = random_params(model, image)
  x = jnp.zeros((2, *image))
  return jax.make_jaxpr(
    jax.grad(lambda p: jnp.sum(model.apply({'params': p}, x)))
  )(params).jaxpr


def test_program_does_not_grow_with_depth():
  shallow, deep = (gradient_jaxpr(depth=depth) for depth in (4, 64))
  assert len(dots(shallow)) == len(dots(deep)) > 0
  assert len(list(equations(shallow))) == len(list(equations(deep)))


@pytest.mark.parametrize(
  ('width', 'millions'), [(1024, 64), (2048, 256), (4096, 1024)]
)
def test_parameter_counts_of_the_paper(width, millions):
  model = LipNeXt(num_classes=1000, depth=32, width=width, patch_size=14)
  shapes = jax.eval_shape(
    model.init, jax.random.key(0), jnp.zeros((1, 224, 224, 3))
  )
  count = lipnext.paper_parameter_count(shapes['params'])
  assert count == millions * 2**20
  n = max(width, 588)
  assert jax.tree.map(lambda a: a.shape, shapes['params']) == {
    'stem': {'Q': (n, n), 'bias': (width,)},
    'blocks': {
      'R': (32, width // 2, width),
      'M': (32, width, width),
      'bias': (32, width),
      'pos': (32, 16, 16, 1),
    },
    'head': {'kernel': (1000, width), 'bias': (1000,)},
  }
