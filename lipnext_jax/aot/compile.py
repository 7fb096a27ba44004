"""The train step of a config, compiled for a machine that need not be here.

    python -m lipnext_jax.main --mode=compile --topology=v5p:2x2x4 \
      --config=configs/imagenet_2b.py

Nothing is allocated and no data are read: shapes are enough. The compiler of
the machine itself decides what fits.
"""

from collections.abc import Sequence
import os
import re
from typing import Any

import jax
import ml_collections

from lipnext_jax import config as config_lib
from lipnext_jax import files
from lipnext_jax import train
from lipnext_jax.aot import chips
from lipnext_jax.aot import report
from lipnext_jax.aot import summary as summary_lib
from lipnext_jax.aot import topology as topology_lib
from lipnext_jax.data import sources
from lipnext_jax.parallel import mesh as mesh_lib

EXIT_DOES_NOT_FIT = 3


def compile_step(
  config: ml_collections.ConfigDict, devices: Sequence[Any], facts: Any
) -> summary_lib.Compiled:
  """Lowers and compiles the train step of a validated config.

  Args:
    config: all of it.
    devices: what for; they need not exist.
    facts: about the dataset, from `data.sources.describe`.

  Raises:
    ConfigError: the config does not fit the devices (a size that does not
      divide, a rule that is missing).
  """
  mesh = mesh_lib.make_mesh(config.mesh, devices)
  program = train.build(config, mesh, facts)
  traced = summary_lib.trace(program)
  try:
    executable = traced.lower().compile()
  except jax.errors.JaxRuntimeError as error:
    refusal = _read_refusal(str(error))
    if not refusal:
      raise
    return summary_lib.Compiled(program, traced.jaxpr, None, refusal)
  return summary_lib.Compiled(program, traced.jaxpr, executable, '')


def _read_refusal(message: str) -> str:
  """The line that says how much was too much, of an out-of-memory error."""
  if 'RESOURCE_EXHAUSTED' not in message and 'HbmOom' not in message:
    return ''
  match = re.search(r'Used [^\n]*? hbm\. Exceeded [^\n]*?\.(?=\s|$)', message)
  return match[0] if match else message.splitlines()[0]


def run(
  config: ml_collections.ConfigDict, topology_name: str, workdir: str | None
) -> int:
  """The mode: compiles, prints the report, returns the exit code.

  Args:
    config: as given; validated here.
    topology_name: e.g. 'v5p:2x2x4'; '' for the devices of this machine.
    workdir: where `compile.json` goes; None for nowhere.

  Returns:
    0 if the program fits the chips' memory, 3 if not.

  Raises:
    ConfigError: as in training, or a machine that is not known.
  """
  config_lib.validate(config)
  if topology_name:
    topology = topology_lib.parse(topology_name)
    devices = topology_lib.find_devices(topology)
    name, chip = topology.name, topology.chip
  else:
    devices = jax.devices()
    name = f'{devices[0].device_kind} × {len(devices)}'
    chip = chips.by_device_kind(devices[0].device_kind)
  facts = sources.describe(config.dataset)
  compiled = compile_step(config, devices, facts)
  summary = summary_lib.summarize(config, compiled, name, chip)
  print(report.format_text(summary), flush=True)
  if workdir and jax.process_index() == 0:
    os.makedirs(workdir, exist_ok=True)
    files.write_json(os.path.join(workdir, 'compile.json'), summary)
  return 0 if summary['fits'] else EXIT_DOES_NOT_FIT
