"""Losses for certified training (paper §4), from logits and a unit-norm head.

All have the same signature and return the mean over the batch, a scalar:

    loss(logits, labels, head_kernel, epsilon, *, logit_scale=1.0, …)

    logits         [b, k] float
    labels         [b] int
    head_kernel    [k, c], unit rows (`lipnext_jax.models.head_kernel`)
    epsilon        ε, the radius at this step (ε_t), ℓ2 in [0, 1] pixel units
    logit_scale    τ, which changes the loss and never the certificate

They raise ValueError for labels or kernels of other shapes or dtypes.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

_EMMA_CLIP = (0.01, 1.0)  # Range of EMMA's ratio r_j, from LiResNet++.
# Number of rows whose differences to all others are formed at once. It keeps a
# device busy, and takes at most 1 GiB for k = 1000, c = 4096.
_ROWS_AT_ONCE = 64


@jax.custom_jvp
def row_distances(head_kernel: jax.Array) -> jax.Array:
  """Computes d_ab = ‖w_a − w_b‖₂ for all pairs of rows: [k, c] → [k, k].

  Norms of differences keep all digits for rows that are close, of which the
  Gram form 2 − 2 w_a·w_b loses half. The derivative

      ∂d_ab = (w_a − w_b)·(∂w_a − ∂w_b)/d_ab

  is computed without an array of size [k, k, c], and is zero where two rows
  coincide up to rounding. The diagonal is set to zero, because a compiler may
  compute the same row twice and round it differently.

  >>> [[f'{d:.4f}' for d in row] for row in row_distances(jnp.eye(2))]
  [['0.0000', '1.4142'], ['1.4142', '0.0000']]
  """

  def one(w):
    return jnp.linalg.norm(head_kernel - jnp.expand_dims(w, 0), axis=-1)

  distance = jax.lax.map(one, head_kernel, batch_size=_ROWS_AT_ONCE)
  return jnp.where(jnp.eye(len(distance), dtype=bool), 0, distance)


@row_distances.defjvp
def _row_distances_jvp(primals, tangents):
  """Returns d and ∂d. A nan distance is not zero, so it is kept."""
  (w,), (dw,) = primals, tangents
  distance = row_distances(w)
  zero = distance <= 4 * float(jnp.finfo(distance.dtype).eps)
  own = jnp.sum(w * dw, axis=-1)
  across = jnp.matmul(w, dw.T, precision=jax.lax.Precision.HIGHEST)
  along = own[:, None] + own[None, :] - across - across.T
  return distance, jnp.where(zero, 0, along / jnp.where(zero, 1, distance))


def _check(logits, labels, head_kernel=None) -> None:
  """Raises ValueError for shapes that JAX would broadcast or clamp."""
  labels = jnp.asarray(labels)
  if jnp.ndim(logits) != 2 or labels.shape != jnp.shape(logits)[:1]:
    raise ValueError(
      f'{jnp.shape(logits)=}, {labels.shape=}: give logits [b, k], labels [b].'
    )
  if not jnp.issubdtype(labels.dtype, jnp.integer):
    raise ValueError(f'{labels.dtype} labels: give class numbers, integers.')
  if head_kernel is not None and (
    jnp.ndim(head_kernel) != 2 or len(head_kernel) != logits.shape[1]
  ):
    raise ValueError(
      f'{jnp.shape(head_kernel)=}: give [k, c], one row for each of the '
      f'{logits.shape[1]} classes.'
    )


def emma_loss(
  logits: jax.Array,
  labels: jax.Array,
  head_kernel: jax.Array,
  epsilon: jax.typing.ArrayLike,
  *,
  logit_scale: jax.typing.ArrayLike = 1.0,
) -> jax.Array:
  """Computes EMMA, the cross-entropy of logits that an adversary could reach.

      d_yj = ‖w_y − w_j‖
      r_j = stop_gradient(clip((f_y − f_j)/max(ε d_yj, 1e-8), 0.01, 1))
      z_j = f_j − f_y + r_j ε d_yj,   loss = cross-entropy(τ z, y)

  The module's docstring has the arguments. Reference: K. Hu et al., "A Recipe
  for Improved Certifiable Robustness", ICLR 2024 (Efficient Margin
  MAximization).

  >>> loss = emma_loss(jnp.array([[2.0, 0.0]]), jnp.array([0]), jnp.eye(2), 0.5)
  >>> round(loss.item(), 4)  # log(1 + exp(-2 + 0.5·√2))
  0.2425
  """
  _check(logits, labels, head_kernel)
  k = logits.shape[-1]
  distance = row_distances(head_kernel)[labels]  # [b, k]
  reach = epsilon * distance
  f_y = jnp.take_along_axis(logits, labels[:, None], axis=-1)
  ratio = jnp.clip((f_y - logits) / jnp.maximum(reach, 1e-8), *_EMMA_CLIP)
  z = logits - f_y + jax.lax.stop_gradient(ratio) * reach
  # z_y = 0 for any r_y, because d_yy = 0.
  one_hot = jax.nn.one_hot(labels, k, dtype=z.dtype)
  return jnp.mean(optax.softmax_cross_entropy(logit_scale * z, one_hot))


def trades_loss(
  logits: jax.Array,
  labels: jax.Array,
  head_kernel: jax.Array,
  epsilon: jax.typing.ArrayLike,
  *,
  trades_weight: float = 1.0,
  logit_scale: jax.typing.ArrayLike = 1.0,
) -> jax.Array:
  """Computes cross-entropy and a penalty on predictions that ε may change.

      f_⊥ = max_{j≠i} (f_j + ε ‖w_i − w_j‖),   i = argmax f
      loss = cross-entropy(τ f, y) + λ log(1 + e^{τ f_⊥} / Σ_j e^{τ f_j})

  The weight λ is `trades_weight`; the module's docstring has the other
  arguments. Reference: K. Leino et al., "Globally-Robust Neural Networks", ICML
  2021 (GloRo; the TRADES-like objective of its §4).

  >>> loss = trades_loss(
  ...   jnp.array([[2.0, 0.0]]), jnp.array([0]), jnp.eye(2), 0.5)
  >>> round(loss.item(), 4)
  0.3435
  """
  _check(logits, labels, head_kernel)
  k = logits.shape[-1]
  prediction = jnp.argmax(logits, axis=-1)
  reached = logits + epsilon * row_distances(head_kernel)[prediction]
  own = jax.nn.one_hot(prediction, k, dtype=bool)
  bottom = jnp.max(jnp.where(own, -jnp.inf, reached), axis=-1)
  scaled = logit_scale * logits
  clean = optax.softmax_cross_entropy_with_integer_labels(scaled, labels)
  log_odds = logit_scale * bottom - jax.nn.logsumexp(scaled, axis=-1)
  return jnp.mean(clean + trades_weight * jax.nn.softplus(log_odds))


def logit_annealing_loss(
  logits: jax.Array,
  labels: jax.Array,
  head_kernel: jax.Array | None = None,
  epsilon: jax.typing.ArrayLike = 0.0,
  *,
  offset: float = 2.0,
  temperature: float = 0.75,
  gamma: float = 5.0,
  logit_scale: jax.typing.ArrayLike = 1.0,
) -> jax.Array:
  """Computes logit annealing, which lowers the weight of large margins.

      s = (τ f − offset·onehot_y)/temperature,   l = cross-entropy(s, y)
      loss = temperature·(1 − e^{−l})^gamma·l

  The module's docstring has the other arguments; this loss does not use
  `head_kernel` and `epsilon`. Reference: B.-H. Lai et al., "Enhancing Certified
  Robustness via Block Reflector Orthogonal Layers and Logit Annealing Loss",
  ICML 2025, §5 (BRONet).

  >>> loss = logit_annealing_loss(jnp.array([[9.0, 0.0]]), jnp.array([0]))
  >>> bool(loss < 1e-9)
  True
  """
  del head_kernel, epsilon  # Unused.
  _check(logits, labels)
  one_hot = jax.nn.one_hot(labels, logits.shape[-1], dtype=logits.dtype)
  shifted = (logit_scale * logits - offset * one_hot) / temperature
  ce = optax.softmax_cross_entropy(shifted, one_hot)
  # expm1 keeps the digits of 1 − e^{−l} where l is small.
  return jnp.mean(temperature * (-jnp.expm1(-ce)) ** gamma * ce)


def cross_entropy_loss(
  logits: jax.Array,
  labels: jax.Array,
  head_kernel: jax.Array | None = None,
  epsilon: jax.typing.ArrayLike = 0.0,
  *,
  logit_scale: jax.typing.ArrayLike = 1.0,
) -> jax.Array:
  """Computes the cross-entropy of τ f, without a robustness term.

  >>> loss = cross_entropy_loss(jnp.zeros((1, 2)), jnp.array([0]))
  >>> round(loss.item(), 4)
  0.6931
  """
  del head_kernel, epsilon  # Unused.
  _check(logits, labels)
  ce = optax.softmax_cross_entropy_with_integer_labels(
    logit_scale * logits, labels
  )
  return jnp.mean(ce)


LOSSES: dict[str, Callable[..., jax.Array]] = {
  'emma': emma_loss,
  'trades': trades_loss,
  'logit_annealing': logit_annealing_loss,
  'cross_entropy': cross_entropy_loss,
}
"""The losses by the names that a config gives them."""
