"""Ordered rules from paths to partition specs, as data in the config."""

from collections.abc import Sequence
import math
import re
from typing import Any

import jax

from lipnext_jax import errors
from lipnext_jax.optim import recipe

Rules = Sequence[tuple[str, tuple]]


def check_rules(rules: Any) -> None:
  """Refuses what is no list of (regular expression, spec) pairs.

  Raises:
    ConfigError: naming the first that is none.

  >>> check_rules([('R$', (None, 'fsdp', None)), ('', ())])
  >>> check_rules([('(', ())])
  Traceback (most recent call last):
  lipnext_jax.errors.ConfigError: sharding=('(', ()) is no rule; write \
(regular expression, (axis or None, …)), see lipnext_jax/config.py.
  """
  for rule in rules:
    try:
      pattern, spec = rule
      re.compile(pattern)
      fits = all(axis is None or isinstance(axis, str) for axis in spec)
      fits = fits and not isinstance(spec, str)
    except (TypeError, ValueError, re.error):
      fits = False
    if not fits:
      raise errors.ConfigError(
        'sharding',
        rule,
        'is no rule',
        'write (regular expression, (axis or None, …)), see '
        'lipnext_jax/config.py',
      )


def tree_shardings(tree: Any, rules: Rules, mesh: jax.sharding.Mesh) -> Any:
  """A `NamedSharding` per leaf: the spec of the first rule that matches.

  Args:
    tree: arrays or shapes, e.g. from `jax.eval_shape`.
    rules: (regular expression searched in 'a/b/leaf', spec) pairs; a spec has
      a mesh axis or None per array axis, () replicates.
    mesh: the devices.

  Raises:
    ConfigError: a leaf that no rule matches, a spec with an unknown axis or
      too many entries, or a shape that the mesh does not divide.

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
    name = recipe.path_name(path)
    spec = _first_match(name, rules)
    _check_spec(name, leaf.shape, spec, mesh)
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


def _check_spec(name, shape, spec, mesh) -> None:
  def error(problem, remedy):
    return errors.ConfigError(
      'sharding', spec, f'{problem} {name} of shape {shape}', remedy
    )

  if len(spec) > len(shape):
    raise error('is too long for', 'give one entry per array axis')
  for size, axis in zip(shape, spec, strict=False):
    if axis is None:
      continue
    if axis not in mesh.shape:
      raise error('names an unknown axis for', f'use {", ".join(mesh.shape)}')
    if size % mesh.shape[axis]:
      raise error(
        f'splits an axis of {size} over {mesh.shape[axis]} devices in',
        f'choose mesh.{axis} to divide it',
      )


def with_shardings(shapes: Any, shardings: Any) -> Any:
  """`jax.ShapeDtypeStruct`s that know where they will lie."""
  return jax.tree.map(
    lambda s, sharding: jax.ShapeDtypeStruct(
      s.shape, s.dtype, sharding=sharding
    ),
    shapes,
    shardings,
  )


def stack_sharding(shardings: Any) -> jax.sharding.NamedSharding | None:
  """How an optimizer's state splits its stacks of matrices, if it does.

  Args:
    shardings: of the optimizer's state.

  Returns:
    The first sharding that splits a leading axis over several devices, or
    None: every device then walks all matrices.
  """
  for sharding in jax.tree.leaves(shardings):
    axis = sharding.spec[0] if sharding.spec else None
    if axis is not None and sharding.mesh.shape[axis] > 1:
      return sharding
  return None


def table(tree: Any, shardings: Any) -> str:
  """Path, shape, dtype, spec, bytes per device: one line a leaf, and a total.

  Args:
    tree: arrays or shapes.
    shardings: like it.
  """
  rows = [('path', 'shape', 'dtype', 'spec', 'bytes/device')]
  total = 0
  leaves = jax.tree_util.tree_leaves_with_path(tree)
  for (path, leaf), sharding in zip(
    leaves, jax.tree.leaves(shardings), strict=True
  ):
    local = math.prod(sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
    total += local
    rows.append(
      (
        recipe.path_name(path),
        'x'.join(map(str, leaf.shape)) or 'scalar',
        str(leaf.dtype),
        str(tuple(sharding.spec)),
        f'{local:,}',
      )
    )
  rows.append(('total', '', '', '', f'{total:,}'))
  widths = [max(len(row[i]) for row in rows) for i in range(5)]
  lines = (
    '  '.join(cell.ljust(w) for cell, w in zip(row, widths, strict=True))
    for row in rows
  )
  return '\n'.join(line.rstrip() for line in lines)
