"""Runs the program of `lipnext_jax.main`; without arguments, shows its help."""

import sys

from lipnext_jax import errors

with errors.needing_extra('train', __name__):
  from absl import flags

  from lipnext_jax import main

if __name__ == '__main__':
  __doc__ = main.__doc__  # What --help shows.
  flags.adopt_module_key_flags(main)
  if len(sys.argv) == 1:
    sys.argv.append('--help')
  main.run()
