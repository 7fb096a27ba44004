"""Layouts of arrays by ordered rules, path → partition spec."""

from collections.abc import Iterator
from collections.abc import Sequence
import itertools
import math
import re
from typing import Any

import jax

from lipnext_jax import errors
from lipnext_jax import trees

Rules = Sequence[tuple[str, tuple]]


def check_rules(rules: Any) -> None:
  """Raises unless rules are (regular expression, spec) pairs.

  Raises:
    ConfigError: a rule is malformed.

  >>> check_rules([('R$', (None, ('fsdp', 'tensor'), None)), ('', ())])
  >>> check_rules([('(', ())])
  Traceback (most recent call last):
  lipnext_jax.errors.ConfigError: sharding=('(', ()) is not a rule; write \
(regular expression, (axis, axes or None, …)), see lipnext_jax/config/fields.py.
  """
  for rule in rules:
    try:
      pattern, spec = rule
      re.compile(pattern)
      axes = [axis for entry in spec for axis in _names(entry)]
      fits = not isinstance(spec, str)
      fits = fits and all(isinstance(axis, str) for axis in axes)
    except (TypeError, ValueError, re.error):
      fits = False
    if not fits:
      raise errors.ConfigError(
        'sharding',
        rule,
        'is not a rule',
        'write (regular expression, (axis, axes or None, …)), see '
        'lipnext_jax/config/fields.py',
      )


def tree_shardings(tree: Any, rules: Rules, mesh: jax.sharding.Mesh) -> Any:
  """Returns a `NamedSharding` per leaf, by the first rule that matches.

  Args:
    tree: arrays or shapes, e.g. from `jax.eval_shape`.
    rules: (regular expression searched in 'a/b/leaf', spec) pairs. A spec has
      a mesh axis, a tuple of mesh axes or None per array axis; () replicates.
      An axis that ends in '?' is left out if it does not divide.
    mesh: devices.

  Raises:
    ConfigError: a leaf matches no rule, a spec has an unknown axis or too many
      entries, or a mesh axis does not divide an array axis.

  >>> from lipnext_jax.parallel import mesh as mesh_lib
  >>> import ml_collections
  >>> mesh = mesh_lib.make_mesh(ml_collections.ConfigDict(
  ...   {'data': -1, 'fsdp': 1}))
  >>> shapes = {'R': jax.ShapeDtypeStruct((2, 4, 4), 'float32')}
  >>> rules = [('R$', (None, 'fsdp', None))]
  >>> tuple(tree_shardings(shapes, rules, mesh)['R'].spec)
  (None, 'fsdp', None)
  """

  def one(path, leaf):
    name = trees.path_name(path)
    spec = _resolve_spec(name, leaf.shape, _first_match(name, rules), mesh)
    return jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*spec))

  return jax.tree_util.tree_map_with_path(one, tree)


def _first_match(name: str, rules: Rules) -> tuple:
  for pattern, spec in rules:
    if re.search(pattern, name):
      return spec
  raise errors.ConfigError(
    'sharding',
    [pattern for pattern, _ in rules],
    f'has no rule for {name!r}',
    "add one, e.g. ('…', ()) to replicate it",
  )


def _resolve_spec(name, shape, spec, mesh) -> list:
  """Resolves the optional axes of a spec and checks it against a shape."""

  def error(problem, remedy):
    return errors.ConfigError(
      'sharding', spec, f'{problem} {name} of shape {shape}', remedy
    )

  if len(spec) > len(shape):
    raise error('is too long for', 'give one entry per array axis')
  resolved: list[Any] = []
  for size, entry in zip(shape, spec, strict=False):
    axes = [axis.removesuffix('?') for axis in _names(entry)]
    if not set(axes) <= set(mesh.shape):
      raise error('names an unknown axis for', f'use {", ".join(mesh.shape)}')
    for axis in _names(entry):
      if axis.endswith('?') and size % shards(mesh, axes):
        axes.remove(axis.removesuffix('?'))
    if size % shards(mesh, axes):
      raise error(
        f'splits an axis of {size} over {shards(mesh, axes)} devices in',
        f'choose mesh.{" and mesh.".join(axes)} to divide it',
      )
    resolved.append(tuple(axes) or None)
  return resolved


def _names(entry: Any) -> list[str]:
  """Lists the mesh axes in an entry of a spec."""
  if entry is None:
    return []
  return [entry] if isinstance(entry, str) else list(entry)


def shards(mesh: jax.sharding.Mesh, entry: Any) -> int:
  """Returns the number of parts into which an entry of a spec cuts an axis.

  >>> mesh = jax.make_mesh((1, 1), ('a', 'b'))
  >>> shards(mesh, ('a', 'b')), shards(mesh, None)
  (1, 1)
  """
  return math.prod(mesh.shape[name] for name in _names(entry))


def move(
  x: jax.Array,
  source: jax.sharding.NamedSharding,
  target: jax.sharding.NamedSharding,
) -> jax.Array:
  """Moves `x` to another layout of the same mesh, in a traced function.

  Mesh axes that only the target uses cut first, axes that both use are swapped
  next, and axes that only the source uses are gathered last. Without these
  steps the compiler may gather all of `x` on every device.

  >>> mesh = jax.make_mesh((1,), ('a',), (jax.sharding.AxisType.Auto,))
  >>> rows, columns = (
  ...   jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*spec))
  ...   for spec in [('a', None), (None, 'a')])
  >>> move(jax.numpy.ones((2, 3)), rows, columns).shape
  (2, 3)
  """
  if source.is_equivalent_to(target, x.ndim):
    return x
  # Mesh axes along each array axis.
  start, end = (
    [_names(e) for e in (*s.spec, *[None] * (x.ndim - len(s.spec)))]
    for s in (source, target)
  )
  both = set(itertools.chain(*start)) & set(itertools.chain(*end))
  cut = [
    [n for n in new if n not in both] + old
    for old, new in zip(start, end, strict=True)
  ]
  swapped = [
    [n for n in old if n not in both] + new
    for old, new in zip(start, end, strict=True)
  ]
  for spec in (start, cut, *_swaps(cut, swapped), end):
    axes = jax.sharding.PartitionSpec(*(tuple(names) or None for names in spec))
    layout = jax.sharding.NamedSharding(target.mesh, axes)
    x = jax.lax.with_sharding_constraint(x, layout)
  return x


def _swaps(
  start: list[list[str]], end: list[list[str]]
) -> Iterator[list[list[str]]]:
  """Yields layouts from `start` to `end` that move one mesh axis at a time.

  A move is an all-to-all over one mesh axis, from the end of the axes along one
  array axis to the end of those along another. The compiler cannot move several
  mesh axes at once.
  """
  now = [list(names) for names in start]
  while now != end:
    for i, j in itertools.permutations(range(len(now)), 2):
      longer = [*now[j], *now[i][-1:]]
      if now[i] and longer == end[j][: len(longer)]:
        now[i].pop()
        now[j] = longer
        break
    else:  # The compiler finds the rest of the way.
      now = end
    yield [list(names) for names in now]


def with_shardings(shapes: Any, shardings: Any) -> Any:
  """Returns `jax.ShapeDtypeStruct`s with shardings."""
  return jax.tree.map(
    lambda s, sharding: jax.ShapeDtypeStruct(
      s.shape, s.dtype, sharding=sharding
    ),
    shapes,
    shardings,
  )


def stack_sharding(shardings: Any) -> jax.sharding.NamedSharding | None:
  """Returns the layout of an optimizer's stacks of matrices.

  Args:
    shardings: shardings of the optimizer's state.

  Returns:
    The first sharding that splits a leading axis over several devices, or None
    if every device updates all matrices.
  """
  for sharding in jax.tree.leaves(shardings):
    axes = sharding.spec[0] if sharding.spec else None
    if shards(sharding.mesh, axes) > 1:
      return sharding
  return None


def local_bytes(tree: Any) -> int:
  """Counts the bytes of a tree on one device.

  Args:
    tree: arrays, or shapes with shardings.
  """
  return sum(
    math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
    for leaf in jax.tree.leaves(tree)
  )


def table(tree: Any) -> str:
  """Formats path, shape, dtype, spec and bytes per device of every leaf.

  Args:
    tree: arrays, or shapes with shardings.

  Returns:
    One line per leaf, and a line with the total.
  """
  rows = [('path', 'shape', 'dtype', 'spec', 'bytes/device')]
  rows += [
    (
      trees.path_name(path),
      'x'.join(map(str, leaf.shape)) or 'scalar',
      str(leaf.dtype),
      str(tuple(leaf.sharding.spec)),
      f'{local_bytes(leaf):,}',
    )
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
  ]
  rows.append(('total', '', '', '', f'{local_bytes(tree):,}'))
  widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
  lines = (
    '  '.join(cell.ljust(w) for cell, w in zip(row, widths, strict=True))
    for row in rows
  )
  return '\n'.join(line.rstrip() for line in lines)
