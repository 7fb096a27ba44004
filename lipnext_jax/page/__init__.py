"""A report that people look at: one HTML file, from the files of a run."""

from lipnext_jax.page.build import build_page
from lipnext_jax.page.build import report_evaluation
from lipnext_jax.page.build import write_page
from lipnext_jax.page.data import read_run

__all__ = ['build_page', 'read_run', 'report_evaluation', 'write_page']
