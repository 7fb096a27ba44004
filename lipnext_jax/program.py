"""The program of a config: what runs, on which devices, laid out how.

Built from shapes alone, so that the same step can be run (`train.py`) or
compiled for machines that are not here (`aot`).
"""

from collections.abc import Callable
import functools
from typing import Any
from typing import NamedTuple

import jax
import jax.numpy as jnp
import ml_collections

from lipnext_jax import config as config_lib
from lipnext_jax import optim
from lipnext_jax import schedules
from lipnext_jax import train_step as step_lib
from lipnext_jax import validation
from lipnext_jax.data import sources
from lipnext_jax.models import interface
from lipnext_jax.models import registry
from lipnext_jax.parallel import mesh as mesh_lib
from lipnext_jax.parallel import sharding as sharding_lib


class Program(NamedTuple):
  """The step and all that it is made of; nothing is on a device yet."""

  mesh: jax.sharding.Mesh
  facts: sources.Facts
  plan: schedules.Plan
  rules: sharding_lib.Rules
  model: interface.CertifiedModel  # Laid out by the compiler: for evaluation.
  loss_fn: Callable[..., jax.Array]
  epsilon_fn: Callable[[jax.typing.ArrayLike], jax.Array]
  init_fn: Callable[[jax.Array], step_lib.TrainState]  # Not jitted.
  abstract: step_lib.TrainState  # Shapes that know their shardings.
  shardings: step_lib.TrainState
  compute: Any  # The copy of the fast weights that a step works with.
  train_step: Any  # Jitted: (state, batch) → state.

  @property
  def stack_sharding(self) -> jax.sharding.NamedSharding | None:
    """How the optimizer's stacks of matrices are split."""
    return sharding_lib.stack_sharding(self.shardings.opt_state)

  def certified_params(self, state: step_lib.TrainState) -> Any:
    """Returns the certified weights, laid out as a step works with them."""
    slow = optim.slow_params(state.opt_state, state.params)
    params = interface.certified_params(self.model, slow, self.stack_sharding)
    trained: Any = jax.tree.structure(state.params)
    if jax.tree.structure(params) != trained:
      return params  # Explicit ones have other names: the compiler's to move.
    layout = jax.tree.map(lambda leaf: leaf.sharding, self.compute)
    return jax.tree.map(
      sharding_lib.move, params, self.shardings.params, layout
    )

  @property
  def certified_shardings(self) -> Any:
    """Returns their layout: they may have other names than trained ones."""
    shapes = jax.eval_shape(self.certified_params, self.abstract)
    layout = sharding_lib.tree_shardings(
      {'compute': shapes}, self.rules, self.mesh
    )
    return layout['compute']


def build(
  config: ml_collections.ConfigDict,
  mesh: jax.sharding.Mesh,
  facts: sources.Facts,
) -> Program:
  """The program of a validated config.

  Args:
    config: all of it.
    mesh: its devices, which need not exist.
    facts: about the dataset.

  Raises:
    ConfigError: sizes that do not divide, rules that do not match.
  """
  mesh_lib.check_batch_size(
    'batch_size', config.batch_size, mesh, config.microbatches
  )
  plan = schedules.make_plan(config, facts.train_examples)

  # ----------------------------------------------------------------- model
  validation.check_image(config.model, facts.image_shape)
  validation.check_width_sharding(config.model, mesh.shape['tensor'])
  model, spread = (
    registry.build_model(config.model, facts.num_classes, layout)
    for layout in (None, mesh_lib.model_layout(mesh))
  )

  # ------------------------------------------------------------------ loss
  loss_fn = step_lib.build_loss(config.loss)
  epsilon_fn = schedules.epsilon_schedule(
    config.loss.epsilon,
    config.loss.epsilon_start,
    config.loss.epsilon_end,
    plan.total_steps,
  )

  # ------------------------------------------------- optimizer and layout
  tx = step_lib.build_optimizer(config.optimizer, plan)
  init_fn = functools.partial(step_lib.init_state, model, tx, facts.image_shape)
  abstract = jax.eval_shape(init_fn, jax.random.key(config.seed))
  layouts = sharding_lib.tree_shardings(
    {**abstract._asdict(), 'compute': abstract.params}, config.sharding, mesh
  )
  compute = layouts.pop('compute')
  shardings = step_lib.TrainState(**layouts)
  # The same optimizer, told how its stacks of matrices lie on the devices.
  tx = step_lib.build_optimizer(
    config.optimizer, plan, sharding_lib.stack_sharding(shardings.opt_state)
  )

  # ------------------------------------------------------------------ step
  to_compute, to_stored = _relayouts(
    shardings.params, compute, config.reduce_dtype
  )
  train_step = jax.jit(
    step_lib.make_train_step(
      spread,
      tx,
      loss_fn,
      epsilon_fn,
      config.loss.epsilon,
      to_compute,
      to_stored,
      config.microbatches,
      config.health.loss_spike,
    ),
    in_shardings=(shardings, mesh_lib.batch_sharding(mesh)),
    out_shardings=shardings,
    donate_argnums=0,
  )

  return Program(
    mesh=mesh,
    facts=facts,
    plan=plan,
    rules=config.sharding,
    model=model,
    loss_fn=loss_fn,
    epsilon_fn=epsilon_fn,
    init_fn=init_fn,
    abstract=sharding_lib.with_shardings(abstract, shardings),
    shardings=shardings,
    compute=sharding_lib.with_shardings(abstract.params, compute),
    train_step=train_step,
  )


def _relayouts(stored, compute, reduce_dtype):
  """The two functions between how parameters are kept and used."""
  narrow = config_lib.DTYPES[reduce_dtype]

  def to_compute(params):
    def one(x, source, target):
      if source.is_equivalent_to(target, x.ndim):
        return x
      return sharding_lib.move(x.astype(narrow), source, target)

    return jax.tree.map(one, params, stored, compute)

  def to_stored(grads):
    # Pinned where they arise first: or the optimizer's layout would leak into
    # the backward scan.
    grads = jax.lax.with_sharding_constraint(grads, compute)
    grads = jax.tree.map(sharding_lib.move, grads, compute, stored)
    return jax.tree.map(lambda g: g.astype(jnp.float32), grads)

  return to_compute, to_stored


def examples_per_step(config: ml_collections.ConfigDict) -> int:
  """The batch and the extra examples mixed into it.

  >>> from lipnext_jax import config as config_lib
  >>> config = config_lib.default_config()
  >>> config.batch_size, config.dataset.extra_ratio = 8, 3
  >>> examples_per_step(config)
  32
  """
  return config.batch_size * (1 + config.dataset.extra_ratio)


def abstract_batch(
  config: ml_collections.ConfigDict,
  mesh: jax.sharding.Mesh,
  facts: sources.Facts,
) -> dict[str, jax.ShapeDtypeStruct]:
  """Shapes of a global batch, the synthetic examples included."""
  size = examples_per_step(config)
  sharding = mesh_lib.batch_sharding(mesh)

  def of(shape, dtype):
    return jax.ShapeDtypeStruct((size, *shape), dtype, sharding=sharding)

  return {
    'image': of(facts.image_shape, facts.image_dtype),
    'label': of((), jnp.int32),
  }
