"""Counts in a jaxpr what a program computes and keeps.

XLA's own count takes the body of a loop once. Here the body of a scan counts as
often as it runs, and a conditional as its most expensive branch, or as that of
the platform where the platform decides. A loop whose trips depend on data
(Newton–Schulz, the squarings of an exponential) counts once, unless it walks a
stack of matrices, as the plain steps of `optim.orthogonal` do; sync and
retraction, which run at some steps only, are left out. Only products and
convolutions count: everything else is bound by memory.
"""

from collections.abc import Iterator
import math
from typing import Any
from typing import NamedTuple

import jax
import jax.numpy as jnp

from lipnext_jax.optim import manifold


class Flops(NamedTuple):
  """Floating point operations, over all devices together."""

  narrow: float = 0.0  # Of products in bfloat16, or at less than the highest.
  wide: float = 0.0  # Of float32 products at the highest precision.

  @property
  def total(self) -> float:
    """Sum of both."""
    return self.narrow + self.wide

  def __add__(self, other):
    return Flops(self.narrow + other.narrow, self.wide + other.wide)

  def times(self, n: float) -> 'Flops':
    """Scales both counts by n."""
    return Flops(self.narrow * n, self.wide * n)


def count(
  jaxpr: Any,
  scope: str = '',
  inside: bool = False,
  copies: int = 1,
  platform: str = 'cpu',
) -> Flops:
  """Counts the products of a jaxpr, over all devices.

  Args:
    jaxpr: open or closed.
    scope: the `jax.named_scope` to count in; '' for all.
    inside: whether the whole jaxpr is in that scope.
    copies: number of devices that each run all that is in no `shard_map`; 1 if
      they share it.
    platform: 'tpu', 'cuda' or 'cpu', for branches of `lax.platform_dependent`.

  >>> x = jax.numpy.ones((2, 3))
  >>> f = lambda x: jax.lax.map(lambda y: x @ y, jax.numpy.ones((5, 3, 4)))
  >>> count(jax.make_jaxpr(f)(x)).total == 5 * 2 * (2 * 3 * 4)
  True
  """
  total = Flops()
  for eqn in open_jaxpr(jaxpr).eqns:
    names = str(eqn.source_info.name_stack)
    here = inside or not scope or scope in names
    name = eqn.primitive.name
    if manifold.PERIODIC in names:
      continue
    if name in ('dot_general', 'conv_general_dilated') and here:
      total += _product(eqn).times(copies)
    elif name == 'cond':
      branches = [
        count(b, scope, here, copies, platform)
        for b in _reachable(eqn, platform)
      ]
      total += max(branches, key=lambda f: f.total)
    else:
      repeats, doers = 1, copies
      if name == 'scan':
        repeats = eqn.params['length']
      elif name == 'while':
        repeats = _walked(eqn)
      elif name == 'shard_map':  # Its body is what each device does.
        repeats, doers = eqn.params['mesh'].size, 1
      for inner in inner_jaxprs(eqn):
        total += count(inner, scope, here, doers, platform).times(repeats)
  return total


def _reachable(eqn: Any, platform: str) -> list[Any]:
  """Returns the branches of a conditional that a platform may take."""
  branches = eqn.params['branches']
  platforms = eqn.params.get('branches_platforms')
  if platforms is None:
    return list(branches)
  own = (i for i, p in enumerate(platforms) if p is None or platform in p)
  return [branches[next(own)]]


def open_jaxpr(jaxpr: Any) -> Any:
  """Returns a jaxpr without the constants that it may be closed over."""
  return getattr(jaxpr, 'jaxpr', jaxpr)


def inner_jaxprs(eqn: Any) -> Iterator[Any]:
  """Yields the jaxprs that an equation runs."""
  for value in eqn.params.values():
    for item in value if isinstance(value, tuple | list) else (value,):
      if hasattr(open_jaxpr(item), 'eqns'):
        yield item


def _walked(eqn: Any) -> int:
  """Counts the matrices that a loop overwrites one by one; 1 for others."""
  for whole, part in _written(eqn.params['body_jaxpr']):
    if len(whole) == 3 and part == (1, *whole[1:]):
      return whole[0]
  return 1


def _written(jaxpr: Any) -> Iterator[tuple[tuple[int, ...], tuple[int, ...]]]:
  """Yields shapes of arrays that a body updates in place, and of the parts."""
  for eqn in open_jaxpr(jaxpr).eqns:
    if eqn.primitive.name == 'dynamic_update_slice':
      yield eqn.invars[0].aval.shape, eqn.invars[1].aval.shape
    elif eqn.primitive.name in ('jit', 'pjit'):
      for inner in inner_jaxprs(eqn):
        yield from _written(inner)


def _product(eqn: Any) -> Flops:
  x, y = (operand.aval for operand in eqn.invars)
  if eqn.primitive.name == 'dot_general':
    (contract, _), _ = eqn.params['dimension_numbers']
    depth = math.prod(x.shape[axis] for axis in contract)
  else:  # All of the kernel but its outputs, padding included.
    depth = y.size // y.shape[eqn.params['dimension_numbers'].rhs_spec[0]]
  flops = 2.0 * eqn.outvars[0].aval.size * depth
  if jnp.issubdtype(x.dtype, jnp.complexfloating):
    flops *= 4
  precision = eqn.params['precision']
  pair = precision if isinstance(precision, tuple) else (precision,)
  highest = jax.lax.Precision.HIGHEST in pair
  if x.dtype.itemsize >= 4 and highest:
    return Flops(wide=flops)
  return Flops(narrow=flops)


def saved_activations(jaxpr: Any, batch: int, tokens: int) -> int:
  """Counts the bytes, over all devices, that scans keep for the backward pass.

  The forward pass stacks them up layer by layer: outputs [l, b, …] or
  [l, b·h·w, c] of scans. Matrices [l, k, c] are neither.

  Args:
    jaxpr: of a train step.
    batch: b, number of examples in a pass.
    tokens: b·h·w.
  """
  total = 0
  for eqn in open_jaxpr(jaxpr).eqns:
    if eqn.primitive.name == 'scan':
      body = open_jaxpr(eqn.params['jaxpr'])
      for out, of_a_layer in zip(eqn.outvars, body.outvars, strict=True):
        if out.aval.ndim == of_a_layer.aval.ndim:
          continue  # Carried on, not stacked up.
        _, *rest = out.aval.shape
        flat = len(rest) == 2 and rest[0] == tokens
        if flat or (len(rest) > 2 and rest[0] % batch == 0):
          total += out.aval.size * out.aval.dtype.itemsize
    for inner in inner_jaxprs(eqn):
      total = max(total, saved_activations(inner, batch, tokens))
  return total
