"""Tests the lifted optimizer: brute force, optax wrappers, many steps."""

import functools

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

EPS = float(np.finfo(np.float32).eps)


def start(shape, seed=0):
  """Returns matrices [..., m, n] with orthonormal rows or columns, float32."""
  x = np.random.default_rng(seed).normal(size=shape)
  u, _, vt = np.linalg.svd(x, full_matrices=False)
  return jnp.asarray(u @ vt, jnp.float32)


def gradient(shape, seed=1):
  return jnp.asarray(
    np.random.default_rng(seed).normal(size=shape), jnp.float32
  )


def compile_step(tx):
  """Returns a compiled function (g, state, x) → (x, state)."""

  @jax.jit
  def step(g, state, x):
    updates, state = tx.update(g, state, x)
    return optax.apply_updates(x, updates), state

  return step


def run(tx, x, steps, grad_fn=None, state=None, step=None):
  """Takes `steps` steps with fresh gradients; returns parameters and state."""
  state = tx.init(x) if state is None else state
  grad_fn = grad_fn or (
    lambda x, t: jax.tree.map(lambda p: gradient(p.shape, 100 + t), x)
  )
  step = step or compile_step(tx)
  for t in range(steps):
    x, state = step(grad_fn(x, t), state, x)
  return x, state


def run_once(tx, g, x, **kwargs):
  return jax.jit(tx.update)(g, tx.init(x), x, **kwargs)


# -- Against brute force ------------------------------------------------------


def projected(delta):
  """Returns the orthogonal matrix nearest to I + Δ."""
  return scipy.linalg.polar(np.eye(len(delta)) + delta)[0]


CURVES = {'exponential': scipy.linalg.expm, 'projection': projected}


def exact_steps(x, grads, lr, period=None, weight=0.5, curve='exponential'):
  """Returns X and X_slow after steps of SGD, in float64 with SciPy."""
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
      x = slow = slow @ turn(weight * total)
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


@pytest.mark.parametrize(
  ('shape', 'period'), [((9, 9), 3), ((3, 8), 3), ((8, 3), 3), ((1, 4), None)]
)
def test_steps_are_the_definition(shape, period):
  check_steps(orthogonal, shape, period)


def test_large_steps_are_projected_if_asked():
  make = functools.partial(orthogonal, large_steps='projection')
  check_steps(make, (8, 3), period=3, size=1.0, curve='projection')
  with pytest.raises(AssertionError):  # The curve is the asked one.
    check_steps(orthogonal, (8, 3), size=1.0, curve='projection')


def faulty(step, skew_out=True):
  """Returns a lifted optimizer that takes `step(x, delta)` and nothing else."""

  def make(inner, **_):
    def init(x):
      return OrthogonalState(
        jnp.zeros([], jnp.int32), inner.init(x), None, None, None
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
  'another weight': functools.partial(orthogonal, lookahead_alpha=0.501),
  'no threshold asked for': lambda inner, **kw: orthogonal(
    inner, **(kw | {'thresholds': (9, 9, 9)})
  ),
}


@pytest.mark.parametrize('fault', FAULTS)
def test_the_definition_rejects(fault):
  period = 3 if fault == 'another weight' else None
  with pytest.raises(AssertionError):
    check_steps(FAULTS[fault], (9, 9), period)


def test_the_definition_accepts_the_frame_of_the_faults():
  check_steps(faulty(right_step), (9, 9))


def test_a_stack_is_its_matrices_one_by_one():
  x = start((2, 2, 5, 5))
  grads = [gradient(x.shape, 100 + t) for t in range(4)]
  tx = orthogonal(optax.adam(0.05), lookahead_period=2, retraction_period=3)
  got, _ = run(tx, x, 4)
  step = compile_step(tx)
  for i in np.ndindex(2, 2):
    want, _ = run(tx, x[i], 4, lambda _, t, i=i: grads[t][i], step=step)
    np.testing.assert_allclose(got[i], want, atol=4 * EPS, rtol=0)


def check_tangent(tangent, shape):
  """Raises unless ⟨Ω, A⟩ is the derivative of ⟨G, X·exp(tA)⟩ for any skew A."""
  rng = np.random.default_rng(0)
  n = max(shape)
  x = np.linalg.qr(rng.normal(size=(n, n)))[0][: shape[0], : shape[1]]
  g = rng.normal(size=shape)
  with jax.enable_x64(True):
    omega = np.asarray(algebra.unpack(tangent(jnp.asarray(x), jnp.asarray(g))))
  for _ in range(5):
    a = rng.normal(size=(n, n))
    a -= a.T
    moved = x @ a if shape[0] <= shape[1] else -a @ x
    np.testing.assert_allclose(np.sum(omega * a), np.sum(g * moved), rtol=1e-12)


tangent = functools.partial(
  manifold.tangent, precision=jax.lax.Precision.HIGHEST
)


@pytest.mark.parametrize('shape', [(5, 5), (3, 6), (6, 3)])
def test_the_tangent_is_the_derivative_along_the_manifold(shape):
  check_tangent(tangent, shape)


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


# -- What the inner rule is given, and makes ----------------------------------


def test_what_the_inner_rule_makes_becomes_skew():
  """The rule here is not odd; it sees packed skew(XᵀG), and zeros."""

  def update(updates, state, params=None):
    del state
    return updates + 1.0, (updates, params)

  tx = orthogonal(
    optax.GradientTransformation(lambda _: (), update), thresholds=(0, 0, 0)
  )
  x, g = start((5, 5)), gradient((5, 5))
  updates, state = run_once(tx, g, x)
  # ‖Δ‖_F is about 4: see exponential_test.
  assert orthogonality_error(x + updates) < 4 * np.sqrt(5) * EPS * 5
  omega, origin = state.inner
  assert not np.any(origin)
  want = algebra.pack(x.T @ g)
  assert omega.shape == want.shape == (3, 5)
  np.testing.assert_allclose(
    omega, want, rtol=0, atol=5 * EPS * jnp.linalg.norm(g)
  )


# -- Drift over many steps ----------------------------------------------------


@pytest.mark.slow  # 10,000 steps.
@pytest.mark.parametrize(
  ('shape', 'rate', 'bound'),
  # The promise of docs/optimizer.md; larger steps of a tall matrix.
  [((32, 32), 1e-3, 5e-6), ((60, 4), 1e-2, 1e-5)],
)
def test_ten_thousand_steps_and_a_restore_end_on_the_manifold(
  shape, rate, bound
):
  tx = orthogonal(optax.adam(rate), lookahead_period=6, retraction_period=100)

  @jax.jit
  def many(x, state, key):
    def body(t, carry):
      x, state = carry
      g = jax.random.normal(jax.random.fold_in(key, t), x.shape)
      updates, state = tx.update(g, state, x)
      return optax.apply_updates(x, updates), state

    return jax.lax.fori_loop(0, 5_000, body, (x, state))

  x = start(shape)
  x, state = many(x, tx.init(x), jax.random.key(0))
  x, state = jax.tree.map(lambda a: jnp.asarray(np.array(a)), (x, state))
  x, state = many(x, state, jax.random.key(1))
  assert state.step == 10_000
  for y in (x, slow_params(state, x)):
    assert orthogonality_error(y) < bound


def test_drift_is_the_closed_form_until_a_retraction_removes_it():
  """The worst case of order 2 is one plane that always turns the same way."""
  turn = np.zeros((6, 6), np.float32)
  turn[1, 0], turn[0, 1] = 0.03, -0.03

  def drift(period):
    tx = orthogonal(optax.sgd(1.0), retraction_period=period)
    x, _ = run(tx, jnp.eye(6), 100, lambda x, _: -x @ jnp.asarray(turn))
    return float(orthogonality_error(x))

  # Order 2 expands |λ|² by 1 + t⁴/4 a step (spec: the closed forms).
  want = (1 + 0.03**4 / 4) ** 100 - 1
  assert drift(None) == pytest.approx(want, abs=2 * 100 * EPS)
  assert drift(20) < 4 * EPS < want / 10


@pytest.mark.parametrize('method', ['newton_schulz', 'svd'])
def test_retraction_comes_on_its_period_to_both_copies(method):
  tx = orthogonal(
    optax.sgd(0.0),
    lookahead_period=10,
    retraction_period=3,
    retraction=method,
    start_tolerance=None,
  )
  x = start((6, 6)) * 1.01  # 2e-2 off.
  state, step = tx.init(x), compile_step(tx)
  for t in range(1, 4):
    x, state = step(jnp.zeros_like(x), state, x)
    for y in (x, state.slow):
      assert (orthogonality_error(y) < 1e-5) == (t == 3)


# -- Inside optax -------------------------------------------------------------

RULES = {
  'momentum': lambda: optax.sgd(1e-2, momentum=0.9, nesterov=True),
  'adam, bfloat16 moment': lambda: optax.adam(1e-2, mu_dtype=jnp.bfloat16),
  'scheduled nadam': lambda: scheduled_nadam(1e-2),
  'lion': lambda: optax.lion(1e-2),
  'schedule': lambda: optax.adam(optax.linear_schedule(1e-2, 0.0, 10)),
}


@pytest.mark.parametrize(
  ('rule', 'grad_dtype', 'large_steps'),
  [
    *((name, 'float32', 'exponential') for name in RULES),
    ('adam, bfloat16 moment', 'bfloat16', 'projection'),
  ],
)
def test_any_rule_keeps_types_and_compiles_once(
  rule, grad_dtype, large_steps, run_counted
):
  params = [start((2, 5, 3))]
  grads = [gradient((2, 5, 3)).astype(grad_dtype)]
  tx = orthogonal(
    RULES[rule](),
    lookahead_period=2,
    retraction_period=None,
    large_steps=large_steps,
  )
  end, _ = run_counted(tx, params, lambda *_: grads)
  assert np.any(end[0] != params[0])
  assert jnp.max(orthogonality_error(end[0])) < 1e-5


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
  # Step 6 syncs; step 5 moved the fast copy from the slow one, η = 1 keeps it.
  np.testing.assert_allclose(frozen, got, atol=8 * EPS, rtol=0)


def test_extra_arguments_reach_the_inner_rule():

  def update(updates, state, params=None, *, value, **_):
    del state
    return updates, value

  inner = optax.GradientTransformationExtraArgs(lambda _: (), update)
  x = start((3, 3))
  _, state = run_once(orthogonal(inner), jnp.zeros((3, 3)), x, value=7)
  assert state.inner == 7


# -- Products and precision ---------------------------------------------------


def products(jaxpr, branch, retract=False):
  """Counts the dot_generals of a matrix and step, for a branch of FastExp."""
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


def trace_update(tx, shape):
  x = jnp.zeros(shape)
  return jax.make_jaxpr(tx.update)(x, jax.eval_shape(tx.init, x), x).jaxpr


def loops_of(jaxpr):
  """Returns the loops over matrices that are not always due, in order."""
  return [e for e in jaxpr.eqns if e.primitive.name == 'while']


# Loops of a step with lookahead and retraction, as they follow each other.
LOOPS = ('rotation', 'sync', 'retraction', 'retraction of X_slow')


@pytest.mark.parametrize('shape', [(3, 6, 6), (6, 4)])
@pytest.mark.parametrize('period', [None, 6])
@pytest.mark.parametrize('large_steps', ['exponential', 'projection'])
def test_at_most_four_products_a_matrix_and_step(shape, period, large_steps):
  tx = orthogonal(
    optax.adam(1e-3), lookahead_period=period, large_steps=large_steps
  )
  jaxpr = trace_update(tx, shape)
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


def test_plain_steps_never_touch_the_slow_weights():
  """Their loop reads X and Δ, and writes over the gradient."""
  tx = orthogonal(optax.adam(1e-3), lookahead_period=6)
  stacks = [
    sum(v.aval.ndim == 3 for v in loop.invars)
    for loop in loops_of(trace_update(tx, (3, 6, 6)))
  ]
  assert stacks == [3, 4, 2, 1]
  never = orthogonal(optax.adam(1e-3), retraction_period=None)
  assert not loops_of(trace_update(never, (3, 6, 6)))


def test_precision_is_an_argument_not_a_global():
  def text(tx, default):
    with jax.default_matmul_precision(default):
      return str(trace_update(tx, (2, 4, 4)))

  tx = orthogonal(optax.adam(1e-3), lookahead_period=3)
  assert text(tx, 'bfloat16') == text(tx, 'highest')
  assert 'precision=None' not in text(tx, 'bfloat16')
  narrow = orthogonal(optax.adam(1e-3), precision='default')
  assert 'Precision.HIGHEST' in text(narrow, None)  # The retraction's.
  assert 'Precision.DEFAULT' in text(narrow, None)  # The step's.


# -- Errors -------------------------------------------------------------------


@pytest.mark.parametrize(
  ('options', 'match'),
  [
    ({'lookahead_period': 0}, 'lookahead_period=0'),
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


def test_parameters_and_gradients_that_do_not_fit_raise():
  tx = orthogonal(optax.sgd(1.0))
  params = {'w': start((2, 4, 4))}
  state = tx.init(params)
  with pytest.raises(ValueError, match='needs the parameters'):
    tx.update(params, state)
  with pytest.raises(ValueError, match=r"leaf \['w'\] has shape \(2, 2, 4\)"):
    tx.update({'w': jnp.ones((2, 2, 4))}, state, params)
  vector = {'w': jnp.ones(3)}
  with pytest.raises(ValueError, match=r"\['w'\] has shape \(3,\)"):
    tx.init(vector)
  with pytest.raises(ValueError, match=r"\['w'\] has shape \(3,\)"):
    tx.update(vector, state, vector)


def test_a_start_off_the_manifold_is_refused_where_it_is_known():
  tx = orthogonal(optax.sgd, 1.0)
  for shape in ((4, 4), (2, 3, 5), (1, 16, 2)):
    tx.init({'w': start(shape)})
    off = {'w': start(shape) * 1.001}
    with pytest.raises(ValueError, match=r"\['w'\] is 2\.0e-03 from"):
      tx.init(off)
    jax.jit(tx.init)(off)  # Nobody can look.
    orthogonal(optax.sgd, 1.0, start_tolerance=3e-3).init(off)
    orthogonal(optax.sgd, 1.0, start_tolerance=None).init(off)


def test_the_learning_rate_is_given_once_to_a_rule():
  x, g = start((4, 4)), gradient((4, 4))
  want, _ = run_once(orthogonal(optax.adam(1e-2)), g, x)
  for tx in (
    orthogonal(optax.adam, 1e-2),
    orthogonal(optax.adam, learning_rate=optax.constant_schedule(1e-2)),
    orthogonal(scheduled_nadam, 1e-2),
  ):
    got, _ = run_once(tx, g, x)
    assert np.sum(got * want) > 0.9 * np.sum(want * want)
  for wrong in ((1e-3,), (optax.adam,), (None, 1e-3), ('adam', 1e-3)):
    with pytest.raises(TypeError, match=r'orthogonal\(optax\.adam, learning_r'):
      orthogonal(*wrong)
  with pytest.raises(TypeError, match='built already'):
    orthogonal(optax.adam(1e-3), 1e-3)


SPOILERS = {
  'a scale': lambda tx: optax.chain(tx, optax.scale(0.5)),
  'a learning rate': lambda tx: optax.chain(
    tx, optax.scale_by_learning_rate(0.1)
  ),
  'weight decay': lambda tx: optax.chain(tx, optax.add_decayed_weights(-0.01)),
  'clipping': lambda tx: optax.chain(tx, optax.clip(0.02)),
  'a trust ratio': lambda tx: optax.chain(tx, optax.scale_by_trust_ratio()),
}


@pytest.mark.parametrize('spoiler', SPOILERS)
def test_updates_that_are_changed_afterwards_are_noticed(spoiler):
  tx = SPOILERS[spoiler](orthogonal(optax.adam, 0.1))
  end, _ = run(tx, {'w': start((2, 6, 6)), 'tall': start((17, 2))}, 3)
  assert np.any(np.isnan(end['w']))
  assert np.any(np.isnan(end['tall']))


def test_where_values_are_known_changed_updates_raise():
  tx = SPOILERS['a scale'](orthogonal(optax.adam, 0.1))
  params, grads = {'w': start((6, 6))}, {'w': gradient((6, 6))}
  updates, state = tx.update(grads, tx.init(params), params)
  params = optax.apply_updates(params, updates)
  with pytest.raises(ValueError, match=r"leaf \['w'\] is not what the last"):
    tx.update(grads, state, params)


def scaled_rejection(tx):
  """Wraps `tx` so that every second step is thrown away."""

  def update(updates, state, params=None):
    count, inner = state
    updates, new = tx.update(updates, inner, params)
    kept = count % 2 == 0
    updates = jax.tree.map(lambda u: jnp.where(kept, u, 0), updates)
    new = jax.tree.map(lambda a, b: jnp.where(kept, a, b), new, inner)
    return updates, (count + 1, new)

  return optax.GradientTransformation(
    lambda p: (jnp.int32(0), tx.init(p)), update
  )


@pytest.mark.parametrize(
  'wrap',
  [
    lambda tx: optax.apply_if_finite(tx, 2),
    lambda tx: optax.MultiSteps(tx, 2),
    lambda tx: optax.chain(optax.clip_by_global_norm(1.0), tx),
    scaled_rejection,
  ],
)
def test_what_leaves_updates_whole_passes(wrap):
  tx = wrap(orthogonal(optax.adam, 0.1))
  x, _ = run(tx, start((2, 6, 6)), 6)
  assert jnp.max(orthogonality_error(x)) < 1e-2  # As truncated steps leave it.


def test_parameters_may_be_replaced_on_the_manifold():
  tx = orthogonal(optax.adam, 0.1)
  x, state = run(tx, start((6, 6)), 2)
  for other in (start((6, 6), seed=5), polar_retract(x), x * (1 + 1e-5)):
    updates, _ = tx.update(gradient((6, 6)), state, other)
    assert np.all(np.isfinite(updates))
  with pytest.raises(ValueError, match='the only leaf is not what'):
    tx.update(gradient((6, 6)), state, 1.01 * x)


DEGENERATE = (
  *((0, 4, 4), (0, 4), (4, 0), (2, 0, 3), (0, 0)),
  *((1, 1), (3, 1, 1), (1, 9), (9, 1)),
)


def test_degenerate_shapes_pass():
  params = {str(shape): start(shape) for shape in DEGENERATE}
  tx = orthogonal(optax.adam, 0.1, lookahead_period=2, retraction_period=2)
  end, state = run(
    tx, params, 3, lambda x, t: jax.tree.map(lambda p: gradient(p.shape, t), x)
  )
  errors = jax.jit(lambda x: jax.tree.map(orthogonality_error, x))(end)
  for shape in DEGENERATE:
    x = end[str(shape)]
    assert x.shape == shape
    # A sign, which nothing moves; or a unit vector.
    moves = bool(x.size) and shape[-2:] != (1, 1)
    assert np.any(x != params[str(shape)]) == moves
    assert errors[str(shape)].shape == shape[:-2]
    assert np.max(errors[str(shape)], initial=0) < 1e-3
    assert slow_params(state, end)[str(shape)].shape == shape


def test_no_step_leaves_a_component_of_the_group():
  """A component is reached from a start in it, and from no other start."""
  target = start((4, 4), seed=3)
  tx = orthogonal(optax.adam, optax.cosine_decay_schedule(0.3, 200))
  gaps = []
  for sign in (1.0, -1.0):
    x = target * jnp.where(jnp.arange(4) == 0, sign, 1.0)[:, None]
    x = x @ jax.scipy.linalg.expm(0.2 * (jnp.tri(4) - jnp.tri(4).T))
    end, _ = run(tx, x, 200, lambda x, _: x - target)
    gaps.append(float(jnp.linalg.norm(end - target)))
  assert gaps[0] < 1e-2 < 1.9 < gaps[1]
