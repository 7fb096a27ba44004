"""A report that people look at: one HTML file, from the files of a run."""

from lipnext_jax.page.build import build_page
from lipnext_jax.page.build import try_write_page
from lipnext_jax.page.build import write_page
from lipnext_jax.page.data import read_run
from lipnext_jax.page.gallery import write_gallery

__all__ = [
  'build_page',
  'read_run',
  'try_write_page',
  'write_gallery',
  'write_page',
]
