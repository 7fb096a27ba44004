import jax
import jax.numpy as jnp
import pytest

from lipnext_jax.optim import checks


def test_stacks_of_float32_and_wider_matrices_pass():
  checks.matrices({'a': jnp.eye(3), 'b': jnp.zeros((2, 5, 3, 4))})
  checks.matrices({})


@pytest.mark.parametrize(
  ('leaf', 'problem'),
  [
    (jnp.ones(3), r"'deep'\]\['leaf'\] has shape \(3,\)"),
    (jnp.float32(1), r'has shape \(\)'),
    (jnp.eye(3, dtype=jnp.bfloat16), 'has dtype bfloat16'),
    (jnp.eye(3, dtype=jnp.int32), 'has dtype int32'),
    (jnp.eye(3, dtype=jnp.complex64), r'has dtype complex64.* unitary A \+ iB'),
    (jnp.ones((2, 0, 3), jnp.complex64), 'has dtype complex64'),
  ],
)
def test_other_leaves_are_refused_by_path(leaf, problem):
  params = {'fine': jnp.eye(2), 'deep': {'leaf': leaf}}
  with pytest.raises(ValueError, match=problem):
    checks.matrices(params)


def test_a_start_off_the_manifold_is_refused_with_its_distance():
  checks.on_manifold({'x': jnp.eye(8)}, 1e-6)
  stack = jnp.stack([jnp.eye(8), 1.001 * jnp.eye(8)])
  with pytest.raises(ValueError, match=r"'x'\] is 2\.0e-03 from orthonormal"):
    checks.on_manifold({'x': stack}, 1e-3)
  checks.on_manifold({'x': stack}, 3e-3)
  with pytest.raises(ValueError, match='from orthonormal'):
    checks.on_manifold({'x': stack.at[0, 0, 0].set(jnp.nan)}, 1.0)
  # Traced values, or a traced tolerance, cannot be looked at.
  jax.eval_shape(lambda x: checks.on_manifold({'x': x}, 1e-3), stack)
  jax.eval_shape(lambda t: checks.on_manifold({'x': stack}, t), 1e-3)


@pytest.mark.parametrize('given', [(4, 3), (4,), (1, 4, 4)], ids=str)
def test_gradients_of_another_shape_are_refused_by_path(given):
  params = {'fine': jnp.ones((2, 3)), 'w': jnp.ones((4, 4))}
  checks.gradients(params, params)
  with pytest.raises(ValueError, match=r"'w'\] has shape .*it needs \(4, 4\)"):
    checks.gradients(params | {'w': jnp.ones(given)}, params)
  with pytest.raises(ValueError, match='needs the parameters'):
    checks.gradients({'w': jnp.ones((4, 4))}, None)


def test_periods_and_weights_are_checked_unless_they_are_arrays():
  for good in (None, 1, jnp.int32(0)):
    checks.period('period', good)
  with pytest.raises(ValueError, match='period=0 must be'):
    checks.period('period', 0)
  for good in (1e-3, 1, jnp.float32(2)):
    checks.weight('weight', good)
  for bad in (0, 1.5):
    with pytest.raises(ValueError, match=f'weight={bad} must lie'):
      checks.weight('weight', bad)


def test_names_outside_the_choices_are_refused_with_all_of_them():
  checks.choice('retraction', 'svd', ('svd', 'newton_schulz'))
  with pytest.raises(
    ValueError, match=r"='qr' must be .*'newton_schulz', 'svd"
  ):
    checks.choice('retraction', 'qr', ('svd', 'newton_schulz'))
