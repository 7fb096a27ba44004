"""The lifted optimizer: by brute force, inside all of optax, over time."""

import functools
import io

import jax
from jax.extend import core
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.linalg

from lipnext_jax.optim import algebra
from lipnext_jax.optim import exponential
from lipnext_jax.optim import manifold
from lipnext_jax.optim import orthogonal
from lipnext_jax.optim import orthogonality_error
from lipnext_jax.optim import OrthogonalState
from lipnext_jax.optim import polar_retract
from lipnext_jax.optim import scheduled_nadam
from lipnext_jax.optim import slow_params
from lipnext_jax.optim import stack

EPS = float(np.finfo(np.float32).eps)


def start(shape, seed=0):
  """Orthonormal rows or columns, [..., m, n] float32."""
  x = np.random.default_rng(seed).normal(size=shape).astype(np.float32)
  return polar_retract(jnp.asarray(x), 'svd')


def gradient(shape, seed=1):
  return jnp.asarray(
    np.random.default_rng(seed).normal(size=shape), jnp.float32
  )


def run(tx, x, steps, grad_fn=None, state=None, first=0, update=None):
  """`steps` updates with fresh gradients; returns parameters and state."""
  state = tx.init(x) if state is None else state
  grad_fn = grad_fn or (lambda x, t: gradient(np.shape(x), 100 + t))
  update = update or jax.jit(tx.update)
  for t in range(first, first + steps):
    updates, state = update(grad_fn(x, t), state, x)
    x = optax.apply_updates(x, updates)
  return x, state


# -- Against brute force ------------------------------------------------------


def projected(delta):
  """The nearest orthogonal matrix to I + Δ."""
  return scipy.linalg.polar(np.eye(len(delta)) + delta)[0]


CURVES = {'exponential': scipy.linalg.expm, 'projection': projected}


def exact_steps(x, grads, lr, period=None, alpha=0.5, curve='exponential'):
  """The definition, with SGD: float64 and SciPy throughout."""
  turn = CURVES[curve]
  x = np.asarray(x, np.float64)
  tall = x.shape[0] > x.shape[1]
  x = x.T if tall else x
  slow, total = x, 0.0
  for t, g in enumerate(grads, start=1):
    g = np.asarray(g, np.float64)
    g = g.T if tall else g
    delta = -lr * (x.T @ g - g.T @ x) / 2
    total = total + delta
    x = x @ turn(delta)
    if period and t % period == 0:
      x = slow = slow @ turn(alpha * total)
      total = 0.0
  return (x.T, slow.T) if tall else (x, slow)


def check_steps(
  make_tx, shape, period=None, steps=7, size=0.1, curve='exponential'
):
  """Raises unless SGD on the manifold is the definition, and stays on it.

  A step of angle t moves X by t and rounds X by eps an entry (√n·eps in norm)
  and its own products by √n·eps·t more; the steps add up. `size` is about the
  norm of a step.
  """
  lr = size / np.sqrt(shape[0] * shape[1])
  x = start(shape)
  grads = [gradient(shape, 100 + t) for t in range(steps)]
  tx = make_tx(
    optax.sgd(lr),
    lookahead_period=period,
    retraction_period=3,
    thresholds=(0, 0, 0),
  )
  got, state = run(tx, x, steps)
  want, slow = exact_steps(x, grads, lr, period, curve=curve)
  tolerance = 2 * steps * np.sqrt(max(shape)) * EPS
  assert np.linalg.norm(np.asarray(got, np.float64) - want) <= tolerance
  assert orthogonality_error(got) <= tolerance
  if period:
    got_slow = np.asarray(slow_params(state, x), np.float64)
    assert np.linalg.norm(got_slow - slow) <= tolerance


@pytest.mark.parametrize('period', [None, 3])
@pytest.mark.parametrize('shape', [(9, 9), (8, 8), (3, 8), (8, 3), (1, 4)])
def test_steps_are_the_definition(shape, period):
  check_steps(orthogonal, shape, period)


@pytest.mark.parametrize('shape', [(9, 9), (3, 8), (8, 3)])
def test_large_steps_are_projected_if_asked(shape):
  make = functools.partial(orthogonal, large_steps='projection')
  check_steps(make, shape, period=3, size=1.0, curve='projection')
  with pytest.raises(AssertionError):  # The curve is the asked one.
    check_steps(orthogonal, shape, size=1.0, curve='projection')


def test_fast_exponential_is_close_to_the_exact_one():
  x = start((16, 16))
  tx = functools.partial(orthogonal, optax.adam(1e-3), retraction_period=None)
  ends = [
    run(tx(thresholds=t), x, 9) for t in (exponential.THRESHOLDS, (0, 0, 0))
  ]
  # ‖Δ‖_F <= 1e-3·16 a step: order 2, off by ‖Δ‖³/6 a step.
  error = np.linalg.norm(ends[0][0] - ends[1][0])
  assert error < 9 * (0.016**3 / 6 + np.sqrt(16) * EPS)


@pytest.mark.parametrize(('lead', 'period'), [((3,), 2), ((2, 2), None)])
def test_a_stack_is_its_matrices_one_by_one(lead, period):
  x = start((*lead, 5, 5))
  grads = [gradient((*lead, 5, 5), 100 + t) for t in range(4)]
  tx = orthogonal(
    optax.adam(0.05), lookahead_period=period, retraction_period=3
  )
  got, _ = run(tx, x, 4)
  update = jax.jit(tx.update)
  for i in np.ndindex(lead):
    want, _ = run(tx, x[i], 4, lambda _, t, i=i: grads[t][i], update=update)
    np.testing.assert_allclose(got[i], want, atol=4 * EPS, rtol=0)


def test_lookahead_starts_at_the_start_and_moves_half_way():
  """One plane, angle 0.1 a step: 0.1, 0.2 → 0.1 | 0.2, 0.3 → 0.2 | …"""
  turn = jnp.array([[0.0, -1.0], [1.0, 0.0]])
  tx = orthogonal(optax.sgd(0.1), lookahead_period=2, retraction_period=None)
  x = jnp.eye(2)
  state = tx.init(x)
  angles = []
  for _ in range(6):
    updates, state = tx.update(-x @ turn, state, x)
    x = optax.apply_updates(x, updates)
    angles.append(
      [float(jnp.arctan2(y[1, 0], y[0, 0])) for y in (x, state.slow)]
    )
  want = [[0.1, 0], [0.1, 0.1], [0.2, 0.1], [0.2, 0.2], [0.3, 0.2], [0.3, 0.3]]
  # Order 3 turns by atan2(t − t³/6, 1 − t²/2): off by t⁵/20 or so a step.
  np.testing.assert_allclose(angles, want, atol=6 * 0.1**5 / 20 + 6 * EPS)


def test_zero_gradient_is_identity():
  x = start((6, 6))
  updates, _ = run_once(orthogonal(optax.adam(1.0)), jnp.zeros((6, 6)), x)
  assert not np.any(updates)


def run_once(tx, g, x, **kwargs):
  return tx.update(g, tx.init(x), x, **kwargs)


def spy(seen):
  """An inner rule that is not odd, and notes what it is given."""

  def update(updates, state, params=None):
    assert not np.any(params)  # The origin.
    seen.append(updates)
    return jax.tree.map(lambda u: u + 1.0, updates), state  # Not odd.

  return optax.GradientTransformation(lambda _: (), update)


def test_what_the_inner_rule_makes_becomes_skew():
  seen = []
  x, g = start((5, 5)), gradient((5, 5))
  tx = orthogonal(spy(seen), thresholds=(0, 0, 0))
  updates, _ = run_once(tx, g, x)
  # ‖Δ‖_F is about 4: see exponential_test.
  assert orthogonality_error(x + updates) < 4 * np.sqrt(5) * EPS * 5
  want = algebra.pack(x.T @ g)
  assert seen[0].shape == want.shape == (3, 5)
  np.testing.assert_allclose(
    seen[0], want, rtol=0, atol=5 * EPS * jnp.linalg.norm(g)
  )


def whole_steps(inner, x, grads, period, alpha=0.5):
  """Reference for any inner rule: float32, on Ω [N, N] that is not packed."""
  slow, total, state = x, 0.0, inner.init(x)
  for t, g in enumerate(grads, start=1):
    delta, state = inner.update(algebra.skew(x.T @ g), state, 0 * x)
    total += delta
    x = right_step(x, delta)
    if t % period == 0:
      x = slow = right_step(slow, alpha * total)
      total = 0.0
  return x, slow, state


@pytest.mark.parametrize('inner', ['adam', 'scheduled nadam', 'lion'])
def test_packed_steps_are_whole_ones_with_half_of_the_state(inner):
  x = start((8, 8))
  grads = [gradient((8, 8), 100 + t) for t in range(8)]
  tx = orthogonal(INNER[inner](), lookahead_period=3, thresholds=(0, 0, 0))
  got, state = run(tx, x, 8)
  want, slow, whole = whole_steps(INNER[inner](), x, grads, 3)
  # Each of 8 steps rounds by eps an entry.
  close = functools.partial(
    np.testing.assert_allclose, rtol=0, atol=8 * 8 * EPS
  )
  close(got, want)
  close(state.slow, slow)
  assert state.total.shape == (4, 8)
  size, whole_size = (
    sum(leaf.size for leaf in jax.tree.leaves(s) if leaf.ndim)
    for s in (state.inner, whole)
  )
  assert 2 * size == whole_size > 0


# -- Drift over many steps ----------------------------------------------------


@pytest.mark.parametrize('every', [1, 2])
def test_three_hundred_steps_end_on_the_manifold(every):
  n = 32
  tx = optax.MultiSteps(orthogonal(optax.adam(1e-2), lookahead_period=6), every)

  @jax.jit
  def many(x, state, key):
    def body(carry, key):
      x, state = carry
      updates, state = tx.update(jax.random.normal(key, x.shape), state, x)
      return (optax.apply_updates(x, updates), state), None

    return jax.lax.scan(body, (x, state), jax.random.split(key, 300))[0]

  x = start((n, n))
  x, state = many(x, tx.init(x), jax.random.key(0))
  # Since the last retraction (100 updates ago at most) each rounding moves the
  # defect by some 2·eps; they add up like a random walk.
  for y in (x, slow_params(state, x)):
    assert orthogonality_error(y) < 10 * np.sqrt(100) * EPS


@pytest.mark.slow  # 10,000 steps of four products at n = 256: half a minute.
def test_ten_thousand_steps_and_a_restore_end_on_the_manifold():
  tx = orthogonal(optax.adam(1e-3), retraction_period=100)

  @jax.jit
  def many(x, state, key):
    def body(t, carry):
      x, state = carry
      g = jax.random.normal(jax.random.fold_in(key, t), x.shape)
      updates, state = tx.update(g, state, x)
      return optax.apply_updates(x, updates), state

    return jax.lax.fori_loop(0, 5_000, body, (x, state))

  x = start((256, 256))
  x, state = many(x, tx.init(x), jax.random.key(0))
  x, state = jax.tree.map(lambda a: jnp.asarray(np.array(a)), (x, state))
  x, state = many(x, state, jax.random.key(1))
  assert state.step == 10_000
  assert orthogonality_error(x) < 5e-6  # The promise of docs/optimizer.md.


def rank_2_drift(tx, steps=100, angle=0.03):
  """Worst case for order 2: one plane, always turned the same way."""
  turn = np.zeros((6, 6), np.float32)
  turn[1, 0], turn[0, 1] = angle, -angle
  x, _ = run(tx, jnp.eye(6), steps, lambda x, _: -x @ jnp.asarray(turn))
  return float(orthogonality_error(x))


def test_unretracted_drift_is_the_closed_form():
  tx = orthogonal(optax.sgd(1.0), retraction_period=None)
  # Order 2 expands |λ|² by 1 + t⁴/4 a step (spec: the closed forms).
  want = (1 + 0.03**4 / 4) ** 100 - 1
  np.testing.assert_allclose(rank_2_drift(tx), want, atol=2 * 100 * EPS)


def test_retraction_removes_the_drift():
  tx = orthogonal(optax.sgd(1.0), retraction_period=20)
  assert rank_2_drift(tx) < 4 * EPS


@pytest.mark.parametrize('method', ['newton_schulz', 'svd'])
def test_retraction_comes_on_its_period_to_both_copies(method):
  tx = orthogonal(
    optax.sgd(0.0),
    lookahead_period=10,
    retraction_period=3,
    retraction=method,
  )
  x = start((6, 6)) * 1.01  # 2e-2 off.
  state = tx.init(x)
  for t in range(1, 4):
    updates, state = tx.update(jnp.zeros_like(x), state, x)
    x = optax.apply_updates(x, updates)
    for y in (x, state.slow):
      assert (orthogonality_error(y) < 1e-5) == (t == 3)


# -- One matrix, in float64 ----------------------------------------------------

SHAPES = [(5, 5), (3, 6), (6, 3), (1, 4)]
close64 = functools.partial(np.testing.assert_allclose, rtol=0, atol=1e-13)
tangent = functools.partial(
  manifold.tangent, precision=jax.lax.Precision.HIGHEST
)
rotate = functools.partial(manifold.rotate, thresholds=(0, 0, 0))


@pytest.fixture
def in_float64():
  with jax.enable_x64(True):
    yield


def draw(shape, seed=0):
  """X with orthonormal rows or columns, a gradient, and a skew matrix."""
  rng = np.random.default_rng(seed)
  n = max(shape)
  square = np.linalg.qr(rng.normal(size=(n, n)))[0]
  a = rng.normal(size=(n, n))
  return square[: shape[0], : shape[1]], rng.normal(size=shape), a - a.T


def turned(x, a):
  """X·exp(A), or exp(A)ᵀ·X for tall X."""
  e = scipy.linalg.expm(a)
  return x @ e if x.shape[0] <= x.shape[1] else e.T @ x


def check_tangent(tangent, shape):
  """Raises unless ⟨Ω, A⟩ is the derivative of ⟨G, X·exp(tA)⟩ for any skew A."""
  x, g, _ = draw(shape)
  omega = algebra.unpack(tangent(x, g))
  for seed in range(5):
    a = draw(shape, seed)[2]
    moved = x @ a if x.shape[0] <= x.shape[1] else -a @ x
    close64(np.sum(omega * a), np.sum(g * moved), atol=1e-12)


@pytest.mark.usefixtures('in_float64')
@pytest.mark.parametrize('shape', SHAPES)
def test_the_tangent_is_the_derivative_along_the_manifold(shape):
  check_tangent(tangent, shape)


@pytest.mark.usefixtures('in_float64')
@pytest.mark.parametrize(
  'fault',
  [
    lambda x, g: -tangent(x, g),
    lambda x, g: algebra.pack(x @ g.T),
    lambda x, g: 1.001 * tangent(x, g),
    lambda x, g: tangent(x.astype(jnp.bfloat16).astype(float), g),
  ],
)
def test_the_derivative_rejects(fault):
  with pytest.raises(AssertionError):
    check_tangent(fault, (5, 5))


@pytest.mark.usefixtures('in_float64')
@pytest.mark.parametrize('shape', SHAPES)
def test_a_plain_step_is_the_exponential(shape):
  x, _, a = draw(shape)
  delta = algebra.pack(a)
  close64(x + rotate(x, delta), turned(x, a))
  with pytest.raises(AssertionError):
    close64(x + rotate(x, -delta), turned(x, a))


@pytest.mark.usefixtures('in_float64')
@pytest.mark.parametrize('due', [False, True])
@pytest.mark.parametrize('shape', SHAPES)
def test_a_sync_starts_again_from_the_slow_weights(shape, due):
  x, update, _ = draw(shape, 1)
  slow, _, a = draw(shape, 2)
  got, new_slow, total = manifold.sync_lookahead(
    update, slow, algebra.pack(a), x, 0.3, due, rotate, stack.map_stacks
  )
  want = turned(slow, 0.3 * a) if due else slow
  close64(new_slow, want)
  close64(x + got, want if due else x + update)
  close64(total, algebra.pack(a) * (not due))


@pytest.mark.usefixtures('in_float64')
@pytest.mark.parametrize('due', [False, True])
@pytest.mark.parametrize('shape', SHAPES)
def test_a_retraction_comes_to_both_copies(shape, due):
  x, slow = (1.01 * draw(shape, seed)[0] for seed in (1, 2))
  update = 0.01 * draw(shape, 3)[1]
  got, new_slow = manifold.retract_stacks(
    update, slow, x, due, polar_retract, stack.map_stacks
  )
  close64(x + got, scipy.linalg.polar(x + update)[0] if due else x + update)
  close64(new_slow, scipy.linalg.polar(slow)[0] if due else slow)


# -- Inside optax -------------------------------------------------------------

INNER = {
  'sgd': lambda: optax.sgd(1e-2),
  'momentum': lambda: optax.sgd(1e-2, momentum=0.9, nesterov=True),
  'adam': lambda: optax.adam(1e-2),
  'adamw': lambda: optax.adamw(1e-2),
  'adam, bfloat16 moment': lambda: optax.adam(1e-2, mu_dtype=jnp.bfloat16),
  'scheduled nadam': lambda: scheduled_nadam(1e-2),
  'lion': lambda: optax.lion(1e-2),
  'schedule': lambda: optax.adam(optax.linear_schedule(1e-2, 0.0, 10)),
}


def check_battery(tx, params, grads):
  """Types stable, one trace, on the manifold, as jitted so not jitted."""
  state = tx.init(params)
  types = jax.tree.map(jax.typeof, (params, state))
  abstract = jax.eval_shape(tx.init, params)
  assert jax.tree.map(jax.typeof, abstract) == types[1]
  traces = []

  @jax.jit
  def step(grads, state, params):
    traces.append(1)
    updates, state = tx.update(grads, state, params)
    return optax.apply_updates(params, updates), state

  for _ in range(4):
    params, state = step(grads, state, params)
    assert jax.tree.map(jax.typeof, (params, state)) == types
  assert len(traces) == 1
  for leaf in jax.tree.leaves(params):
    assert jnp.max(orthogonality_error(leaf)) < 1e-5
  return params, state


@pytest.mark.parametrize(
  ('inner', 'grad_dtype'),
  [
    *((name, 'float32') for name in INNER),
    ('adam', 'bfloat16'),
    ('adam, bfloat16 moment', 'bfloat16'),
  ],
)
def test_any_inner_rule_keeps_types_and_compiles_once(inner, grad_dtype):
  params = [start((2, 5, 3))]
  grads = [gradient((2, 5, 3)).astype(grad_dtype)]
  tx = orthogonal(INNER[inner](), lookahead_period=2, retraction_period=None)
  end, _ = check_battery(tx, params, grads)
  assert np.any(end[0] != params[0])


def test_projected_steps_keep_types_and_compile_once():
  tx = orthogonal(optax.adam(1.0), lookahead_period=2, large_steps='projection')
  params = [start((2, 5, 3))]
  check_battery(tx, params, [gradient((2, 5, 3))])


WRAPPERS = {
  'chain': lambda tx: optax.chain(optax.clip_by_global_norm(1.0), tx),
  'MultiSteps': lambda tx: optax.MultiSteps(tx, 2),
  'masked': lambda tx: optax.masked(tx, {'a': True, 'b': True}),
  'partition': lambda tx: optax.partition(
    {'o': tx, 'f': optax.set_to_zero()}, {'a': 'o', 'b': 'f'}
  ),
  'apply_if_finite': lambda tx: optax.apply_if_finite(tx, 3),
  'named_chain': lambda tx: optax.named_chain(('only', tx)),
}


@pytest.mark.parametrize('wrapper', WRAPPERS)
def test_composes_with(wrapper):
  params = {'a': start((4, 4)), 'b': start((3, 3))}
  grads = jax.tree.map(lambda p: gradient(p.shape), params)
  tx = orthogonal(optax.adam(1e-2), lookahead_period=2, retraction_period=None)
  end, state = check_battery(WRAPPERS[wrapper](tx), params, grads)
  slow = slow_params(state, end)
  assert jax.tree.map(jax.typeof, slow) == jax.tree.map(jax.typeof, end)
  assert np.any(slow['a'] != params['a'])


def test_injected_hyperparameters_are_the_same_rule():
  def make(learning_rate, lookahead_alpha):
    return orthogonal(
      optax.sgd(learning_rate),
      lookahead_period=2,
      lookahead_alpha=lookahead_alpha,
    )

  x = start((5, 5))
  injected = optax.inject_hyperparams(make)(
    learning_rate=1e-2, lookahead_alpha=0.25
  )
  got, state = run(injected, x, 5)
  want, _ = run(make(1e-2, 0.25), x, 5)
  np.testing.assert_allclose(got, want, atol=4 * EPS, rtol=0)
  state.hyperparams['learning_rate'] = jnp.zeros([])
  state.hyperparams['lookahead_alpha'] = jnp.ones([])
  frozen, _ = run(injected, got, 1, state=state)
  # Step 6 syncs; step 5 moved the fast copy from the slow one, α = 1 keeps it.
  np.testing.assert_allclose(frozen, got, atol=8 * EPS, rtol=0)


def test_multi_steps_is_the_mean_gradient():
  x = start((5, 5))
  inner = orthogonal(optax.sgd(0.1), retraction_period=2)
  got, _ = run(optax.MultiSteps(inner, 3), x, 6)

  def mean(x, t):
    return sum(gradient(x.shape, 100 + 3 * t + i) for i in range(3)) / 3

  want, _ = run(inner, x, 2, mean)
  np.testing.assert_allclose(got, want, atol=8 * EPS, rtol=0)


def test_apply_if_finite_skips_a_bad_gradient():
  x = start((4, 4))
  tx = optax.apply_if_finite(orthogonal(optax.adam(0.1)), 3)
  state = tx.init(x)
  updates, state = tx.update(jnp.full((4, 4), jnp.nan), state, x)
  assert not np.any(updates)
  updates, state = tx.update(gradient((4, 4)), state, x)
  want, _ = run_once(orthogonal(optax.adam(0.1)), gradient((4, 4)), x)
  np.testing.assert_allclose(updates, want, atol=EPS)


def test_a_step_as_large_as_it_gets_stays_on_the_manifold():
  tx = orthogonal(optax.adam(1.0))  # ‖Δ‖_F about 16.
  x, _ = run(tx, start((16, 16)), 5)
  # 5 exponentials with 3 or so squarings each: see exponential_test.
  assert orthogonality_error(x) < 5 * 4 * np.sqrt(16) * EPS * 16


def test_a_saved_state_continues_to_the_bit():
  x = start((2, 6, 6))
  tx = orthogonal(optax.adam(1e-2), lookahead_period=3, retraction_period=4)
  want, want_state = run(tx, x, 8)
  half, state = run(tx, x, 4)
  file = io.BytesIO()
  leaves, treedef = jax.tree.flatten((half, state))
  np.savez(file, *leaves)
  file.seek(0)
  with np.load(file) as saved:
    loaded = [jnp.asarray(saved[name]) for name in saved.files]
  half, state = jax.tree.unflatten(treedef, loaded)
  got, got_state = run(tx, half, 4, state=state, first=4)
  jax.tree.map(
    np.testing.assert_array_equal, (got, got_state), (want, want_state)
  )


def test_extra_arguments_reach_the_inner_rule():
  seen = []

  def update(updates, state, params=None, *, value, **_):
    seen.append(value)
    return updates, state

  inner = optax.GradientTransformationExtraArgs(lambda _: (), update)
  x = start((3, 3))
  run_once(orthogonal(inner), jnp.zeros((3, 3)), x, value=7)
  assert seen == [7]


def test_no_parameters_at_all_is_fine():
  tx = orthogonal(optax.adam(1e-2), lookahead_period=2)
  updates, state = run_once(tx, {}, {})
  assert updates == {}
  assert state.slow == {}


def test_float64_parameters_stay_float64():
  with jax.enable_x64(True):
    x = jnp.eye(4, dtype=jnp.float64)
    tx = orthogonal(optax.adam(1e-2), lookahead_period=2, thresholds=(0, 0, 0))
    x, state = run(tx, x, 3)
    assert {x.dtype, state.slow.dtype, state.total.dtype} == {x.dtype}
    assert x.dtype == jnp.float64
    assert orthogonality_error(x) < 1e-14


# -- Products and precision ---------------------------------------------------


def products(jaxpr, branch, retract=False):
  """dot_generals of one matrix and step, for one branch of FastExp."""
  count = 0
  for eqn in jaxpr.eqns:
    if eqn.primitive.name == 'dot_general':
      assert eqn.params['dimension_numbers'][1] == ((), ())  # Not batched.
      count += 1
    subs = list(core.jaxprs_in_params(eqn.params))
    if eqn.primitive.name == 'cond':  # Of FastExp, or whether to retract.
      subs = [subs[branch if len(subs) == 4 else retract]]
    count += sum(products(sub, branch, retract) for sub in subs)
  return count


def loops_of(jaxpr):
  """The loops over matrices that may be not due, in their order."""
  return [e for e in jaxpr.eqns if e.primitive.name == 'while']


# Loops of a step with lookahead and retraction, as they follow each other.
LOOPS = ('rotation', 'sync', 'retraction', 'retraction of X_slow')


@pytest.mark.parametrize('shape', [(6, 6), (3, 6, 6), (2, 4, 6), (6, 4)])
@pytest.mark.parametrize('period', [None, 6])
@pytest.mark.parametrize('large_steps', ['exponential', 'projection'])
def test_at_most_four_products_a_matrix_and_step(shape, period, large_steps):
  x = jnp.zeros(shape)
  tx = orthogonal(
    optax.adam(1e-3), lookahead_period=period, large_steps=large_steps
  )
  jaxpr = jax.make_jaxpr(tx.update)(x, tx.init(x), x).jaxpr
  loops = loops_of(jaxpr)
  # Without lookahead the rotation is always due, and in no such loop.
  names = LOOPS if period else ('retraction',)
  assert len(loops) == len(names)
  for branch in range(3):
    step = products(jaxpr, branch)
    counts = {
      name: products(jaxpr.replace(eqns=[loop]), branch)
      for name, loop in zip(names, loops, strict=True)
    }
    # 2 products, and 2 in a loop that a drifted matrix does not enter.
    assert {counts.pop(n) for n in LOOPS[2:] if n in counts} == {4}
    step -= 4 * (2 if period else 1)
    if period:  # A step that syncs does not compute the plain one.
      assert counts['rotation'] == counts['sync']
      step -= counts['sync']
    assert step == (3, 4, 4)[branch]


@pytest.mark.parametrize('shape', [(6, 6), (3, 6, 6)])
def test_plain_steps_never_touch_the_slow_weights(shape):
  """Their loop reads X and Δ and writes over the gradient, no more."""
  x = jnp.zeros(shape)
  tx = orthogonal(optax.adam(1e-3), lookahead_period=6)
  jaxpr = jax.make_jaxpr(tx.update)(x, tx.init(x), x).jaxpr
  stacks = {
    name: sum(v.aval.ndim == 3 for v in loop.invars)
    for name, loop in zip(LOOPS, loops_of(jaxpr), strict=True)
  }
  assert list(stacks.values()) == [3, 4, 2, 1]
  never = orthogonal(optax.adam(1e-3), retraction_period=None)
  jaxpr = jax.make_jaxpr(never.update)(x, never.init(x), x).jaxpr
  assert not loops_of(jaxpr)


def test_precision_is_an_argument_not_a_global():
  x = start((2, 4, 4))

  def text(tx, default):
    with jax.default_matmul_precision(default):
      return str(jax.make_jaxpr(lambda *a: tx.update(*a))(x, tx.init(x), x))

  tx = orthogonal(optax.adam(1e-3), lookahead_period=3)
  assert text(tx, 'bfloat16') == text(tx, 'highest')
  assert 'precision=None' not in text(tx, 'bfloat16')
  low = orthogonal(optax.adam(1e-3), precision='default')
  assert 'Precision.HIGHEST' in text(low, None)  # The retraction's.
  assert 'Precision.DEFAULT' in text(low, None)  # The step's.


# -- Errors -------------------------------------------------------------------


@pytest.mark.parametrize(
  ('options', 'match'),
  [
    ({'lookahead_period': 0}, 'lookahead_period=0'),
    ({'lookahead_alpha': 0.0}, 'lookahead_alpha=0'),
    ({'lookahead_alpha': 1.5}, 'lookahead_alpha=1.5'),
    ({'retraction_period': -1}, 'retraction_period=-1'),
    ({'retraction': 'qr'}, 'newton_schulz'),
    ({'large_steps': 'cayley'}, 'projection'),
  ],
  ids=str,
)
def test_bad_options_raise(options, match):
  with pytest.raises(ValueError, match=match):
    orthogonal(optax.sgd(1.0), **options)


def test_update_without_parameters_raises():
  tx = orthogonal(optax.sgd(1.0))
  x = jnp.eye(3)
  with pytest.raises(ValueError, match='needs the parameters'):
    tx.update(x, tx.init(x))


@pytest.mark.parametrize(
  ('leaf', 'match'),
  [
    (jnp.ones(3), r"\['w'\] has shape \(3,\)"),
    (jnp.ones([]), r"\['w'\] has shape \(\)"),
    (jnp.eye(3, dtype=jnp.bfloat16), r"\['w'\] has dtype bfloat16"),
    (jnp.eye(3, dtype=jnp.int32), r"\['w'\] has dtype int32"),
  ],
  ids=['vector', 'scalar', 'bfloat16', 'int32'],
)
def test_leaves_that_cannot_be_orthogonal_raise(leaf, match):
  tx = orthogonal(optax.sgd(1.0))
  with pytest.raises(ValueError, match=match):
    tx.init({'w': leaf})
  state = tx.init({'w': jnp.eye(3)})
  with pytest.raises(ValueError, match=match):
    tx.update({'w': leaf}, state, {'w': leaf})


def test_gradients_of_the_first_rows_alone_raise():
  tx = orthogonal(optax.sgd(1.0))
  params = {'w': jnp.ones((2, 4, 4))}
  with pytest.raises(ValueError, match=r"leaf \['w'\] has shape \(2, 2, 4\)"):
    tx.update({'w': jnp.ones((2, 2, 4))}, tx.init(params), params)


def test_start_point_is_checked_on_request():
  tx = orthogonal(optax.sgd(1.0), start_tolerance=1e-4)
  for shape in ((4, 4), (2, 5, 3), (3, 5)):
    tx.init({'w': start(shape)})
    with pytest.raises(ValueError, match=r"\['w'\] is 2\.0e-03 from"):
      tx.init({'w': start(shape) * 1.001})
  with pytest.raises(ValueError, match='nan from orthonormal'):
    tx.init(jnp.full((2, 2), jnp.nan))
  with pytest.raises(ValueError, match='outside jit'):
    jax.jit(tx.init)(jnp.eye(3))
  orthogonal(optax.sgd(1.0)).init(2 * jnp.eye(3))  # Nobody asked.


# -- Planted faults: check_steps rejects them ---------------------------------


def faulty(step, skew_out=True):
  """A lifted optimizer with `step(x, delta)` → new x, and nothing else."""

  def make(inner, **_):
    def init(x):
      return OrthogonalState(
        jnp.zeros([], jnp.int32), inner.init(x), None, None
      )

    def update(g, state, x):
      omega = x.T @ g
      omega = (omega - omega.T) / 2 if skew_out else omega
      delta, inner_state = inner.update(omega, state.inner)
      return step(x, delta) - x, state._replace(inner=inner_state)

    return optax.GradientTransformation(init, update)

  return make


def low(x):
  return x.astype(jnp.bfloat16).astype(x.dtype)


def right_step(x, d):
  return x @ exponential.fast_exp(d, thresholds=(0, 0, 0))


FAULTS = {
  'dropped Taylor term': faulty(lambda x, d: x + x @ d),
  'transposed product': faulty(lambda x, d: right_step(x, d.T)),
  'left instead of right': faulty(lambda x, d: right_step(x.T, d).T),
  'unskewed step': faulty(right_step, skew_out=False),
  'scaled by 1.001': faulty(lambda x, d: 1.001 * right_step(x, d)),
  'bfloat16 weight': faulty(lambda x, d: low(right_step(x, d))),
  'bfloat16 products': faulty(lambda x, d: low(x) @ low(jnp.eye(9) + d)),
  'another alpha': functools.partial(orthogonal, lookahead_alpha=0.501),
  'no threshold asked for': lambda inner, **kw: orthogonal(
    inner, **(kw | {'thresholds': (9, 9, 9)})
  ),
}


@pytest.mark.parametrize('fault', FAULTS)
def test_the_definition_rejects(fault):
  period = 3 if fault == 'another alpha' else None
  with pytest.raises(AssertionError):
    check_steps(FAULTS[fault], (9, 9), period)


def test_the_definition_accepts_the_frame_of_the_faults():
  check_steps(faulty(right_step), (9, 9))


def test_a_missing_retraction_is_seen():
  tx = orthogonal(optax.sgd(1.0), retraction_period=None)
  assert rank_2_drift(tx) > 10 * 4 * EPS  # Bound of the test above.


@pytest.mark.parametrize('period', [None, 2])
def test_the_state_keeps_its_structure(period):
  """A loop or a checkpoint takes no state that an update makes another of."""
  params = {'R': jnp.stack([jnp.eye(3)] * 2), 'Q': jnp.eye(3)}
  tx = orthogonal(optax.adam(1e-3), lookahead_period=period)
  state = tx.init(params)
  _, after = tx.update(params, state, params)
  assert jax.tree.structure(after) == jax.tree.structure(state)
