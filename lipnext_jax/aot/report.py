"""Formats the report that `--mode=compile` prints."""

from typing import Any


def format_text(s: dict[str, Any]) -> str:
  """Formats a summary of `summary.summarize`; the last line is the verdict."""
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
    *(f'  {k:<18s}  {_scaled(n)}B' for k, n in s['memory'].items()),
    'operations per step',
    *(f'  {k:<24s}{_scaled(n, 1000)}FLOP' for k, n in s['flops'].items()),
  ]
  if s['refusal']:
    return '\n'.join([*lines, f'does not fit: {s["refusal"]}'])

  lines.append('collectives per step and device')
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
  verdict = 'fits' if s['fits'] else 'does not fit'
  peak, capacity = (_scaled(s['memory'][k]) for k in ('peak', 'capacity'))
  return '\n'.join(
    [
      *lines,
      'estimate (roofline at data sheet rates, not a measurement)',
      f'  compute {time["compute_seconds"]:.3g} s, network '
      f'{time["network_seconds"]:.3g} s',
      f'  step {low:.3g} … {high:.3g} s, {slow:,.0f} … {fast:,.0f} images/s',
      f'{verdict}: peak {peak.strip()}B of {capacity.strip()}B per device',
    ]
  )


def _scaled(number: float, base: int = 1024) -> str:
  """Writes a number with a prefix of powers of 1024 ('Ki', …) or 1000 ('k')."""
  prefixes = ('Ki Mi Gi Ti Pi Ei' if base == 1024 else 'k M G T P E').split()
  prefix = ''
  while number >= base and prefixes:
    number /= base
    prefix = prefixes.pop(0)
  return f'{number:>10.2f} {prefix}'
