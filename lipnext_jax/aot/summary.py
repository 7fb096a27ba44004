"""All numbers about a compiled train step, as JSON has them."""

from collections.abc import Sequence
import functools
from typing import Any
from typing import NamedTuple

import jax
import jax.numpy as jnp
import ml_collections

from lipnext_jax import models
from lipnext_jax import program as program_lib
from lipnext_jax.aot import chips
from lipnext_jax.aot import collectives
from lipnext_jax.aot import estimate
from lipnext_jax.aot import flops as flops_lib
from lipnext_jax.models import lipnext
from lipnext_jax.models import registry
from lipnext_jax.parallel import mesh as mesh_lib
from lipnext_jax.parallel import sharding as sharding_lib


class Compiled(NamedTuple):
  """A compiled train step, or why there is none."""

  program: program_lib.Program
  jaxpr: Any
  executable: Any  # None: refused.
  refusal: str  # What the compiler said; '' if it compiled.


def trace(
  config: ml_collections.ConfigDict, program: program_lib.Program
) -> jax.stages.Traced:
  """The train step of a program, traced for the shapes of its config."""
  return program.train_step.trace(
    program.abstract,
    program_lib.abstract_batch(config, program.mesh, program.facts),
  )


def summarize(
  config: ml_collections.ConfigDict,
  compiled: Compiled,
  name: str,
  chip: chips.Chip,
) -> dict[str, Any]:
  """All numbers of a report, as JSON has them; bytes are per device.

  Args:
    config: what was compiled.
    compiled: from `compile_step`.
    name: of the machine.
    chip: each of its devices.
  """
  program, mesh = compiled.program, compiled.program.mesh
  devices = mesh.size
  # A single matrix (the stem's) is updated by every device.
  count = functools.partial(
    flops_lib.count, compiled.jaxpr, platform=chip.platform
  )
  update, shared = count('optimizer', copies=devices), count('optimizer')
  executed = count() + update + shared.times(-1)
  memory = {
    'parameters': sharding_lib.local_bytes(
      program.abstract.params, program.shardings.params
    ),
    'optimizer': sharding_lib.local_bytes(
      program.abstract.opt_state, program.shardings.opt_state
    ),
  }
  if config.model.name == 'lipnext':  # The rivals have no loop to read it in.
    memory['saved_activations'] = _saved_activations(config, compiled)
    memory['sum'] = sum(memory.values())
  summary = {
    'machine': name,
    'devices': devices,
    'mesh': dict(mesh.shape),
    'batch_size': config.batch_size,
    'microbatches': config.microbatches,
    'reduce_dtype': config.reduce_dtype,
    'remat': config.model.remat,
    'parameter_count': models.parameter_count(program.abstract.params),
    'paper_parameter_count': lipnext.paper_parameter_count(
      program.abstract.params
    ),
    'memory': memory | {'capacity': chip.memory},
    'flops': {
      'model': _model_flops(compiled, config),
      'executed': executed.total,
      'optimizer': update.total,
      'optimizer_per_device': update.total / devices,
    },
    'sharding': _table(program),
    'fits': False,
    'refusal': compiled.refusal,
  }
  if compiled.executable is None:
    return summary

  stats = compiled.executable.memory_analysis()
  arguments = stats.argument_size_in_bytes
  whole = arguments + stats.temp_size_in_bytes + stats.output_size_in_bytes
  whole -= stats.alias_size_in_bytes
  peak = stats.peak_memory_in_bytes or whole
  if chip.platform == 'cpu':  # Its compiler leaves temporaries out of the peak.
    peak = max(peak, whole)
  # GPUs that are not here do not say which fabric they share: hosts do.
  slices = [
    d.process_index if chip.platform == 'cuda' else mesh_lib.slice_of(d)
    for d in mesh.devices.flat
  ]
  sent = collectives.read(
    compiled.executable.as_text(), lambda i: slices[i % len(slices)]
  )
  time = estimate.step_time(chip, devices, executed, sent)
  summary['memory'] |= {
    'arguments': arguments,
    'temporaries': stats.temp_size_in_bytes,
    'peak': peak,
  }
  if 'sum' in memory:
    summary['memory']['peak_over_sum'] = peak / memory['sum']
  summary['collectives'] = group(sent)
  summary['estimate'] = {
    'compute_seconds': time.compute,
    'network_seconds': time.network,
    'step_seconds': [time.best, time.worst],
    'images_per_second': [
      config.batch_size / time.worst,
      config.batch_size / time.best,
    ],
  }
  summary['fits'] = peak <= chip.usable * chip.memory
  return summary


def _saved_activations(
  config: ml_collections.ConfigDict, compiled: Compiled
) -> int:
  """Bytes that blocks keep for the backward pass, on each device."""
  program, jaxpr = compiled.program, compiled.jaxpr
  if config.model.unroll:  # It keeps the same, but not as outputs of a scan.
    looped = config.copy_and_resolve_references()
    looped.model.unroll = False
    program = program_lib.build(looped, program.mesh, program.facts)
    jaxpr = trace(looped, program).jaxpr
  batch = program_lib.examples_per_step(config) // config.microbatches
  height, width, _ = program.facts.image_shape
  tokens = batch * height * width // config.model.patch_size**2
  saved = flops_lib.saved_activations(jaxpr, batch, tokens)
  return saved // program.mesh.size


def _model_flops(
  compiled: Compiled, config: ml_collections.ConfigDict
) -> float:
  """Counts one forward and backward pass, without recomputation."""
  program = compiled.program
  plain_config = config.copy_and_resolve_references().model
  plain_config.remat = 'none'
  model = registry.build_model(plain_config, program.facts.num_classes)

  def loss(params, images):
    logits: Any = model.apply({'params': params}, images)
    return logits.sum()

  shape = program.abstract.params
  plain = jax.tree.map(lambda p: jax.ShapeDtypeStruct(p.shape, p.dtype), shape)
  size = program_lib.examples_per_step(config)
  images = jax.ShapeDtypeStruct((size, *program.facts.image_shape), jnp.float32)
  traced = jax.jit(jax.grad(loss)).trace(plain, images)
  return flops_lib.count(traced.jaxpr).total


def group(sent: Sequence[collectives.Collective]) -> list[dict[str, Any]]:
  """Collectives of a kind, a dtype, a group and a network as one entry.

  >>> one = collectives.Collective('all-gather', 'bf16', 8, 2, False, 3, '')
  >>> group([one, one])[0]['bytes']
  48
  """
  found: dict[tuple, dict[str, Any]] = {}
  for c in sent:
    entry = found.setdefault(
      (c.kind, c.dtype, c.group, c.crosses),
      {
        'kind': c.kind,
        'dtype': c.dtype,
        'group': c.group,
        'over_slices': c.crosses,
        'count': 0,
        'bytes': 0,
        'sent': 0.0,
      },
    )
    entry['count'] += c.trips
    entry['bytes'] += c.size * c.trips
    entry['sent'] += c.sent
  return sorted(found.values(), key=lambda entry: -entry['sent'])


def _table(program: program_lib.Program) -> str:
  """Every array of the train state and of a step's working copy."""
  arrays = {**program.abstract._asdict(), 'compute': program.compute}
  return sharding_lib.table(
    arrays, jax.tree.map(lambda leaf: leaf.sharding, arrays)
  )
