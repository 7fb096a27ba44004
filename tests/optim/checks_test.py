"""Tests that mistakes are refused in words, by the name of the leaf."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lipnext_jax import optim
from lipnext_jax.optim import checks


@pytest.mark.parametrize(
  ('options', 'match'),
  [
    ({'lookahead_period': 0}, 'lookahead_period=0'),
    ({'lookahead_alpha': 1.5}, 'lookahead_alpha=1.5 must lie in'),
    ({'retraction_period': -1}, 'retraction_period=-1'),
    ({'retraction': 'qr'}, r"='qr' must be .*'newton_schulz', 'svd"),
    ({'large_steps': 'cayley'}, 'projection'),
    ({'moments': 'dense'}, r"moments='dense' must be one of"),
  ],
  ids=str,
)
def test_bad_options_raise(options, match):
  with pytest.raises(ValueError, match=match):
    optim.orthogonal(optax.sgd(1.0), **options)


@pytest.mark.parametrize(
  ('leaf', 'problem'),
  [
    (jnp.ones(3), r"'deep'\]\['leaf'\] has shape \(3,\)"),
    (jnp.eye(3, dtype=jnp.bfloat16), 'has dtype bfloat16'),
    (jnp.eye(3, dtype=jnp.complex64), r'has dtype complex64.* unitary A \+ iB'),
  ],
)
def test_other_leaves_are_refused_by_path(leaf, problem):
  params = {'fine': jnp.eye(2), 'deep': {'leaf': leaf}}
  with pytest.raises(ValueError, match=problem):
    optim.orthogonal(optax.sgd, 1.0).init(params)


@pytest.mark.parametrize('shape', [(8, 8), (2, 3, 5), (1, 16, 2)])
def test_a_start_off_the_manifold_is_refused_where_it_is_known(shape):
  def tx(**options):
    return optim.orthogonal(optax.sgd, 1.0, **options)

  fine = jnp.broadcast_to(jnp.eye(*shape[-2:]), shape) + 0
  tx(start_tolerance=1e-6).init({'x': fine})
  off = {'x': fine.at[..., 0, 0].mul(1.001)}
  with pytest.raises(ValueError, match=r"'x'\] is 2\.0e-03 from orthonormal"):
    tx().init(off)
  with pytest.raises(ValueError, match='from orthonormal'):
    tx(start_tolerance=1.0).init({'x': fine.at[..., 0, 0].set(jnp.nan)})
  for tolerance in (3e-3, None):
    tx(start_tolerance=tolerance).init(off)
  # Traced values, or a traced tolerance, cannot be looked at.
  jax.eval_shape(tx().init, off)
  jax.eval_shape(lambda t: checks.start(off, t), 1e-3)


def test_update_needs_the_parameters_and_gradients_of_their_shape():
  """Others could be broadcast, or read beyond their end, in silence."""
  params = {'x': jnp.stack([jnp.eye(3)] * 2)}
  for tx in (optim.orthogonal(optax.sgd, 1.0), optim.lookahead(optax.sgd(1.0))):
    state = tx.init(params)
    with pytest.raises(ValueError, match='needs params'):
      tx.update(params, state)
    for shape in ((3, 3), (1, 3, 3), ()):
      with pytest.raises(ValueError, match=r"leaf \['x'\] has .*needs \(2"):
        tx.update({'x': jnp.ones(shape)}, state, params)


def test_the_learning_rate_is_given_once_to_a_rule():
  x, g = jnp.eye(4), jnp.triu(jnp.ones((4, 4)))

  def first(*rule):
    tx = optim.orthogonal(*rule)
    return tx.update(g, tx.init(x), x)[0]

  for rate in (1e-2, optax.constant_schedule(1e-2)):
    np.testing.assert_allclose(
      first(optax.adam, rate), first(optax.adam(1e-2)), atol=1e-7
    )
  for wrong in (
    *((1e-3,), (optax.adam,), (None, 1e-3), ('adam', 1e-3)),
    (optax.adam(1e-3), 1e-3),
  ):
    with pytest.raises(TypeError, match=r'orthogonal\(optax\.adam, learning_r'):
      optim.orthogonal(*wrong)
