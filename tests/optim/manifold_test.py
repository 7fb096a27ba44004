"""Tests the lifted optimizer: brute force, optax wrappers, many steps."""

import functools

import jax
from jax.extend import core
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.linalg

from lipnext_jax import optim
from lipnext_jax.optim import manifold
from tests.optim import steps

PERIODS = {'lookahead_period': 2, 'retraction_period': 3}


def exact_steps(x, grads, lr, period, turn):
  """Returns X and X_slow after steps of SGD (η = ½), in float64 with SciPy."""
  if x.shape[0] > x.shape[1]:
    grads = [g.T for g in grads]
    return [y.T for y in exact_steps(x.T, grads, lr, period, turn)]
  slow, total = x, 0.0
  for t, g in enumerate(grads, start=1):
    delta = -lr * (x.T @ g - g.T @ x) / 2
    total = total + delta
    x = x @ turn(delta)
    if period and t % period == 0:
      x = slow = slow @ turn(total / 2)
      total = 0.0
  return x, slow


def check_steps(make_tx, shape, period=None, size=0.1, turn=scipy.linalg.expm):
  """Raises unless SGD on the manifold is the definition, and stays on it.

  A step of angle t moves X by t and rounds X by eps an entry (√n·eps in norm)
  and its own products by √n·eps·t more; the steps add up. `size` is about the
  norm of a step.
  """
  count = 7
  lr = size / np.sqrt(shape[0] * shape[1])
  x = steps.orthonormal(shape)
  grads = [steps.noise(x, t) for t in range(1, count + 1)]
  options = {'retraction_period': 3, 'thresholds': (0, 0, 0)}
  tx = make_tx(optax.sgd(lr), lookahead_period=period, **options)
  got, state = steps.run(tx, x, count, lambda _, t: grads[t])
  exact = [np.asarray(a, np.float64) for a in (x, *grads)]
  want, slow = exact_steps(exact[0], exact[1:], lr, period, turn)
  tolerance = 2 * count * np.sqrt(max(shape)) * steps.EPS
  assert np.linalg.norm(np.asarray(got, np.float64) - want) <= tolerance
  assert optim.orthogonality_error(got) <= tolerance
  if period:
    got_slow = np.asarray(optim.slow_params(state, x), np.float64)
    assert np.linalg.norm(got_slow - slow) <= tolerance


@pytest.mark.parametrize(
  ('shape', 'period'),
  [
    *(((9, 9), 3), ((3, 8), 3), ((8, 3), 9), ((1, 4), None), ((1, 1), 3)),
    *(((24, 3), None), ((3, 24), 9)),  # Moved by `ambient`.
  ],
)
def test_steps_are_the_definition(shape, period):
  check_steps(optim.orthogonal, shape, period)


def test_large_steps_are_projected_if_asked():
  def nearest(delta):
    return scipy.linalg.polar(np.eye(len(delta)) + delta)[0]

  make = functools.partial(optim.orthogonal, large_steps='projection')
  check_steps(make, (8, 3), period=3, size=1.0, turn=nearest)
  with pytest.raises(AssertionError):  # The curve is the asked one.
    check_steps(optim.orthogonal, (8, 3), size=1.0, turn=nearest)


def planted(step, skew_out=True):
  """Returns a lifted optimizer that takes `step(x, delta)` and nothing else."""

  def make(inner, **_):
    def update(g, state, x):
      omega = x.T @ g
      omega = (omega - omega.T) / 2 if skew_out else omega
      delta, state = inner.update(omega, state)
      return step(x, delta) - x, state

    return optax.GradientTransformation(inner.init, update)

  return make


def right_step(x, d):
  return x @ optim.fast_exp(d, thresholds=(0, 0, 0))


FAULTS = {
  'dropped Taylor term': planted(lambda x, d: x + x @ d),
  'transposed product': planted(lambda x, d: right_step(x, d.T)),
  'left instead of right': planted(lambda x, d: right_step(x.T, d).T),
  'unskewed step': planted(right_step, skew_out=False),
  'scaled by 1.001': planted(lambda x, d: 1.001 * right_step(x, d)),
  'bfloat16 products': planted(
    lambda x, d: steps.low(x) @ steps.low(jnp.eye(9) + d)
  ),
  'another weight': functools.partial(optim.orthogonal, lookahead_alpha=0.501),
  'no threshold asked for': lambda inner, **kw: optim.orthogonal(
    inner, **(kw | {'thresholds': (9, 9, 9)})
  ),
}


@pytest.mark.parametrize('fault', FAULTS)
def test_the_definition_rejects(fault):
  period = 3 if fault == 'another weight' else None
  check_steps(planted(right_step), (9, 9))  # Their frame is no fault.
  with pytest.raises(AssertionError):
    check_steps(FAULTS[fault], (9, 9), period)


def test_a_stack_is_its_matrices_one_by_one():
  x = steps.orthonormal((2, 2, 5, 5))
  grads = [steps.noise(x, 100 + t) for t in range(4)]
  tx = optim.orthogonal(optax.adam(0.05), **PERIODS)
  got, _ = steps.run(tx, x, 4, lambda _, t: grads[t])
  for i in np.ndindex(2, 2):
    want, _ = steps.run(tx, x[i], 4, lambda _, t, i=i: grads[t][i])
    steps.assert_close(got[i], want)


def test_what_the_inner_rule_makes_becomes_skew():
  """The rule here is not odd; it sees packed skew(XᵀG), zeros, and `value`."""

  def update(updates, state, params, *, value):
    del state
    return updates + 1.0, (updates, params, value)

  inner = optax.GradientTransformationExtraArgs(lambda _: (), update)
  tx = optim.orthogonal(inner, thresholds=(0, 0, 0))
  x = steps.orthonormal((5, 5))
  g = steps.noise(x, 1)
  updates, state = jax.jit(tx.update)(g, tx.init(x), x, value=7)
  # ‖Δ‖_F is about 4: see exponential_test.
  assert optim.orthogonality_error(x + updates) < 4 * np.sqrt(5) * steps.EPS * 5
  omega, origin, value = state.inner
  assert value == 7
  assert not np.any(origin)
  want = manifold.pack(x.T @ g)
  assert omega.shape == want.shape == (3, 5)
  steps.assert_close(omega, want, 5 * steps.EPS * jnp.linalg.norm(g))


@pytest.mark.slow  # 10,000 steps.
@pytest.mark.parametrize(
  ('shape', 'rate', 'bound'),
  # The promise of docs/optimizer.md; larger steps of a tall matrix.
  [((32, 32), 1e-3, 5e-6), ((60, 4), 1e-2, 1e-5)],
)
def test_ten_thousand_steps_end_on_the_manifold(shape, rate, bound):
  tx = optim.orthogonal(
    optax.adam(rate), lookahead_period=6, retraction_period=100
  )

  def body(t, carry):
    x, state = carry
    g = jax.random.normal(jax.random.key(t), x.shape)
    updates, state = tx.update(g, state, x)
    return optax.apply_updates(x, updates), state

  x = steps.orthonormal(shape)
  carry = x, tx.init(x)
  x, state = jax.jit(lambda c: jax.lax.fori_loop(0, 10_000, body, c))(carry)
  for y in (x, optim.slow_params(state, x)):
    assert optim.orthogonality_error(y) < bound


def test_drift_is_the_closed_form_until_a_retraction_removes_it():
  """The worst case of order 2 is one plane that always turns the same way."""
  turn = np.zeros((6, 6), np.float32)
  turn[1, 0], turn[0, 1] = 0.03, -0.03

  def drift(period):
    tx = optim.orthogonal(optax.sgd(1.0), retraction_period=period)
    x, _ = steps.run(tx, jnp.eye(6), 100, lambda x, _: -x @ jnp.asarray(turn))
    return float(optim.orthogonality_error(x))

  # Order 2 expands |λ|² by 1 + t⁴/4 a step (spec: the closed forms).
  want = (1 + 0.03**4 / 4) ** 100 - 1
  assert drift(None) == pytest.approx(want, abs=2 * 100 * steps.EPS)
  assert drift(20) < 4 * steps.EPS < want / 10


@pytest.mark.parametrize('method', ['newton_schulz', 'svd'])
def test_retraction_comes_on_its_period_to_both_copies(method):
  options = {'retraction': method, 'start_tolerance': None}
  tx = optim.orthogonal(
    optax.sgd(0.0), lookahead_period=10, retraction_period=3, **options
  )
  x = steps.orthonormal((6, 6)) * 1.01  # 2e-2 off.
  for count in (1, 2, 3):
    end, state = steps.run(tx, x, count, lambda x, _: jnp.zeros_like(x))
    for y in (end, state.slow):
      assert (optim.orthogonality_error(y) < 1e-5) == (count == 3)


def products(jaxpr, branch):
  """Counts the dot_generals of a matrix and step in a branch of FastExp."""
  count = 0
  for eqn in jaxpr.eqns:
    if eqn.primitive.name == 'dot_general':
      assert eqn.params['dimension_numbers'][1] == ((), ())  # Not batched.
      count += 1
    subs = list(core.jaxprs_in_params(eqn.params))
    if eqn.primitive.name == 'cond':  # Of FastExp, or whether X was changed.
      subs = [subs[branch if len(subs) == 4 else False]]
    count += sum(products(sub, branch) for sub in subs)
  return count


def trace_update(tx, shape):
  x = jnp.zeros(shape)
  return jax.make_jaxpr(tx.update)(x, jax.eval_shape(tx.init, x), x).jaxpr


# Loops of a step with lookahead and retraction, as they follow each other: the
# stacks that they read.
LOOPS = {
  'rotation': 'gradient X Δ',  # Never the slow weights.
  'sync': 'update X_slow ΣΔ X η',
  'retraction': 'update X',
  'retraction of X_slow': 'X_slow',
}


@pytest.mark.parametrize('branch', range(3))
def test_at_most_four_products_a_matrix_and_step(branch):
  tx = optim.orthogonal(optax.adam, 1e-3, lookahead_period=6)
  jaxpr = trace_update(tx, (3, 6, 6))
  loops = [e for e in jaxpr.eqns if e.primitive.name == 'while']
  count = {}
  for (name, stacks), loop in zip(LOOPS.items(), loops, strict=True):
    read = sum(v.aval.ndim == 3 for v in loop.invars)
    assert read == len(stacks.split())
    count[name] = products(jaxpr.replace(eqns=[loop]), branch)
  # A step that syncs does not compute the plain one. Retraction: 2 products,
  # and 2 in a loop that a drifted matrix does not enter.
  assert count['rotation'] == count['sync']
  assert count['retraction'] == count['retraction of X_slow'] == 4
  plain = products(jaxpr, branch) - count['sync'] - 2 * 4
  assert plain == (3, 4, 4)[branch]
  # A matrix that is not square, without lookahead.
  single = trace_update(optim.orthogonal(optax.adam, 1e-3), (6, 4))
  assert products(single, branch) - 4 == plain


def test_precision_is_an_argument_not_a_global():
  def text(tx, default):
    with jax.default_matmul_precision(default):
      return str(trace_update(tx, (2, 4, 4)))

  tx = optim.orthogonal(optax.adam(1e-3), lookahead_period=3)
  assert text(tx, 'bfloat16') == text(tx, 'highest')
  assert 'precision=None' not in text(tx, 'bfloat16')
  narrow = text(optim.orthogonal(optax.sgd, 1e-3, precision='default'), None)
  options = {'precision': 'default', 'retraction_period': None}
  bare = text(optim.orthogonal(optax.sgd, 1e-3, **options), None)
  assert 'Precision.DEFAULT' in narrow  # The step's.
  # The retraction's, besides those of the test whether X was changed.
  assert narrow.count('Precision.HIGHEST') > bare.count('Precision.HIGHEST')


def test_what_leaves_updates_whole_passes():
  """Gradients are accumulated, and some are thrown away."""
  tx = optax.MultiSteps(optim.orthogonal(optax.adam, 0.1), 2)
  tx = optax.apply_if_finite(tx, 2)
  start = steps.orthonormal((2, 6, 6))

  def grads_of(x, t):
    return steps.noise(x, t + 1) * (1.0 if t % 3 else jnp.nan)

  end, _ = steps.run(tx, start, 8, grads_of)
  assert np.any(end != start)
  assert jnp.max(optim.orthogonality_error(end)) < 1e-2  # By truncation.


def test_parameters_may_be_replaced_on_the_manifold_alone():
  """An error says so, where values are known; a traced update is nan."""
  tx = optim.orthogonal(optax.adam, 0.1)
  x, state = steps.run(tx, steps.orthonormal((6, 6)), 2)
  g = steps.noise(x, 1)
  others = steps.orthonormal((6, 6), 5), optim.polar_retract(x), 1.00001 * x
  for other in others:
    updates, _ = tx.update(g, state, other)
    assert np.all(np.isfinite(updates))
  with pytest.raises(ValueError, match='the only leaf is not what the last'):
    tx.update(g, state, 1.01 * x)
  for spoiler in (optax.scale(0.5), optax.clip(0.02)):
    start = [steps.orthonormal((2, 6, 6)), steps.orthonormal((17, 2))]
    spoilt, _ = steps.run(optax.chain(tx, spoiler), start, 3)
    assert all(np.any(np.isnan(x)) for x in spoilt)


def check_pack(pack, unpack, n):
  """Raises unless elementwise odd rules see every entry above the diagonal.

  Entries are kept to the bit, and anything unpacks to a skew matrix.
  """
  a, b = np.random.default_rng(0).normal(size=(2, n, n)).astype(np.float32)
  p, q = pack(a), pack(b)
  assert p.shape == ((n + 1) // 2, n)
  np.testing.assert_array_equal(unpack(p), (a - a.T) / 2)
  anything = unpack(a[: len(p)])
  np.testing.assert_array_equal(anything, -anything.T)

  def rule(x, y):
    return jnp.sign(x) * jnp.sqrt(jnp.abs(x)) - 0.5 * y

  want = rule((a - a.T) / 2, (b - b.T) / 2)
  np.testing.assert_allclose(unpack(rule(p, q)), want, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize('n', [1, 2, 3, 8])
def test_packing_keeps_every_entry(n):
  check_pack(manifold.pack, manifold.unpack, n)


def unpack_without_turning(p):
  above = jnp.triu(jnp.concatenate([p, p[::-1][: p.shape[1] - len(p)]]), 1)
  return above - above.T


def test_packing_rejects():
  for pack, unpack in (
    (manifold.pack, lambda p: -manifold.unpack(p)),
    (manifold.pack, unpack_without_turning),
    (lambda a: manifold.pack(2 * jnp.triu(a)), manifold.unpack),  # Not skewed.
    (lambda a: 1.001 * manifold.pack(a), manifold.unpack),
  ):
    with pytest.raises(AssertionError):
      check_pack(pack, unpack, 8)
