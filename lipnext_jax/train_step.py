"""One step of training: loss, gradient, update, running sums. All pure."""

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
from lipnext_jax import inner_rules
from lipnext_jax import losses
from lipnext_jax import models
from lipnext_jax import optim
from lipnext_jax import schedules
from lipnext_jax.models import interface
from lipnext_jax.models import layers
from lipnext_jax.runtime import health as health_lib

# Power iterations of the monitored orthogonality error: n² each, so that a log
# line can afford them. The certificate uses a proved bound instead.
_MONITOR_ITERATIONS = 16


class Sums(NamedTuple):
  """Running sums since the last log line; they stay on the device.

  Of the steps that were not skipped, but for the last two.
  """

  steps: jax.Array  # Shape (): float32, as all.
  examples: jax.Array
  loss: jax.Array
  correct: jax.Array
  certified: jax.Array  # Correct, with a radius above ε (for training's Λ).
  grad_norm: jax.Array
  skipped: jax.Array  # Steps whose loss or gradient was not finite.
  spikes: jax.Array  # Steps whose loss was far above its running mean.

  @classmethod
  def zeros(cls) -> 'Sums':
    """No step yet."""
    return cls(*(jnp.zeros([], jnp.float32) for _ in cls._fields))

  def means(self) -> dict[str, float]:
    """Per-step and per-example means as metrics, in per cent where counted.

    The means are left out when all steps were skipped.
    """
    sums = {name: float(x) for name, x in zip(self._fields, self, strict=True)}
    steps, examples = sums['steps'], sums['examples']
    means = (
      {
        'train/loss': sums['loss'] / steps,
        'train/clean': 100 * sums['correct'] / examples,
        'train/certified': 100 * sums['certified'] / examples,
        'train/grad_norm': sums['grad_norm'] / steps,
      }
      if steps
      else {}
    )
    return means | {
      'train/skipped_steps': sums['skipped'],
      'train/loss_spikes': sums['spikes'],
    }


class TrainState(NamedTuple):
  """All that training carries along and a checkpoint holds."""

  step: jax.Array  # Shape (): int32, batches seen; skipped ones count.
  params: Any  # Fast weights, float32.
  opt_state: optax.OptState  # Holds the slow weights, see `slow_params`.
  health: health_lib.Health  # What was skipped, and the loss to expect.
  sums: Sums  # For the next log line.


def build_loss(c: ml_collections.ConfigDict) -> Callable[..., jax.Array]:
  """Builds (logits, labels, head_kernel, epsilon) → mean loss.

  Args:
    c: `config.loss`. A loss is given the fields that are declared for it alone.
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


def learning_rate(
  c: ml_collections.ConfigDict, plan: schedules.Plan
) -> optax.Schedule:
  """Step → learning rate: linear warm-up, then cosine."""
  return schedules.warmup_cosine_schedule(
    c.learning_rate, plan.total_steps, plan.warmup_steps, c.final_scale
  )


def build_optimizer(
  c: ml_collections.ConfigDict,
  plan: schedules.Plan,
  stack_sharding: jax.sharding.NamedSharding | None = None,
) -> optax.GradientTransformationExtraArgs:
  """The recipe of `lipnext_jax.optim`, from `config.optimizer`."""
  return optim.lipnext_optimizer(
    learning_rate(c, plan),
    inner=functools.partial(
      inner_rules.INNER_RULES[c.name], mu_dtype=config_lib.DTYPES[c.mu_dtype]
    ),
    clip_norm=c.clip_norm or None,
    lookahead_period=c.lookahead_period or None,
    lookahead_alpha=c.lookahead_alpha,
    retraction=c.retraction,
    retraction_period=plan.retraction_period or None,
    exponential=c.exponential,
    precision=config_lib.PRECISIONS[c.precision],
    stack_sharding=stack_sharding,
  )


def init_state(
  model: interface.CertifiedModel,
  tx: optax.GradientTransformation,
  image_shape: tuple[int, int, int],
  rng: jax.Array,
) -> TrainState:
  """A fresh state; run it under `jit(…, out_shardings=…)` to lay it out."""
  params = model.init(rng, jnp.zeros((1, *image_shape)))['params']
  return TrainState(
    jnp.zeros([], jnp.int32),
    params,
    tx.init(params),
    health_lib.Health.start(),
    Sums.zeros(),
  )


def make_train_step(
  model: interface.CertifiedModel,
  tx: optax.GradientTransformation,
  loss_fn: Callable[..., jax.Array],
  epsilon_fn: Callable[[jax.typing.ArrayLike], jax.Array],
  epsilon: float,
  to_compute: Callable[[Any], Any],
  to_stored: Callable[[Any], Any],
  microbatches: int = 1,
  loss_spike: float = 0.0,
) -> Callable[..., TrainState]:
  """Builds (state, batch) → state.

  A step whose loss or gradient is not finite is skipped: parameters and
  optimizer stay as they are, and it is counted.

  Args:
    model: images → logits, and the constant K that the loss is told.
    tx: the optimizer.
    loss_fn: see `build_loss`.
    epsilon_fn: step → training radius ε_t.
    epsilon: ε at which certified train accuracy is counted.
    to_compute: parameters as they are kept → as a step works with them.
    to_stored: gradients of the latter → in the layout of the former, float32.
    microbatches: parts of the batch whose gradients are added up in turn; the
      mean is that of the whole batch.
    loss_spike: counts losses above so many times their running mean; 0: none.

  Returns:
    The step, not yet jitted. `batch` holds 'image' [b, H, W, ch] (uint8 or
    float32 in [0, 1]) and 'label' [b] int32.
  """

  def train_step(state, batch):
    def objective(params, batch):
      images, labels = layers.to_unit(batch['image']), batch['label']
      variables = {'params': params}
      logits: Any = model.apply(variables, images)
      kernel = models.head_kernel(variables)
      # A backbone that stretches by K carries a ball of ε into one of ε·K.
      lipschitz = model.lipschitz(params)
      loss = loss_fn(logits, labels, kernel, epsilon_fn(state.step) * lipschitz)
      predictions, radii = certify.certified_radius(logits, kernel, lipschitz)
      correct = predictions == labels
      certified = correct & (radii > epsilon)
      return loss, (jnp.sum(correct), jnp.sum(certified))

    grads, (loss, counts) = _accumulate(
      objective, to_compute(state.params), batch, microbatches
    )
    grads = to_stored(grads)
    grad_norm = optax.tree.norm(grads)  # Of one entry that is not finite: not.
    finite = jnp.isfinite(loss) & jnp.isfinite(grad_norm)

    def update(_, carry):
      params, opt_state, grads = carry
      updates, opt_state = tx.update(grads, opt_state, params)
      return optax.apply_updates(params, updates), opt_state, updates

    # A loop of one turn or none: unlike a branch, or a choice between two
    # states, it works in place, the gradients' memory (now the updates') too.
    with jax.named_scope('optimizer'):  # `aot` counts it apart.
      params, opt_state, _ = jax.lax.fori_loop(
        0,
        finite.astype(jnp.int32),
        update,
        (state.params, state.opt_state, grads),
      )
    health, spike = state.health.after(loss, finite, loss_spike)

    size = float(batch['label'].size)
    new = (1.0, size, loss, *counts, grad_norm)
    new = (*(jnp.where(finite, term, 0.0) for term in new), ~finite, spike)
    sums = Sums(*(a + b for a, b in zip(state.sums, new, strict=True)))
    return TrainState(state.step + 1, params, opt_state, health, sums)

  return train_step


def _accumulate(objective, params, batch, microbatches):
  """(gradients, (mean loss, counts)) over a batch, in one or more parts."""
  grad_fn = jax.value_and_grad(objective, has_aux=True)
  if microbatches == 1:
    (loss, counts), grads = grad_fn(params, batch)
    return grads, (loss, counts)

  # Every device cuts its own share: part i holds the examples i mod k.
  parts = jax.tree.map(
    lambda x: jnp.moveaxis(x.reshape(-1, microbatches, *x.shape[1:]), 1, 0),
    batch,
  )

  def body(totals, part):
    (loss, counts), grads = grad_fn(params, part)
    terms = grads, (loss, counts)
    totals = jax.tree.map(lambda total, x: total + x, totals, terms)
    return totals, None

  zeros = (
    jax.tree.map(lambda p: jnp.zeros_like(p, jnp.float32), params),
    (jnp.zeros([]), (jnp.zeros([], jnp.int32),) * 2),
  )
  (grads, (loss, counts)), _ = jax.lax.scan(body, zeros, parts)
  mean = functools.partial(jax.tree.map, lambda x: x / microbatches)
  return mean(grads), (mean(loss), counts)


def make_monitor(
  model: interface.CertifiedModel,
  epsilon_fn: Callable[[jax.typing.ArrayLike], jax.Array],
  learning_rate_fn: optax.Schedule,
) -> Callable[[TrainState], dict[str, jax.Array]]:
  """Builds state → the metrics that a log line adds, as device scalars."""

  def monitor(state):
    params = model.explicit_params(state.params)
    labels = jax.tree.leaves(optim.orthogonal_labels(params))
    errors = [
      jnp.max(optim.orthogonality_error(p, iterations=_MONITOR_ITERATIONS))
      for p, label in zip(jax.tree.leaves(params), labels, strict=True)
      if label == 'orthogonal'
    ]
    done = state.step - 1  # The step that was just taken.
    return {
      'train/epsilon': epsilon_fn(done),
      'train/learning_rate': jnp.asarray(learning_rate_fn(done)),
      'train/orthogonality_error': jnp.max(jnp.stack(errors)),
      'train/skipped_in_a_row': state.health.in_a_row,
    }

  return monitor
