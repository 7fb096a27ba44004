"""ℓ2 PGD and APGD with a ball per example, for whole batches at once.

Other libraries take one ε per call; certificates have a radius per image. APGD
is algorithm 1 of F. Croce, M. Hein, "Reliable evaluation of adversarial
robustness with an ensemble of diverse parameter-free attacks", ICML 2020, in
ℓ2. PGD (A. Madry et al., 2018) is the same loop with steps of one length and
without momentum.

Both return for each example the iterate where the answer was closest to
changing (the largest `rival_lead`), whatever the loss.
"""

from collections.abc import Callable
import functools
from typing import Any
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from lipnext_jax.attacks import target as target_lib

# Constants of APGD, from its paper.
_STEP_SHARE = 0.75  # Share of the new step; the rest is momentum.
_PROGRESS = 0.75  # Share of steps that have to raise the loss.
_FIRST_CHECKPOINT = 0.22  # Share of all steps, like the next two.
_CHECKPOINT_DECREMENT = 0.03
_SHORTEST_PERIOD = 0.06


def rival_lead(logits: jax.Array, label: jax.Array) -> jax.Array:
  """Returns max_{j≠y} f_j − f_y, which is positive if the answer is not y."""
  own = jnp.arange(logits.size) == label
  return jnp.max(jnp.where(own, -jnp.inf, logits)) - logits[label]


def dlr(logits: jax.Array, label: jax.Array) -> jax.Array:
  """Computes the difference of logits ratio (F. Croce, M. Hein, ICML 2020).

  It is (max_{j≠y} f_j − f_y)/(f_(1) − f_(3)) for the largest and third largest
  logit. For two classes, which have no third logit, it is the numerator.
  """
  difference = rival_lead(logits, label)
  if logits.size < 3:
    return difference
  top = jax.lax.top_k(logits, 3)[0]
  spread = top[0] - top[2]
  return difference / jnp.where(spread > 0, spread, 1)


# Losses of logits f [k], the answer y to change, and a rival r to change it to.
LOSSES: dict[str, Callable[[jax.Array, jax.Array, jax.Array], jax.Array]] = {
  'cross_entropy': lambda f, y, r: jax.nn.logsumexp(f) - f[y],
  'dlr': lambda f, y, r: dlr(f, y),
  'rival_margin': lambda f, y, r: f[r] - f[y],
}


def normalize(x: jax.Array) -> jax.Array:
  """Scales an array to unit ℓ2 norm; zeros stay."""
  size = jnp.linalg.norm(x.ravel())
  return x / jnp.where(size > 0, size, 1)


def project(
  x: jax.Array,
  center: jax.Array,
  epsilon: jax.Array,
  box: jax.typing.ArrayLike,
) -> jax.Array:
  """Projects `x` to the ball of radius ε, and then to [0, 1] if `box`.

  For a center in [0, 1], clipping moves every coordinate towards it, so that
  the point stays in the ball. It may not be the nearest point of both sets.

  >>> project(jnp.array([3.0, 4.0]), jnp.zeros(2), 2.5, False).tolist()
  [1.5, 2.0]
  """
  delta = x - center
  size = jnp.linalg.norm(delta.ravel())
  factor = jnp.where(size > epsilon, epsilon / jnp.where(size > 0, size, 1), 1)
  x = center + factor * delta
  return jnp.where(box, jnp.clip(x, 0, 1), x)


def checkpoints(steps: int) -> np.ndarray:
  """Returns the length of APGD's window at each checkpoint, 0 elsewhere.

  >>> checkpoints(20).nonzero()[0].tolist()
  [4, 8, 11, 13, 15, 17, 18, 19]
  """
  windows = np.zeros(steps, np.int32)
  previous, current = 0.0, _FIRST_CHECKPOINT
  before = 0
  while current <= 1:
    at = int(np.ceil(round(current * steps, 6)))
    if at > before:
      windows[at - 1] = at - before
      before = at
    period = max(current - previous - _CHECKPOINT_DECREMENT, _SHORTEST_PERIOD)
    previous, current = current, current + period
  return windows


class _Point(NamedTuple):
  """A point, with the loss and its gradient."""

  x: jax.Array
  loss: jax.Array
  grad: jax.Array


class _State(NamedTuple):
  """The state of a search for one example."""

  here: _Point
  previous: jax.Array
  top: _Point  # Where the loss was highest.
  best: tuple[jax.Array, jax.Array]  # The point of the largest lead, the lead.
  length: jax.Array  # Length of the next step.
  risen: jax.Array  # Number of steps of this window that raised the loss.
  halved: jax.Array  # Whether the last checkpoint halved the length.
  checked_loss: jax.Array  # Highest loss at the last checkpoint.


def _schedule(method: str, steps: int):
  """Returns the first step's length over ε, and two columns of the rounds.

  They are the share of the new step, and the length of the window that ends
  with the round at a checkpoint: 0 elsewhere, −1 if it only records the loss.
  The first round has no gradient, so it evaluates the start.
  """
  if method == 'pgd':  # Steps of constant length, 2.5 ε in total.
    return 2.5 / steps, np.ones(steps + 1), np.zeros(steps + 1, np.int32)
  shares = np.full(steps + 1, _STEP_SHARE)
  shares[:2] = 1  # The first step has no momentum.
  return 2.0, shares, np.append(np.int32(-1), checkpoints(steps))


def _climb(evaluate, project, start, length, rounds):
  """Maximises the loss from `start`; returns the point of the largest lead.

  `evaluate` maps a point to its loss, `rival_lead` and gradient.
  """

  def step(s: _State, now):
    share, window = now
    x = s.here.x
    ahead = project(x + s.length * normalize(s.here.grad))
    x = project(x + share * (ahead - x) + (1 - share) * (x - s.previous))
    loss, lead, grad = evaluate(x)
    here = _Point(x, loss, grad)
    top = optax.tree.where(loss > s.top.loss, here, s.top)
    risen = s.risen + (loss > s.here.loss)
    check = window > 0
    stuck = ~s.halved & (top.loss <= s.checked_loss)
    halve = check & ((risen < _PROGRESS * window) | stuck)
    return _State(
      here=optax.tree.where(halve, top, here),
      previous=jnp.where(halve, top.x, s.here.x),
      top=top,
      best=optax.tree.where(lead > s.best[1], (x, lead), s.best),
      length=jnp.where(halve, s.length / 2, s.length),
      risen=jnp.where(check, 0, risen),
      halved=jnp.where(check, halve, s.halved),
      checked_loss=jnp.where(window != 0, top.loss, s.checked_loss),
    ), None

  lowest, still = jnp.full_like(length, -jnp.inf), jnp.zeros_like(start)
  state = _State(
    here=_Point(start, -lowest, still),
    previous=start,
    top=_Point(start, lowest, still),
    best=(start, lowest),
    length=length,
    risen=jnp.zeros((), jnp.int32),
    halved=jnp.zeros((), bool),
    checked_loss=lowest,
  )
  return jax.lax.scan(step, state, rounds)[0].best[0]


@functools.partial(jax.jit, static_argnames='apply')
def _run(apply, params, key, box, loss, length, rounds, examples):
  def search(key, image, label, rival, epsilon):
    center = image.astype(epsilon.dtype)

    def objective(x):
      # The certificate is about points of the images' dtype.
      narrow = jnp.expand_dims(x.astype(image.dtype), 0)
      logits = apply(params, narrow)[0].astype(x.dtype)
      # The loss is chosen at run time: compiling takes longer than an attack.
      value = jax.lax.switch(loss, [*LOSSES.values()], logits, label, rival)
      return value, rival_lead(logits, label)

    def evaluate(x):
      (value, lead), grad = jax.value_and_grad(objective, has_aux=True)(x)
      # Logits of nan count as another answer.
      lead = jnp.where(jnp.isnan(lead), jnp.inf, lead)
      return value, lead, jnp.where(jnp.isfinite(grad), grad, 0)

    def clip(x):
      return project(x, center, epsilon, box)

    # In many dimensions, almost all of the ball lies next to its sphere.
    direction = jax.random.normal(key, center.shape, center.dtype)
    start = clip(center + epsilon * normalize(direction))
    return _climb(evaluate, clip, start, length * epsilon, rounds)

  return jax.vmap(search)(jax.random.split(key, len(examples[0])), *examples)


def attack(
  target: target_lib.Target,
  method: str,
  loss: str,
  epsilons: np.ndarray,
  rivals: np.ndarray,
  *,
  steps: int,
  seed: int,
  box: bool = False,
) -> np.ndarray:
  """Attacks every example once, from a random start.

  Args:
    target: target whose predictions are to change.
    method: 'pgd' or 'apgd'.
    loss: one of `LOSSES`.
    epsilons: [n], ℓ2 radii of the balls to search.
    rivals: [n] int, classes to reach, for the loss `rival_margin`.
    steps: number of gradient steps.
    seed: seed of the random start.
    box: whether to stay in [0, 1], too.

  Returns:
    [n, H, W, ch], float32 or wider, in the balls up to rounding, which
    `exact.pull_inside` removes.
  """
  wide = np.promote_types(target.images.dtype, np.float32)
  labels, rivals = target.predictions.astype(np.int32), rivals.astype(np.int32)
  batches = target_lib.batches(
    target.batch_size, target.images, labels, rivals, epsilons.astype(wide)
  )
  length, shares, windows = _schedule(method, steps)
  rounds = shares.astype(wide), windows
  points = []
  with target.arithmetic():
    for part, (*examples, valid) in enumerate(batches):
      key = jax.random.fold_in(jax.random.key(seed), part)
      found: Any = _run(
        target.apply, target.params, key, box, [*LOSSES].index(loss),
        length, rounds, tuple(examples),
      )  # fmt: skip
      points.append(np.asarray(found)[:valid])
  return np.concatenate(points)


def nearest_rivals(target: target_lib.Target, rank: int) -> np.ndarray:
  """Returns the rivals with the `rank`-th largest logits: [n] int.

  Rank 0 is the runner-up. Ranks beyond the number of rivals start again at 0.
  """
  logits = target.logits(target.images).astype(np.float64)
  np.put_along_axis(logits, target.predictions[:, None], -np.inf, axis=-1)
  order = np.argsort(-logits, axis=-1, kind='stable')
  return order[:, rank % (logits.shape[-1] - 1)]
