"""LipNeXt against the paper's equations, and its Lipschitz constant searched.

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
from lipnext_jax.certify import lipschitz_bound
from lipnext_jax.models import head_kernel
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
  'cut': {'shift_ratio': 1 / 16, 'beta': 0.3},
  'square': {'shift_ratio': 1 / 4, 'beta': 1.0},
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


@pytest.mark.parametrize('padding', layers.PADDINGS)
@pytest.mark.parametrize('shape', SHAPES)
def test_forward_pass_is_the_papers(shape, padding):
  model, image = build(shape, padding=padding)
  params = random_params(model, image)
  check_equations(apply64, model, params, images(image))


def swap_leaf(name, change):
  def fault(model, params, x):
    blocks = {**params['blocks'], name: change(params['blocks'][name])}
    return apply64(model, {**params, 'blocks': blocks}, x)

  return fault


def with_patch(target, replacement):
  def fault(model, params, x):
    with pytest.MonkeyPatch.context() as patch:
      patch.setattr(layers, target, replacement)
      return apply64(model, params, x, compiled.__wrapped__)

  return fault


shift, rectified = layers.spatial_shift, layers.beta_abs
EQUATION_FAULTS = {
  'rows of R reversed': swap_leaf('R', lambda r: r[:, ::-1]),
  'M transposed': swap_leaf('M', lambda m: m.transpose(0, 2, 1)),
  'blocks reversed': swap_leaf('M', lambda m: m[::-1]),
  'no position after the first block': swap_leaf(
    'pos', lambda p: np.stack([p[0], 0 * p[1], 0 * p[2]])
  ),
  'bias subtracted': swap_leaf('bias', lambda b: -b),
  'shift twice': with_patch(
    'spatial_shift', lambda x, *a: shift(shift(x, *a), *a)
  ),
  'no shift': with_patch('spatial_shift', lambda x, *a: x),
  'shift the other way': with_patch(
    'spatial_shift', lambda x, *a: shift(x[:, ::-1], *a)[:, ::-1]
  ),
  'activation of the last channels': with_patch(
    'beta_abs', lambda x, b: rectified(x[..., ::-1], b)[..., ::-1]
  ),
  'pool averages': with_patch(
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


def test_float32_follows_float64():
  model, image = build(precision='highest')
  params, x = random_params(model, image), images(image)
  f = jax.jit(model.apply)({'params': params}, jnp.float32(x))
  assert f.dtype == jnp.float32
  # 1-Lipschitz: the 10 roundings of products of 16 add, they do not grow.
  np.testing.assert_allclose(f, apply64(model, params, x), rtol=0, atol=2e-5)


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


@functools.cache
def compiled_gradients(model):
  model = model.clone(dtype=jnp.float64)

  def loss(params, x):
    f = model.apply({'params': params}, x)
    return jnp.sum(f * jnp.cos(jnp.arange(f.size).reshape(f.shape)))

  return jax.jit(jax.grad(loss))


def check_gradients(model, params, x, expected):
  with jax.enable_x64(True):
    got = jax.device_get(compiled_gradients(model)(to_float64(params), x))
  # The same float64 operations, perhaps fused differently.
  close = functools.partial(np.testing.assert_allclose, rtol=1e-10, atol=1e-11)
  jax.tree.map(close, got, expected)
  return got


def test_remat_changes_no_gradient():
  model, image = build()
  params, x = random_params(model, image), images(image)
  with jax.enable_x64(True):
    expected = compiled_gradients(model)(to_float64(params), x)
  for leaf in jax.tree.leaves(expected):  # None is trivially zero.
    assert np.max(np.abs(leaf)) > 1e-3
  for policy in ('block', 'products'):
    check_gradients(model.clone(remat=policy), params, x, expected)
  with pytest.raises(AssertionError):
    check_gradients(model, params, x + 1e-6, expected)
  assert sorted(lipnext.REMAT_POLICIES) == ['block', 'none', 'products']


@pytest.mark.parametrize('remat', lipnext.REMAT_POLICIES)
def test_unrolled_blocks_are_the_same_function(remat):
  model, image = build(remat=remat)
  params, x = random_params(model, image), images(image)
  with jax.enable_x64(True):
    expected = compiled_gradients(model.clone(remat='none'))(
      to_float64(params), x
    )
  check_gradients(model.clone(unroll=True), params, x, expected)


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


# ── The Lipschitz constant ───────────────────────────────────────────────────

# Pairs are at least 1e-4 apart, logits below 50 in float64: a ratio is wrong by
# a few 1e-14/1e-4.
LIPSCHITZ_TOLERANCE = 1e-8


def largest_margin_ratio(logits, params, rows, image, steps=30):
  """Largest |Δ(f_i − f_j)|/(‖w_i − w_j‖·‖Δx‖) found, all i, j; float64.

  Starts: random images, and from each a step along the gradient of f_i − f_j,
  at distances 1e-4 … 3. Then ascent of the ratio over both ends of the pair.

  Args:
    logits: (parameters, [b, H, W, ch]) → [b, k], jitted.
    params: float32-valued parameters.
    rows: [k, c], the rows that the certificate takes for the head's.
    image: shape of one image.
    steps: of the ascent.
  """
  first, second = np.triu_indices(len(rows), 1)
  distance = np.geomspace(1e-4, 3, 6)
  n = len(first) * len(distance)
  rng = np.random.default_rng(3)
  with jax.enable_x64(True):
    contrast = np.tile(
      np.eye(len(rows))[first] - np.eye(len(rows))[second], (6, 1)
    )
    found = compiled_search(logits, steps)(
      to_float64(params),
      rng.uniform(size=(n, *image)),
      rng.normal(size=(n, *image)),
      contrast,
      np.linalg.norm(contrast @ rows, axis=1),
      np.repeat(distance, len(first)),
    )
    return float(jnp.max(found))


@functools.cache
def compiled_search(logits, steps):
  """The search of `largest_margin_ratio`, compiled once for all parameters."""

  def norm(v):
    return jnp.sqrt(jnp.sum(jnp.square(v)))

  def search(params, x, direction, contrast, slope, d):
    def change(pair):
      f = logits(params, pair)
      return jnp.dot(f[0] - f[1], contrast)

    def ratio(pair):
      return jnp.abs(change(pair)) / (slope * norm(pair[0] - pair[1]))

    def ascend(t, pair):
      g = jax.grad(ratio)(pair)
      x, y = pair + 0.3 * d / (1 + t) / (norm(g) + 1e-300) * g
      return jnp.stack([x, x + d * (y - x) / norm(y - x)])

    gradient = jax.grad(change)(jnp.stack([x, x]))[0]
    along, across = (
      jnp.stack([x, x + d * v / norm(v)]) for v in (gradient, direction)
    )
    end = jax.lax.fori_loop(0, steps, ascend, across)
    return jnp.max(jax.lax.map(ratio, jnp.stack([along, across, end])))

  return jax.jit(jax.vmap(search, in_axes=(None, 0, 0, 0, 0, 0)))


def unit_rows(params):
  w = np.asarray(params['head']['kernel'], np.float64)
  return w / np.linalg.norm(w, axis=1)[:, None]


def check_constant(largest, lipschitz, attained=0.0):
  assert largest <= lipschitz * (1 + LIPSCHITZ_TOLERANCE), (
    f'not Lipschitz: {largest} > {lipschitz}'
  )
  assert largest >= attained * lipschitz, f'the search is too weak: {largest}'


@pytest.mark.parametrize(
  ('shape', 'padding', 'attained'),
  [
    # 3k² >= C: the Jacobian of the backbone has orthonormal rows everywhere,
    # so a step of 1e-4 along the gradient attains Λ up to its curvature.
    ('square', 'circular', 0.9999),
    ('cut', 'circular', 0.9999),
    ('wide', 'circular', 0.5),  # Images reach 12 of 16 directions only.
    ('square', 'zero', 0.5),
  ],
)
def test_margins_are_lipschitz(shape, padding, attained):
  model, image = build(shape, padding=padding)
  params = random_params(model, image)
  largest = largest_margin_ratio(
    compiled(model), params, unit_rows(params), image
  )
  check_constant(largest, lipschitz_bound(params), attained)


def test_the_certificates_rows_are_the_models():
  model, image = build()
  params = random_params(model, image)
  np.testing.assert_allclose(
    head_kernel({'params': params}), unit_rows(params), rtol=1e-6
  )


@pytest.mark.parametrize('leaf', ['M', 'R'])
def test_a_scaled_weight_breaks_an_assumed_constant_but_not_the_bound(leaf):
  model, image = build('square')
  params = random_params(model, image)
  params['blocks'][leaf][1] *= np.float32(1.001)
  largest = largest_margin_ratio(
    compiled(model), params, unit_rows(params), image
  )
  bound = lipschitz_bound(params)
  # A block's factor is 2·1.001² − 1 in R, and 1.001 in M.
  factor = {'M': 1.001, 'R': 2 * 1.001**2 - 1}[leaf]
  assert bound <= factor * (1 + 1e-5)
  check_constant(largest, bound)
  with pytest.raises(AssertionError, match='not Lipschitz'):
    check_constant(largest, 1.0)


def raw_head(model):
  """Planted: the head without its normalisation."""
  logits = compiled(model)

  def raw(params, x):
    bias = params['head']['bias'][None]
    norms = jnp.linalg.norm(params['head']['kernel'], axis=1)[None]
    return (logits(params, x) - bias) * norms + bias

  return raw


def scaled_images(model):
  """Planted: the usual division by a standard deviation."""
  logits = compiled(model)
  return lambda params, x: logits(params, (x - 0.45) / 0.25)


def patched(target, replacement):
  def fault(model):
    logits = compiled.__wrapped__(model)

    def traced(params, x):
      with pytest.MonkeyPatch.context() as patch:
        patch.setattr(layers, target, replacement)
        return logits(params, x)

    return traced

  return fault


MARGIN_FAULTS = {
  'head not normalised': raw_head,
  'images scaled': scaled_images,
  'term duplicated': patched('spatial_shift', lambda x, *a: x + shift(x, *a)),
  'activation scaled': patched(
    'beta_abs', lambda x, b: 1.0005 * rectified(x, b)
  ),
}


@pytest.mark.parametrize('name', MARGIN_FAULTS)
def test_margin_check_rejects(name):
  model, image = build('square')
  params = random_params(model, image)
  # Rows of length 1.02: a head that forgot to normalise, but only just.
  params['head']['kernel'] = np.float32(1.02 * unit_rows(params))
  largest = largest_margin_ratio(
    MARGIN_FAULTS[name](model), params, unit_rows(params), image, steps=1
  )
  with pytest.raises(AssertionError, match='not Lipschitz'):
    check_constant(largest, lipschitz_bound(params))
