"""Trains a model, certifies it and writes the report.

`train_and_evaluate` is a run from top to bottom: config, mesh, data, program,
checkpoint, loop, evaluation, report. `build` makes the program: model,
optimizer, layout, loss and the compiled step. `_train` is the loop.
"""

import contextlib
import functools
import os
from typing import Any
from typing import NamedTuple

import jax
import jax.numpy as jnp
import ml_collections

from lipnext_jax import checkpoint
from lipnext_jax import config as config_lib
from lipnext_jax import evaluate
from lipnext_jax import parallel
from lipnext_jax import report
from lipnext_jax import runtime
from lipnext_jax import schedules
from lipnext_jax import train_step as step_lib
from lipnext_jax.config import validation
from lipnext_jax.data import pipeline
from lipnext_jax.data import sources
from lipnext_jax.models import registry


class Program(NamedTuple):
  """The functions and the shapes of a run, made before any array is.

  `train_and_evaluate` runs the functions; `aot` compiles them for machines that
  you do not have.
  """

  mesh: jax.sharding.Mesh
  info: sources.DatasetInfo
  plan: schedules.Plan
  model: Any  # `CertifiedModel` to initialise and to evaluate.
  parts: step_lib.Parts  # Model, optimizer, loss and schedules of the step.
  # Shapes with shardings, of the state, of the copy of the weights that the
  # forward and backward pass use, and of a batch of all processes together.
  abstract: step_lib.TrainState
  working: Any
  batch: dict[str, jax.ShapeDtypeStruct]
  # Jitted functions.
  init: jax.stages.Wrapped  # Key → state.
  train_step: jax.stages.Wrapped  # (state, batch) → state.
  monitor: jax.stages.Wrapped  # state → metrics of a log line.
  zero_sums: jax.stages.Wrapped  # () → `Sums` over no steps.
  is_finite: jax.stages.Wrapped  # tree of arrays → whether all are finite.
  certified_params: jax.stages.Wrapped  # state → certified weights.


def build(
  config: ml_collections.ConfigDict,
  mesh: jax.sharding.Mesh,
  info: sources.DatasetInfo,
) -> Program:
  """Builds the program of a valid config.

  Args:
    config: whole config of the run.
    mesh: device mesh; the devices need not exist.
    info: shapes and sizes of the dataset.

  Raises:
    ConfigError: a size does not divide, or no sharding rule matches an array.
  """
  parallel.check_batch_size(
    'batch_size', config.batch_size, mesh, config.microbatches
  )
  on_batch, on_all = parallel.batch_sharding(mesh), parallel.replicated(mesh)
  plan = schedules.make_plan(config, info.train_examples)

  # ----------------------------------------------------------------- model
  validation.check_image(config.model, info.image_shape)
  validation.check_width_sharding(config.model, mesh.shape['tensor'])
  model = registry.build_model(config.model, info.num_classes)
  # The same model, with explicit communication in its blocks (`shard_map`).
  sharded_model = registry.build_model(
    config.model, info.num_classes, parallel.model_devices(mesh)
  )

  # ----------------------------------------------------- optimizer, layout
  tx = step_lib.build_optimizer(config.optimizer, plan)
  init_fn = functools.partial(step_lib.init_state, model, tx, info.image_shape)
  shapes = jax.eval_shape(init_fn, jax.random.key(config.seed))
  find_shardings = functools.partial(
    parallel.tree_shardings, rules=config.sharding, mesh=mesh
  )
  shardings = step_lib.TrainState(**find_shardings(shapes._asdict()))
  working = find_shardings({'compute': shapes.params})['compute']
  stacks = parallel.stack_sharding(shardings.opt_state)
  # The same optimizer, told which device stores which matrices of a stack.
  sharded_tx = step_lib.build_optimizer(config.optimizer, plan, stacks)

  # ------------------------------------------------------------ loss, step
  parts = step_lib.Parts(
    model=sharded_model,
    tx=sharded_tx,
    loss_fn=step_lib.build_loss(config.loss),
    epsilon_fn=schedules.epsilon_schedule(config.loss, plan),
    learning_rate_fn=schedules.learning_rate(config.optimizer, plan),
    layouts=step_lib.Layouts(
      shardings.params, working, stacks, config_lib.DTYPES[config.reduce_dtype]
    ),
    epsilon=config.loss.epsilon,
    microbatches=config.microbatches,
    loss_spike=config.health.loss_spike,
  )
  train_step = jax.jit(
    functools.partial(step_lib.train_step, parts),
    in_shardings=(shardings, on_batch),
    out_shardings=shardings,
    donate_argnums=0,
  )

  # --------------------------------------------------- monitor, evaluation
  monitor = functools.partial(step_lib.monitor, parts)
  certified_params = functools.partial(step_lib.certified_params, parts)
  abstract = parallel.with_shardings(shapes, shardings)
  # Not `working`: mapped matrices (`R_raw`) are computed there, and named R.
  certified_shapes = jax.eval_shape(certified_params, abstract)
  certified = find_shardings({'compute': certified_shapes})['compute']
  return Program(
    mesh=mesh,
    info=info,
    plan=plan,
    model=model,
    parts=parts,
    abstract=abstract,
    working=parallel.with_shardings(shapes.params, working),
    batch=_batch_shapes(config, info, on_batch),
    init=jax.jit(init_fn, out_shardings=shardings),
    train_step=train_step,
    monitor=jax.jit(monitor, out_shardings=on_all),
    zero_sums=jax.jit(step_lib.Sums.zeros, out_shardings=on_all),
    is_finite=jax.jit(runtime.all_finite, out_shardings=on_all),
    certified_params=jax.jit(certified_params, out_shardings=certified),
  )


def _batch_shapes(config, info, sharding):
  """Returns the shapes of a global batch, with mixed-in synthetic examples."""
  size = config.batch_size * (1 + config.dataset.extra_ratio)
  rows = functools.partial(jax.ShapeDtypeStruct, sharding=sharding)
  return {
    'image': rows((size, *info.image_shape), info.image_dtype),
    'label': rows((size,), jnp.int32),
  }


class _Run(NamedTuple):
  """The objects of a run that stay the same throughout the loop."""

  config: ml_collections.ConfigDict
  workdir: str
  dataset: sources.Dataset
  streams: list[pipeline.Stream]
  program: Program
  evaluator: evaluate.Evaluator
  eval_batches: Any  # Split → batches of this process.
  checkpointer: checkpoint.Checkpointer


def train_and_evaluate(
  config: ml_collections.ConfigDict, workdir: str, *, train: bool = True
) -> dict[str, Any]:
  """Trains or resumes a run, and certifies its test split.

  Args:
    config: config of the run, see `lipnext_jax.config`.
    workdir: folder of all files of the run; a run that it holds is resumed.
    train: whether to train; if not, the run in `workdir` is evaluated only.

  Returns:
    The content of `eval.json`.

  Raises:
    ConfigError: config, dataset, mesh or workdir do not fit; nothing has been
      written.
    DataError: an example cannot be read or transformed.
  """
  # ---------------------------------------------------------------- config
  config_lib.validate(config)
  workdir = os.path.expanduser(workdir)
  checkpoint.check_workdir(workdir, config)

  # ------------------------------------------------------------ mesh, data
  mesh = parallel.make_mesh(config.mesh)
  parallel.check_batch_size('eval.batch_size', config.eval.batch_size, mesh)
  with report.stopwatch('reading the data', patience=1):
    dataset = sources.load_dataset(config.dataset)
  report.check_data(workdir, config.dataset.data_dir, dataset)
  for note in dataset.notes:
    report.log(note)
  streams = pipeline.build_streams(config, dataset) if train else []

  # ------------------------------- model, loss, optimizer, layout and step
  program = build(config, mesh, sources.info_of(dataset))
  evaluator = evaluate.Evaluator(program.model, mesh, config.eval.certificate)
  eval_batches = functools.partial(
    pipeline.eval_batches,
    batch_size=config.eval.batch_size,
    workers=config.dataset.workers,
    process_index=jax.process_index(),
    process_count=jax.process_count(),
  )

  # ------------------------------------------------------------ checkpoint
  lock = checkpoint.Lock(workdir)
  config_hash = checkpoint.hash_config(config)
  reader: checkpoint.CheckpointReader
  if train:  # The lock comes before the first change in the workdir.
    holder = parallel.on_first(lock.acquire)
    parallel.on_others(lambda: lock.check_seen(holder))
    reader = checkpointer = checkpoint.Checkpointer(
      workdir, config_hash=config_hash
    )
    step = checkpointer.find_newest()
  else:
    reader = checkpoint.CheckpointReader(workdir, config_hash=config_hash)
    step = reader.choose(config.eval.checkpoint)
  if step is None:
    state = program.init(jax.random.key(config.seed))
  else:
    state = reader.restore(step, program.abstract)

  # ------------------------------------------------------------------ loop
  if train:
    run = _Run(
      config, workdir, dataset, streams, program, evaluator, eval_batches,
      checkpointer,
    )  # fmt: skip
    try:
      state = _train(run, state, step or 0)
    except (runtime.NonFiniteError, runtime.StoppedError):
      lock.release()  # All writing has ended: another process may resume.
      raise

  # ------------------------------------------------------------ evaluation
  source = sources.final_split(dataset, config.eval.split)
  with report.stopwatch(f'certifying {len(source)} images'):
    params = program.certified_params(state)
    result = evaluator.certify(params, eval_batches(source))

  # ---------------------------------------------------------------- report
  summary = report.write(
    workdir, config, int(state.step), result, source, dataset.class_names
  )
  lock.release()
  return summary


def _train(
  run: _Run, state: step_lib.TrainState, step: int
) -> step_lib.TrainState:
  """Trains from `step` to the end, then closes the checkpointer.

  Raises:
    StoppedError: a signal was received, and the state is saved.
    NonFiniteError: the state, or too many losses in a row, are not finite.
  """
  config, program, plan = run.config, run.program, run.program.plan
  if step >= plan.total_steps:
    report.log(f'{run.workdir} is finished at step {step}: only evaluating')
    run.checkpointer.close()
    return state
  checkpoint.write_config(run.workdir, config)
  report.write_records(run.workdir, program.mesh, program.abstract, run.dataset)
  batches = pipeline.train_batches(
    run.streams,
    seed=config.seed,
    start_step=step,
    workers=config.dataset.workers,
    process_index=jax.process_index(),
    process_count=jax.process_count(),
  )
  on_batch = parallel.batch_sharding(program.mesh)
  first = next(batches)
  split = sources.final_split(run.dataset, config.eval.split)
  report.write_inputs(run.workdir, first['image'], split)
  batch = parallel.put_batch(first, on_batch)
  watch = runtime.Watch(
    config, plan, run.dataset.num_classes, program.parts.loss_fn
  )
  with report.stopwatch('compiling the train step'):
    # Compiled once: a batch of another shape raises instead of recompiling.
    train_step = program.train_step.lower(program.abstract, batch).compile()
  parallel.barrier()

  # The order step, fetch, log, monitor, save, stop is a contract: a checkpoint
  # at step s holds the state after s batches, and resuming starts at batch s.
  signum = None
  examples = len(program.batch['label'])
  with (
    contextlib.closing(batches),
    contextlib.closing(report.MetricWriter(run.workdir, step)) as writer,
    runtime.Interrupts() as interrupts,
    report.Progress(plan.total_steps, step, examples) as progress,
  ):
    while step < plan.total_steps and signum is None:
      with jax.transfer_guard('disallow'):
        state = train_step(state, batch)
        step += 1
        is_last, used_batch, skipped = step == plan.total_steps, batch, 0
        if not is_last:  # While the devices compute.
          batch = parallel.put_batch(next(batches), on_batch)
        progress.tick(step, state.health.loss)
        if is_last or plan.is_due(plan.log_every, step):
          state, skipped = _log(run, state, step, writer, progress, watch)
      if 0 < config.health.max_skipped <= skipped:
        problem = (
          f'loss or gradient were not finite in the last {skipped} steps'
        )
        raise _not_finite(run, problem, state, used_batch)
      signum = interrupts.received(step)
      with progress.paused():
        _monitor_and_save(run, state, step, signum, writer, used_batch)
    run.checkpointer.wait()  # A signal may come during the last save.
    signum = signum or interrupts.received(step)
  run.checkpointer.close()
  if signum is not None:
    raise runtime.StoppedError(signum, step)
  return state


def _log(
  run: _Run,
  state: step_lib.TrainState,
  step: int,
  writer: report.MetricWriter,
  progress: report.Progress,
  watch: runtime.Watch,
) -> tuple[step_lib.TrainState, int]:
  """Logs metrics; returns the state with zero sums, and skips in a row."""
  sums, metrics = jax.device_get((state.sums, run.program.monitor(state)))
  scalars = sums.means() | {name: float(x) for name, x in metrics.items()}
  warnings = watch.observe(step, scalars)
  progress.failing = watch.failing
  scalars['train/failing'] = float(bool(watch.failing))
  scalars['train/images_per_second'] = progress.update(step, scalars)
  writer.write(step, scalars)
  for line in warnings:
    report.log(f'step {step}: {line}')
  state = state._replace(sums=run.program.zero_sums())
  return state, int(scalars['train/skipped_in_a_row'])


def _monitor_and_save(
  run: _Run,
  state: step_lib.TrainState,
  step: int,
  signum: int | None,
  writer: report.MetricWriter,
  batch: dict[str, jax.Array],
) -> None:
  """Evaluates and saves a finite state if that is due, or if a signal came."""
  config, program, plan = run.config, run.program, run.program.plan
  ends = step == plan.total_steps or signum is not None
  monitors = plan.is_due(plan.eval_every, step) and step < plan.total_steps
  is_due = monitors or plan.is_due(plan.checkpoint_every, step)
  # Not in a row of skipped steps: a resumed run might skip every step, too.
  saves = ends or (is_due and state.health.in_a_row == 0)
  if saves and not program.is_finite((state.params, state.opt_state)):
    raise _not_finite(run, 'the update is not finite', state, batch)
  certified = None
  if monitors:
    split = sources.monitor_split(run.dataset, config.eval.monitor_examples)
    params = program.certified_params(state)
    result = run.evaluator.monitor(params, run.eval_batches(split))
    summary = result.summary([config.loss.epsilon])
    (certified,) = summary['cra'].values()
    writer.write(
      step,
      {'monitor/clean': summary['clean'], 'monitor/certified': certified},
    )
  if saves:
    writer.flush()  # A resumed run needs the lines before the checkpoint.
    run.checkpointer.save(step, state, certified)


def _not_finite(
  run: _Run,
  problem: str,
  state: step_lib.TrainState,
  batch: dict[str, jax.Array],
) -> runtime.NonFiniteError:
  """Repeats the last step and returns an error that says what broke first."""
  program, parts = run.program, run.program.parts
  where = runtime.find_not_finite(
    program.model,
    parts.loss_fn,
    state.params,
    batch['image'],
    batch['label'],
    parts.epsilon_fn(state.step - 1),
    parallel.replicated(program.mesh),
  )
  problem += f' (first: {where or "nothing in a repetition"})'
  saved = run.checkpointer.close()
  return runtime.NonFiniteError(int(state.step), problem, saved)
