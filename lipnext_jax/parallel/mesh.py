"""The device mesh of a config, and the layouts of arrays on it.

Rules in order, path → partition spec, say where each array of a tree lies.
"""

from collections.abc import Mapping
from collections.abc import Sequence
import itertools
import math
import re
from typing import Any

import jax
from jax.experimental import mesh_utils
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec
import numpy as np

from lipnext_jax import errors
from lipnext_jax import trees
from lipnext_jax.models import block
from lipnext_jax.parallel import blocks

AXES = ('data', 'fsdp', 'tensor')


# ── The mesh ─────────────────────────────────────────────────────────────────


def make_mesh(
  sizes: Mapping[str, int],
  devices: Sequence[jax.Device] | None = None,
) -> jax.sharding.Mesh:
  """Makes a mesh with the axes `AXES`; a size of −1 takes all other devices.

  A slice is a group of devices with a fast network inside and a slow one to
  other slices: a TPU slice, or a host of GPUs. The axis 'data', which sends
  least, goes over the slices. Within a slice, the physical topology decides
  which devices are neighbours.

  Args:
    sizes: axis → size, as in `config.mesh`; an axis that it lacks has size 1.
    devices: devices of the mesh; default: all of this run.

  Raises:
    ConfigError: the sizes do not multiply to the number of devices, or
      'tensor' would split one example over several processes.

  >>> dict(make_mesh({'data': -1, 'fsdp': 1}).shape) == {
  ...   'data': jax.device_count(), 'fsdp': 1, 'tensor': 1}
  True
  """
  devices = jax.devices() if devices is None else devices
  given = [sizes.get(axis, 1) for axis in AXES]
  fixed = math.prod(size for size in given if size != -1)
  rest = len(devices) // max(fixed, 1)
  shape = [rest if size == -1 else size for size in given]
  if given.count(-1) > 1 or math.prod(shape) != len(devices):
    raise errors.ConfigError(
      'mesh',
      dict(zip(AXES, given, strict=True)),
      f'does not match the {len(devices)} devices of this run',
      'make the sizes multiply to it, or set one of them to −1',
    )
  auto = (jax.sharding.AxisType.Auto,) * len(AXES)
  if len({slice_of(device) for device in devices}) > 1:
    grid = arrange_slices(devices, shape)
    mesh = jax.sharding.Mesh(grid, AXES, axis_types=auto)
  else:
    mesh = jax.make_mesh(shape, AXES, auto, devices=devices)
  owners = np.vectorize(lambda device: device.process_index)(mesh.devices)
  if (owners != owners[..., :1]).any():
    raise errors.ConfigError(
      'mesh.tensor',
      mesh.shape['tensor'],
      'splits the channels of one example over several processes',
      'choose a divisor of the devices of a process',
    )
  return mesh


def arrange_slices(
  devices: Sequence[jax.Device], sizes: Sequence[int]
) -> np.ndarray:
  """Arranges devices as a mesh of these sizes, 'data' over the slices.

  If their number does not divide 'data', devices are arranged slice by slice:
  the next axes go over several slices, too, and use the slow network more.
  """
  in_order = sorted(devices, key=slice_of)
  slices = [list(group) for _, group in itertools.groupby(in_order, slice_of)]
  count = len(slices)
  if sizes[0] % count == 0:
    return mesh_utils.create_hybrid_device_mesh(
      (sizes[0] // count, *sizes[1:]), (count, 1, 1), devices
    )
  rows = [mesh_utils.create_device_mesh((len(s),), s) for s in slices]
  return np.concatenate(rows).reshape(sizes)


def slice_of(device: Any) -> int:
  """Returns the index of a device's slice; all CPU devices are one slice.

  >>> slice_of(jax.devices()[0])
  0
  """
  return getattr(device, 'slice_index', 0)


def model_devices(mesh: jax.sharding.Mesh) -> block.Devices:
  """Returns how a model's blocks use the mesh."""
  return block.ONE_DEVICE if mesh.size == 1 else blocks.Layout(mesh)


# ── Batches ──────────────────────────────────────────────────────────────────


def batch_sharding(mesh: jax.sharding.Mesh) -> NamedSharding:
  """Returns the layout of a batch: its first axis over the `BATCH_AXES`."""
  return NamedSharding(mesh, PartitionSpec(blocks.BATCH_AXES))


def replicated(mesh: jax.sharding.Mesh) -> NamedSharding:
  """Returns the layout of arrays that every device has whole."""
  return NamedSharding(mesh, PartitionSpec())


def check_batch_size(
  field: str, size: int, mesh: jax.sharding.Mesh, microbatches: int = 1
) -> None:
  """Raises unless the mesh splits a batch evenly, and each device its part.

  Raises:
    ConfigError: the size, set by `field`, does not split; the message names
      the next that does.
  """
  shards = _parts(mesh, blocks.BATCH_AXES)
  step = shards * microbatches
  if size % step:
    parts = f' in {microbatches} microbatches' if microbatches > 1 else ''
    raise errors.ConfigError(
      field,
      size,
      f'does not split over {shards} devices{parts}',
      f'choose {step * math.ceil(size / step)}',
    )


def put_batch(
  batch: dict[str, np.ndarray], sharding: NamedSharding
) -> dict[str, Any]:
  """Makes global arrays [b, …] from this process's part of a batch."""
  with jax.transfer_guard('allow'):  # The loop forbids all other transfers.
    return {
      name: jax.make_array_from_process_local_data(sharding, value)
      for name, value in batch.items()
    }


# ── Trees of arrays ──────────────────────────────────────────────────────────


def tree_shardings(
  tree: Any, rules: Sequence[tuple[str, tuple]], mesh: jax.sharding.Mesh
) -> Any:
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

  >>> mesh = make_mesh({'data': -1})
  >>> shapes = {'R': jax.ShapeDtypeStruct((2, 4, 4), 'float32')}
  >>> rules = [('R$', (None, 'fsdp', None))]
  >>> tuple(tree_shardings(shapes, rules, mesh)['R'].spec)
  (None, 'fsdp', None)
  """

  def one(path, leaf):
    name = trees.path_name(path)
    for pattern, spec in rules:
      if re.search(pattern, name):
        return NamedSharding(mesh, _resolve_spec(name, leaf.shape, spec, mesh))
    raise errors.ConfigError(
      'sharding',
      [pattern for pattern, _ in rules],
      f'has no rule for {name!r}',
      "add one, e.g. ('…', ()) to replicate it",
    )

  return jax.tree_util.tree_map_with_path(one, tree)


def _resolve_spec(name, shape, spec, mesh) -> PartitionSpec:
  """Resolves the optional axes of a spec and checks it against a shape."""

  def error(problem, remedy):
    return errors.ConfigError(
      'sharding', spec, f'{problem} {name} of shape {shape}', remedy
    )

  if len(spec) > len(shape):
    raise error('is too long for', 'give one entry per array axis')
  resolved = []
  for size, entry in zip(shape, spec, strict=False):
    axes = [axis.removesuffix('?') for axis in _names(entry)]
    if not set(axes) <= set(mesh.shape):
      raise error('names an unknown axis for', f'use {", ".join(mesh.shape)}')
    for axis in _names(entry):
      if axis.endswith('?') and size % _parts(mesh, axes):
        axes.remove(axis.removesuffix('?'))
    if size % _parts(mesh, axes):
      raise error(
        f'splits an axis of {size} over {_parts(mesh, axes)} devices in',
        f'choose mesh.{" and mesh.".join(axes)} to divide it',
      )
    resolved.append(tuple(axes) or None)
  return PartitionSpec(*resolved)


def _names(entry: Any) -> list[str]:
  """Lists the mesh axes in an entry of a spec."""
  return [entry] if isinstance(entry, str) else list(entry or ())


def _parts(mesh: jax.sharding.Mesh, entry: Any) -> int:
  """Returns the number of parts into which an entry of a spec cuts an axis."""
  return math.prod(mesh.shape[name] for name in _names(entry))


def with_shardings(shapes: Any, shardings: Any) -> Any:
  """Returns `jax.ShapeDtypeStruct`s with shardings."""
  return jax.tree.map(
    lambda leaf, sharding: leaf.update(sharding=sharding), shapes, shardings
  )


def stack_sharding(shardings: Any) -> NamedSharding | None:
  """Returns the layout of the stacks of matrices in an optimizer's state.

  It is the first one that splits a leading axis over several devices; None if
  every device updates all matrices.
  """
  for sharding in jax.tree.leaves(shardings):
    if sharding.spec and _parts(sharding.mesh, sharding.spec[0]) > 1:
      return sharding
  return None


def move(
  x: jax.Array, source: NamedSharding, target: NamedSharding
) -> jax.Array:
  """Moves `x` to another layout of the same mesh, in a traced function.

  Mesh axes that only the target uses cut first, axes that both use are swapped
  next, and axes that only the source uses are gathered last. Without these
  steps the compiler may gather all of `x` on every device.

  >>> mesh = make_mesh({'data': -1})
  >>> rows, columns = (
  ...   NamedSharding(mesh, PartitionSpec(*spec))
  ...   for spec in [('data', None), (None, 'data')])
  >>> n = mesh.size
  >>> move(jax.numpy.ones((n, 2 * n)), rows, columns).shape == (n, 2 * n)
  True
  """
  if source.is_equivalent_to(target, x.ndim):
    return x
  # Mesh axes along each array axis.
  start, end = (
    [_names(e) for e in (*s.spec, *[None] * (x.ndim - len(s.spec)))]
    for s in (source, target)
  )
  both = set(itertools.chain(*start)) & set(itertools.chain(*end))
  pairs = list(zip(start, end, strict=True))
  now = [[n for n in new if n not in both] + old for old, new in pairs]
  swapped = [[n for n in old if n not in both] + new for old, new in pairs]
  layouts = [start, [*now]]
  # A swap is an all-to-all over one mesh axis, from the end of the axes along
  # one array axis to the end of those along another: the compiler cannot move
  # several mesh axes at once.
  while now != swapped:
    for i, j in itertools.permutations(range(x.ndim), 2):
      longer = [*now[j], *now[i][-1:]]
      if now[i] and longer == swapped[j][: len(longer)]:
        now[i], now[j] = now[i][:-1], longer
        break
    else:  # The compiler finds the rest of the way.
      now = swapped
    layouts.append([*now])
  for layout in (*layouts, end):
    spec = PartitionSpec(*(tuple(names) or None for names in layout))
    x = jax.lax.with_sharding_constraint(x, NamedSharding(target.mesh, spec))
  return x


def local_bytes(tree: Any) -> int:
  """Counts the bytes per device of a tree of arrays or sharded shapes."""
  return sum(
    math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
    for leaf in jax.tree.leaves(tree)
  )


def layout_table(tree: Any) -> str:
  """Formats path, shape, dtype, spec and bytes per device of every leaf.

  The leaves are arrays, or shapes with shardings. The last line has the total.
  """
  rows = [('path', 'shape', 'dtype', 'spec', 'bytes/device')]
  for name, leaf in trees.named_leaves(tree).items():
    shape = 'x'.join(map(str, leaf.shape)) or 'scalar'
    spec = str(tuple(leaf.sharding.spec))
    rows.append((name, shape, str(leaf.dtype), spec, f'{local_bytes(leaf):,}'))
  rows.append(('total', '', '', '', f'{local_bytes(tree):,}'))
  widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
  return '\n'.join(
    '  '.join(map(str.ljust, row, widths)).rstrip() for row in rows
  )
