"""Describes machines by name, 'v5p:2x2x4', for compilers; none need exist."""

from collections.abc import Sequence
import contextlib
from importlib import resources
import importlib.util
import os
import re
from typing import Any

import jax
from jax.experimental import topologies

from lipnext_jax import errors
from lipnext_jax.aot import chips

_EXAMPLES = 'v5p:2x2x4, v5e:4x4, v5e:4x4*2, h100:1x1x8, cpu:16'
# Platform → form of a machine's size.
_N = r'[1-9]\d*'
_SIZES = {
  'tpu': rf'{_N}(x{_N})*(\*{_N})?',
  'cuda': rf'{_N}x{_N}x{_N}',
  'cpu': _N,
}
# Platform → (modules of its compiler, extra of setup.cfg that installs them).
_COMPILERS = {
  'tpu': (('libtpu',), 'tpu'),
  'cuda': (('jax_plugins.xla_cuda13', 'nvidia.cu13'), 'aot-cuda'),
}


def _refusal(name: str, problem: str, remedy: str) -> errors.ConfigError:
  return errors.ConfigError('--topology', name, problem, remedy)


def missing_extra(platform: str) -> str | None:
  """Returns the extra that compiling for a platform lacks, or None."""
  modules, extra = _COMPILERS.get(platform, ((), ''))
  find = importlib.util.find_spec
  for module in modules:
    if not find(module.partition('.')[0]) or not find(module):
      return extra
  return None


def find_devices(name: str) -> tuple[chips.Chip, Sequence[Any]]:
  """Returns a machine's chip, and its devices to compile for.

  Call this before JAX uses other devices.

  Args:
    name: 'kind:AxBx…', or 'kind:AxBx…*n' for n TPU slices of this shape with a
      slow network in between.

  Raises:
    ConfigError: the name has another form, the kind is unknown, the compiler is
      not installed, or it does not know the shape.
  """
  kind, _, size = name.partition(':')
  chip = chips.CHIPS.get(kind)
  if chip is None or not re.fullmatch(_SIZES[chip.platform], size):
    raise _refusal(
      name,
      'is not a machine',
      f'write e.g. {_EXAMPLES}; kinds: {", ".join(chips.CHIPS)}',
    )
  # Keeps JAX from the accelerators of this machine.
  jax.config.update('jax_platforms', 'cpu')
  if chip.platform == 'cpu':
    count = int(size)
    with contextlib.suppress(RuntimeError):  # JAX has started its devices.
      jax.config.update('jax_num_cpu_devices', count)
    devices = jax.devices('cpu')
    if len(devices) < count:
      raise _refusal(
        name,
        f'is more than the {len(devices)} CPU devices that JAX started with',
        'compile in a new process',
      )
    return chip, devices[:count]
  if extra := missing_extra(chip.platform):
    raise _refusal(
      name,
      'needs a compiler that is not installed',
      f'add the extra: {errors.install_command(extra)}',
    )
  options: dict[str, Any]
  if chip.platform == 'tpu':
    # The first variable keeps a second process from aborting at libtpu's lock
    # file; the other two keep libtpu from asking the cloud where it runs.
    os.environ['ALLOW_MULTIPLE_LIBTPU_LOAD'] = '1'
    os.environ.setdefault('TPU_WORKER_HOSTNAMES', 'localhost')
    os.environ.setdefault('TPU_ACCELERATOR_TYPE', 'v5litepod-16')
    shape, _, slices = name.partition('*')
    options = {'topology_name': shape, 'num_slices': int(slices or 1)}
  else:
    files = resources.files('lipnext_jax.aot') / 'targets'
    target = (files / chip.target).read_text(encoding='utf-8')
    options = {'target_config': target, 'topology': size}
  try:
    found = topologies.get_topology_desc(platform=chip.platform, **options)
  except jax.errors.JaxRuntimeError as error:
    raise _refusal(
      name,
      f'is refused by the compiler ({str(error).splitlines()[0]})',
      f'write e.g. {_EXAMPLES}',
    ) from None
  return chip, found.devices
