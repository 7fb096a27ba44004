"""Tests losses against NumPy in float64, gradients against differences.

EMMA's gradient is that of a surrogate: r is a constant. So the differences are
taken of the loss with r frozen at the base point, never of the loss itself.
"""

import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special

from lipnext_jax import losses
from lipnext_jax.models import interface


def distances(w):
  return np.linalg.norm(w[:, None] - w, axis=-1)


def of_label(f, y):
  return np.take_along_axis(f, y[:, None], axis=1)


def cross_entropies(f, y):
  return special.logsumexp(f, axis=1) - of_label(f, y)[:, 0]


def cross_entropy(f, y, w, epsilon, logit_scale=1.0):
  del w, epsilon
  return np.mean(cross_entropies(logit_scale * f, y))


def emma_ratios(f, y, w, epsilon):
  reach = epsilon * distances(w)[y]
  return np.clip((of_label(f, y) - f) / np.maximum(reach, 1e-8), 0.01, 1)


def emma(f, y, w, epsilon, logit_scale=1.0, ratios=None):
  r = emma_ratios(f, y, w, epsilon) if ratios is None else ratios
  z = f - of_label(f, y) + r * epsilon * distances(w)[y]
  return np.mean(cross_entropies(logit_scale * z, y))


def trades(f, y, w, epsilon, logit_scale=1.0, trades_weight=1.0):
  p = np.argmax(f, axis=1)
  rivals = f + epsilon * distances(w)[p]
  rivals[np.arange(len(p)), p] = -np.inf
  # log(1 + e^{τ f⊥}/Σ e^{τ f_j})
  total = special.logsumexp(logit_scale * f, axis=1)
  gloro = np.logaddexp(0, logit_scale * np.max(rivals, axis=1) - total)
  clean = cross_entropies(logit_scale * f, y)
  return np.mean(clean + trades_weight * gloro)


def annealing(
  f, y, w, epsilon, logit_scale=1.0, offset=2.0, temperature=0.75, gamma=5.0
):
  del w, epsilon
  s = (logit_scale * f - offset * np.eye(f.shape[1])[y]) / temperature
  ce = cross_entropies(s, y)
  return np.mean(temperature * (1 - np.exp(-ce)) ** gamma * ce)


ORACLES = {
  'emma': emma,
  'trades': trades,
  'logit_annealing': annealing,
  'cross_entropy': cross_entropy,
}
OPTIONS = {  # Others than the defaults.
  'trades': {'trades_weight': 0.3},
  'logit_annealing': {'offset': 0.5, 'temperature': 1.5, 'gamma': 2.0},
}


def cases():
  """Yields (logits, labels, unit rows), with ties, equal rows, two classes."""
  for k, scale, equal in ((5, 1.0, 0), (5, 30.0, 0), (5, 3.0, 3), (2, 1.0, 0)):
    rng = np.random.default_rng(k)
    f = scale * rng.normal(size=(12, k))
    y = rng.integers(0, k, size=12)
    f[0] = 0.5  # All classes tied.
    f[1, y[1]] = f[1].max() + 1e-3  # Correct, and barely.
    f[2, y[2]] = f[2].max() + 20  # Correct by far.
    w = rng.normal(size=(k, 4))
    w[:equal] = w[0]  # d_yj = 0 for j ≠ y.
    yield f, y, w / np.linalg.norm(w, axis=-1, keepdims=True)


def check_values(loss, oracle, **options):
  """Compares a loss with its oracle."""
  jitted = jax.jit(functools.partial(loss, **options))
  for case, epsilon in itertools.product(cases(), (0.0, 0.25, 3.0)):
    with jax.enable_x64(True):
      got = jitted(*case, epsilon)
    # Float64 throughout: a few hundred roundings of numbers up to 400.
    want = oracle(*case, epsilon, **options)
    np.testing.assert_allclose(got, want, rtol=1e-12, atol=1e-12)


def differences(fn, x, h=1e-5):
  """Returns central differences of fn(x), a scalar."""
  steps = h * np.eye(x.size).reshape(-1, *x.shape)
  slopes = [(fn(x + e) - fn(x - e)) / (2 * h) for e in steps]
  return np.reshape(slopes, x.shape)


def check_gradients(loss, oracle):
  """Compares gradients for logits and head rows, EMMA's with fixed r."""
  jitted = jax.jit(jax.grad(loss, argnums=(0, 2)))
  for f, y, w in cases():
    # The other losses have kinks where logits tie.
    some = slice(6) if oracle is emma else slice(2, 6)
    f, y, fixed = f[some], y[some], oracle
    if oracle is emma:
      fixed = functools.partial(emma, ratios=emma_ratios(f, y, w, 0.7))
    with jax.enable_x64(True):
      of_logits, of_rows = jitted(f, y, w, 0.7)
    # h = 1e-5: truncation h² times a third derivative, 1e-9; rounding
    # 1e-16·400/h, 4e-9.
    close = functools.partial(np.testing.assert_allclose, rtol=1e-6, atol=3e-8)
    want = differences(functools.partial(fixed, y=y, w=w, epsilon=0.7), f)
    close(of_logits, want, err_msg='logits')
    want = differences(functools.partial(fixed, f, y, epsilon=0.7), w)
    close(of_rows, want, err_msg='rows')


@pytest.mark.parametrize('name', losses.LOSSES)
def test_values_match_the_formula_and_gradients_differences(name):
  loss, oracle = losses.LOSSES[name], ORACLES[name]
  check_values(loss, oracle)
  check_values(loss, oracle, logit_scale=4.0, **OPTIONS.get(name, {}))
  check_gradients(loss, oracle)


@pytest.mark.parametrize('name', losses.LOSSES)
def test_huge_logits_stay_finite(name):
  """A 1-Lipschitz network keeps |f| below 400 for 224² colour images."""
  loss = functools.partial(losses.LOSSES[name], logit_scale=3.0)
  f = 1e7 * jnp.array([[1, -1, 0.3], [-1, 1, 1]])
  value, gradients = jax.jit(jax.value_and_grad(loss, argnums=(0, 2)))(
    f, jnp.array([0, 0]), jnp.eye(3), 3.0
  )
  assert value.dtype == jnp.float32
  assert all(np.all(np.isfinite(g)) for g in gradients)
  # The second example loses by 2τ·1e7, whatever the loss; mean of two.
  np.testing.assert_allclose(value, 3e7, rtol=1e-3)


def test_gradient_check_rejects_gradients_through_r_or_not_of_rows(monkeypatch):
  with monkeypatch.context() as patch:
    patch.setattr(jax.lax, 'stop_gradient', lambda x: x)
    check_values(losses.emma_loss, emma)  # The value cannot show it.
    with pytest.raises(AssertionError, match='logits'):
      check_gradients(losses.emma_loss, emma)
  inner, stop = losses.row_distances, jax.lax.stop_gradient
  monkeypatch.setattr(losses, 'row_distances', lambda w: stop(inner(w)))
  for name in ('emma', 'trades'):
    with pytest.raises(AssertionError, match='rows'):
      check_gradients(losses.LOSSES[name], ORACLES[name])


def test_value_check_rejects_another_clip_distance_or_option(monkeypatch):
  inner = losses.row_distances
  for attribute, fault in (
    ('_EMMA_CLIP', (0.0, 1.0)),
    ('_EMMA_CLIP', (0.01, math.inf)),
    ('row_distances', lambda w: inner(w) ** 2),
  ):
    with monkeypatch.context() as patch:
      patch.setattr(losses, attribute, fault)
      with pytest.raises(AssertionError):
        check_values(losses.emma_loss, emma)
  for name, option in (
    ('trades', {'trades_weight': 1.01}),
    ('logit_annealing', {'offset': 1.99}),
    ('cross_entropy', {'logit_scale': 1.01}),
  ):
    loss = functools.partial(losses.LOSSES[name], **option)
    with pytest.raises(AssertionError):
      check_values(loss, ORACLES[name])


def check_distances(fn):
  """Compares distances in float32, of close and of equal rows, too."""
  rng = np.random.default_rng(0)
  w = rng.normal(size=(6, 32))
  w /= np.linalg.norm(w, axis=-1, keepdims=True)
  w[1] = w[0] + 1e-4 * rng.normal(size=32)  # Close.
  w[2] = w[0]  # Identical.
  w = w.astype(np.float32)
  # Each difference rounds once (not at all where the rows are close), then 32
  # squares, their sum and a root: 20 roundings of 6e-8.
  exact = distances(np.float64(w))
  np.testing.assert_allclose(jax.jit(fn)(w), exact, rtol=2e-6, atol=0)


def test_distances_are_those_of_float64():
  check_distances(losses.row_distances)
  with pytest.raises(AssertionError):  # Planted: the Gram form loses digits.
    check_distances(lambda w: jnp.sqrt(jnp.maximum(2 - 2 * w @ w.T, 0)))
  # What is not a number shows.
  w = jnp.array([[1.0, jnp.nan], [1.0, 0.0], [0.0, 1.0]])
  shown = np.isnan(losses.row_distances(w))
  np.testing.assert_array_equal(shown, [[0, 1, 1], [1, 0, 0], [1, 0, 0]])


def plain_distances(w):
  """Planted: the same distances with automatic differentiation."""
  squares = jnp.sum(jnp.square(w[:, None] - w[None]), axis=-1)
  zero = squares == 0
  return jnp.where(zero, 0, jnp.sqrt(jnp.where(zero, 1, squares)))


def test_distances_have_the_derivative_of_their_definition():
  rng = np.random.default_rng(0)
  w = rng.normal(size=(5, 16))
  w[1] = w[0] + 1e-2 * rng.normal(size=16)  # Close.
  w[2] = w[0]  # Identical.
  with jax.enable_x64(True):
    want = jax.jacfwd(plain_distances)(w)
    for transform in (jax.jacrev, jax.jacfwd):
      got = transform(losses.row_distances)(w)
      # Products cancel down to 1e-2 of their size: 100 float64 roundings.
      np.testing.assert_allclose(got, want, rtol=0, atol=1e-13)


def test_distances_need_no_memory_for_all_differences():
  k, c = 300, 128
  w = jax.ShapeDtypeStruct((k, c), jnp.float32)

  def temporary(fn):
    compiled = jax.jit(jax.grad(lambda w: jnp.sum(fn(w)))).lower(w).compile()
    return compiled.memory_analysis().temp_size_in_bytes

  everything = 4 * k * k * c
  assert temporary(plain_distances) > everything / 2  # The check can fail.
  assert temporary(losses.row_distances) < everything / 4


def test_distances_of_rows_scaled_in_the_same_program():
  """A compiler may round the same row twice, to different numbers."""
  rng = np.random.default_rng(0)
  w = rng.normal(size=(10, 16))
  weights = rng.normal(size=(10, 10))

  @jax.jit
  @jax.grad
  def gradient(w):
    distances = losses.row_distances(interface.unit_rows(w))
    return jnp.sum(distances * weights.astype(w.dtype))

  with jax.enable_x64(True):
    want = gradient(w)
  got = gradient(w.astype(np.float32))
  # Ten terms of size one, each rounded a few times.
  np.testing.assert_allclose(got, want, rtol=0, atol=1e-5)


@pytest.mark.parametrize('name', losses.LOSSES)
def test_labels_and_kernels_of_another_shape_are_refused(name):
  logits, rows, labels = jnp.eye(3), jnp.eye(3), jnp.arange(3)
  for bad in (labels[:, None], labels[:2], labels * 1.0):
    with pytest.raises(ValueError, match='labels'):
      losses.LOSSES[name](logits, bad, rows, 0.1)
  if name in ('emma', 'trades'):  # The others have no use for it.
    for kernel in (rows[:1], jnp.eye(4), rows[0]):
      with pytest.raises(ValueError, match='one row for each'):
        losses.LOSSES[name](logits, labels, kernel, 0.1)
