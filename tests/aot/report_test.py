"""Lines for people; the numbers are tested where they are made."""

from lipnext_jax.aot import report

SUMMARY = {
  'machine': 'h100:2x1x8',
  'devices': 16,
  'mesh': {'data': 2, 'fsdp': 8, 'tensor': 1},
  'batch_size': 1024,
  'microbatches': 2,
  'remat': 'block',
  'reduce_dtype': 'float32',
  'parameter_count': 2_190_000_000,
  'paper_parameter_count': 2_147_024_896,
  'memory': {
    'parameters': 2**29,
    'optimizer': 2**31,
    'saved_activations': 3 * 2**30,
    'sum': 2**29 + 2**31 + 3 * 2**30,
    'capacity': 80 * 2**30,
    'peak': 7 * 2**30,
    'peak_over_sum': 1.27,
  },
  'flops': {
    'model': 3.42e15,
    'executed': 4.9e15,
    'optimizer': 3.5e14,
    'optimizer_per_device': 2.2e13,
  },
  'sharding': 'the table',
  'collectives': [
    {
      'kind': 'all-reduce',
      'dtype': 'f32',
      'group': 2,
      'over_slices': True,
      'count': 64,
      'bytes': 2**30,
      'sent': 2.0**30,
    }
  ],
  'estimate': {
    'compute_seconds': 0.6,
    'network_seconds': 0.04,
    'step_seconds': [0.6, 0.64],
    'images_per_second': [1600.0, 1706.7],
  },
  'fits': True,
  'refusal': '',
}


def test_every_number_has_its_unit():
  text = report.format_text(SUMMARY)
  for part in (
    'the table',
    '16 devices, mesh data 2 × fsdp 8 × tensor 1',
    '2,190,000,000',
    '512.00 MiB',
    '2.00 GiB',
    '3.42 PFLOP',
    '22.00 TFLOP',
    'over slices',
    'not a measurement',
    '1,600 … 1,707 images/s',
  ):
    assert part in text, part
  last = text.splitlines()[-1]
  assert last == 'fits: peak 7.00 GiB of 80.00 GiB per device'


def test_a_refusal_is_the_last_line():
  refused = SUMMARY | {'fits': False, 'refusal': 'Used 22G of 15G hbm.'}
  for key in ('collectives', 'estimate'):
    refused.pop(key)
  last = report.format_text(refused).splitlines()[-1]
  assert last == 'does not fit: Used 22G of 15G hbm.'
