"""Lines for people; the numbers are tested where they are made."""

from lipnext_jax.aot import report


def test_every_number_has_its_unit(found):
  _, _, summary = found
  summary = summary | {
    'sharding': 'the table',
    'parameter_count': 2_190_000_000,
    'memory': summary['memory'] | {'parameters': 2**29, 'optimizer': 2**31},
    'flops': summary['flops'] | {'model': 3.42e15, 'executed': 2.2e13},
    'collectives': [summary['collectives'][0] | {'over_slices': True}],
    'estimate': summary['estimate'] | {'images_per_second': [1600.0, 1706.7]},
  }
  text = report.format_text(summary)
  for part in (
    'the table',
    'two: 2 devices, mesh data 1 × fsdp 2 × tensor 1',
    '2,190,000,000',
    '512.00 MiB',
    '2.00 GiB',
    '3.42 PFLOP',
    '22.00 TFLOP',
    'devices over slices:',
    'estimate (roofline at data sheet rates, not a measurement)',
    '1,600 … 1,707 images/s',
  ):
    assert part in text, part
  assert text.splitlines()[-1].startswith('fits: peak ')
  assert text.endswith(' of 16.00 GiB per device')


def test_a_refusal_is_the_last_line(found):
  refused = found[2] | {'fits': False, 'refusal': 'Used 22G of 15G hbm.'}
  for key in ('collectives', 'estimate'):
    refused.pop(key)
  last = report.format_text(refused).splitlines()[-1]
  assert last == 'does not fit: Used 22G of 15G hbm.'
