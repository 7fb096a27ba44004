"""Compiles the train step of a config for a machine that you need not have.

    python -m lipnext_jax.main --mode=compile --topology=v5p:2x2x4 \
      --config=configs/imagenet_2b.py

Shapes are enough: official sets need not be there, and nothing is allocated.
The compiler of that machine decides what fits.

The time of a step is estimated by a roofline at the rates of the data sheets:

    compute   (products in bfloat16) / peak + (float32 products) / their peak
    network   bytes sent between neighbours / links + over slices / network
    step      from the larger of the two (all overlap) to their sum (none)

It leaves out latency and memory traffic, and takes all links as busy. It shows
what limits a layout and how it scales, and is no measurement.
"""

from collections.abc import Sequence
import functools
import os
import re
from typing import Any
from typing import NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from lipnext_jax import config as config_lib
from lipnext_jax import files
from lipnext_jax import models
from lipnext_jax import parallel
from lipnext_jax import train
from lipnext_jax.aot import chips
from lipnext_jax.aot import collectives
from lipnext_jax.aot import flops as flops_lib
from lipnext_jax.aot import topology
from lipnext_jax.data import sources
from lipnext_jax.models import lipnext
from lipnext_jax.models import registry

EXIT_DOES_NOT_FIT = 3


class Compiled(NamedTuple):
  """A compiled train step, or the reason why the compiler refused it."""

  program: train.Program
  jaxpr: Any
  executable: Any  # None if the compiler refused.
  refusal: str  # Message of the compiler; '' if it compiled.


def run(
  config: ml_collections.ConfigDict, topology_name: str, workdir: str | None
) -> int:
  """Compiles a config for a machine such as 'v5p:2x2x4', and prints the report.

  Writes `compile.json` to the workdir, if there is one.

  Returns:
    Exit code: 0 if the program fits the chips' memory, 3 if not.

  Raises:
    ConfigError: the config is wrong or does not fit, or the machine is unknown.
  """
  config_lib.validate(config)
  chip, devices = topology.find_devices(topology_name)
  info = sources.describe(config.dataset)
  compiled = compile_step(config, devices, info)
  summary = summarize(config, compiled, topology_name, chip)
  print(format_text(summary), flush=True)
  if workdir:
    files.make_folder(workdir)
    files.write_json(os.path.join(workdir, 'compile.json'), summary)
  return 0 if summary['fits'] else EXIT_DOES_NOT_FIT


def compile_step(
  config: ml_collections.ConfigDict,
  devices: Sequence[Any],
  info: sources.DatasetInfo,
) -> Compiled:
  """Compiles the train step of a valid config for devices that need not exist.

  Raises:
    ConfigError: the config does not fit the devices.
  """
  program = train.build(config, parallel.make_mesh(config.mesh, devices), info)
  traced = program.train_step.trace(program.abstract, program.batch)
  try:
    return Compiled(program, traced.jaxpr, traced.lower().compile(), '')
  except jax.errors.JaxRuntimeError as error:
    message = str(error)
    if 'RESOURCE_EXHAUSTED' not in message and 'HbmOom' not in message:
      raise
    # The line with the numbers.
    used = re.search(r'Used [^\n]*? hbm\. Exceeded [^\n]*?\.(?=\s|$)', message)
    refusal = used[0] if used else message.splitlines()[0]
    return Compiled(program, traced.jaxpr, None, refusal)


def summarize(
  config: ml_collections.ConfigDict,
  compiled: Compiled,
  name: str,
  chip: chips.Chip,
) -> dict[str, Any]:
  """Returns all numbers of a report on a machine; bytes are per device."""
  program, jaxpr, executable, refusal = compiled
  mesh, params = program.mesh, program.abstract.params
  count = functools.partial(flops_lib.count, jaxpr, platform=chip.platform)
  # Every device updates the stem's matrix, which is not in a stack.
  update = count('optimizer', copies=mesh.size)
  repeated = np.subtract(update, count('optimizer'))
  executed = flops_lib.Flops(*np.add(count(), repeated).tolist())
  memory: dict[str, Any] = {
    'parameters': parallel.local_bytes(params),
    'optimizer': parallel.local_bytes(program.abstract.opt_state),
  }
  # Baselines and unrolled blocks have no scan whose outputs could be counted.
  if config.model.name == 'lipnext' and not config.model.unroll:
    batch = len(program.batch['label']) // config.microbatches
    height, width, _ = program.info.image_shape
    tokens = batch * height * width // config.model.patch_size**2
    saved = flops_lib.saved_activations(jaxpr, batch, tokens)
    memory['saved_activations'] = saved // mesh.size
    memory['sum'] = sum(memory.values())
  memory['capacity'] = chip.memory
  # The train state, and the copy of the weights that a step works with.
  arrays = {**program.abstract._asdict(), 'compute': program.working}
  summary = {
    'machine': name,
    'devices': mesh.size,
    'mesh': dict(mesh.shape),
    'batch_size': config.batch_size,
    'microbatches': config.microbatches,
    'reduce_dtype': config.reduce_dtype,
    'remat': config.model.remat,
    'parameter_count': models.parameter_count(params),
    'paper_parameter_count': lipnext.paper_parameter_count(params),
    'memory': memory,
    'flops': {
      'model': _model_flops(config, program),
      'executed': executed.total,
      'optimizer': update.total,
      'optimizer_per_device': update.total / mesh.size,
    },
    'sharding': parallel.layout_table(arrays),
    'fits': False,
    'refusal': refusal,
  }
  if executable is None:
    return summary

  stats = executable.memory_analysis()
  memory['arguments'] = stats.argument_size_in_bytes
  memory['temporaries'] = stats.temp_size_in_bytes
  whole = memory['arguments'] + memory['temporaries']
  whole += stats.output_size_in_bytes - stats.alias_size_in_bytes
  peak = stats.peak_memory_in_bytes or whole
  if chip.platform == 'cpu':  # The CPU compiler's peak lacks temporaries.
    peak = max(peak, whole)
  memory['peak'] = peak
  if 'sum' in memory:
    memory['peak_over_sum'] = peak / memory['sum']
  # Descriptions of GPUs have no slices: a host stands for a slice.
  on_gpus = chip.platform == 'cuda'
  slices = [
    device.process_index if on_gpus else parallel.slice_of(device)
    for device in mesh.devices.flat
  ]
  sent = collectives.read(executable.as_text(), slices)
  summary['collectives'] = _group(sent)
  summary['estimate'] = _estimate(
    chip, mesh.size, executed, sent, config.batch_size
  )
  summary['fits'] = peak <= chip.usable * chip.memory
  return summary


def _model_flops(
  config: ml_collections.ConfigDict, program: train.Program
) -> float:
  """Counts the operations of both passes, each product once."""
  model_config = config.copy_and_resolve_references().model
  model_config.remat = 'products'
  model = registry.build_model(model_config, program.info.num_classes)

  def loss(params, images):
    logits: Any = model.apply({'params': params}, images)
    return logits.sum()

  shape = (len(program.batch['label']), *program.info.image_shape)
  images = jax.ShapeDtypeStruct(shape, jnp.float32)
  jaxpr = jax.make_jaxpr(jax.grad(loss))(program.abstract.params, images)
  return flops_lib.count(jaxpr).total


def _group(sent: Sequence[collectives.Collective]) -> list[dict[str, Any]]:
  """Sums the collectives of each kind, dtype, group and network."""
  found: dict[tuple, dict[str, Any]] = {}
  for c in sent:
    key = c.kind, c.dtype, c.group, c.crosses
    names = 'kind', 'dtype', 'group', 'over_slices'
    nothing = {'count': 0, 'bytes': 0, 'sent': 0.0}
    entry = found.setdefault(key, dict(zip(names, key, strict=True)) | nothing)
    entry['count'] += c.trips
    entry['bytes'] += c.size * c.trips
    entry['sent'] += c.sent
  return sorted(found.values(), key=lambda entry: -entry['sent'])


def _estimate(
  chip: chips.Chip,
  devices: int,
  flops: flops_lib.Flops,
  sent: Sequence[collectives.Collective],
  batch_size: int,
) -> dict[str, Any]:
  """Estimates the time of a step as the module's docstring says."""
  compute = flops.narrow / chip.compute + flops.wide / chip.float32
  compute /= devices
  near = sum(c.sent for c in sent if not c.crosses)
  far = sum(c.sent for c in sent if c.crosses)
  network = near / chip.links + far / chip.network
  best, worst = max(compute, network), compute + network
  return {
    'compute_seconds': compute,
    'network_seconds': network,
    'step_seconds': [best, worst],
    'images_per_second': [batch_size / worst, batch_size / best],
  }


def format_text(s: dict[str, Any]) -> str:
  """Formats a summary of `summarize`; the last line is the verdict."""
  memory, flops = s['memory'], s['flops']
  mesh = ' × '.join(f'{axis} {size}' for axis, size in s['mesh'].items())
  lines = [
    s['sharding'],
    '',
    f'{s["machine"]}: {s["devices"]} devices, mesh {mesh}',
    f'  parameters stored   {s["parameter_count"]:>16,d}',
    f'  as the paper counts {s["paper_parameter_count"]:>16,d}  (R, M whole)',
    f'  batch               {s["batch_size"]:>16,d}  in {s["microbatches"]} '
    f'microbatches, remat {s["remat"]}, gradients reduced in '
    f'{s["reduce_dtype"]}',
    'memory per device',
  ]
  for key in (
    'parameters', 'optimizer', 'saved_activations', 'sum', 'arguments',
    'temporaries', 'peak', 'capacity',
  ):  # fmt: skip
    if key in memory:
      name = 'sum of these' if key == 'sum' else key.replace('_', ' ')
      lines.append(f'  {name:<18s}  {_scaled(memory[key])}B')
  if 'peak_over_sum' in memory:
    lines.append(f'  peak over that sum  {memory["peak_over_sum"]:>16.2f}')
  lines.append('operations per step')
  for key, name in (
    ('model', 'model'),
    ('executed', 'executed'),
    ('optimizer', 'of these, optimizer'),
    ('optimizer_per_device', 'optimizer, per device'),
  ):
    lines.append(f'  {name:<24s}{_scaled(flops[key], 1000)}FLOP')
  if s['refusal']:
    return '\n'.join([*lines, f'does not fit: {s["refusal"]}'])

  lines.append('collectives per step and device')
  for c in s['collectives']:
    where = ' over slices' if c['over_slices'] else ''
    lines.append(
      f'  {c["kind"]:<20s}{c["dtype"]:>5s}  {c["count"]:>4d} × among '
      f'{c["group"]} devices{where}:{_scaled(c["bytes"])}B, sent'
      f'{_scaled(c["sent"])}B'
    )
  time = s['estimate']
  low, high = time['step_seconds']
  slow, fast = time['images_per_second']
  peak, capacity = (_scaled(memory[k]).strip() for k in ('peak', 'capacity'))
  lines += [
    'estimate (roofline at data sheet rates, not a measurement)',
    f'  compute {time["compute_seconds"]:.3g} s, network '
    f'{time["network_seconds"]:.3g} s',
    f'  step {low:.3g} … {high:.3g} s, {slow:,.0f} … {fast:,.0f} images/s',
    f'{"fits" if s["fits"] else "does not fit"}: peak {peak}B of {capacity}B '
    'per device',
  ]
  return '\n'.join(lines)


def _scaled(number: float, base: int = 1024) -> str:
  """Writes a number with a prefix of powers of 1024 ('Ki', …) or 1000 ('k')."""
  prefixes = [*('Ki Mi Gi Ti Pi Ei' if base == 1024 else 'k M G T P E').split()]
  prefix = ''
  while number >= base and prefixes:
    number /= base
    prefix = prefixes.pop(0)
  return f'{number:>10.2f} {prefix}'
