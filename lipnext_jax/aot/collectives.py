"""Lists what devices send each other, from the HLO text of a program."""

from collections.abc import Callable
import math
import re
from typing import NamedTuple

import numpy as np

KINDS = (
  'all-gather',
  'all-reduce',
  'all-to-all',
  'collective-permute',
  'reduce-scatter',
)
_BYTES = {
  'pred': 1, 's8': 1, 'u8': 1, 'bf16': 2, 'f16': 2, 's16': 2, 'u16': 2,
  'f32': 4, 's32': 4, 'u32': 4, 'f64': 8, 's64': 8, 'u64': 8,
  'c64': 8, 'c128': 16,
}  # fmt: skip
# Groups of a computation: 'ENTRY ' or '', name, lines.
_COMPUTATION = re.compile(
  r'^(ENTRY )?%?([\w.\-]+) [^\n]*\{\n(.*?)^\}', re.MULTILINE | re.DOTALL
)
_INSTRUCTION = re.compile(
  r'^\s*(?:ROOT )?%?[\w.\-]+ = (?P<type>.*?) (?P<kind>'
  + '|'.join(KINDS)
  + r')(?P<start>-start)?\('
)
_CALLS = re.compile(
  r'(?:calls|to_apply|true_computation|false_computation)=%?([\w.\-]+)'
)
_BRANCHES = re.compile(r'branch_computations=\{([^}]*)\}')
_WHILE = re.compile(r' while\(.*condition=%?([\w.\-]+), body=%?([\w.\-]+)')
_CONSTANT = re.compile(r'%?([\w.\-]+) = s32\[\]\S* constant\((\d+)\)')
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')


class Collective(NamedTuple):
  """An instruction by which devices exchange data."""

  kind: str  # One of `KINDS`.
  dtype: str  # HLO's name of the dtype of the largest array.
  size: int  # Bytes that are gathered, reduced or exchanged, per device.
  group: int  # Number of devices that exchange data with each other.
  crosses: bool  # Whether a group spans slices.
  trips: int  # How often a step runs the instruction.
  op_name: str = ''  # JAX's name of the operation.

  @property
  def sent(self) -> float:
    """Bytes that a device sends per step with ring algorithms."""
    share = (self.group - 1) / self.group
    factor = {'all-reduce': 2 * share, 'collective-permute': 1.0}
    return self.size * factor.get(self.kind, share) * self.trips


def read(
  hlo: str, slice_of: Callable[[int], int] = lambda _: 0
) -> list[Collective]:
  """Lists the collectives of a program and how often they run.

  Args:
    hlo: text of the program, `compiled.as_text()`.
    slice_of: function from the position of a device in the mesh to its slice.
  """
  stated = re.search(r'num_partitions=(\d+)', hlo)
  devices = int(stated[1]) if stated else 1
  found: list[Collective] = []
  blocks = _COMPUTATION.findall(hlo)
  computations = {name: body.splitlines() for _, name, body in blocks}
  (entry,) = [name for is_entry, name, _ in blocks if is_entry]

  def visit(name: str, trips: int) -> None:
    for line in computations.get(name, ()):
      if loop := _WHILE.search(line):
        n = _trip_count(line, computations.get(loop[1], ()), computations)
        visit(loop[2], trips * n)
      elif match := _INSTRUCTION.match(line):
        found.append(_collective(match, line, trips, devices, slice_of))
      else:
        branches = ','.join(_BRANCHES.findall(line)).replace('%', '')
        for callee in _CALLS.findall(line) + re.findall(r'[^, ]+', branches):
          visit(callee, trips)

  visit(entry, 1)
  return [c for c in found if c.group > 1]


def _trip_count(line: str, condition, computations) -> int:
  """Returns how often a loop runs, or 1 if that depends on data.

  Without a stated count, it is the number that the counter is compared to,
  since JAX's loops count from 0.
  """
  stated = _TRIPS.search(line)
  if stated:
    return int(stated[1])
  text = list(condition)
  for called in _CALLS.findall('\n'.join(text)):
    text += computations.get(called, ())
  compares = [t for t in text if ' compare(' in t]
  if len(compares) != 1 or 'direction=LT' not in compares[0]:
    return 1
  constants = _CONSTANT.findall('\n'.join(text))
  ends = [int(n) for name, n in constants if name in compares[0]]
  return ends[0] if len(ends) == 1 else 1


def _collective(match, line, trips, devices, slice_of) -> Collective:
  kind = match['kind']
  arrays = [
    (dtype, math.prod(int(n) for n in dims.split(',') if n) * _BYTES[dtype])
    for dtype, dims in re.findall(r'(\w+)\[([\d,]*)\]', match['type'])
    if dtype in _BYTES
  ]
  size = sum(n for _, n in arrays)
  groups = parse_groups(line, devices)
  group = groups.shape[1]
  # The type of a `-start` instruction includes its operands.
  if match['start'] and kind in ('all-gather', 'reduce-scatter'):
    size = size * group // (group + 1)
  elif match['start'] and kind in ('all-to-all', 'collective-permute'):
    size //= 2
  elif kind == 'reduce-scatter':
    size *= group
  op_name = re.search(r'op_name="([^"]*)"', line)
  slices = np.vectorize(slice_of)(groups)
  return Collective(
    kind=kind,
    dtype=max(arrays, key=lambda a: a[1])[0] if arrays else '',
    size=size,
    group=group,
    crosses=bool((slices != slices[:, :1]).any()),
    trips=trips,
    op_name=op_name[1] if op_name else '',
  )


def parse_groups(line: str, devices: int = 1) -> np.ndarray:
  """Returns the groups of devices of an instruction, [groups, size].

  An instruction without groups is for all `devices` of the program.

  >>> parse_groups('replica_groups={{0,1},{2,3}}').tolist()
  [[0, 1], [2, 3]]
  >>> parse_groups('replica_groups=[2,2]<=[2,2]T(1,0)').tolist()
  [[0, 2], [1, 3]]
  >>> parse_groups("replica_groups=mesh['a'=2,'b'=2] {'a'}").tolist()
  [[0, 2], [1, 3]]
  """
  listed = re.search(
    r'(?:replica_groups|source_target_pairs)=\{(\{[\d,{} ]*\})\}', line
  )
  if listed:
    rows = re.findall(r'\{([\d, ]+)\}', listed[1])
    return np.array([[int(i) for i in row.split(',')] for row in rows])
  iota = re.search(
    r'replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?', line
  )
  if iota:
    out, dims = ([int(i) for i in iota[k].split(',')] for k in (1, 2))
    ids = np.arange(math.prod(dims)).reshape(dims)
    if iota[3]:
      ids = ids.transpose([int(i) for i in iota[3].split(',')])
    return ids.reshape(out)
  named = re.search(r'replica_groups=mesh\[([^\]]*)\] \{([^}]*)\}', line)
  if named:
    sizes = {n: int(k) for n, k in re.findall(r"'(\w+)'=(\d+)", named[1])}
    over = re.findall(r"'(\w+)'", named[2])
    ids = np.arange(math.prod(sizes.values())).reshape(list(sizes.values()))
    order = sorted(range(len(sizes)), key=lambda i: list(sizes)[i] in over)
    size = math.prod(sizes[name] for name in over)
    return ids.transpose(order).reshape(-1, size)
  return np.arange(devices)[None]
