"""Programs that compute pass; those that reach further are refused unrun."""

import jax
from jax import export
import jax.numpy as jnp
import numpy as np
import pytest

from lipnext_jax import models
from lipnext_jax.certify import stablehlo

X = jax.ShapeDtypeStruct((3, 3), np.float32)


def program(function, *allowed):
  """The text of an export that JAX would not make of its own accord."""
  checks = [export.DisabledSafetyCheck.custom_call(name) for name in allowed]
  exported = export.export(
    jax.jit(function), platforms=['cpu'], disabled_checks=checks
  )(X)
  # As a loader sees it.
  return export.deserialize(exported.serialize()).mlir_module()


def calls(name, **options):
  """A program that calls `name`, with attributes of its choice."""

  def function(x):
    return jax.ffi.ffi_call(name, X, has_side_effect=True)(x, **options)

  return program(function, name)


def test_a_program_that_computes_passes():
  def function(x):
    def step(carry, row):
      return jnp.where(row.sum() > 0, jnp.tanh(carry @ x), carry), carry.max()

    return jax.lax.scan(step, jnp.linalg.norm(x) * x, jnp.sort(x))

  stablehlo.check(program(function))


@pytest.mark.parametrize('name', ['lipnext', 'liresnet', 'bronet'])
def test_models_call_nothing_but_the_check_of_shapes(name):
  model = {
    'lipnext': models.LipNeXt,
    'liresnet': models.LiResNet,
    'bronet': models.BRONet,
  }[name](num_classes=3, depth=1, width=8, patch_size=4)
  images = np.zeros((1, 16, 16, 3), np.float32)
  params = model.init(jax.random.key(0), images)['params']
  params, model = model.explicit_params(params), model.explicit()
  (b,) = export.symbolic_shape('b')
  exported = export.export(
    jax.jit(lambda images: model.apply({'params': params}, images)),
    platforms=['cpu', 'cuda', 'tpu'],
  )(jax.ShapeDtypeStruct((b, 16, 16, 3), np.float32))
  text = exported.mlir_module()
  assert 'custom_call @shape_assertion' in text
  stablehlo.check(text)


def test_a_call_of_python_is_refused():
  text = calls('xla_ffi_python_cpu_callback', index=np.uint64(7))
  with pytest.raises(ValueError, match='calls xla_ffi_python_cpu_callback'):
    stablehlo.check(text)


def test_a_library_for_matrices_is_refused():
  with pytest.raises(ValueError, match='calls lapack_'):
    stablehlo.check(program(lambda x: jnp.linalg.svd(x)[1]))


@pytest.mark.parametrize(
  'name',
  [
    'shape_assertion2',
    'shape_assertion.x',
    'a shape_assertion',
    '"shape_assertion"',
    'shape_assertion(',
    'x" // @shape_assertion(',
    'x\\',
    'x\n%1 = stablehlo.custom_call @shape_assertion(%0)',
    '\u4f60',
  ],
)
def test_no_name_passes_for_another(name):
  with pytest.raises(ValueError, match=r'calls|unknown form'):
    stablehlo.check(calls(name))


@pytest.mark.parametrize(
  'text',
  ['x" ', '"', '\\', 'a\\"b', '\n', 'stablehlo.custom_call @shape_assertion('],
)
def test_no_attribute_hides_a_call(text):
  """Strings of the program's choice lie before and after the call."""

  def function(x):
    with jax.named_scope(text):
      x = jax.ffi.ffi_call('shape_assertion', X)(x, note=text)
      x = jax.ffi.ffi_call('system', X)(x, note=text)
      return jax.ffi.ffi_call('shape_assertion', X)(x, note=text)

  found = program(function, 'shape_assertion', 'system')
  with pytest.raises(ValueError, match=r'calls system|unknown form'):
    stablehlo.check(found)


def test_a_composite_is_refused():
  """Some compilers know them by their name."""
  square = jax.lax.composite(lambda x: x * x, name='my.square')
  with pytest.raises(ValueError, match=r'stablehlo\.composite'):
    stablehlo.check(program(square))


@pytest.mark.parametrize(
  'line',
  [
    '%1 = "stablehlo.outfeed"(%0, %t) <{outfeed_config = ""}> : (!stablehlo.t',
    '%1:2 = "stablehlo.infeed"(%0) <{}> : (!stablehlo.token) -> ()',
    '"stablehlo.send"(%0, %t) <{is_host_transfer = true}> : () -> ()',
    '}, {\n  "stablehlo.recv"(%t) : () -> ()',
    '%1 = "stablehlo.all_reduce"(%0) ({',
    '%1 = "stablehlo.custom_call"(%0) <{call_target_name = "f"}> : () -> ()',
    '"stablehlo.custom_call"(%0) <{call_target_name = "shape_assertion"}>',
    '%1 = stablehlo.custom_call @"shape_assertion"(%0) : () -> ()',
    '%1 = mhlo.custom_call @shape_assertion(%0) : () -> ()',
    'custom_call @shape_assertion(%0) : () -> ()',
    '%1 = stablehlo.create_token : !stablehlo.token',
    '%1 = llvm.call @system(%0) : () -> ()',
    '%1 = "gpu.launch"(%0) : () -> ()',
    '%1 = func.call_indirect %0() : () -> ()',
    '%1 = stablehlo.add %0, %0 {note = "} : tensor<f32>',
    '%1 = stablehlo.add %0, %0 {x.y = 1} : tensor<f32>',
    '%1 = stablehlo.reduce(%0 init: %1) applies stablehlo.send across',
  ],
)
def test_other_operations_are_refused_in_every_notation(line):
  with pytest.raises(ValueError, match='it '):
    stablehlo.check(f'module @m {{\n  {line}\n}}')
