"""ℓ2 PGD and APGD inside per-example balls, whole batches in one program.

Libraries offer one ε per call; a certificate gives every image its own. APGD is
F. Croce, M. Hein, "Reliable evaluation of adversarial robustness with an
ensemble of diverse parameter-free attacks", ICML 2020, algorithm 1, in ℓ2. PGD
(A. Madry et al., 2018) is the same loop without momentum and with steps of one
length.

Both return, per example, the point among all iterates at which the answer was
closest to changing (the largest max_{j≠y} f_j − f_y), whatever loss led there.
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

_MOMENTUM = 0.75  # α of APGD, from the paper.
_PROGRESS = 0.75  # ρ of APGD, from the paper: steps that should improve.
_FIRST_CHECKPOINT = 0.22  # p_1 of APGD, as the next two, from the paper.
_CHECKPOINT_DECREMENT = 0.03
_SHORTEST_PERIOD = 0.06


class Search(NamedTuple):
  """An attack's settings."""

  method: str = 'apgd'  # A key of `METHODS`.
  loss: str = 'cross_entropy'  # A key of `objectives.LOSSES`.
  steps: int = 40


class _Schedule(NamedTuple):
  """The steps of a method, after a first round that evaluates the start."""

  length: float  # Of the first step, in ε.
  shares: np.ndarray  # Shape (steps + 1,): of the new step; the rest: momentum.
  # Shape (steps + 1,): length of the window that a checkpoint ends, else 0; −1
  # takes note of the loss.
  windows: np.ndarray


def checkpoints(steps: int) -> np.ndarray:
  """Returns APGD's window at each step: its length at a checkpoint, else 0.

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
  """Plans steps of constant length, which reach 2.5 ε together."""
  return _Schedule(2.5 / steps, np.ones(steps + 1), np.zeros(steps + 1, int))


def _apgd(steps: int) -> _Schedule:
  """Plans momentum, and steps that halve (back at the top) once they stall."""
  shares = np.full(steps + 1, _MOMENTUM)
  shares[:2] = 1  # The first step has no momentum.
  return _Schedule(2.0, shares, np.concatenate([[-1], checkpoints(steps)]))


METHODS: dict[str, Callable[[int], _Schedule]] = {'pgd': _pgd, 'apgd': _apgd}


class _Point(NamedTuple):
  """A point and what is known there."""

  x: jax.Array
  loss: jax.Array
  grad: jax.Array


class _State(NamedTuple):
  """The state of a search for one example."""

  here: _Point
  previous: jax.Array
  top: _Point  # Where the loss was highest.
  best: tuple[jax.Array, jax.Array]  # Where the answer was closest to changing.
  length: jax.Array
  risen: jax.Array  # Steps of this window that raised the loss.
  halved: jax.Array  # Whether the last checkpoint halved the length,
  checked_loss: jax.Array  # and the highest loss known then.


def _select(condition: jax.Array, new: Any, old: Any) -> Any:
  return jax.tree.map(lambda a, b: jnp.where(condition, a, b), new, old)


def _climb(evaluate, project, start, epsilon, schedule: _Schedule) -> jax.Array:
  """Climbs the loss from `start`; returns the point closest to a change.

  Args:
    evaluate: x → loss, how close the answer is to changing, gradient.
    project: x → the nearest point of the set to stay in.
    start: of any shape.
    epsilon: scalar, radius of the ball.
    schedule: of the method.
  """

  def step(s: _State, now):
    share, window = now
    x = s.here.x
    ahead = project(x + s.length * objectives.normalize(s.here.grad))
    x = project(x + share * (ahead - x) + (1 - share) * (x - s.previous))
    loss, score, grad = evaluate(x)
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
      best=_select(score > s.best[1], (x, score), s.best),
      length=jnp.where(halve, s.length / 2, s.length),
      risen=jnp.where(check, 0, risen),
      halved=jnp.where(check, halve, s.halved),
      checked_loss=jnp.where(window != 0, top.loss, s.checked_loss),
    ), None

  # Without a gradient, the first round moves nothing and evaluates the start.
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
      # In the format of the claim, and through its arithmetic.
      narrow = jnp.expand_dims(x.astype(image.dtype), 0)
      logits = apply(params, narrow)[0].astype(x.dtype)
      # A choice at run time: compiling costs more than all steps do.
      value = jax.lax.switch(loss, loss_fns, logits, label, rival)
      return value, objectives.best_rival(logits, label)

    def evaluate(x):
      (value, score), grad = jax.value_and_grad(objective, has_aux=True)(x)
      # Logits that are no numbers are another answer; their gradients, no move.
      score = jnp.where(jnp.isnan(score), jnp.inf, score)
      return value, score, jnp.where(jnp.isfinite(grad), grad, 0)

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
  """Runs one random restart on every example.

  Args:
    target: whose predictions are the answers to change.
    search: method, loss, steps.
    epsilons: [n], ℓ2 radii of the balls to search.
    rivals: [n] int, for `rival_margin`.
    seed: of the random start.
    box: whether to stay in [0, 1], too.

  Returns:
    [n, H, W, ch], float32 or wider, inside the balls up to the rounding of the
    search (`exact.pull_inside` does the rest).
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
  """Returns the class with the `rank`-th largest logit among rivals: [n] int.

  Ranks beyond the number of rivals start again with the first.
  """
  logits = target.logits(target.images).astype(np.float64)
  np.put_along_axis(logits, target.predictions[:, None], -np.inf, axis=-1)
  order = np.argsort(-logits, axis=-1, kind='stable')
  return order[:, rank % (logits.shape[-1] - 1)]
