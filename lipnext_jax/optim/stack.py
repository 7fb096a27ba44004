"""Maps functions of one matrix over stacks [..., m, n] of them.

This module alone knows about leading axes, sharding, padding and writing in
place. A layout is a `NamedSharding` of the first axis; no mesh axis is named.
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

from lipnext_jax.optim import products


def map_stacks(
  fn: Callable[..., Any],
  *trees: Any,
  replace: int = 0,
  when: jax.Array | None = None,
  sharding: NamedSharding | None = None,
  **shared: Any,
) -> Any:
  """Applies `fn` to the matrices of stacks [..., m, n], one after the other.

  It loops, because under `vmap` a `switch` would run all of its branches. Each
  device walks its own matrices of a sharded stack and branches for itself,
  without communication if the arrays are laid out by `sharding` already. Stacks
  that do not divide over the devices are padded with zero matrices.

  Args:
    fn: matrices [m, n], one of each tree → an array, or a tuple of `replace`
      arrays if that is more than 1.
    *trees: trees of one structure; corresponding leaves are [..., m, n] with
      the same leading axes. Single matrices [m, n] are never sharded.
    replace: number of trees, the first ones, that the results are written over,
      in the same memory unless something else reads the old values.
    when: bool scalar; False: nothing is computed, and the trees to be replaced
      come back as they were. It needs `replace`.
    sharding: layout of stacks [L, …, m, n]; None: not sharded.
    **shared: arrays that `fn` is given by keyword with every matrix; on an
      explicit mesh it cannot close over them.

  Returns:
    A tree of [..., *result of fn], or a tuple of `replace` > 1 such trees.

  >>> map_stacks(lambda x, y: x * y, jnp.ones((2, 1, 1)), y=3.0).tolist()
  [[[3.0]], [[3.0]]]
  """
  treedef = jax.tree.structure(trees[0])
  results = [
    _map_leaf(fn, stacks, replace, when, sharding, shared)
    for stacks in zip(*map(jax.tree.leaves, trees), strict=True)
  ]
  outputs = tuple(
    jax.tree.unflatten(treedef, [result[i] for result in results])
    for i in range(max(1, replace))
  )
  return outputs if replace > 1 else outputs[0]


def _map_leaf(fn, stacks, replace, when, sharding, shared) -> list[jax.Array]:
  """Maps `fn` over one leaf of each tree, on all devices."""
  if not stacks[0].size:
    return list(stacks[:replace]) or [_zeros(fn, stacks, shared)]
  loop = functools.partial(_loop, fn, replace)
  if not _is_spread(stacks[0], sharding):
    return loop(stacks, when, shared)
  length, local = len(stacks[0]), _local(sharding)
  padding = -length % _shards(sharding)
  if padding:
    stacks = [
      jnp.pad(s, [(0, padding)] + [(0, 0)] * (s.ndim - 1)) for s in stacks
    ]
  results = jax.shard_map(
    loop,
    mesh=sharding.mesh,
    in_specs=(local.spec, PartitionSpec(), PartitionSpec()),
    out_specs=local.spec,
    check_vma=False,  # No collectives, nothing to check.
  )([_put(s, local) for s in stacks], when, shared)
  if not padding:
    return results
  whole = NamedSharding(sharding.mesh, PartitionSpec())
  return [_put(r, whole)[:length] for r in results]


def _zeros(fn, stacks, shared) -> jax.Array:
  """Returns zeros like what `fn` maps stacks [..., m, n] to."""
  matrices = [jax.ShapeDtypeStruct(s.shape[-2:], s.dtype) for s in stacks]
  one = jax.eval_shape(functools.partial(fn, **shared), *matrices)
  return jnp.zeros((*stacks[0].shape[:-2], *one.shape), one.dtype)


def _loop(fn, replace, stacks, when, shared) -> list[jax.Array]:
  """Maps `fn` over one leaf of each tree, on one device."""
  lead = stacks[0].shape[:-2]
  if not lead and when is None:
    return jax.tree.leaves(fn(*stacks, **shared))
  flat = [s.reshape(-1, *s.shape[-2:]) for s in stacks]
  count = len(flat[0])
  results, others = flat[:replace], flat[replace:]
  if not replace:
    results = [_zeros(fn, flat, shared)]

  def body(i, results):
    # A stack that is written over is read from where it is written.
    read = [*results, *others] if replace else others
    matrices = [lax.dynamic_index_in_dim(s, i, keepdims=False) for s in read]
    out = jax.tree.leaves(fn(*map(products.by_rows, matrices), **shared))
    return [
      lax.dynamic_update_index_in_dim(stack, products.by_rows(matrix), i, 0)
      for stack, matrix in zip(results, out, strict=True)
    ]

  trips = count if when is None else jnp.where(when, count, 0)
  results = lax.fori_loop(0, trips, body, results)
  return [r.reshape(*lead, *r.shape[1:]) for r in results]


def lay_out(tree: Any, sharding: NamedSharding | None) -> Any:
  """Puts the stacks of a tree where `map_stacks` computes, if they divide."""

  def one(x):
    if _is_spread(x, sharding) and len(x) % _shards(sharding) == 0:
      return _put(x, _local(sharding))
    return x

  return jax.tree.map(one, tree)


def restore(tree: Any, like: Any, sharding: NamedSharding | None) -> Any:
  """Gives stacks the layout of those of `like`, where it is part of their type.

  On meshes with automatic axes the compiler chooses, and nothing is done.
  """

  def one(x, like):
    if _is_spread(x, sharding) and _explicit(sharding):
      return _put(x, jax.typeof(like).sharding)
    return x

  return jax.tree.map(one, tree, like)


def check(sharding: NamedSharding | None) -> None:
  """Refuses layouts that shard an axis other than the first."""
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


def _is_spread(x, sharding) -> bool:
  """Returns whether `x` is a stack that `sharding` spreads over devices."""
  return jnp.ndim(x) > 2 and bool(_axis(sharding))


def _axis(sharding):
  """Returns the mesh axis, or axes, of a stack's first axis, or None."""
  return sharding.spec[0] if sharding is not None and sharding.spec else None


def _local(sharding) -> NamedSharding:
  """Returns the same sharding of the first axis for stacks of any rank."""
  return NamedSharding(sharding.mesh, PartitionSpec(_axis(sharding)))


def _shards(sharding) -> int:
  """Returns the number of parts that the first axis is cut into."""
  names = jax.tree.leaves(_axis(sharding))  # One name or several.
  return math.prod(sharding.mesh.shape[name] for name in names)


def _explicit(sharding) -> bool:
  """Returns whether the mesh makes layouts part of the arrays' types."""
  return AxisType.Explicit in sharding.mesh.axis_types


def _put(x: jax.Array, sharding) -> jax.Array:
  """Lays `x` out: a change of type on explicit meshes, else a constraint."""
  if _explicit(sharding):
    return jax.sharding.reshard(x, sharding)
  return lax.with_sharding_constraint(x, sharding)
