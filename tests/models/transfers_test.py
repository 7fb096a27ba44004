"""What is summed over devices is not rounded before."""

import functools

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
import numpy as np

from lipnext_jax.models import sharded
from lipnext_jax.models import transfers


def test_gradients_of_weights_are_not_rounded_before_they_are_summed():
  tokens = jnp.ones((257, 1), jnp.bfloat16)

  def wide(w):
    return sharded.token_product(tokens, w, None).astype(jnp.float32).sum()

  def narrow(w):
    w = w.astype(jnp.bfloat16)
    y = jax.lax.dot_general(tokens, w, (((1,), (1,)), ((), ())))
    return y.astype(jnp.float32).sum()

  # 257 has nine bits, one more than bfloat16.
  w = jnp.ones((1, 1), jnp.float32)
  assert jax.grad(wide)(w).item() == 257
  assert jax.grad(narrow)(w).item() == 256


def test_gathered_rows_have_their_gradients_summed_in_their_own_dtype():
  """Eight devices, 1 + 2⁻¹⁰ each: bfloat16 would lose the 2⁻¹⁰."""
  auto = (jax.sharding.AxisType.Auto,) * 2
  mesh = jax.make_mesh((2, 4), ('data', 'fsdp'), auto)

  def gradient(gather):
    def loss(w):
      return jnp.sum(gather(w)) * (1 + 2.0**-10)

    return jax.shard_map(
      jax.grad(loss),
      mesh=mesh,
      in_specs=PartitionSpec('fsdp', None),
      out_specs=PartitionSpec('fsdp', None),
    )(jnp.ones((8, 3)))

  def narrow(w):
    w = jax.lax.pcast(w.astype(jnp.bfloat16), ('data',), to='varying')
    return jax.lax.all_gather(w, 'fsdp', axis=0, tiled=True)

  wide = functools.partial(transfers.gather, jnp.bfloat16, ('data',), 'fsdp')
  np.testing.assert_array_equal(gradient(wide), 8 * (1 + 2.0**-10))
  assert np.all(gradient(narrow) != 8 * (1 + 2.0**-10))
