import jax
from jax import lax
import jax.numpy as jnp
import numpy as np
import pytest

from lipnext_jax.aot import collectives

P = jax.sharding.PartitionSpec
AUTO = (jax.sharding.AxisType.Auto,) * 2


def compile_on_mesh(fn, spec):
  """Compiles a function of [8, 16] float32 for 2 × 4 devices."""
  mesh = jax.make_mesh((2, 4), ('a', 'b'), AUTO)
  spread = jax.shard_map(
    fn, mesh=mesh, in_specs=spec, out_specs=spec, check_vma=False
  )
  x = jax.ShapeDtypeStruct((8, 16), jnp.float32)
  return jax.jit(spread).lower(x).compile().as_text()


def scatter(x):
  return lax.psum_scatter(x, 'b', scatter_dimension=1, tiled=True)


def shift(x):
  return lax.ppermute(x, 'b', [(i, (i + 1) % 4) for i in range(4)])


@pytest.mark.parametrize(
  ('kind', 'fn', 'size', 'sent'),
  [
    ('all-gather', lambda x: lax.all_gather(x, 'b'), 512, 384),
    ('all-reduce', lambda x: lax.psum(x, 'b'), 128, 192),
    ('reduce-scatter', scatter, 128, 96),
    ('all-to-all', lambda x: lax.all_to_all(x, 'b', 1, 0, tiled=True), 128, 96),
    ('collective-permute', shift, 128, 128),
  ],
)
def test_every_kind_is_read_with_its_bytes(kind, fn, size, sent):
  """Four devices exchange data; each has [2, 16] float32, 128 bytes."""
  (found,) = collectives.read(compile_on_mesh(fn, P('b')))
  assert (found.kind, found.dtype, found.trips) == (kind, 'f32', 1)
  assert (found.size, found.sent) == (size, sent)
  if kind != 'collective-permute':
    assert found.group == 4


def test_loops_count_as_often_as_they_run_and_groups_over_slices_are_known():
  def fn(x):
    def body(c, _):
      c = jnp.sin(lax.psum(c, 'a'))
      inner = lax.map(lambda i: lax.all_gather(c * i, 'b'), np.float32([1] * 5))
      return c + jnp.sum(inner), None

    return lax.scan(body, x, length=7)[0]

  found = collectives.read(compile_on_mesh(fn, P()), slices=[0] * 4 + [1] * 4)
  assert {(c.kind, c.group, c.crosses, c.trips) for c in found} == {
    ('all-reduce', 2, True, 7),
    ('all-gather', 4, False, 7 * 5),
  }


HLO = """HloModule jit_f, num_partitions=4

%condition (p: (s32[], f32[8])) -> pred[] {
  %p = (s32[], f32[8]) parameter(0)
  %n.2 = s32[] constant(32)
  %i = s32[] get-tuple-element(%p), index=0
  ROOT %lt = pred[] compare(%i, %n.2), direction=LT
}

%body (p: (s32[], f32[8])) -> (s32[], f32[8]) {
  %s = (bf16[8], bf16[32]) all-gather-start(%x), replica_groups={{0,1,2,3}}
  %d = bf16[32] all-gather-done(%s)
  %r = ((f32[32]), f32[8]) reduce-scatter-start(%y), replica_groups=[1,4]<=[4]
  %e = f32[8] reduce-scatter-done(%r)
}

ENTRY %main (p: f32[8]) -> f32[8] {
  %w = (s32[], f32[8]) while(%t), condition=%condition, body=%body
  %a = ((f32[4,2]), f32[4,2]) all-to-all-start(%x), replica_groups={}
}
"""


def test_the_starts_and_loops_of_accelerators_are_understood():
  """TPUs state no trip counts; starts carry their operands in their type."""
  found = collectives.read(HLO)
  assert [(c.kind, c.size, c.group, c.trips) for c in found] == [
    ('all-gather', 64, 4, 32),
    ('reduce-scatter', 128, 4, 32),
    ('all-to-all', 32, 4, 1),
  ]
  # A loop that depends on data counts once.
  text = HLO.replace('%n.2), direction', '%other), direction')
  assert [c.trips for c in collectives.read(text)] == [1, 1, 1]
  # Transfers within a device are left out.
  text = HLO.replace('{{0,1,2,3}}', '{{0},{1},{2},{3}}')
  kinds = [c.kind for c in collectives.read(text)]
  assert kinds == ['reduce-scatter', 'all-to-all']
