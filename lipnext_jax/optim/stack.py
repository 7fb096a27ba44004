"""Walking stacks [..., m, n] of matrices, each device over its own.

Sharding arrives as data: a `NamedSharding` whose first axis is the stack's.
No mesh axis is named here.
"""

from collections.abc import Callable
import functools
import math
from typing import Any

import jax
from jax import lax
import jax.numpy as jnp
from jax.sharding import AxisType
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec


def map_matrices(fn: Callable[..., Any], *stacks: jax.Array) -> Any:
  """`fn` on every matrix of [..., m, n] stacks, one after the other.

  A loop, not `vmap`: under `vmap` a `switch` runs all of its branches for
  every matrix.

  Args:
    fn: matrices [m, n] → any pytree of arrays.
    *stacks: arrays [..., m, n] with equal leading axes; at least one.

  Returns:
    What `fn` returns, with the leading axes in front.

  >>> map_matrices(jnp.trace, jnp.ones((2, 3, 4, 4))).shape
  (2, 3)
  """
  lead = stacks[0].shape[:-2]
  if not lead:
    return fn(*stacks)
  flat = tuple(s.reshape(-1, *s.shape[-2:]) for s in stacks)
  out = lax.map(lambda xs: fn(*xs), flat)
  return jax.tree.map(lambda o: o.reshape(*lead, *o.shape[1:]), out)


def walk(
  sharding: NamedSharding | None,
  fn: Callable[..., Any],
  *stacks: jax.Array,
  shared: Any = (),
) -> Any:
  """`fn(shared, *matrices)` on every matrix of a stack; see `map_matrices`.

  Each device walks its own part of a sharded first axis: no communication
  when the arrays are laid out by `sharding` already, even if `fn` branches
  differently on different devices. A first axis that does not divide over the
  devices is padded with zero matrices.

  Args:
    sharding: the layout of [L, …, m, n] stacks; None: nothing is sharded.
    fn: shared, matrices [m, n] → pytree of arrays; must accept zero matrices.
    *stacks: arrays [..., m, n]; single matrices [m, n] are not sharded.
    shared: pytree of what every matrix is given, replicated. An explicitly
      sharded function may not close over arrays.

  >>> walk(None, lambda s, x: s * jnp.trace(x), jnp.ones((2, 4, 4)), shared=3)
  Array([12., 12.], dtype=float32)
  """
  if stacks[0].ndim < 3 or not _axis(sharding):
    return map_matrices(functools.partial(fn, shared), *stacks)
  assert sharding is not None
  length = stacks[0].shape[0]
  padding = -length % _shards(sharding)
  if padding:
    stacks = tuple(
      jnp.pad(s, [(0, padding)] + [(0, 0)] * (s.ndim - 1)) for s in stacks
    )
  local = _local(sharding)
  stacks = tuple(_put(local, s) for s in stacks)
  out = jax.shard_map(
    lambda shared, stacks: map_matrices(functools.partial(fn, shared), *stacks),
    mesh=sharding.mesh,
    in_specs=(PartitionSpec(), local.spec),
    out_specs=local.spec,
    check_vma=False,  # No collectives, nothing to check.
  )(shared, stacks)
  if not padding:
    return out
  whole = NamedSharding(sharding.mesh, PartitionSpec())
  return jax.tree.map(lambda o: _put(whole, o)[:length], out)


def lay_out(sharding: NamedSharding | None, x: jax.Array) -> jax.Array:
  """`x` in the layout that `walk` computes in, or as it is if it cannot be."""
  if jnp.ndim(x) < 3 or not _axis(sharding):
    return x
  assert sharding is not None
  if x.shape[0] % _shards(sharding):
    return x
  return _put(_local(sharding), x)


def restore(sharding: NamedSharding | None, x: jax.Array, like: jax.Array):
  """`x` in the layout of `like`, where the mesh makes layouts part of types.

  With automatic axes the compiler chooses, and nothing is done.
  """
  if jnp.ndim(x) < 3 or not _axis(sharding):
    return x
  assert sharding is not None
  if not _explicit(sharding):
    return x
  return _put(jax.typeof(like).sharding, x)


def check(sharding: NamedSharding | None) -> None:
  """Refuses layouts that would cut a matrix.

  Raises:
    TypeError: not a `NamedSharding`.
    ValueError: an axis other than the first is sharded.
  """
  if sharding is None:
    return
  if not isinstance(sharding, NamedSharding):
    raise TypeError(
      f'stack_sharding must be a NamedSharding or None, got {sharding!r}.'
    )
  if any(axis is not None for axis in sharding.spec[1:]):
    raise ValueError(
      f'stack_sharding may shard the first axis only, got {sharding.spec}: '
      'whole matrices are updated where they lie.'
    )


def _axis(sharding):
  """What the first axis is sharded over; None for nothing."""
  if sharding is None or not sharding.spec:
    return None
  return sharding.spec[0]


def _local(sharding: NamedSharding) -> NamedSharding:
  """Only the first axis sharded, whatever the rank."""
  return NamedSharding(sharding.mesh, PartitionSpec(_axis(sharding)))


def _shards(sharding: NamedSharding) -> int:
  axis = _axis(sharding)
  names = (axis,) if isinstance(axis, str) else axis
  return math.prod(sharding.mesh.shape[name] for name in names)


def _explicit(sharding: NamedSharding) -> bool:
  return AxisType.Explicit in sharding.mesh.axis_types


def _put(sharding, x: jax.Array) -> jax.Array:
  """A layout change: of the type on explicit meshes, a constraint on others."""
  if _explicit(sharding):
    return jax.sharding.reshard(x, sharding)
  return lax.with_sharding_constraint(x, sharding)
