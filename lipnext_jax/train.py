"""Training and certification, in one straight line.

config → mesh → data → model → loss → step → checkpoint → evaluation → report
"""

from collections.abc import Callable
import contextlib
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections

from lipnext_jax import certify
from lipnext_jax import checkpoint
from lipnext_jax import checkpoint_reader
from lipnext_jax import diagnosis
from lipnext_jax import errors
from lipnext_jax import evaluate
from lipnext_jax import health as health_lib
from lipnext_jax import interrupts as interrupts_lib
from lipnext_jax import lock as lock_lib
from lipnext_jax import optim
from lipnext_jax import program as program_lib
from lipnext_jax import report
from lipnext_jax import train_step as step_lib
from lipnext_jax import validation
from lipnext_jax.certify import rigorous
from lipnext_jax.data import pipeline
from lipnext_jax.data import sources
from lipnext_jax.models import layers
from lipnext_jax.parallel import distributed
from lipnext_jax.parallel import mesh as mesh_lib


def train_and_evaluate(
  config: ml_collections.ConfigDict, workdir: str, *, train: bool = True
) -> dict[str, Any]:
  """Trains (or resumes, or finds finished) and certifies on the test split.

  Args:
    config: see `lipnext_jax.config`.
    workdir: where everything goes; the same config resumes there.
    train: False: only evaluate the checkpoint that is there.

  Returns:
    What `eval.json` holds.

  Raises:
    ConfigError: a config, dataset, mesh or workdir that does not fit; nothing
      was written then.
  """
  # ---------------------------------------------------------------- config
  validation.validate(config)
  checkpoint.check_workdir(workdir, config)

  # ------------------------------------------------------------------ mesh
  mesh = mesh_lib.make_mesh(config.mesh)
  mesh_lib.check_batch_size('eval.batch_size', config.eval.batch_size, mesh)
  on_batch, on_all = mesh_lib.batch_sharding(mesh), mesh_lib.replicated(mesh)

  # ------------------------------------------------------------------ data
  dataset = sources.load_dataset(config.dataset)
  streams = pipeline.build_streams(config, dataset) if train else []
  processes = {
    'process_index': jax.process_index(),
    'process_count': jax.process_count(),
  }

  # ------------------------------- model, loss, optimizer, layout and step
  program = program_lib.build(config, mesh, sources.facts_of(dataset))
  plan, abstract = program.plan, program.abstract
  monitor = jax.jit(
    step_lib.make_monitor(
      program.model,
      program.epsilon_fn,
      step_lib.learning_rate(config.optimizer, plan),
    ),
    out_shardings=on_all,
  )
  zero_sums = jax.jit(step_lib.Sums.zeros, out_shardings=on_all)
  is_finite = jax.jit(diagnosis.all_finite, out_shardings=on_all)

  def stop(problem, state, batch):
    """Says where the last step, repeated, is not finite."""
    where = diagnosis.find_not_finite(
      program.model,
      program.loss_fn,
      state.params,
      layers.to_unit(batch['image']),
      batch['label'],
      program.epsilon_fn(state.step - 1),
      on_all,
    )
    problem += f' (first: {where or "nothing in a repetition"})'
    saved = checkpointer.close()
    lock.release()
    raise errors.NonFiniteError(int(state.step), problem, saved)

  # ------------------------------------------------------------ checkpoint
  lock = lock_lib.Lock(workdir)
  config_hash = checkpoint.hash_config(config)
  if train:  # Locked before anything in the workdir is tidied or written.
    holder = distributed.on_first(lock.acquire)
    distributed.on_others(lambda: lock_lib.check_seen(workdir, holder))
    checkpointer = checkpoint.Checkpointer(workdir, config_hash=config_hash)
    start_step, restore = checkpointer.choose(), checkpointer.restore
  else:
    reader = checkpoint_reader.CheckpointReader(
      workdir, config_hash=config_hash
    )
    start_step, restore = reader.choose(config.eval.checkpoint), reader.restore
  if start_step is None:
    rng = jax.random.key(config.seed)
    state = jax.jit(program.init_fn, out_shardings=program.shardings)(rng)
  else:
    state = restore(start_step, abstract)
  step = start_step or 0
  certify_split = _make_certify_split(config, program, processes)

  # ------------------------------------------------------------------ loop
  if train and step < plan.total_steps:
    checkpoint.write_config(workdir, config)
    report.write_records(workdir, mesh, abstract, program.shardings, dataset)
    writer = report.MetricWriter(workdir, step)
    batches = pipeline.train_batches(
      streams,
      image_shape=dataset.image_shape,
      seed=config.seed,
      start_step=step,
      workers=config.dataset.workers,
      **processes,
    )
    monitored_split = sources.monitor_split(
      dataset, config.eval.monitor_examples
    )
    batch = mesh_lib.put_batch(next(batches), on_batch)
    with report.stopwatch('compiled the train step'):
      # Ahead of time: another shape would raise, never compile again.
      compiled = program.train_step.lower(abstract, batch).compile()
    distributed.meet()

    # The order is a contract: step, fetch, log, monitor, save, stop. A
    # checkpoint at step s holds what s batches made, and the stream resumes at
    # batch s.
    examples = sum(stream.batch_size for stream in streams)
    signum = None
    with (
      contextlib.closing(writer),
      contextlib.closing(batches),
      interrupts_lib.Interrupts() as interrupts,
      report.Progress(plan.total_steps, step, examples) as progress,
    ):
      while step < plan.total_steps and signum is None:
        with jax.transfer_guard('disallow'):
          state = compiled(state, batch)
          step += 1
          last, used = step == plan.total_steps, batch
          if not last:  # While the devices compute.
            batch = mesh_lib.put_batch(next(batches), on_batch)

          skipped = 0
          if last or step % plan.log_every == 0:
            means, monitored = jax.device_get((state.sums, monitor(state)))
            scalars = means.means() | {
              k: float(v) for k, v in monitored.items()
            }
            scalars['train/images_per_second'] = progress.update(step, scalars)
            scalars['train/drifts'] = float(
              health_lib.drifted(config.health, scalars)
            )
            writer.write(step, scalars)
            for line in health_lib.warnings(config.health, scalars):
              progress.say(f'step {step}: {line}')
            skipped = int(scalars['train/skipped_in_a_row'])
            state = state._replace(sums=zero_sums())
        if 0 < config.health.max_skipped <= skipped:
          stop(
            f'loss or gradient were not finite in the last {skipped} steps',
            state,
            used,
          )

        signum = interrupts.received(step)
        monitor_now = plan.is_due(plan.eval_every, step) and not last
        save_now = (
          plan.is_due(plan.checkpoint_every, step)
          or monitor_now
          or last
          or signum is not None
        )
        certified = None
        with progress.paused():
          if save_now and not (last or signum) and state.health.in_a_row > 0:
            save_now = False  # Not of a state that it may never get out of.
          if save_now and not is_finite((state.params, state.opt_state)):
            stop('the update is not finite', state, used)
          if monitor_now:
            result = certify_split(state, monitored_split, 'assumed')
            summary = result.summary([config.loss.epsilon])
            certified = next(iter(summary['cra'].values()))
            clean = summary['clean']
            writer.write(
              step, {'monitor/clean': clean, 'monitor/certified': certified}
            )
          if save_now:
            checkpointer.save(step, state, certified)
      checkpointer.wait()
      signum = signum or interrupts.received(step)
    if signum is not None:
      checkpointer.close()
      lock.release()
      raise interrupts_lib.StoppedError(signum, step)
  elif train:
    report.say(f'{workdir} is finished at step {step}: only evaluating')
  if train:
    checkpointer.close()

  # ------------------------------------------------------------ evaluation
  source = sources.final_split(dataset, config.eval.split)
  result = certify_split(state, source, config.eval.certificate)

  # ---------------------------------------------------------------- report
  summary = report.write(workdir, config, step, result, source)
  lock.release()
  return summary


def _make_certify_split(
  config, program, processes
) -> Callable[[step_lib.TrainState, sources.Source, str], evaluate.Evaluation]:
  """Returns (state, source, certificate) → evaluation of certified weights.

  The certificate 'assumed' is for monitoring: the constant is the one that
  training takes, so that no device waits for a proof on the host.
  """
  mesh = program.mesh
  fast_step = evaluate.make_eval_step(program.model, mesh)
  rigorous_step = evaluate.make_rigorous_step(program.model, mesh)
  if config.eval.certificate == 'rigorous':  # Said before training, not after.
    rigorous.require_double(mesh.devices.flat[0].platform)
  certified_params = jax.jit(
    program.certified_params, out_shardings=program.certified_shardings
  )

  def assume(state):
    slow = optim.slow_params(state.opt_state, state.params)
    constant = jnp.float32(program.model.lipschitz(slow))
    return certify.Constants(constant, jnp.zeros([]))

  assumed_constants = jax.jit(assume, out_shardings=mesh_lib.replicated(mesh))

  def certify_split(state, source, certificate):
    params = certified_params(state)
    batches = pipeline.eval_batches(
      source,
      batch_size=config.eval.batch_size,
      workers=config.dataset.workers,
      **processes,
    )
    if certificate == 'assumed':
      constants = assumed_constants(state)
      return evaluate.evaluate(fast_step, params, batches, mesh, constants)
    host_params = jax.tree.map(distributed.to_host, params)
    bounds = evaluate.prove_bounds(host_params)
    if certificate == 'rigorous':
      result = evaluate.evaluate_rigorous(rigorous_step, params, batches, mesh)
    else:
      constants = certify.prove_constants(host_params, bounds)
      result = evaluate.evaluate(fast_step, params, batches, mesh, constants)
    return result._replace(lipschitz_bounds=bounds)

  return certify_split
