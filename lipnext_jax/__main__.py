"""Runs the program of `lipnext_jax.main`; without arguments, shows its help."""

import runpy
import sys

if __name__ == '__main__':
  if len(sys.argv) == 1:
    sys.argv.append('--help')
  runpy.run_module('lipnext_jax.main', run_name='__main__', alter_sys=True)
