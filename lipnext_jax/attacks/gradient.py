"""ℓ2 PGD and APGD with a ball per example, for whole batches at once.

Other libraries take one ε per call; certificates have a radius per image. APGD
is algorithm 1 of F. Croce, M. Hein, "Reliable evaluation of adversarial
robustness with an ensemble of diverse parameter-free attacks", ICML 2020, in
ℓ2. PGD (A. Madry et al., 2018) is the same loop with steps of one length and
without momentum.

Both return for each example the iterate where the answer was closest to
changing (the largest `objectives.rival_lead`), whatever the loss.
"""

from collections.abc import Callable
import functools
from typing import Any
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lipnext_jax.attacks import objectives
from lipnext_jax.attacks import target as target_lib

# Constants of APGD, from its paper.
_STEP_SHARE = 0.75  # Share of the new step; the rest is momentum.
_PROGRESS = 0.75  # Share of steps that have to raise the loss.
_FIRST_CHECKPOINT = 0.22  # Share of all steps, like the next two.
_CHECKPOINT_DECREMENT = 0.03
_SHORTEST_PERIOD = 0.06


class Search(NamedTuple):
  """The settings of a gradient attack."""

  method: str = 'apgd'  # One of `METHODS`.
  loss: str = 'cross_entropy'  # One of `objectives.LOSSES`.
  steps: int = 40


class _Schedule(NamedTuple):
  """The rounds of a method: one that evaluates the start, then its steps."""

  length: float  # Length of the first step, as a multiple of ε.
  shares: np.ndarray  # Shape (steps + 1,): share of the new step, see above.
  # Shape (steps + 1,): length of the window that ends here, at a checkpoint; 0
  # elsewhere; −1 where the loss is only recorded.
  windows: np.ndarray


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


def _pgd(steps: int) -> _Schedule:
  """Plans PGD: steps of constant length, 2.5 ε in total."""
  return _Schedule(2.5 / steps, np.ones(steps + 1), np.zeros(steps + 1, int))


def _apgd(steps: int) -> _Schedule:
  """Plans APGD: momentum, and checkpoints that may halve the steps."""
  shares = np.full(steps + 1, _STEP_SHARE)
  shares[:2] = 1  # The first step has no momentum.
  return _Schedule(2.0, shares, np.concatenate([[-1], checkpoints(steps)]))


METHODS: dict[str, Callable[[int], _Schedule]] = {'pgd': _pgd, 'apgd': _apgd}


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


def _select(condition: jax.Array, new: Any, old: Any) -> Any:
  """Returns the tree `new` or `old`."""
  return jax.tree.map(lambda a, b: jnp.where(condition, a, b), new, old)


def _climb(evaluate, project, start, epsilon, schedule: _Schedule) -> jax.Array:
  """Maximises the loss from `start`; returns the point of the largest lead.

  Args:
    evaluate: function of a point to its loss, `rival_lead` and gradient.
    project: projection to the set to search.
    start: first point, of any shape.
    epsilon: radius of the ball, a scalar.
    schedule: rounds of the method.
  """

  def step(s: _State, now):
    share, window = now
    x = s.here.x
    ahead = project(x + s.length * objectives.normalize(s.here.grad))
    x = project(x + share * (ahead - x) + (1 - share) * (x - s.previous))
    loss, lead, grad = evaluate(x)
    here = _Point(x, loss, grad)
    top = _select(loss > s.top.loss, here, s.top)
    risen = s.risen + (loss > s.here.loss)
    check = window > 0
    stuck = ~s.halved & (top.loss <= s.checked_loss)
    halve = check & ((risen < _PROGRESS * window) | stuck)
    return _State(
      here=_select(halve, top, here),
      previous=jnp.where(halve, top.x, s.here.x),
      top=top,
      best=_select(lead > s.best[1], (x, lead), s.best),
      length=jnp.where(halve, s.length / 2, s.length),
      risen=jnp.where(check, 0, risen),
      halved=jnp.where(check, halve, s.halved),
      checked_loss=jnp.where(window != 0, top.loss, s.checked_loss),
    ), None

  # The first round has no gradient, so it evaluates the start.
  lowest, still = jnp.full_like(epsilon, -jnp.inf), jnp.zeros_like(start)
  state = _State(
    here=_Point(start, -lowest, still),
    previous=start,
    top=_Point(start, lowest, still),
    best=(start, lowest),
    length=schedule.length * epsilon,
    risen=jnp.zeros((), jnp.int32),
    halved=jnp.zeros((), bool),
    checked_loss=lowest,
  )
  rounds = (
    jnp.asarray(schedule.shares, start.dtype),
    jnp.asarray(schedule.windows),
  )
  return jax.lax.scan(step, state, rounds)[0].best[0]


@functools.partial(jax.jit, static_argnames=('apply', 'method', 'steps'))
def _run(apply, params, key, box, loss, examples, method, steps):
  loss_fns = list(objectives.LOSSES.values())

  def search(key, image, label, rival, epsilon):
    center = image.astype(epsilon.dtype)

    def objective(x):
      # The certificate is about points of the images' dtype.
      narrow = jnp.expand_dims(x.astype(image.dtype), 0)
      logits = apply(params, narrow)[0].astype(x.dtype)
      # The loss is chosen at run time: compiling takes longer than an attack.
      value = jax.lax.switch(loss, loss_fns, logits, label, rival)
      return value, objectives.rival_lead(logits, label)

    def evaluate(x):
      (value, lead), grad = jax.value_and_grad(objective, has_aux=True)(x)
      # Logits of nan count as another answer.
      lead = jnp.where(jnp.isnan(lead), jnp.inf, lead)
      return value, lead, jnp.where(jnp.isfinite(grad), grad, 0)

    def project(x):
      return objectives.project(x, center, epsilon, box)

    start = project(objectives.random_start(key, center, epsilon))
    return _climb(evaluate, project, start, epsilon, METHODS[method](steps))

  return jax.vmap(search)(jax.random.split(key, len(examples[0])), *examples)


def attack(
  target: target_lib.Target,
  search: Search,
  epsilons: np.ndarray,
  rivals: np.ndarray,
  *,
  seed: int,
  box: bool = False,
) -> np.ndarray:
  """Attacks every example once, from a random start.

  Args:
    target: target whose predictions are to change.
    search: settings of the attack.
    epsilons: [n], ℓ2 radii of the balls to search.
    rivals: [n] int, classes to reach, for the loss `rival_margin`.
    seed: seed of the random start.
    box: whether to stay in [0, 1], too.

  Returns:
    [n, H, W, ch], float32 or wider, in the balls up to rounding, which
    `exact.pull_inside` removes.
  """
  wide = np.promote_types(target.images.dtype, np.float32)
  loss = list(objectives.LOSSES).index(search.loss)
  labels, rivals = target.predictions.astype(np.int32), rivals.astype(np.int32)
  batches = target_lib.batches(
    target.batch_size, target.images, labels, rivals, epsilons.astype(wide)
  )
  points = []
  with target.arithmetic():
    for part, (*examples, valid) in enumerate(batches):
      key = jax.random.fold_in(jax.random.key(seed), part)
      found: Any = _run(
        target.apply, target.params, key, box, loss, tuple(examples),
        search.method, search.steps,
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
