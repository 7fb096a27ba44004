"""Compiles the train step of a config for a machine that you need not have.

    python -m lipnext_jax.main --mode=compile --topology=v5p:2x2x4 \
      --config=configs/imagenet_2b.py

Shapes are enough: official sets need not be there, and nothing is allocated.
The compiler of that machine decides what fits.
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
from lipnext_jax.aot import report
from lipnext_jax.aot import summary as summary_lib
from lipnext_jax.aot import topology as topology_lib
from lipnext_jax.data import sources
from lipnext_jax.parallel import mesh as mesh_lib

EXIT_DOES_NOT_FIT = 3


def compile_step(
  config: ml_collections.ConfigDict,
  devices: Sequence[Any],
  info: sources.DatasetInfo,
) -> summary_lib.Compiled:
  """Lowers and compiles the train step of a valid config.

  Args:
    config: config of a run.
    devices: devices to compile for, which need not exist.
    info: description of the dataset, from `data.sources.describe`.

  Raises:
    ConfigError: the config does not fit the devices, e.g. a size does not
      divide, or no sharding rule matches.
  """
  mesh = mesh_lib.make_mesh(config.mesh, devices)
  program = train.build(config, mesh, info)
  traced = summary_lib.trace(program)
  executable, refusal = None, ''
  try:
    executable = traced.lower().compile()
  except jax.errors.JaxRuntimeError as error:
    refusal = _read_refusal(str(error))
    if not refusal:
      raise
  return summary_lib.Compiled(program, traced.jaxpr, executable, refusal)


def _read_refusal(message: str) -> str:
  """Returns the line with the numbers of an out-of-memory error, else ''."""
  if 'RESOURCE_EXHAUSTED' not in message and 'HbmOom' not in message:
    return ''
  match = re.search(r'Used [^\n]*? hbm\. Exceeded [^\n]*?\.(?=\s|$)', message)
  return match[0] if match else message.splitlines()[0]


def run(
  config: ml_collections.ConfigDict, topology_name: str, workdir: str | None
) -> int:
  """Compiles a config, prints the report and returns an exit code.

  Args:
    config: config to validate and compile.
    topology_name: name such as 'v5p:2x2x4'.
    workdir: folder to write `compile.json` to, or None.

  Returns:
    0 if the program fits the chips' memory, 3 if not.

  Raises:
    ConfigError: the config is wrong or does not fit, or the machine is unknown.
  """
  config_lib.validate(config)
  topology = topology_lib.parse(topology_name)
  devices = topology_lib.find_devices(topology)
  info = sources.describe(config.dataset)
  compiled = compile_step(config, devices, info)
  summary = summary_lib.summarize(
    config, compiled, topology.name, topology.chip
  )
  print(report.format_text(summary), flush=True)
  if workdir:
    files.make_folder(workdir)
    files.write_json(os.path.join(workdir, 'compile.json'), summary)
  return 0 if summary['fits'] else EXIT_DOES_NOT_FIT
