"""Maps functions of one matrix over stacks [..., m, n] of them.

Leading axes, sharding, padding and updates in place are handled here alone. A
sharding is a `NamedSharding` of the first axis, over any axes of the mesh.
"""

from collections.abc import Callable
import functools
import math
from typing import Any

import jax
from jax import lax
from jax.experimental import layout
import jax.numpy as jnp
from jax.sharding import AxisType
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec


def map_stacks(
  fn: Callable[..., Any],
  *trees: Any,
  replace: int = 0,
  when: jax.Array | None = None,
  sharding: NamedSharding | None = None,
) -> Any:
  """Applies `fn` to every matrix of stacks [..., m, n], one after the other.

  Returns a tree of arrays [..., *shape of the result], or `replace` > 1 trees.
  In a loop, each matrix takes its own branch of a `switch`; `vmap` would take
  all of them. Each device loops over its part of a sharded stack, without
  communication if the arrays have that sharding already. Stacks that do not
  divide over the devices are padded with zero matrices.

  Args:
    fn: function of one matrix [m, n] from each tree, to an array, or to a tuple
      of `replace` arrays if `replace` > 1. On an explicit mesh it cannot close
      over arrays.
    *trees: trees of one structure, whose corresponding leaves are [..., m, n]
      with the same leading axes. Single matrices [m, n] are not sharded.
    replace: number of leading trees that the results replace, in the same
      memory unless something else reads the old values.
    when: bool scalar; where it is False, nothing is computed and the replaced
      trees are returned unchanged. It needs `replace`.
    sharding: sharding of stacks [L, …, m, n] along L; None: not sharded.
  """
  treedef = jax.tree.structure(trees[0])
  results = [
    _map_leaf(fn, stacks, replace, when, sharding)
    for stacks in zip(*map(jax.tree.leaves, trees), strict=True)
  ]
  outputs = tuple(
    jax.tree.unflatten(treedef, [result[i] for result in results])
    for i in range(max(1, replace))
  )
  return outputs if replace > 1 else outputs[0]


def _map_leaf(fn, stacks, replace, when, sharding) -> list[jax.Array]:
  """Maps `fn` over one leaf of each tree, on all devices."""
  loop = functools.partial(_loop, fn, replace)
  local = _along_stack(stacks[0], sharding)
  if local is None:
    return loop(stacks, when)
  length = len(stacks[0])
  padding = -length % _shards(local)
  if padding:
    stacks = [
      jnp.pad(s, [(0, padding)] + [(0, 0)] * (s.ndim - 1)) for s in stacks
    ]
  results = jax.shard_map(
    loop,
    mesh=local.mesh,
    in_specs=(local.spec, PartitionSpec()),
    out_specs=local.spec,
    check_vma=False,  # There are no collectives to check.
  )([_put(s, local) for s in stacks], when)
  if not padding:
    return results
  whole = NamedSharding(local.mesh, PartitionSpec())
  return [_put(r, whole)[:length] for r in results]


def _loop(fn, replace, stacks, when) -> list[jax.Array]:
  """Maps `fn` over one leaf of each tree, on one device."""
  lead = stacks[0].shape[:-2]
  if not lead and when is None:
    return jax.tree.leaves(fn(*stacks))
  flat = [s.reshape(-1, *s.shape[-2:]) for s in stacks]
  count = len(flat[0])
  results, others = flat[:replace], flat[replace:]
  if not replace:
    matrices = [jax.ShapeDtypeStruct(s.shape[1:], s.dtype) for s in flat]
    one = jax.eval_shape(fn, *matrices)
    results = [jnp.zeros((count, *one.shape), one.dtype)]

  def body(i, results):
    # A replaced stack is read from the loop's carry: it is updated in place.
    read = [*results, *others] if replace else others
    matrices = [lax.dynamic_index_in_dim(s, i, keepdims=False) for s in read]
    out = jax.tree.leaves(fn(*map(_by_rows, matrices)))
    return [
      lax.dynamic_update_index_in_dim(stack, _by_rows(matrix), i, 0)
      for stack, matrix in zip(results, out, strict=True)
    ]

  trips = count if when is None else jnp.where(when, count, 0)
  results = lax.fori_loop(0, trips, body, results)
  return [r.reshape(*lead, *r.shape[1:]) for r in results]


def _by_rows(x: jax.Array) -> jax.Array:
  """Returns a matrix stored in rows.

  Without this constraint the compiler may store it in columns, and transpose
  the whole stack before and after a loop.
  """
  return layout.with_layout_constraint(x, layout.Layout((0, 1)))


def lay_out(tree: Any, sharding: NamedSharding | None) -> Any:
  """Shards the stacks of a tree that divide over the devices."""

  def one(x):
    local = _along_stack(x, sharding)
    return x if local is None or len(x) % _shards(local) else _put(x, local)

  return jax.tree.map(one, tree)


def restore(tree: Any, like: Any) -> Any:
  """Gives arrays on an explicit mesh the shardings of those of `like`."""

  def one(x, like):
    sharding = jax.typeof(like).sharding
    explicit = AxisType.Explicit in sharding.mesh.axis_types
    return jax.sharding.reshard(x, sharding) if explicit else x

  return jax.tree.map(one, tree, like)


def check(sharding: NamedSharding | None) -> None:
  """Raises ValueError unless `sharding` shards the first axis, or is None."""
  whole = isinstance(sharding, NamedSharding) and not any(sharding.spec[1:])
  if sharding is not None and not whole:
    raise ValueError(
      f'stack_sharding={sharding!r} must be a NamedSharding of the first axis '
      'only, so that each device holds whole matrices.'
    )


def _along_stack(x, sharding: NamedSharding | None) -> NamedSharding | None:
  """Returns the sharding of stack `x` along its first axis, or None."""
  if sharding is None or not sharding.spec or jnp.ndim(x) < 3:
    return None
  axis = sharding.spec[0]
  return NamedSharding(sharding.mesh, PartitionSpec(axis)) if axis else None


def _shards(local: NamedSharding) -> int:
  """Returns the number of parts that the first axis is cut into."""
  names = jax.tree.leaves(local.spec[0])  # One mesh axis or several.
  return math.prod(local.mesh.shape[name] for name in names)


def _put(x: jax.Array, sharding: NamedSharding) -> jax.Array:
  """Shards `x`: by its type on explicit meshes, else by a constraint."""
  if AxisType.Explicit in sharding.mesh.axis_types:
    return jax.sharding.reshard(x, sharding)
  return lax.with_sharding_constraint(x, sharding)
