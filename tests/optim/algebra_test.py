"""Tests that packing skew matrices loses nothing."""

import jax.numpy as jnp
import numpy as np
import pytest

from lipnext_jax.optim import algebra

SIZES = (1, 2, 3, 8)


def noise(shape, seed=0):
  return jnp.asarray(np.random.default_rng(seed).normal(size=shape))


def check_pack(pack, unpack, n):
  """Raises unless `pack` keeps every entry above the diagonal, and only those.

  To the bit: entries are moved and change their sign, no more.
  """
  a = noise((n, n))
  want = np.asarray(a - a.T) / 2
  p = pack(a)
  assert p.shape == ((n + 1) // 2, n)
  np.testing.assert_array_equal(unpack(p), want)


@pytest.mark.parametrize('n', SIZES)
def test_elementwise_odd_rules_see_every_entry(n):
  """Raises unless sign(Ω)·√|Ω| and sums commute with packing.

  What is unpacked is skew, whatever was packed.
  """
  check_pack(algebra.pack, algebra.unpack, n)
  anything = algebra.unpack(noise(((n + 1) // 2, n)))
  np.testing.assert_array_equal(anything, -anything.T)
  a, b = noise((n, n)), noise((n, n), 1)

  def rule(x, y):
    return jnp.sign(x) * jnp.sqrt(jnp.abs(x)) - 0.5 * y

  got = algebra.unpack(rule(algebra.pack(a), algebra.pack(b)))
  want = rule((a - a.T) / 2, (b - b.T) / 2)
  np.testing.assert_allclose(got, want, rtol=1e-6, atol=1e-6)


def unpack_without_turning(p):
  above = jnp.triu(jnp.concatenate([p, p[::-1][: p.shape[1] - len(p)]]), 1)
  return above - above.T


def pack_without_skew(a):
  above = jnp.triu(a, 1)
  return (above + above[::-1, ::-1])[: len(a) // 2]


@pytest.mark.parametrize(
  ('pack', 'unpack'),
  [
    (algebra.pack, lambda p: -algebra.unpack(p)),
    (algebra.pack, unpack_without_turning),
    (pack_without_skew, algebra.unpack),
    (lambda a: 1.001 * algebra.pack(a), algebra.unpack),
  ],
)
def test_packing_rejects(pack, unpack):
  with pytest.raises(AssertionError):
    check_pack(pack, unpack, 8)
