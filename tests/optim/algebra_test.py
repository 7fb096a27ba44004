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
  entries = want[np.triu_indices(n, 1)]
  found = np.asarray(p).ravel()
  found = found[found != 0]  # What was drawn is nowhere 0.
  if n % 2:  # The middle row has its (n − 1)/2 entries twice.
    entries = np.concatenate([entries, want[n // 2, n // 2 + 1 :]])
  np.testing.assert_array_equal(np.sort(found), np.sort(entries))


@pytest.mark.parametrize('n', SIZES)
def test_packed_is_every_entry_above_the_diagonal(n):
  check_pack(algebra.pack, algebra.unpack, n)


@pytest.mark.parametrize('n', SIZES)
def test_elementwise_odd_rules_see_the_same_entries(n):
  """Raises unless sign(Ω)·√|Ω| and sums commute with packing.

  What is unpacked is skew, whatever was packed.
  """
  anything = algebra.unpack(noise((algebra.packed_rows(n), n)))
  np.testing.assert_array_equal(anything, -anything.T)
  a, b = noise((n, n)), noise((n, n), 1)

  def rule(x, y):
    return jnp.sign(x) * jnp.sqrt(jnp.abs(x)) - 0.5 * y

  got = algebra.unpack(rule(algebra.pack(a), algebra.pack(b)))
  want = rule((a - a.T) / 2, (b - b.T) / 2)
  np.testing.assert_allclose(got, want, rtol=1e-6, atol=1e-6)


# -- Planted faults: check_pack rejects them -----------------------------------


def unpack_without_turning(p):
  above = jnp.triu(jnp.concatenate([p, p[::-1][: p.shape[1] - len(p)]]), 1)
  return above - above.T


FAULTS = {
  'a sign': (algebra.pack, lambda p: -algebra.unpack(p)),
  'not turned': (algebra.pack, unpack_without_turning),
  'a diagonal': (lambda a: algebra.pack(a) + jnp.eye(*a.shape)[: len(a) // 2],
                 algebra.unpack),
  'not made skew': (
    lambda a: (jnp.triu(a, 1) + jnp.triu(a, 1)[::-1, ::-1])[: len(a) // 2],
    algebra.unpack,
  ),
  'scaled': (lambda a: 1.001 * algebra.pack(a), algebra.unpack),
  'bfloat16': (
    lambda a: algebra.pack(a).astype(jnp.bfloat16).astype(a.dtype),
    algebra.unpack,
  ),
}  # fmt: skip


@pytest.mark.parametrize('fault', FAULTS)
def test_packing_rejects(fault):
  with pytest.raises(AssertionError):
    check_pack(*FAULTS[fault], 8)
