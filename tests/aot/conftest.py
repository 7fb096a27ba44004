"""Starts JAX as for all tests, before a CPU topology changes its devices."""

import jax

jax.devices()
