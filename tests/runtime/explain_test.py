import jax
import jax.numpy as jnp
import pytest

from lipnext_jax import errors
from lipnext_jax.runtime import explain

GONE = jax.errors.JaxRuntimeError(
  'UNKNOWN: Gloo AllGather failed: Connection closed by peer'
)


def test_memory_that_is_lacking_is_explained():
  """2⁴⁶ bytes: no machine has them. The error is the runtime's own."""
  with pytest.raises(jax.errors.JaxRuntimeError) as raised:
    jax.block_until_ready(jnp.zeros((1 << 23, 1 << 23), jnp.uint8))
  known = explain.explain(raised.value)
  assert type(known) is errors.OutOfMemoryError
  for part in ('batch_size', 'model.remat', 'mesh.fsdp', 'Out of memory'):
    assert part.lower() in str(known).lower()
  assert len(str(known).splitlines()) == 1
  known = explain.explain(MemoryError('8 EiB'))
  assert type(known) is errors.OutOfMemoryError
  assert 'lower dataset.workers' in str(known)


def test_a_process_that_is_gone_is_only_one_of_several(monkeypatch):
  assert explain.explain(GONE) is None
  monkeypatch.setattr(jax, 'process_count', lambda: 2)
  known = explain.explain(GONE)
  assert type(known) is errors.LostProcessError
  assert str(known).startswith('process 0 of 2: another one is gone or does')
  assert explain.explain(jax.errors.JaxRuntimeError('INTERNAL: bug')) is None


def test_a_quote_is_the_reason_or_the_start_in_one_line():
  text = 'UNKNOWN: "/a/b":\n ' + 'x' * 500 + ' Read-only file system [tensor'
  assert explain.quote(ValueError(text)) == 'Read-only file system'
  start = explain.quote(ValueError('a\nb ' * 200))
  assert start.startswith('a b a b')
  assert len(start) == 200
