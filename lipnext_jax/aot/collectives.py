"""Lists what devices send each other, from the HLO text of a program."""

from collections.abc import Sequence
import math
import re
from typing import NamedTuple

import numpy as np

# Groups of an array's type: dtype, its bits ('' for 'pred'), shape.
_ARRAY = re.compile(r'\b(pred|[a-z]+(\d+)\w*)\[([\d,]*)\]')
# Groups of a computation: 'ENTRY ' or '', name, lines.
_COMPUTATION = re.compile(
  r'^(ENTRY )?%?([\w.\-]+) [^\n]*\{\n(.*?)^\}', re.MULTILINE | re.DOTALL
)
_INSTRUCTION = re.compile(
  r'^\s*(?:ROOT )?%?[\w.\-]+ = (?P<type>.*?) (?P<kind>all-gather|all-reduce'
  r'|all-to-all|collective-permute|reduce-scatter)(?P<start>-start)?\('
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

  kind: str  # HLO's name, e.g. 'all-gather'.
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


def read(hlo: str, slices: Sequence[int] = (0,)) -> list[Collective]:
  """Lists the collectives of a program and how often they run.

  Args:
    hlo: text of the program, `compiled.as_text()`.
    slices: slice of each device of the mesh.
  """
  stated = re.search(r'num_partitions=(\d+)', hlo)
  devices = int(stated[1]) if stated else 1
  found: list[Collective] = []
  computations = _COMPUTATION.findall(hlo)
  bodies = {name: body for _, name, body in computations}

  def visit(name: str, trips: int) -> None:
    for line in bodies.get(name, '').splitlines():
      if loop := _WHILE.search(line):
        visit(loop[2], trips * _trip_count(line, loop[1], bodies))
      elif match := _INSTRUCTION.match(line):
        found.append(_collective(match, trips, devices, slices))
      else:
        branches = ','.join(_BRANCHES.findall(line)).replace('%', '')
        for callee in _CALLS.findall(line) + re.findall(r'[^, ]+', branches):
          visit(callee, trips)

  (entry,) = (name for is_entry, name, _ in computations if is_entry)
  visit(entry, 1)
  return [c for c in found if c.group > 1]


def _trip_count(line: str, condition: str, bodies: dict[str, str]) -> int:
  """Returns how often a loop runs, or 1 if that depends on data.

  Without a stated count, it is the number that the counter is compared to,
  since JAX's loops count from 0.
  """
  if stated := _TRIPS.search(line):
    return int(stated[1])
  text = bodies.get(condition, '')
  text += ''.join(bodies.get(called, '') for called in _CALLS.findall(text))
  ends = []
  compares = [line for line in text.splitlines() if ' compare(' in line]
  if len(compares) == 1 and 'direction=LT' in compares[0]:
    ends = [n for name, n in _CONSTANT.findall(text) if name in compares[0]]
  return int(ends[0]) if len(ends) == 1 else 1


def _collective(match, trips, devices, slices) -> Collective:
  """Reads an instruction that `_INSTRUCTION` matches."""
  kind, line = match['kind'], match.string
  arrays = [
    (math.prod(_numbers(shape)) * int(bits or 8) // 8, dtype)
    for dtype, bits, shape in _ARRAY.findall(match['type'])
  ]
  size = sum(n for n, _ in arrays)
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
  slice_of = np.take(slices, groups, mode='wrap')
  return Collective(
    kind=kind,
    dtype=max(arrays, default=(0, ''), key=lambda array: array[0])[1],
    size=size,
    group=group,
    crosses=bool((slice_of != slice_of[:, :1]).any()),
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
    return np.array([_numbers(row) for row in rows])
  iota = re.search(
    r'replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?', line
  )
  if iota:
    shape, dims = _numbers(iota[1]), _numbers(iota[2])
    order = _numbers(iota[3]) if iota[3] else range(len(dims))
  elif named := re.search(r'replica_groups=mesh\[([^\]]*)\] \{([^}]*)\}', line):
    names = re.findall(r"'(\w+)'", named[1])
    dims = _numbers(','.join(re.findall(r'=(\d+)', named[1])))
    over = [name in re.findall(r"'(\w+)'", named[2]) for name in names]
    order = sorted(range(len(names)), key=lambda i: over[i])
    shape = [-1, math.prod(np.compress(over, dims))]
  else:
    return np.arange(devices)[None]
  return (
    np.arange(math.prod(dims)).reshape(dims).transpose(order).reshape(shape)
  )


def _numbers(text: str) -> list[int]:
  """Reads numbers between commas."""
  return [int(number) for number in text.split(',') if number]
