import functools

import jax
from jax import lax
import jax.numpy as jnp
import pytest

from lipnext_jax.aot import flops

pytestmark = pytest.mark.usefixtures('optimized')

X, W = jnp.ones((4, 8)), jnp.ones((8, 16))
ONE = 2 * 4 * 8 * 16


def total(fn, *args, **options):
  return flops.count(jax.make_jaxpr(fn)(*args), **options).total


def test_a_convolution_counts_its_kernel_at_every_place():
  def convolve(x, w):
    layout = ('NHWC', 'HWIO', 'NHWC')
    y = lax.conv_general_dilated(x, w, (1, 1), 'SAME', dimension_numbers=layout)
    return jnp.sum(y)

  x, w = jnp.ones((2, 4, 4, 3)), jnp.ones((3, 3, 3, 5))
  one = 2 * (2 * 4 * 4) * (3 * 3 * 3 * 5)
  assert total(convolve, x, w) == one
  # The two gradients are convolutions of the same size, or larger by padding.
  assert 2 * one <= total(jax.grad(convolve, (0, 1)), x, w) < 4 * one


def scan(x, w):
  return lax.scan(lambda c, _: (c, x @ w), 0, length=7)[1]


def conditional(x, w):
  branches = [lambda: x @ w, lambda: 2 * (x @ w) @ w.T @ w]
  return lax.switch(0, branches)


def loss(x, w):
  return jnp.sum(jnp.sin(jnp.sin(x @ w)))


def spread(x, w):
  mesh = jax.make_mesh((8,), ('a',), (jax.sharding.AxisType.Auto,))
  p = jax.sharding.PartitionSpec()
  return jax.shard_map(jnp.matmul, mesh=mesh, in_specs=p, out_specs=p)(x, w)


@pytest.mark.parametrize(
  ('fn', 'products'),
  [
    (jnp.matmul, 1),
    (lambda x, w: (x + 1j) @ (w + 1j), 4),
    (scan, 7),  # The compiler counts the body once.
    (conditional, 3),  # The most expensive branch.
    (jax.grad(loss, argnums=1), 2),
    (jax.grad(jax.checkpoint(loss), argnums=1), 3),
    (spread, 8),  # Every device runs the body of a shard_map.
  ],
)
def test_products_count_as_often_as_they_run(fn, products):
  assert total(fn, X, W) == products * ONE


def test_scopes_and_copies():
  def fn(x):
    with jax.named_scope('inner'):
      y = lax.map(lambda _: x @ W, jnp.arange(3))
    return y, x @ W

  assert total(fn, X) == 4 * ONE
  assert total(fn, X, scope='inner') == 3 * ONE
  assert total(fn, X, scope='inner', copies=5) == 15 * ONE


@pytest.mark.parametrize('shape', [(3, 4, 8), (12, 8)])
def test_saved_activations_are_the_stacks_of_whole_batches(shape):
  def loss(ws, x):
    body = jax.checkpoint(lambda x, w: (jnp.tanh(x @ w), None))
    return lax.scan(body, x, ws)[0].sum()

  ws, x = jnp.ones((5, 8, 8)), jnp.ones(shape)
  jaxpr = jax.make_jaxpr(jax.grad(loss))(ws, x)
  # The inputs of five layers.
  saved = functools.partial(flops.saved_activations, jaxpr)
  assert saved(batch=3, tokens=12) == 5 * x.size * 4
  assert saved(batch=7, tokens=28) == 0
  assert saved(batch=4, tokens=16) == 0  # Nor are the gradients [5, 8, 8].


@pytest.mark.parametrize(
  ('dtype', 'precision', 'kind'),
  [
    ('float32', 'highest', 'wide'),
    ('float32', 'default', 'narrow'),
    ('bfloat16', 'highest', 'narrow'),
  ],
)
def test_float32_products_are_counted_apart(dtype, precision, kind):
  x, w = X.astype(dtype), W.astype(dtype)
  jaxpr = jax.make_jaxpr(lambda: jnp.matmul(x, w, precision=precision))()
  assert flops.count(jaxpr) == flops.Flops(**{kind: ONE})


def test_branches_of_other_platforms_are_left_out():
  def fn(x, w):
    return lax.platform_dependent(
      x, w, cpu=jnp.matmul, default=lambda x, w: x @ w + x @ w
    )

  for platform, products in (('cpu', 1), ('tpu', 2)):
    assert total(fn, X, W, platform=platform) == products * ONE
