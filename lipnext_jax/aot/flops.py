"""Counts the operations and the saved activations of a program in its jaxpr.

XLA counts the body of a loop once. Here the body of a scan counts as often as
it runs, and of a conditional the most expensive branch, or the platform's.
Other loops (Newton–Schulz, the squarings of an exponential) count once, unless
they walk a stack of matrices as the plain steps of `optim.orthogonal` do. Sync
and retraction, which run at some steps only, are left out. Only products and
convolutions count: all else is bound by memory.
"""

from collections.abc import Iterator
import math
from typing import Any
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lipnext_jax.optim import manifold


class Flops(NamedTuple):
  """Floating point operations of all devices together."""

  narrow: float = 0.0  # In bfloat16, or below the highest precision.
  wide: float = 0.0  # In float32 at the highest precision.

  @property
  def total(self) -> float:
    """Sum of both counts."""
    return self.narrow + self.wide


def count(
  jaxpr: Any, scope: str = '', copies: int = 1, platform: str = 'cpu'
) -> Flops:
  """Counts the products of a jaxpr, over all devices.

  Args:
    jaxpr: jaxpr, open or closed.
    scope: `jax.named_scope` to count in; '' for everything.
    copies: number of devices that each run everything outside of a `shard_map`;
      1 if they share it.
    platform: 'tpu', 'cuda' or 'cpu', which decides the branches of
      `lax.platform_dependent`.

  >>> x = jax.numpy.ones((2, 3))
  >>> f = lambda x: jax.lax.map(lambda y: x @ y, jax.numpy.ones((5, 3, 4)))
  >>> count(jax.make_jaxpr(f)(x)).total == 5 * 2 * (2 * 3 * 4)
  True
  """

  def visit(jaxpr: Any, inside: bool, copies: int) -> np.ndarray:
    total = np.zeros(2)
    for eqn in open_jaxpr(jaxpr).eqns:
      names, name = str(eqn.source_info.name_stack), eqn.primitive.name
      here = inside or scope in names
      repeats, doers = 1, copies
      if manifold.PERIODIC in names:
        continue
      if name in ('dot_general', 'conv_general_dilated') and here:
        total += np.multiply(_product(eqn), copies)
      if name == 'cond':
        branches = eqn.params['branches']
        if platforms := eqn.params.get('branches_platforms'):
          fits = [own is None or platform in own for own in platforms]
          branches = [branches[fits.index(True)]]
        total += max((visit(b, here, copies) for b in branches), key=np.sum)
        continue
      if name == 'scan':
        repeats = eqn.params['length']
      elif name == 'while':
        repeats = _walked(eqn.params['body_jaxpr'])
      elif name == 'shard_map':  # Every device runs the body.
        repeats, doers = eqn.params['mesh'].size, 1
      for inner in inner_jaxprs(eqn):
        total += repeats * visit(inner, here, doers)
    return total

  return Flops(*visit(jaxpr, False, copies).tolist())


def open_jaxpr(jaxpr: Any) -> Any:
  """Returns the open jaxpr of a closed or open one."""
  return getattr(jaxpr, 'jaxpr', jaxpr)


def inner_jaxprs(eqn: Any) -> Iterator[Any]:
  """Yields the jaxprs that an equation runs."""
  for value in eqn.params.values():
    for item in value if isinstance(value, tuple | list) else (value,):
      if hasattr(open_jaxpr(item), 'eqns'):
        yield item


def _walked(body: Any) -> int:
  """Counts the matrices that a loop overwrites one by one; else returns 1."""
  for eqn in open_jaxpr(body).eqns:
    if eqn.primitive.name == 'dynamic_update_slice':
      whole, part = (operand.aval.shape for operand in eqn.invars[:2])
      if len(whole) == 3 and part == (1, *whole[1:]):
        return whole[0]
    elif eqn.primitive.name in ('jit', 'pjit'):
      for inner in inner_jaxprs(eqn):
        if (found := _walked(inner)) > 1:
          return found
  return 1


def _product(eqn: Any) -> Flops:
  """Counts the operations of a product or convolution."""
  x, y = (operand.aval for operand in eqn.invars)
  if eqn.primitive.name == 'dot_general':
    (contract, _), _ = eqn.params['dimension_numbers']
    depth = math.prod(x.shape[axis] for axis in contract)
  else:  # Entries of the kernel per output channel; padding counts, too.
    depth = y.size // y.shape[eqn.params['dimension_numbers'].rhs_spec[0]]
  flops = 2.0 * eqn.outvars[0].aval.size * depth
  if jnp.issubdtype(x.dtype, jnp.complexfloating):
    flops *= 4
  precision = eqn.params['precision']
  pair = precision if isinstance(precision, tuple) else (precision,)
  wide = x.dtype.itemsize >= 4 and jax.lax.Precision.HIGHEST in pair
  return Flops(wide=flops) if wide else Flops(narrow=flops)


def saved_activations(jaxpr: Any, batch: int, tokens: int) -> int:
  """Counts the bytes that scans keep for the backward pass, over all devices.

  Scans stack them layer by layer, as outputs [l, b, …] or [l, b·h·w, c] with b
  examples and b·h·w tokens in a pass. Stacks of matrices do not count.
  """
  total = 0
  for eqn in open_jaxpr(jaxpr).eqns:
    if eqn.primitive.name == 'scan':
      body = open_jaxpr(eqn.params['jaxpr'])
      for out, layer_out in zip(eqn.outvars, body.outvars, strict=True):
        if out.aval.ndim == layer_out.aval.ndim:
          continue  # A carry, not a stack.
        _, *rest = out.aval.shape
        flat = len(rest) == 2 and rest[0] == tokens
        if flat or (len(rest) > 2 and rest[0] % batch == 0):
          total += out.aval.size * out.aval.dtype.itemsize
    for inner in inner_jaxprs(eqn):
      total = max(total, saved_activations(inner, batch, tokens))
  return total
