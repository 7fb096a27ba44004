"""One pure step of training: loss, gradient, update, sums for log lines."""

from collections.abc import Callable
import functools
from typing import Any
from typing import NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import optax

from lipnext_jax import certify
from lipnext_jax import config as config_lib
from lipnext_jax import losses
from lipnext_jax import models
from lipnext_jax import optim
from lipnext_jax import parallel
from lipnext_jax import schedules
from lipnext_jax.models import interface
from lipnext_jax.models import layers
from lipnext_jax.optim import stack as stack_lib
from lipnext_jax.runtime import health as health_lib

# Power iterations, of n² operations each, that estimate the orthogonality error
# of a log line. The certificate uses a proved bound instead.
_MONITOR_ITERATIONS = 16


class Sums(NamedTuple):
  """Sums over the steps since the last log line, float32 scalars on the device.

  Skipped steps count in `skipped` and `spikes` alone.
  """

  steps: jax.Array
  examples: jax.Array
  loss: jax.Array
  correct: jax.Array
  certified: jax.Array  # Correct, and with the constant K a radius above ε.
  grad_norm: jax.Array
  skipped: jax.Array  # Steps whose loss or gradient was not finite.
  spikes: jax.Array  # Steps whose loss was far above its running mean.

  @classmethod
  def zeros(cls) -> 'Sums':
    """Returns the sums over no steps."""
    return cls(*(jnp.zeros([], jnp.float32) for _ in cls._fields))

  def means(self) -> dict[str, float]:
    """Returns the metrics of a log line: means, per cents and counts.

    If all steps were skipped, only the counts.
    """
    sums = {name: float(x) for name, x in zip(self._fields, self, strict=True)}
    steps, examples = sums['steps'], sums['examples']
    means = {}
    if steps:
      means = {
        'train/loss': sums['loss'] / steps,
        'train/clean': 100 * sums['correct'] / examples,
        'train/certified': 100 * sums['certified'] / examples,
        'train/grad_norm': sums['grad_norm'] / steps,
      }
    return means | {
      'train/skipped_steps': sums['skipped'],
      'train/loss_spikes': sums['spikes'],
    }


class TrainState(NamedTuple):
  """The state of training, which checkpoints hold.

  A run has three kinds of weights. The *fast* weights, `params`, are trained.
  The *slow* weights are lookahead's average of them (`optim.slow_params`). The
  *certified* weights are the slow weights as explicit matrices, retracted to
  the orthogonal group (`certified_params`).
  """

  step: jax.Array  # Shape (): int32, batches seen, skipped steps included.
  params: Any  # Fast weights, float32.
  opt_state: optax.OptState  # Includes the slow weights.
  health: health_lib.Health  # Skipped steps, and the running mean of the loss.
  sums: Sums  # Since the last log line.

  def certified_params(
    self,
    model: interface.CertifiedModel,
    stacks: jax.sharding.NamedSharding | None = None,
  ) -> Any:
    """Returns the certified weights of a model.

    Retraction removes the drift off the manifold, which would increase Λ; each
    device retracts the matrices that it has of sharded `stacks`.
    """

    def retract(x, label):
      if label == 'euclidean':
        return x
      return stack_lib.map_stacks(optim.polar_retract, x, sharding=stacks)

    slow = optim.slow_params(self.opt_state, self.params)
    params = model.explicit_params(slow)
    return jax.tree.map(retract, params, optim.orthogonal_labels(params))


class Layouts(NamedTuple):
  """Layouts of the fast weights: as they are stored, and within a step.

  Weights are stored as the optimizer updates them, whole matrices on a device.
  The forward and backward passes work with a copy split into rows and columns.
  """

  stored: Any  # Tree of shardings.
  working: Any  # Tree of shardings.
  stacks: jax.sharding.NamedSharding | None  # Of the optimizer's stacks.
  dtype: Any  # Dtype in which weights and gradients move between layouts.

  def to_working(self, params: Any) -> Any:
    """Returns the copy of the stored weights that a step works with."""

    def move(x, source, target):
      if source.is_equivalent_to(target, x.ndim):
        return x
      return parallel.move(x.astype(self.dtype), source, target)

    return jax.tree.map(move, params, self.stored, self.working)

  def to_stored(self, grads: Any) -> Any:
    """Returns gradients of the working copy in the stored layout, float32."""
    # Without this constraint the compiler would use the optimizer's layout in
    # the backward scan, too.
    grads = jax.lax.with_sharding_constraint(grads, self.working)
    grads = jax.tree.map(parallel.move, grads, self.working, self.stored)
    return jax.tree.map(lambda g: g.astype(jnp.float32), grads)


class Parts(NamedTuple):
  """Everything that a train step is made of, besides state and batch."""

  model: interface.CertifiedModel  # Computes in the dtype of training.
  tx: optax.GradientTransformationExtraArgs
  loss_fn: Callable[..., jax.Array]  # From `build_loss`.
  epsilon_fn: Callable[[jax.typing.ArrayLike], jax.Array]  # Step → ε_t.
  learning_rate_fn: optax.Schedule  # The schedule of `tx`, for log lines.
  layouts: Layouts
  epsilon: float  # ε of the certified train accuracy.
  microbatches: int  # Parts of a batch whose gradients are added up in turn.
  loss_spike: float  # Losses above this multiple of their mean are spikes.


def build_loss(c: ml_collections.ConfigDict) -> Callable[..., jax.Array]:
  """Builds (logits, labels, head_kernel, epsilon) → loss of `config.loss`.

  The loss gets the fields that are declared for it alone.
  """
  options = {
    name.removeprefix('annealing_'): value
    for name, value in c.items()
    if c.name
    in config_lib.FIELDS[f'loss.{name}'].only_with.get('loss.name', ())
  }
  return functools.partial(
    losses.LOSSES[c.name], logit_scale=c.logit_scale, **options
  )


def build_optimizer(
  c: ml_collections.ConfigDict,
  plan: schedules.Plan,
  stack_sharding: jax.sharding.NamedSharding | None = None,
) -> optax.GradientTransformationExtraArgs:
  """Builds the `optim.lipnext_optimizer` of `config.optimizer`."""
  return optim.lipnext_optimizer(
    schedules.learning_rate(c, plan),
    inner=functools.partial(
      config_lib.INNER_RULES[c.name], mu_dtype=config_lib.DTYPES[c.mu_dtype]
    ),
    clip_norm=c.clip_norm or None,
    lookahead_period=c.lookahead_period or None,
    lookahead_alpha=c.lookahead_alpha,
    retraction=c.retraction,
    retraction_period=plan.retraction_period or None,
    thresholds=config_lib.EXPONENTIALS[c.exponential],
    precision=config_lib.PRECISIONS[c.precision],
    stack_sharding=stack_sharding,
  )


def init_state(
  model: interface.CertifiedModel,
  tx: optax.GradientTransformation,
  image_shape: tuple[int, int, int],
  rng: jax.Array,
) -> TrainState:
  """Returns the state before the first step."""
  params = model.init(rng, jnp.zeros((1, *image_shape)))['params']
  return TrainState(
    jnp.zeros([], jnp.int32),
    params,
    tx.init(params),
    health_lib.Health.start(),
    Sums.zeros(),
  )


def train_step(
  parts: Parts, state: TrainState, batch: dict[str, jax.Array]
) -> TrainState:
  """Takes one step: loss → gradient → update, and adds to the sums.

  A step is skipped if its loss or gradient is not finite: it leaves parameters
  and optimizer as they are, and is counted. A batch has 'image' [b, H, W, ch],
  uint8 or float32 in [0, 1], and 'label' [b] int32.
  """
  grads, (loss, counts) = _gradients(parts, state, batch)
  grad_norm = optax.tree.norm(grads)  # Not finite if any entry is not.
  finite = jnp.isfinite(loss) & jnp.isfinite(grad_norm)
  params, opt_state = _update_if(finite, parts.tx, state, grads)
  health, spike = state.health.after(loss, finite, parts.loss_spike)

  size = float(batch['label'].size)
  terms = (1.0, size, loss, *counts, grad_norm)
  terms = (*(jnp.where(finite, term, 0.0) for term in terms), ~finite, spike)
  sums = Sums(*(a + b for a, b in zip(state.sums, terms, strict=True)))
  return TrainState(state.step + 1, params, opt_state, health, sums)


def _gradients(parts, state, batch):
  """Returns gradients in the stored layout, and (loss, counts), of a batch."""
  epsilon = parts.epsilon_fn(state.step)

  def objective(params, batch):
    images, labels = layers.to_unit(batch['image']), batch['label']
    variables = {'params': params}
    logits: Any = parts.model.apply(variables, images)
    kernel = models.head_kernel(variables)
    # A backbone with constant K maps a ball of radius ε into one of K·ε.
    lipschitz = parts.model.lipschitz(params)
    loss = parts.loss_fn(logits, labels, kernel, epsilon * lipschitz)
    predictions, radii = certify.certified_radius(logits, kernel, lipschitz)
    correct = predictions == labels
    certified = correct & (radii > parts.epsilon)
    return loss, (jnp.sum(correct), jnp.sum(certified))

  working = parts.layouts.to_working(state.params)
  grads, aux = _accumulate(objective, working, batch, parts.microbatches)
  return parts.layouts.to_stored(grads), aux


def _update_if(finite, tx, state, grads):
  """Returns parameters and optimizer state, updated if `finite`."""

  def update(_, carry):
    params, opt_state, grads = carry
    updates, opt_state = tx.update(grads, opt_state, params)
    return optax.apply_updates(params, updates), opt_state, updates

  # A loop of one turn or none works in place, and updates take the gradients'
  # memory. `lax.cond` and `jnp.where` would copy the state.
  with jax.named_scope('optimizer'):  # `aot` counts this scope by itself.
    carry = (state.params, state.opt_state, grads)
    turns = finite.astype(jnp.int32)
    params, opt_state, _ = jax.lax.fori_loop(0, turns, update, carry)
  return params, opt_state


def _accumulate(objective, params, batch, microbatches):
  """Returns gradients and (mean loss, counts), one microbatch after another."""
  grad_fn = jax.value_and_grad(objective, has_aux=True)
  if microbatches == 1:
    (loss, counts), grads = grad_fn(params, batch)
    return grads, (loss, counts)

  # Example i goes to part i mod k, so that every device cuts its own share.
  parts = jax.tree.map(
    lambda x: jnp.moveaxis(x.reshape(-1, microbatches, *x.shape[1:]), 1, 0),
    batch,
  )

  def body(totals, part):
    (loss, counts), grads = grad_fn(params, part)
    return jax.tree.map(jnp.add, totals, (grads, (loss, counts))), None

  zeros = (
    jax.tree.map(lambda p: jnp.zeros_like(p, jnp.float32), params),
    (jnp.zeros([]), (jnp.zeros([], jnp.int32),) * 2),
  )
  (grads, (loss, counts)), _ = jax.lax.scan(body, zeros, parts)
  mean = functools.partial(jax.tree.map, lambda x: x / microbatches)
  return mean(grads), (mean(loss), counts)


def monitor(parts: Parts, state: TrainState) -> dict[str, jax.Array]:
  """Returns the metrics of a log line that are not sums over steps."""
  params = parts.model.explicit_params(state.params)
  labels = jax.tree.leaves(optim.orthogonal_labels(params))
  errors = [
    jnp.max(optim.orthogonality_error(p, iterations=_MONITOR_ITERATIONS))
    for p, label in zip(jax.tree.leaves(params), labels, strict=True)
    if label == 'orthogonal'
  ]
  last = state.step - 1  # The step that has just been taken.
  return {
    'train/epsilon': parts.epsilon_fn(last),
    'train/learning_rate': jnp.asarray(parts.learning_rate_fn(last)),
    'train/orthogonality_error': jnp.max(jnp.stack(errors)),
    'train/skipped_in_a_row': state.health.in_a_row,
  }


def certified_params(parts: Parts, state: TrainState) -> Any:
  """Returns the certified weights of a state, in the working layout."""
  stored, working, stacks, _ = parts.layouts
  params = state.certified_params(parts.model, stacks)
  trained: Any = jax.tree.structure(state.params)
  if jax.tree.structure(params) != trained:
    return params  # Explicit matrices; the compiler lays them out.
  return jax.tree.map(parallel.move, params, stored, working)
