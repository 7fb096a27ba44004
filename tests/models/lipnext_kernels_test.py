"""What the compilers of CPU and GPU make of a block: kernels, counted.

The GPU is compiled for, not used; without its compiler (the extra 'aot-cuda')
its tests are skipped.
"""

import collections
import functools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lipnext_jax.aot import topology
from lipnext_jax.models import layers
from lipnext_jax.models import LipNeXt

BLOCKS = 3  # Counted as the difference to one block less.
# Large enough on the GPU for its matrix units to be used.
SIZES = {
  'cpu': ({'width': 16, 'patch_size': 2}, (5, 8, 6, 3)),
  'h100': (
    {'width': 512, 'patch_size': 4, 'dtype': jnp.bfloat16},
    (32, 64, 64, 3),
  ),
}
# Products: two forward, four backward. Written besides, on both: σ(u) + p, the
# shift, and the shift back. In backward the CPU writes σ(u) + p again and σ's
# mask in two kernels, the GPU in one. Read: the bias's gradient; on the GPU p's
# gradient, layer by layer, and the rows of M Rᵀ, which is computed in one
# product with R x, as both are products with R.
# Of the form 'moved': three products forward, six backward; the GPU computes
# Rₛ x with M x as one, and the two weights' gradients that x is in. Written
# whole: σ(u) + p, and in backward σ's mask and σ(u) + p again (the CPU's third:
# a sum of two products); of the moved channels alone: S − I, forth and back.
# Read: as above, but for the rows of M Rᵀ.
EXPECTED = {
  'cpu': {
    'fused': {'product': 6, 'write': 5, 'read': 1},
    'moved': {'product': 9, 'write': 3, 'narrow': 2, 'read': 1},
  },
  'h100': {
    'fused': {'product': 6, 'write': 4, 'read': 3},
    'moved': {'product': 7, 'write': 2, 'narrow': 2, 'read': 2},
  },
}
INSTRUCTION = re.compile(
  r'^ +(?:ROOT )?%(?P<name>\S+) = (?P<shape>.+?) (?P<op>[a-z][\w-]*)\('
  r'(?P<operands>[^)]*)\)(?:.*calls=%(?P<calls>[^\s,]+))?',
  re.MULTILINE,
)


@functools.cache
def find_device(target):
  if target == 'cpu':
    return jax.devices()[0]
  return topology.find_devices(topology.parse(f'{target}:1x1x1'))[0]


def compile_gradients(model, batch, target):
  """The text of the program for loss and gradients."""
  here = jax.sharding.SingleDeviceSharding(find_device(target))

  def placed(x):
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=here)

  x = placed(jax.ShapeDtypeStruct(batch, jnp.float32))
  params = jax.eval_shape(model.init, jax.random.key(0), x)['params']

  def loss(params, x):
    return jnp.sum(jnp.square(model.apply({'params': params}, x)))

  lowered = jax.jit(jax.value_and_grad(loss)).lower(
    jax.tree.map(placed, params), x
  )
  return lowered.compile().as_text()


def kernels(model, batch, target):
  """What the compiled program does to token tensors.

  Counts kernels, the instructions of the entry computation: 'product' those
  with a token tensor on either side of a matrix product, 'write' others that
  write one ('narrow': half of one, the moved channels), 'read' others that
  only read one. And, in kernels or out of them, token tensors padded, copied or
  transposed.
  """
  program = compile_gradients(model, batch, target)
  *others, entry = re.split(r'^(?:ENTRY )?%', program, flags=re.M)
  tokens = batch[0] * batch[1] * batch[2] // model.patch_size**2 * model.width

  def tokens_in(shapes, part=1):
    sizes = re.findall(r'\w\[([\d,]+)\]', shapes)
    entries = [math.prod(map(int, s.split(','))) for s in sizes]
    return any(n >= tokens / part for n in entries)

  multiplies = {
    name.split()[0] for name in others if re.search(r' dot\(', name)
  }
  count = collections.Counter()
  shapes = {}
  for found in INSTRUCTION.finditer(entry):
    shapes[found['name']] = found['shape']
    if found['op'] in ('parameter', 'tuple', 'bitcast', 'get-tuple-element'):
      continue
    operands = re.findall(r'%([\w.-]+)', found['operands'])
    reads = any(tokens_in(shapes[name]) for name in operands)
    writes = tokens_in(found['shape'])
    if found['op'] == 'dot' or found['calls'] in multiplies:
      count['product'] += reads or writes
    elif writes:
      count['write'] += 1
    elif tokens_in(found['shape'], part=2):
      count['narrow'] += 1
    else:
      count['read'] += reads
  for found in INSTRUCTION.finditer(program):
    if found['op'] in ('pad', 'copy', 'transpose'):
      count[found['op']] += tokens_in(found['shape'])
  return count


def check_kernels_of_a_block(target, expected='fused', **options):
  if target != 'cpu' and topology.missing_extra('cuda'):
    pytest.skip("needs the extra 'aot-cuda'")
  sizes, batch = SIZES[target]
  deep, shallow = (
    kernels(
      LipNeXt(10, depth=depth, unroll=True, **sizes, **options), batch, target
    )
    for depth in (BLOCKS, BLOCKS - 1)
  )
  found = {op: deep[op] - shallow[op] for op in deep}
  assert found == {**dict.fromkeys(deep, 0), **EXPECTED[target][expected]}


@pytest.mark.parametrize('form', ['fused', 'moved'])
@pytest.mark.parametrize('target', SIZES)
def test_kernels_of_a_block(target, form):
  check_kernels_of_a_block(target, form, remat='products', form=form)


def shift_of_slices(x, ratio, padding):
  del padding
  k = layers.channel_count(ratio, x.shape[-1])
  groups = [
    jnp.roll(x[..., i * k : (i + 1) * k], step, axis)
    for i, (step, axis) in enumerate(((-1, -3), (1, -3), (-1, -2), (1, -2)))
  ]
  return jnp.concatenate([*groups, x[..., 4 * k :]], axis=-1)


def shift_channels_first(x, ratio, padding):
  del padding
  x = jnp.moveaxis(x, -1, 1)
  k = layers.channel_count(ratio, x.shape[1])
  groups = jnp.split(x, [k, 2 * k, 3 * k, 4 * k], axis=1)
  for i, (step, axis) in enumerate(((-1, 2), (1, 2), (-1, 3), (1, 3))):
    groups[i] = jnp.roll(groups[i], step, axis)
  return jnp.moveaxis(jnp.concatenate(groups, axis=1), 1, -1)


# The transposes are no fault for the GPU, whose compiler removes them all.
FAULTS = {
  'cpu': (shift_of_slices, shift_channels_first, 'block', 'literal'),
  'h100': (shift_of_slices, 'block', 'literal'),
}


@pytest.mark.parametrize(
  ('target', 'fault'), [(t, f) for t in FAULTS for f in FAULTS[t]]
)
def test_kernel_count_rejects(target, fault, monkeypatch):
  options = {'remat': 'products'}
  if fault == 'block':
    options['remat'] = 'block'
  elif fault == 'literal':
    options['form'] = 'literal'
  else:
    x = jnp.arange(2 * 3 * 4 * 16.0).reshape(2, 3, 4, 16)
    np.testing.assert_array_equal(  # The same function, written otherwise.
      fault(x, 1 / 8, 'circular'), layers.spatial_shift(x, 1 / 8)
    )
    monkeypatch.setattr(layers, 'spatial_shift', fault)
  with pytest.raises(AssertionError):
    check_kernels_of_a_block(target, **options)
