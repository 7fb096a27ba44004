"""Formats the report that `--mode=compile` prints."""

from typing import Any

_MEMORY = {
  'parameters': 'parameters',
  'optimizer': 'optimizer',
  'saved_activations': 'saved activations',
  'sum': 'sum of these',
  'arguments': 'arguments',
  'temporaries': 'temporaries',
  'peak': 'peak',
  'capacity': 'capacity',
}
_OPERATIONS = {
  'model': 'model',
  'executed': 'executed',
  'optimizer': 'of these, optimizer',
  'optimizer_per_device': 'optimizer, per device',
}


def format_text(s: dict[str, Any]) -> str:
  """Formats a summary of `summary.summarize`; the last line is the verdict."""
  memory = s['memory']
  mesh = ' × '.join(f'{axis} {size}' for axis, size in s['mesh'].items())
  lines = [
    s['sharding'],
    '',
    f'{s["machine"]}: {s["devices"]} devices, mesh {mesh}',
    f'  parameters stored   {s["parameter_count"]:>16,d}',
    f'  as the paper counts {s["paper_parameter_count"]:>16,d}  (R, M whole)',
    f'  batch               {s["batch_size"]:>16,d}  in {s["microbatches"]} '
    f'microbatches, remat {s["remat"]}, gradients reduced in '
    f'{s["reduce_dtype"]}',
    'memory per device',
    *(
      f'  {name:<18s}  {_scaled(memory[key])}B'
      for key, name in _MEMORY.items()
      if key in memory
    ),
  ]
  if 'peak_over_sum' in memory:
    lines.append(f'  peak over that sum  {memory["peak_over_sum"]:>16.2f}')
  lines.append('operations per step')
  for key, name in _OPERATIONS.items():
    lines.append(f'  {name:<24s}{_scaled(s["flops"][key], 1000)}FLOP')
  if not s['refusal']:
    lines += _transfers(s)
    lines.append(_verdict(s))
  else:
    lines.append(f'does not fit: {s["refusal"]}')
  return '\n'.join(lines)


def _scaled(number: float, base: int = 1024) -> str:
  """Writes a number with a prefix of powers of 1024 ('Ki', …) or 1000 ('k')."""
  prefixes = [*('Ki Mi Gi Ti Pi Ei' if base == 1024 else 'k M G T P E').split()]
  prefix = ''
  while number >= base and prefixes:
    number /= base
    prefix = prefixes.pop(0)
  return f'{number:>10.2f} {prefix}'


def _transfers(s: dict[str, Any]) -> list[str]:
  lines = ['collectives per step and device']
  for c in s['collectives']:
    where = ' over slices' if c['over_slices'] else ''
    lines.append(
      f'  {c["kind"]:<20s}{c["dtype"]:>5s}  {c["count"]:>4d} × among '
      f'{c["group"]} devices{where}:{_scaled(c["bytes"])}B, sent'
      f'{_scaled(c["sent"])}B'
    )
  time = s['estimate']
  low, high = time['step_seconds']
  slow, fast = time['images_per_second']
  lines += [
    'estimate (roofline at data sheet rates, not a measurement)',
    f'  compute {time["compute_seconds"]:.3g} s, network '
    f'{time["network_seconds"]:.3g} s',
    f'  step {low:.3g} … {high:.3g} s, {slow:,.0f} … {fast:,.0f} images/s',
  ]
  return lines


def _verdict(s: dict[str, Any]) -> str:
  memory = s['memory']
  peak, capacity = _scaled(memory['peak']), _scaled(memory['capacity'])
  verdict = 'fits' if s['fits'] else 'does not fit'
  return f'{verdict}: peak {peak.strip()}B of {capacity.strip()}B per device'
