"""What the compilers of CPU and GPU make of a block: kernels, counted.

The GPU is compiled for, not used; without its compiler (the extra 'aot-cuda')
its tests are skipped.
"""

import collections
import math
import re

import jax
import jax.numpy as jnp
import pytest

from lipnext_jax.aot import topology
from lipnext_jax.models import LipNeXt
from lipnext_jax.models import products

pytestmark = [
  pytest.mark.slow,  # Each test compiles two deep models.
  pytest.mark.usefixtures('optimized'),
]

BLOCKS = 3  # Counted as the difference to one block less.
# Large enough on the GPU for its matrix units to be used.
SIZES = {
  'cpu': ({'width': 16, 'patch_size': 2}, (5, 8, 6, 3)),
  'h100': (
    {'width': 512, 'patch_size': 4, 'dtype': jnp.bfloat16},
    (32, 64, 64, 3),
  ),
}
# Products: R y, Rᵀ d and M z forward; backward six of tokens (on the GPU gᵀ y
# and gᵀ d are one) and two of weights. Written, of tokens or of the channels of
# them that move: the results of six products; y = σ(u) + p, z = y + Rᵀ d, and
# in backward y again and the gradient of u; (S − I) R y, and its transpose.
# CPUs also lay tokens out by rows for the weights' gradients; the GPU writes
# partial sums of two of these.
EXPECTED = {
  'cpu': {'dot': 11, 'write': 14, 'transpose': 1, 'copy': 1},
  'h100': {'dot': 10, 'write': 14},
}
if jax.__version_info__ >= (0, 12):
  # Its XLA adds the bias in a kernel of its own on a CPU, and lays gᵀ and the
  # like of R y out in two steps.
  EXPECTED['cpu']['write'] += 3
INSTRUCTION = re.compile(r'^ +(?:ROOT )?%\S+ = (.+?) ([a-z][\w-]*)\(', re.M)


def kernels(model, batch, target):
  """What the compiled program does to token tensors.

  Counts 'write', the kernels (instructions of the entry computation) that write
  one, or half of one: the moved channels. And, in kernels or out of them, all
  products ('dot'), and token tensors padded, copied or transposed.
  """
  device = jax.devices()[0]
  if target != 'cpu':
    _, (device,) = topology.find_devices(f'{target}:1x1x1')
  here = jax.sharding.SingleDeviceSharding(device)
  x = jax.ShapeDtypeStruct(batch, jnp.float32, sharding=here)
  params = jax.tree.map(
    lambda p: jax.ShapeDtypeStruct(p.shape, p.dtype, sharding=here),
    jax.eval_shape(model.init, jax.random.key(0), x)['params'],
  )

  def loss(params, x):
    return jnp.sum(jnp.square(model.apply({'params': params}, x)))

  lowered = jax.jit(jax.value_and_grad(loss)).lower(params, x)
  program = lowered.compile().as_text()
  entry = program[program.index('\nENTRY ') :]
  tokens = batch[0] * batch[1] * batch[2] // model.patch_size**2 * model.width

  def has_tokens(shapes, part=1):
    sizes = re.findall(r'\w\[([\d,]+)\]', shapes)
    return any(
      math.prod(map(int, s.split(','))) >= tokens / part for s in sizes
    )

  count = collections.Counter()
  for shape, op in INSTRUCTION.findall(entry):
    if op not in ('parameter', 'tuple', 'bitcast', 'get-tuple-element'):
      count['write'] += has_tokens(shape, part=2)
  for shape, op in INSTRUCTION.findall(program):
    if op in ('dot', 'pad', 'copy', 'transpose'):
      count[op] += op == 'dot' or has_tokens(shape)
  return count


def naive_mix(numerics, y, d, r, m):
  """The same function, without a gradient of its own."""
  z = y + products.product(numerics, d, r.T)
  return products.product(numerics, z, m)


@pytest.mark.parametrize('fault', [None, 'block', 'naive'])
@pytest.mark.parametrize('target', SIZES)
def test_kernels_of_a_block(target, fault, monkeypatch):
  """More are counted where blocks are recomputed, or gradients are plain."""
  if target != 'cpu' and topology.missing_extra('cuda'):
    pytest.skip("needs the extra 'aot-cuda'")
  if fault == 'naive':
    monkeypatch.setattr(products, 'mix', naive_mix)
  sizes, batch = SIZES[target]
  remat = 'block' if fault == 'block' else 'products'
  deep, shallow = (
    kernels(
      LipNeXt(10, depth=depth, unroll=True, remat=remat, **sizes), batch, target
    )
    for depth in (BLOCKS, BLOCKS - 1)
  )
  found = {op: deep[op] - shallow[op] for op in deep}
  expected = {**dict.fromkeys(deep, 0), **EXPECTED[target]}
  assert (found == expected) == (fault is None)
