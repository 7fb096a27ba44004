"""The report of `--mode=compile`, for people."""

from typing import Any


def format_text(s: dict[str, Any]) -> str:
  """The summary of `summary.summarize` as lines.

  >>> memory = {'parameters': 1, 'optimizer': 2, 'saved_activations': 3,
  ...   'sum': 6, 'capacity': 2**34}
  >>> flops = {'model': 1e12, 'executed': 2e12, 'optimizer': 0.0,
  ...   'optimizer_per_device': 0.0}
  >>> print(format_text({'machine': 'v5e:4x4', 'devices': 16, 'mesh': {
  ...   'data': 16}, 'batch_size': 8, 'microbatches': 1, 'remat': 'none',
  ...   'reduce_dtype': 'float32', 'parameter_count': 5,
  ...   'paper_parameter_count': 4, 'memory': memory,
  ...   'flops': flops, 'sharding': '', 'fits': False,
  ...   'refusal': 'Used 20G of 16G hbm.'}).splitlines()[-1])
  does not fit: Used 20G of 16G hbm.
  """
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
      for name, key in (
        ('parameters', 'parameters'),
        ('optimizer', 'optimizer'),
        ('saved activations', 'saved_activations'),
        ('sum of these', 'sum'),
        ('arguments', 'arguments'),
        ('temporaries', 'temporaries'),
        ('peak', 'peak'),
        ('capacity', 'capacity'),
      )
      if key in memory
    ),
  ]
  if 'peak_over_sum' in memory:
    lines.append(f'  peak over that sum  {memory["peak_over_sum"]:>16.2f}')
  lines += [
    'operations per step',
    *(
      f'  {name:<24s}{_scaled(s["flops"][key], 1000)}FLOP'
      for name, key in (
        ('model', 'model'),
        ('executed', 'executed'),
        ('of it, the optimizer', 'optimizer'),
        ('optimizer, per device', 'optimizer_per_device'),
      )
    ),
  ]
  if not s['refusal']:
    lines += _transfers(s)
    lines.append(_verdict(s))
  else:
    lines.append(f'does not fit: {s["refusal"]}')
  return '\n'.join(lines)


def _scaled(number: float, base: int = 1024) -> str:
  """With a prefix: powers of 1000, or of 1024 (then 'Ki', 'Mi', …)."""
  prefixes = ['', 'k', 'M', 'G', 'T', 'P', 'E']
  if base == 1024:
    prefixes = ['', 'Ki', 'Mi', 'Gi', 'Ti', 'Pi', 'Ei']
  while number >= base and len(prefixes) > 1:
    number /= base
    del prefixes[0]
  return f'{number:>10.2f} {prefixes[0]}'


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
