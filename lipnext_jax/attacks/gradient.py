"""ℓ2 PGD and APGD inside per-example balls, whole batches in one program.

Libraries offer one ε per call; a certificate gives every image its own. APGD is
F. Croce, M. Hein, "Reliable evaluation of adversarial robustness with an
ensemble of diverse parameter-free attacks", ICML 2020, algorithm 1, in ℓ2.

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
# PGD's step is this over the number of steps, in ε (A. Madry et al., 2018).
_PGD_REACH = 2.5


class Search(NamedTuple):
  """An attack's settings."""

  method: str = 'apgd'  # A key of `METHODS`.
  loss: str = 'cross_entropy'  # A key of `objectives.LOSSES`.
  steps: int = 40


class _Problem(NamedTuple):
  """One batch: a value-and-gradient function, and where to stay."""

  evaluate: Callable[[jax.Array], tuple[jax.Array, jax.Array, jax.Array]]
  project: Callable[[jax.Array], jax.Array]
  epsilons: jax.Array


def checkpoints(steps: int) -> np.ndarray:
  """APGD's window at each step: its length at a checkpoint, else 0. [steps].

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


def _pgd(problem: _Problem, start: jax.Array, steps: int) -> jax.Array:
  """Steps of constant length along the normalised gradient."""
  length = problem.epsilons * _PGD_REACH / steps

  def step(carry, _):
    x, best, best_score = carry
    _, score, grad = problem.evaluate(x)
    best, best_score = _keep(x, score, best, best_score)
    move = target_lib.spread(length, x) * objectives.normalize(grad)
    return (problem.project(x + move), best, best_score), None

  nothing = jnp.full_like(problem.epsilons, -jnp.inf)
  # Once more than there are steps: the last iterate is judged, not moved.
  (_, best, _), _ = jax.lax.scan(
    step, (start, start, nothing), length=steps + 1
  )
  return best


def _keep(x, score, best, best_score):
  better = score > best_score
  best = jnp.where(target_lib.spread(better, x), x, best)
  return best, jnp.where(better, score, best_score)


class _Apgd(NamedTuple):
  """The state of APGD; one entry per example."""

  x: jax.Array
  previous: jax.Array
  loss: jax.Array
  grad: jax.Array
  top: jax.Array  # Where the loss was highest,
  top_loss: jax.Array
  top_grad: jax.Array
  best: jax.Array  # and where the answer was closest to changing.
  best_score: jax.Array
  length: jax.Array
  risen: jax.Array  # Steps of this window that raised the loss.
  halved: jax.Array  # Whether the last checkpoint halved the length,
  checked_loss: jax.Array  # and the highest loss known then.


def _apgd(problem: _Problem, start: jax.Array, steps: int) -> jax.Array:
  """Momentum, and steps that halve (back at the best point) once they stall."""
  spread, project = target_lib.spread, problem.project

  def step(s: _Apgd, schedule):
    share, window = schedule
    ahead = project(s.x + spread(s.length, s.x) * objectives.normalize(s.grad))
    x = project(s.x + share * (ahead - s.x) + (1 - share) * (s.x - s.previous))
    loss, score, grad = problem.evaluate(x)
    best, best_score = _keep(x, score, s.best, s.best_score)
    higher = loss > s.top_loss
    wide = spread(higher, x)
    top, top_grad = jnp.where(wide, x, s.top), jnp.where(wide, grad, s.top_grad)
    top_loss = jnp.where(higher, loss, s.top_loss)
    risen = s.risen + (loss > s.loss)

    here = window > 0
    stalled = risen < _PROGRESS * window
    stuck = ~s.halved & (top_loss <= s.checked_loss)
    halve = here & (stalled | stuck)
    wide = spread(halve, x)
    return _Apgd(
      x=jnp.where(wide, top, x),
      previous=jnp.where(wide, top, s.x),
      loss=jnp.where(halve, top_loss, loss),
      grad=jnp.where(wide, top_grad, grad),
      top=top,
      top_loss=top_loss,
      top_grad=top_grad,
      best=best,
      best_score=best_score,
      length=jnp.where(halve, s.length / 2, s.length),
      risen=jnp.where(here, 0, risen),
      halved=jnp.where(here, halve, s.halved),
      checked_loss=jnp.where(window != 0, top_loss, s.checked_loss),
    ), None

  # The first round moves nothing, and so evaluates the start.
  lowest = jnp.full_like(problem.epsilons, -jnp.inf)
  state = _Apgd(
    x=start,
    previous=start,
    loss=-lowest,
    grad=jnp.zeros_like(start),
    top=start,
    top_loss=lowest,
    top_grad=jnp.zeros_like(start),
    best=start,
    best_score=lowest,
    length=2 * problem.epsilons,
    risen=jnp.zeros(lowest.shape, jnp.int32),
    halved=jnp.zeros(lowest.shape, bool),
    checked_loss=lowest,
  )
  shares = np.full(steps + 1, _MOMENTUM)
  shares[:2] = 1  # Nor does the first move have a momentum.
  windows = np.concatenate([[-1], checkpoints(steps)])
  schedule = (jnp.asarray(shares, start.dtype), jnp.asarray(windows))
  state, _ = jax.lax.scan(step, state, schedule)
  return state.best


METHODS: dict[str, Callable[[_Problem, jax.Array, int], jax.Array]] = {
  'pgd': _pgd,
  'apgd': _apgd,
}


@functools.partial(
  jax.jit, static_argnames=('apply', 'method', 'steps', 'dtype')
)
def _run(
  apply, params, key, box, loss, images, labels, rivals, epsilons,
  method, steps, dtype,
):  # fmt: skip
  center = images.astype(epsilons.dtype)
  loss_fns = list(objectives.LOSSES.values())

  def objective(x):
    # In the format of the claim, and through its arithmetic.
    logits = apply(params, x.astype(dtype)).astype(x.dtype)
    # A choice at run time: compiling costs more than all steps do.
    losses = jax.lax.switch(loss, loss_fns, logits, labels, rivals)
    return jnp.sum(losses), (losses, objectives.best_rival(logits, labels))

  def evaluate(x):
    (_, (losses, score)), grad = jax.value_and_grad(objective, has_aux=True)(x)
    # Logits that are no numbers are another answer; their gradients, no move.
    score = jnp.where(jnp.isnan(score), jnp.inf, score)
    return losses, score, jnp.where(jnp.isfinite(grad), grad, 0)

  def project(x):
    return objectives.project(x, center, epsilons, box)

  start = project(objectives.random_start(key, center, epsilons))
  problem = _Problem(evaluate, project, epsilons)
  return METHODS[method](problem, start, steps)


def attack(
  target: target_lib.Target,
  search: Search,
  epsilons: np.ndarray,
  rivals: np.ndarray,
  *,
  seed: int,
  box: bool = False,
) -> np.ndarray:
  """One random restart on every example.

  Args:
    target: what is attacked; the answers to change are its predictions.
    search: method, loss, steps.
    epsilons: [n], ℓ2 radii of the balls to search.
    rivals: [n] int, for `rival_margin`.
    seed: of the random start.
    box: stay in [0, 1] too.

  Returns:
    [n, H, W, ch] in the wide format of the search, inside the balls up to its
    rounding (`exact.pull_inside` does the rest).
  """
  wide = target.search_dtype()
  points = []
  with target.arithmetic():
    key = jax.random.key(seed)
    for part, (*arrays, valid) in enumerate(
      target_lib.batches(
        target.batch_size,
        target.images,
        target.predictions.astype(np.int32),
        rivals.astype(np.int32),
        epsilons.astype(wide),
      )
    ):
      found: Any = _run(
        target.apply,
        target.params,
        jax.random.fold_in(key, part),
        box,
        list(objectives.LOSSES).index(search.loss),
        *arrays,
        method=search.method,
        steps=search.steps,
        dtype=target.images.dtype,
      )
      points.append(np.asarray(found)[:valid])
  return np.concatenate(points)


def nearest_rivals(target: target_lib.Target, rank: int) -> np.ndarray:
  """The class with the `rank`-th largest logit but the answer's own: [n] int.

  Ranks beyond the number of rivals start again with the first.
  """
  logits = target.logits(target.images).astype(np.float64)
  np.put_along_axis(logits, target.predictions[:, None], -np.inf, axis=-1)
  order = np.argsort(-logits, axis=-1, kind='stable')
  return order[:, rank % (logits.shape[-1] - 1)]
