import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lipnext_jax.aot import collectives

P = jax.sharding.PartitionSpec
AUTO = (jax.sharding.AxisType.Auto,) * 2


def compile_on(sizes, fn, in_specs, out_specs, *shapes):
  mesh = jax.make_mesh(sizes, ('a', 'b'), AUTO)
  spread = jax.shard_map(
    fn, mesh=mesh, in_specs=in_specs, out_specs=out_specs, check_vma=False
  )
  args = [jax.ShapeDtypeStruct(s, jnp.float32) for s in shapes]
  return jax.jit(spread).lower(*args).compile().as_text()


@pytest.mark.parametrize(
  ('fn', 'kind', 'size', 'sent'),
  [
    # A device has [2, 16] float32, 128 bytes; four devices exchange data.
    (lambda x: jax.lax.all_gather(x, 'b'), 'all-gather', 512, 384),
    (lambda x: jax.lax.psum(x, 'b'), 'all-reduce', 128, 192),
    (
      lambda x: jax.lax.psum_scatter(x, 'b', scatter_dimension=1, tiled=True),
      'reduce-scatter',
      128,
      96,
    ),
    (
      lambda x: jax.lax.all_to_all(x, 'b', 1, 0, tiled=True),
      'all-to-all',
      128,
      96,
    ),
    (
      lambda x: jax.lax.ppermute(x, 'b', [(i, (i + 1) % 4) for i in range(4)]),
      'collective-permute',
      128,
      128,
    ),
  ],
)
def test_every_kind_is_read_with_its_bytes(fn, kind, size, sent):
  text = compile_on((2, 4), fn, P('b'), P('b'), (8, 16))
  (found,) = collectives.read(text)
  assert (found.kind, found.dtype, found.trips) == (kind, 'f32', 1)
  assert (found.size, found.sent) == (size, sent)
  if kind != 'collective-permute':
    assert found.group == 4


def test_loops_count_as_often_as_they_run():
  def fn(x):
    def body(c, _):
      c = jnp.sin(jax.lax.psum(c, 'a'))
      inner = jax.lax.map(lambda i: jax.lax.all_gather(c * i, 'b'), ARANGE)
      return c + jnp.sum(inner), None

    return jax.lax.scan(body, x, length=7)[0]

  found = collectives.read(compile_on((2, 4), fn, P(), P(), (8, 16)))
  counts = {(c.kind, c.group): c.trips for c in found}
  assert counts == {('all-reduce', 2): 7, ('all-gather', 4): 7 * 5}


ARANGE = np.arange(5, dtype=np.float32)


def test_groups_over_slices_are_known():
  text = compile_on(
    (2, 4),
    lambda x: jax.lax.psum(jnp.sin(jax.lax.psum(x, 'b')), 'a'),
    P(),
    P(),
    (8, 16),
  )
  found = collectives.read(text, slice_of=lambda device: device // 4)
  assert {(c.group, c.crosses) for c in found} == {(4, False), (2, True)}


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


def test_a_loop_that_depends_on_data_counts_once():
  text = HLO.replace('%n.2), direction=LT', '%other), direction=LT')
  assert [c.trips for c in collectives.read(text)] == [1, 1, 1]


def test_transfers_within_a_device_are_left_out():
  text = HLO.replace('{{0,1,2,3}}', '{{0},{1},{2},{3}}')
  kinds = [c.kind for c in collectives.read(text)]
  assert kinds == ['reduce-scatter', 'all-to-all']
