"""Runs the program of `lipnext_jax.main`; without arguments, shows its help."""

import sys

from lipnext_jax import errors

try:
  from absl import flags

  from lipnext_jax import main
except ImportError as missing:
  errors.exit_for_extra('train', missing)

if __name__ == '__main__':
  __doc__ = main.__doc__  # What --help shows.
  flags.adopt_module_key_flags(main)
  if len(sys.argv) == 1:
    sys.argv.append('--help')
  main.run()
