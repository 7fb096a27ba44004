"""Collects memory, operations, transfers and time of a compiled train step.

The time is estimated by a roofline at the rates of the data sheets:

    compute   (products in bfloat16) / peak + (float32 products) / their peak
    network   bytes sent between neighbours / links + over slices / network
    step      from the larger of the two (all overlap) to their sum (none)

It leaves out latency and memory traffic, and takes all links as busy. It shows
what limits a layout and how it scales, and is no measurement.
"""

from collections.abc import Sequence
import functools
from typing import Any
from typing import NamedTuple

import jax
import jax.numpy as jnp
import ml_collections

from lipnext_jax import models
from lipnext_jax import train
from lipnext_jax.aot import chips
from lipnext_jax.aot import collectives
from lipnext_jax.aot import flops as flops_lib
from lipnext_jax.models import lipnext
from lipnext_jax.models import registry
from lipnext_jax.parallel import mesh as mesh_lib


class Compiled(NamedTuple):
  """A compiled train step, or the reason why the compiler refused it."""

  program: train.Program
  jaxpr: Any
  executable: Any  # None if the compiler refused.
  refusal: str  # Message of the compiler; '' if it compiled.


def trace(program: train.Program) -> jax.stages.Traced:
  """Traces the train step of a program for the shapes of its config."""
  return program.train_step.trace(program.abstract, program.batch)


def summarize(
  config: ml_collections.ConfigDict,
  compiled: Compiled,
  name: str,
  chip: chips.Chip,
) -> dict[str, Any]:
  """Returns all numbers of a report; bytes are per device.

  Args:
    config: config of the run.
    compiled: result of `compile.compile_step`.
    name: name of the machine.
    chip: kind of the machine's devices.
  """
  program, mesh = compiled.program, compiled.program.mesh
  count = functools.partial(
    flops_lib.count, compiled.jaxpr, platform=chip.platform
  )
  # Every device updates the stem's matrix, which is not in a stack.
  update = count('optimizer', copies=mesh.size)
  executed = count() + update + count('optimizer').times(-1)
  params = program.abstract.params
  memory = _stored_bytes(config, compiled)
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
    'memory': memory | {'capacity': chip.memory},
    'flops': {
      'model': _model_flops(compiled, config),
      'executed': executed.total,
      'optimizer': update.total,
      'optimizer_per_device': update.total / mesh.size,
    },
    'sharding': mesh_lib.table(arrays),
    'fits': False,
    'refusal': compiled.refusal,
  }
  if compiled.executable is None:
    return summary

  summary['memory'] |= _peak_bytes(compiled.executable, chip)
  peak = summary['memory']['peak']
  if 'sum' in memory:
    summary['memory']['peak_over_sum'] = peak / memory['sum']
  sent = _read_collectives(compiled, chip)
  summary['collectives'] = group(sent)
  summary['estimate'] = estimate(
    chip, mesh.size, executed, sent, config.batch_size
  )
  summary['fits'] = peak <= chip.usable * chip.memory
  return summary


def _stored_bytes(
  config: ml_collections.ConfigDict, compiled: Compiled
) -> dict[str, int]:
  """Returns the bytes of a step's arrays that shapes alone determine."""
  program = compiled.program
  memory = {
    'parameters': mesh_lib.local_bytes(program.abstract.params),
    'optimizer': mesh_lib.local_bytes(program.abstract.opt_state),
  }
  # Baselines and unrolled blocks have no scan whose outputs could be counted.
  if config.model.name == 'lipnext' and not config.model.unroll:
    batch = len(program.batch['label']) // config.microbatches
    height, width, _ = program.info.image_shape
    tokens = batch * height * width // config.model.patch_size**2
    saved = flops_lib.saved_activations(compiled.jaxpr, batch, tokens)
    memory['saved_activations'] = saved // program.mesh.size
    memory['sum'] = sum(memory.values())
  return memory


def _peak_bytes(executable: Any, chip: chips.Chip) -> dict[str, int]:
  """Returns the compiler's figures of a program's memory."""
  stats = executable.memory_analysis()
  arguments = stats.argument_size_in_bytes
  whole = arguments + stats.temp_size_in_bytes + stats.output_size_in_bytes
  whole -= stats.alias_size_in_bytes
  peak = stats.peak_memory_in_bytes or whole
  if chip.platform == 'cpu':  # The CPU compiler's peak lacks temporaries.
    peak = max(peak, whole)
  temporaries = stats.temp_size_in_bytes
  return {'arguments': arguments, 'temporaries': temporaries, 'peak': peak}


def _model_flops(
  compiled: Compiled, config: ml_collections.ConfigDict
) -> float:
  """Counts the operations of both passes, each product once."""
  program = compiled.program
  plain_config = config.copy_and_resolve_references().model
  plain_config.remat = 'products'
  model = registry.build_model(plain_config, program.info.num_classes)

  def loss(params, images):
    logits: Any = model.apply({'params': params}, images)
    return logits.sum()

  shape = program.abstract.params
  plain = jax.tree.map(lambda p: jax.ShapeDtypeStruct(p.shape, p.dtype), shape)
  size = len(program.batch['label'])
  images = jax.ShapeDtypeStruct((size, *program.info.image_shape), jnp.float32)
  traced = jax.jit(jax.grad(loss)).trace(plain, images)
  return flops_lib.count(traced.jaxpr).total


def _read_collectives(
  compiled: Compiled, chip: chips.Chip
) -> list[collectives.Collective]:
  """Lists the collectives; `crosses` marks those between slices or hosts."""
  # Descriptions of GPUs have no slices: a host stands for a slice.
  slices = [
    d.process_index if chip.platform == 'cuda' else mesh_lib.slice_of(d)
    for d in compiled.program.mesh.devices.flat
  ]
  return collectives.read(
    compiled.executable.as_text(), lambda i: slices[i % len(slices)]
  )


def group(sent: Sequence[collectives.Collective]) -> list[dict[str, Any]]:
  """Sums the collectives of each kind, dtype, group and network."""
  found: dict[tuple, dict[str, Any]] = {}
  for c in sent:
    key = {
      'kind': c.kind,
      'dtype': c.dtype,
      'group': c.group,
      'over_slices': c.crosses,
    }
    nothing = key | {'count': 0, 'bytes': 0, 'sent': 0.0}
    entry = found.setdefault(tuple(key.values()), nothing)
    entry['count'] += c.trips
    entry['bytes'] += c.size * c.trips
    entry['sent'] += c.sent
  return sorted(found.values(), key=lambda entry: -entry['sent'])


def estimate(
  chip: chips.Chip,
  devices: int,
  flops: flops_lib.Flops,
  sent: Sequence[collectives.Collective],
  batch_size: int,
) -> dict[str, Any]:
  """Estimates the time of a step as the module's docstring says.

  Args:
    chip: kind of the devices.
    devices: number of devices.
    flops: operations of all devices together, recomputation included.
    sent: collectives of one device.
    batch_size: number of images in a step.
  """
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
