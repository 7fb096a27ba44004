"""Fields of a config, the recipes that set them, and checks across them."""

from lipnext_jax.config.fields import closest
from lipnext_jax.config.fields import default_config
from lipnext_jax.config.fields import describe
from lipnext_jax.config.fields import DTYPES
from lipnext_jax.config.fields import EXPONENTIALS
from lipnext_jax.config.fields import Field
from lipnext_jax.config.fields import FIELDS
from lipnext_jax.config.fields import fixed_fields
from lipnext_jax.config.fields import flatten
from lipnext_jax.config.fields import INNER_RULES
from lipnext_jax.config.fields import PRECISIONS
from lipnext_jax.config.recipes import parse_argument
from lipnext_jax.config.recipes import SMOKE
from lipnext_jax.config.recipes import smoke
from lipnext_jax.config.validation import validate

__all__ = [
  'DTYPES',
  'EXPONENTIALS',
  'FIELDS',
  'INNER_RULES',
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
