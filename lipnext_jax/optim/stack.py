"""Walking stacks [..., m, n] of matrices, each device over its own.

Sharding arrives as data: a `NamedSharding` whose first axis is the stack's.
No mesh axis is named here.
"""

from collections.abc import Callable
from collections.abc import Sequence
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


def map_matrices(
  fn: Callable[..., Any],
  *stacks: jax.Array,
  onto: Sequence[int | None] = (),
  when: jax.Array | None = None,
) -> Any:
  """`fn` on every matrix of [..., m, n] stacks, one after the other.

  A loop, not `vmap`: under `vmap` a `switch` runs all of its branches for
  every matrix.

  Args:
    fn: matrices [m, n] → any pytree of arrays.
    *stacks: arrays [..., m, n] with equal leading axes; at least one.
    onto: for each array that `fn` returns, which of the stacks it replaces
      once that matrix was read, or None. The loop then writes over the stack
      and needs no second one, if nobody else needs it and it has that shape.
    when: bool scalar; False: nothing is computed, and what `fn` would have
      written over comes back as it was. Every result must be `onto` a stack.

  Returns:
    What `fn` returns, with the leading axes in front.

  Raises:
    ValueError: `when` without stacks of the right shape to write over.

  >>> map_matrices(jnp.trace, jnp.ones((2, 3, 4, 4))).shape
  (2, 3)
  """
  lead = stacks[0].shape[:-2]
  if not lead and when is None:
    return fn(*stacks)
  flat = tuple(s.reshape(-1, *s.shape[-2:]) for s in stacks)
  like = jax.eval_shape(lambda *xs: fn(*(x[0] for x in xs)), *flat)
  like, treedef = jax.tree.flatten(like)
  onto = tuple(onto) or (None,) * len(like)

  def buffer(one, source):
    whole = (len(flat[0]), *one.shape)
    reused = None if source is None else flat[source]
    if reused is None or (reused.shape, reused.dtype) != (whole, one.dtype):
      return jnp.zeros(whole, one.dtype), None
    return reused, source

  pairs = [buffer(*pair) for pair in zip(like, onto, strict=True)]
  buffers, sources = zip(*pairs, strict=True)
  if when is not None and None in sources:
    raise ValueError(f'when needs stacks to write over: {onto=}, {sources=}.')
  taken = {source: at for at, source in enumerate(sources)}

  def body(i, buffers):
    # A stack that is written over is read from where it is written.
    now = [
      buffers[taken[j]] if j in taken else stack for j, stack in enumerate(flat)
    ]
    matrices = (lax.dynamic_index_in_dim(s, i, keepdims=False) for s in now)
    out = fn(*map(products.by_rows, matrices))
    return tuple(
      lax.dynamic_update_index_in_dim(buffer, products.by_rows(o), i, 0)
      for buffer, o in zip(buffers, jax.tree.leaves(out), strict=True)
    )

  count = len(flat[0])
  trips = count if when is None else jnp.where(when, count, 0)
  out = lax.fori_loop(0, trips, body, buffers)
  out = jax.tree.unflatten(treedef, out)
  return jax.tree.map(lambda o: o.reshape(*lead, *o.shape[1:]), out)


def walk(
  sharding: NamedSharding | None,
  fn: Callable[..., Any],
  *stacks: jax.Array,
  shared: Any = (),
  onto: Sequence[int | None] = (),
  when: jax.Array | None = None,
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
    onto: see `map_matrices`.
    when: see `map_matrices`.

  >>> walk(None, lambda s, x: s * jnp.trace(x), jnp.ones((2, 4, 4)), shared=3)
  Array([12., 12.], dtype=float32)
  """
  if stacks[0].ndim < 3 or not _axis(sharding):
    fn = functools.partial(fn, shared)
    return map_matrices(fn, *stacks, onto=onto, when=when)
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
    lambda shared, when, stacks: map_matrices(
      functools.partial(fn, shared), *stacks, onto=onto, when=when
    ),
    mesh=sharding.mesh,
    in_specs=(PartitionSpec(), PartitionSpec(), local.spec),
    out_specs=local.spec,
    check_vma=False,  # No collectives, nothing to check.
  )(shared, when, stacks)
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
