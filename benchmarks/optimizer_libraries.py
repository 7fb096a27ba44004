"""Adapters to the optimizers that `optimizer_peers` compares.

A contender starts at a point with reset(x) and moves it with step(gradient,
rate), which returns the seconds that the optimizer took; point() returns the
point. `memory` is the peak memory of a step in copies of the point, as a text.
"""

import functools
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax

from lipnext_jax.optim import orthogonal


class Compiled:
  """A contender in JAX, compiled once per shape; donates its state."""

  def __init__(self, init, apply):
    """Takes init(x) → state and apply(g, state, x, rate) → (x, state)."""
    self._init = jax.jit(init)
    self._apply = jax.jit(apply, donate_argnums=(0, 1))
    self._steps = {}

  def reset(self, x):
    """Starts at x [m, n]."""
    self._x = jnp.array(x)
    self._state = self._init(self._x)
    if x.shape not in self._steps:
      arguments = self._x, self._state, self._x, jnp.float32(0)
      self._steps[x.shape] = self._apply.lower(*arguments).compile()
    self._step = self._steps[x.shape]

  @property
  def memory(self):
    """Peak memory: arguments, temporaries, and outputs not written in place."""
    used = self._step.memory_analysis()
    peak = used.argument_size_in_bytes + used.temp_size_in_bytes
    peak += used.output_size_in_bytes - used.alias_size_in_bytes
    return f'{peak / self._x.nbytes:.1f}'

  def step(self, g, rate):
    """Steps along the gradient [m, n]; returns the seconds it took."""
    g, rate = jax.block_until_ready((jnp.array(g), jnp.float32(rate)))
    begin = time.perf_counter()
    self._x, self._state = self._step(g, self._state, self._x, rate)
    jax.block_until_ready(self._x)
    return time.perf_counter() - begin

  def point(self):
    """Returns the current point."""
    return self._x


def ours(rule, **options):
  """Returns the contender `orthogonal(rule, rate, **options)`."""

  def apply(g, state, x, rate):
    updates, state = orthogonal(rule, rate, **options).update(g, state, x)
    return optax.apply_updates(x, updates), state

  return Compiled(orthogonal(rule, 0.0, **options).init, apply)


def riemannax(name, **options):
  """Returns an optimizer of riemannax on its Stiefel manifold.

  Its version 0.0.3 installs its modules at top level, not as a package.
  """
  import manifolds
  import optimizers

  make = getattr(optimizers, name)

  def leaves(state):  # The first leaf is the point.
    return [jnp.asarray(leaf) for leaf in jax.tree.leaves(state)]

  def init(x):
    return leaves(make(**options)[0](x))[1:]

  def apply(g, state, x, rate):
    init, update = make(rate, **options)
    manifold = manifolds.Stiefel(*x.shape)
    state = jax.tree.unflatten(jax.tree.structure(init(x)), [x, *state])
    x, *state = leaves(update(manifold.proj(x, g), state, manifold))
    return x, state

  return Compiled(init, apply)


class Geoopt:
  """An optimizer of geoopt, in PyTorch, on its Stiefel manifold."""

  memory = 'not measured'

  def __init__(self, name, canonical, **options):
    """Takes name and options of the optimizer, and the metric."""
    import geoopt
    import torch

    def parameter(x):
      manifold = geoopt.Stiefel(canonical=canonical)
      return geoopt.ManifoldParameter(self._tensor(x), manifold=manifold)

    self._tensor = lambda x: torch.tensor(np.asarray(x))
    self._parameter = parameter
    self._make = lambda x: getattr(geoopt.optim, name)([x], lr=1e-3, **options)

  def reset(self, x):
    """Starts at x [m, n]."""
    self._x = self._parameter(x)
    self._optimizer = self._make(self._x)

  def step(self, g, rate):
    """Steps along the gradient [m, n]; returns the seconds it took."""
    self._x.grad = self._tensor(g)
    self._optimizer.param_groups[0]['lr'] = rate
    begin = time.perf_counter()
    self._optimizer.step()
    return time.perf_counter() - begin

  def point(self):
    """Returns a copy of the current point."""
    return jnp.array(self._x.detach().numpy())


class Geojax:
  """The stochastic gradient solver of geojax, one iteration at a time."""

  memory = 'not measured'

  def __init__(self):
    """Imports geojax, or raises ModuleNotFoundError."""
    import geojax

    self._lib = geojax

  def reset(self, x):
    """Starts at x [m, n]."""
    self._x = jnp.array(x)

  def step(self, g, rate):
    """Steps along the gradient [m, n]; returns the seconds it took."""
    g = jnp.asarray(g)
    problem = self._lib.FiniteSum(
      M=geojax_manifold(self._lib, g.shape),
      loss=lambda x, term: jnp.vdot(g, x),
      num_terms=1,
      x0=self._x,
    )
    solver = self._lib.StochasticGradient(
      step_schedule=self._lib.ConstantSchedule(rate), maxiter=1, verbosity=0
    )
    # problem.solve() would first project the start with an SVD.
    self._x, _, (start, end) = solver.solve(problem)
    return end.time - start.time

  def point(self):
    """Returns the current point."""
    return self._x


def geojax_manifold(lib, shape):
  """Returns the Stiefel manifold of geojax with its faster exponential."""
  return (lib.Stiefel if shape[0] == shape[1] else lib.StiefelEuclidean)(shape)


def geojax_solve(solver, loss, x, reached, max_steps, max_seconds):
  """Runs a solver of geojax that finds its own steps until reached(value).

  Returns:
    Iterations, seconds, the last value and the last point.
  """
  import geojax

  x, cost, egrad = jnp.asarray(x), jax.jit(loss), jax.jit(jax.grad(loss))
  jax.block_until_ready((cost(x), egrad(x)))  # Compiles.
  problem = geojax.Minimize(
    M=geojax_manifold(geojax, x.shape),
    cost=cost,
    egrad=egrad,
    x0=x,
    solver=getattr(geojax, solver)(
      tolgradnorm=0.0,
      minstepsize=0.0,
      maxiter=max_steps,
      maxtime=max_seconds,
      verbosity=0,
      stopfun=lambda problem, x, info: (reached(info.cost), 'reached'),
    ),
  )
  x, value, history = problem.solve()
  return history[-1].iter, history[-1].time, value, x


# Name → (function that builds the contender, tables that it is in).
EVERYWHERE = ('square', 'tall', 'converge', 'defect')
CONTENDERS = {
  'ours, Adam': (lambda: ours(optax.adam), EVERYWHERE),
  'ours, Adam, projection': (
    lambda: ours(optax.adam, large_steps='projection'),
    EVERYWHERE,
  ),
  'ours, Adam in the algebra': (
    lambda: ours(optax.adam, moments='algebra'),
    ('tall',),
  ),
  'ours, momentum, projection': (
    # Suits Procrustes, and several libraries have it.
    lambda: ours(
      functools.partial(optax.sgd, momentum=0.5), large_steps='projection'
    ),
    ('converge',),
  ),
  'geoopt Adam, euclidean': (
    lambda: Geoopt('RiemannianAdam', canonical=False),
    EVERYWHERE,
  ),
  'geoopt Adam, canonical': (
    lambda: Geoopt('RiemannianAdam', canonical=True),
    EVERYWHERE,
  ),
  'geoopt momentum, euclidean': (
    lambda: Geoopt('RiemannianSGD', canonical=False, momentum=0.5),
    ('converge',),
  ),
  # Is nan from the second step on, because it projects its second moment onto
  # the tangent space, where it becomes negative.
  'riemannax Adam': (lambda: riemannax('riemannian_adam'), EVERYWHERE),
  'riemannax momentum': (
    lambda: riemannax('riemannian_momentum', momentum=0.5),
    ('converge',),
  ),
  'geojax StochasticGradient': (Geojax, ('square', 'tall', 'defect')),
}
# Contenders whose steps on [m, n] make arrays of size m×m.
NEEDS_MXM = (
  'ours, Adam in the algebra',
  'geoopt Adam, canonical',
  'geojax StochasticGradient',
)
