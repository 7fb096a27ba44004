"""The records of a run: metrics, progress, files, a table, one HTML page."""

from lipnext_jax import errors

# `python -m lipnext_jax.report` imports this before its `__main__`.
with errors.needing_extra('train', __name__):
  from lipnext_jax.report.metrics import log
  from lipnext_jax.report.metrics import MetricWriter
  from lipnext_jax.report.metrics import Progress
  from lipnext_jax.report.metrics import stopwatch
  from lipnext_jax.report.page import write_page
  from lipnext_jax.report.records import check_data
  from lipnext_jax.report.records import read_data_facts
  from lipnext_jax.report.records import write
  from lipnext_jax.report.records import write_inputs
  from lipnext_jax.report.records import write_records

__all__ = [
  'MetricWriter',
  'Progress',
  'check_data',
  'log',
  'read_data_facts',
  'stopwatch',
  'write',
  'write_inputs',
  'write_page',
  'write_records',
]
