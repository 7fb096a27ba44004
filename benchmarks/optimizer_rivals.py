"""Other ways to step on O(n), which the optimizer benchmarks compare with ours.

Maps for our lift: Cayley, QR, and the paper's FastExp as printed, with our
tangent and any inner rule. Published optimizers with these maps and moments of
their own: Cayley SGD and Adam (J. Li, L. Fuxin, S. Todorovic, ICLR 2020), and
Riemannian SGD and Adam with a QR retraction (G. Bécigneul, O. Ganea, ICLR 2019,
as in geoopt).
"""

import jax
from jax import lax
import jax.numpy as jnp
import optax

HIGHEST = lax.Precision.HIGHEST


def mm(x, y):
  """Multiplies in full float32."""
  return jnp.matmul(x, y, precision=HIGHEST)


def skew(a):
  """Returns the skew-symmetric part of [..., n, n]."""
  return (a - jnp.swapaxes(a, -1, -2)) / 2


def cayley(x, delta):
  """Returns X (I − Δ/2)⁻¹ (I + Δ/2)."""
  eye = jnp.eye(delta.shape[-1])
  return mm(x, jnp.linalg.solve(eye - delta / 2, eye + delta / 2))


def qr(x, delta):
  """Returns the Q of X (I + Δ) = QR, with a positive diagonal of R."""
  return positive_q(x + mm(x, delta))


def literal(x, delta):
  """Returns X·FastExp(Δ) as the paper prints it, with separate powers."""
  eye = jnp.eye(delta.shape[-1])

  def order2(a):
    return eye + a + mm(a, a) / 2

  def order3(a):
    return order2(a) + mm(mm(a, a), a) / 6

  def order4(a):
    return order3(a) + mm(mm(mm(a, a), a), a) / 24

  norm = jnp.linalg.norm(delta)
  branch = sum((norm >= t).astype(jnp.int32) for t in (0.05, 0.25, 1.0))

  def exact(a):
    return jax.scipy.linalg.expm(a)

  return mm(x, lax.switch(branch, [order2, order3, order4, exact], delta))


def lifted(step, inner):
  """Lifts `inner` with x ← step(x, Δ), matrix by matrix in Python."""

  def update(g, state, x):
    delta, state = inner.update(skew(mm(jnp.swapaxes(x, -1, -2), g)), state)
    matrices = zip(
      x.reshape(-1, *x.shape[-2:]),
      delta.reshape(-1, *delta.shape[-2:]),
      strict=True,
    )
    new = jnp.stack([step(*pair) for pair in matrices]).reshape(x.shape)
    return new - x, state

  return optax.GradientTransformation(inner.init, update)


def cayley_sgd(learning_rate, momentum):
  """Returns Cayley SGD with momentum (ICLR 2020, algorithm 1)."""

  def update(g, m, x):
    w = cayley_generator(x, momentum * m - g)
    return cayley_step(x, w, learning_rate), mm(w, x)

  return optax.GradientTransformation(jnp.zeros_like, update)


def cayley_generator(x, m):
  """Returns the skew W with W·X the tangent part of m."""
  w = mm(m, x.T) - mm(x, mm(x.T, mm(m, x.T))) / 2
  return w - w.T


def cayley_step(x, w, learning_rate):
  """Returns Cayley(rate·W)·X − X by fixed-point iteration, the rate capped."""
  rate = jnp.minimum(learning_rate, 1 / (jnp.linalg.norm(w) + 1e-8))
  y = x + rate * mm(w, x)
  for _ in range(2):
    y = x + rate / 2 * mm(w, x + y)
  return y - x


def cayley_adam(learning_rate, b1=0.9, b2=0.99):
  """Returns Cayley Adam (ICLR 2020, algorithm 2).

  The published second moment is ‖G‖²; the mean square of the entries, used
  here, rescales the learning rate by n.
  """

  def init(x):
    return jnp.zeros([], jnp.int32), jnp.zeros_like(x), jnp.ones([])

  def update(g, state, x):
    count, m, v = state
    count = count + 1
    m = b1 * m + (1 - b1) * g
    v = b2 * v + (1 - b2) * jnp.mean(jnp.square(g))
    scale = (1 - b1**count) * jnp.sqrt(v / (1 - b2**count) + 1e-8)
    w = cayley_generator(x, -m) / scale
    m = -mm(w, x) * scale
    return cayley_step(x, w, learning_rate), (count, m, v)

  return optax.GradientTransformation(init, update)


def riemannian_sgd(learning_rate, momentum):
  """Returns Riemannian SGD with a QR retraction, as in geoopt."""

  def update(g, m, x):
    m = momentum * m + project(x, g)
    y = positive_q(x - learning_rate * m)
    return y - x, project(y, m)

  return optax.GradientTransformation(jnp.zeros_like, update)


def project(x, u):
  """Returns the tangent part of u at x."""
  xu = mm(x.T, u)
  return u - mm(x, xu + xu.T) / 2


def positive_q(a):
  """Returns the Q of a = QR with a positive diagonal of R."""
  q, r = jnp.linalg.qr(a)
  return q * jnp.sign(jnp.diagonal(r))[None]


def riemannian_adam(learning_rate, b1=0.9, b2=0.999):
  """Returns Riemannian Adam with a QR retraction, as in geoopt."""

  def init(x):
    return jnp.zeros([], jnp.int32), jnp.zeros_like(x), jnp.zeros([])

  def update(g, state, x):
    count, m, v = state
    count = count + 1
    g = project(x, g)
    m = b1 * m + (1 - b1) * g
    v = b2 * v + (1 - b2) * jnp.mean(jnp.square(g))
    denominator = jnp.sqrt(v / (1 - b2**count)) + 1e-8
    u = -learning_rate * (m / (1 - b1**count)) / denominator
    y = positive_q(x + u)
    return y - x, (count, project(y, m), v)

  return optax.GradientTransformation(init, update)
