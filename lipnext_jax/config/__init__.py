"""Fields of a config, the recipes that set them, and checks across them."""

from lipnext_jax.config.arguments import parse_argument
from lipnext_jax.config.arguments import SMOKE
from lipnext_jax.config.arguments import smoke
from lipnext_jax.config.fields import closest
from lipnext_jax.config.fields import default_config
from lipnext_jax.config.fields import describe
from lipnext_jax.config.fields import DTYPES
from lipnext_jax.config.fields import EXPONENTIALS
from lipnext_jax.config.fields import Field
from lipnext_jax.config.fields import FIELDS
from lipnext_jax.config.fields import fixed_fields
from lipnext_jax.config.fields import flatten
from lipnext_jax.config.fields import PRECISIONS
from lipnext_jax.config.fields import validate

__all__ = [
  'DTYPES',
  'EXPONENTIALS',
  'FIELDS',
  'PRECISIONS',
  'SMOKE',
  'Field',
  'closest',
  'default_config',
  'describe',
  'fixed_fields',
  'flatten',
  'parse_argument',
  'smoke',
  'validate',
]
