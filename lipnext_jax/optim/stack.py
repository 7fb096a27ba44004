"""Maps functions of one matrix over stacks [..., m, n] of them.

`map_stacks` alone knows about leading axes, sharding, padding and writing in
place. Sharding arrives as data, a `NamedSharding` whose first axis is the
stack's; no mesh axis is named here.
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

  A loop, not `vmap`, under which a `switch` would run all of its branches. Of a
  sharded stack each device walks its own matrices, without communication where
  the arrays are laid out by `sharding` already, even if `fn` branches
  differently on different devices. A stack that does not divide over the
  devices is padded with zero matrices.

  Args:
    fn: matrices [m, n], one of each tree → an array, or a tuple of `replace`
      arrays if that is more than 1.
    *trees: trees of one structure; corresponding leaves are [..., m, n] with
      the same leading axes. Single matrices [m, n] are never sharded.
    replace: number of trees, the first ones, that the results are written over;
      they need no other memory, unless somebody else reads the old values.
    when: bool scalar; False: nothing is computed, and the replaced trees come
      back as they were. Needs `replace`.
    sharding: layout of stacks [L, …, m, n]; None: not sharded.
    **shared: arrays that `fn` is given by keyword with every matrix; on an
      explicit mesh it cannot close over them.

  Returns:
    A tree of [..., *result of fn], or a tuple of `replace` trees if that is
    more than 1.

  >>> map_stacks(lambda x, scale: scale * x, jnp.ones((2, 1, 1)), scale=3.0)
  Array([[[3.]],
  <BLANKLINE>
         [[3.]]], dtype=float32)
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
  """`map_stacks` of one leaf of each tree, over all devices."""
  loop = functools.partial(_loop, fn, replace)
  if not _is_spread(stacks[0], sharding):
    return loop(stacks, when, shared)
  length = len(stacks[0])
  padding = -length % _shards(sharding)
  if padding:
    stacks = [
      jnp.pad(s, [(0, padding)] + [(0, 0)] * (s.ndim - 1)) for s in stacks
    ]
  local = _local(sharding)
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


def _loop(fn, replace, stacks, when, shared) -> list[jax.Array]:
  """`map_stacks` of one leaf of each tree, on one device."""
  lead = stacks[0].shape[:-2]
  if not lead and when is None:
    return jax.tree.leaves(fn(*stacks, **shared))
  flat = [s.reshape(-1, *s.shape[-2:]) for s in stacks]
  count = len(flat[0])
  results, others = flat[:replace], flat[replace:]
  if not replace:
    one = jax.eval_shape(lambda *s: fn(*(x[0] for x in s), **shared), *flat)
    results = [jnp.zeros((count, *one.shape), one.dtype)]

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
  """Puts the stacks of a tree where `map_stacks` computes, if they divide.

  >>> lay_out({'R': jnp.ones((2, 3, 3))}, None)['R'].shape
  (2, 3, 3)
  """

  def one(x):
    if _is_spread(x, sharding) and len(x) % _shards(sharding) == 0:
      return _put(x, _local(sharding))
    return x

  return jax.tree.map(one, tree)


def restore(tree: Any, like: Any, sharding: NamedSharding | None) -> Any:
  """Puts stacks into the layout of those of `like`, where layouts are types.

  With automatic axes the compiler chooses, and nothing is done.
  """

  def one(x, like):
    if _is_spread(x, sharding) and _explicit(sharding):
      return _put(x, jax.typeof(like).sharding)
    return x

  return jax.tree.map(one, tree, like)


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


def _is_spread(x, sharding) -> bool:
  """Whether `x` is a stack that `sharding` spreads over devices."""
  return jnp.ndim(x) > 2 and bool(_axis(sharding))


def _axis(sharding):
  """The mesh axis or axes that shard a stack's first axis, or None."""
  return sharding.spec[0] if sharding is not None and sharding.spec else None


def _local(sharding) -> NamedSharding:
  """The same sharding of the first axis, for stacks of any rank."""
  return NamedSharding(sharding.mesh, PartitionSpec(_axis(sharding)))


def _shards(sharding) -> int:
  """Number of parts that the first axis is cut into."""
  axis = _axis(sharding)
  names = (axis,) if isinstance(axis, str) else axis
  return math.prod(sharding.mesh.shape[name] for name in names)


def _explicit(sharding) -> bool:
  """Whether the mesh makes layouts part of the arrays' types."""
  return AxisType.Explicit in sharding.mesh.axis_types


def _put(x: jax.Array, sharding) -> jax.Array:
  """Lays `x` out: a change of type on explicit meshes, else a constraint."""
  if _explicit(sharding):
    return jax.sharding.reshard(x, sharding)
  return lax.with_sharding_constraint(x, sharding)
