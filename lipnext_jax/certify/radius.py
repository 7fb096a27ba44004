"""The certificate: margins over Lipschitz constants (spec of the paper, §4)."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from lipnext_jax import losses


def certified_radius(
  logits: jax.Array,
  head_kernel: jax.Array,
  lipschitz: jax.typing.ArrayLike = 1.0,
) -> tuple[jax.Array, jax.Array]:
  """Predictions and the ℓ2 radii within which they cannot change.

      p = argmax f,   radius = min_{j≠p} (f_p − f_j) / (Λ ‖w_p − w_j‖)

  One-vs-rest: each rival j is a binary problem with its own margin, whose
  Lipschitz constant is Λ‖w_p − w_j‖. A tie, a logit that is not finite, a Λ
  that is negative or not a number, and rows that are not numbers give radius 0.
  Two identical rows with different biases differ by a constant: that rival can
  never win, and does not bound the radius.

  Args:
    logits: [b, k], of float32 or float64 products.
    head_kernel: [k, c], unit rows.
    lipschitz: Λ, an upper bound on the backbone's Lipschitz constant
      (`lipschitz_bound`).

  Returns:
    predictions [b] int32, radii [b] in [0, 1] pixel units, >= 0. The answer is
    constant on the open ball of that radius, in exact arithmetic; the rounding
    of the logits themselves is not covered.

  >>> p, r = certified_radius(jnp.array([[0.0, 3.0, 1.0]]), jnp.eye(3))
  >>> p.tolist(), f'{r.item():.4f}'
  ([1], '1.4142')
  """
  predictions, radii = rival_radii(logits, head_kernel, lipschitz)
  return predictions, jnp.min(radii, axis=-1)


def rival_radii(
  logits: jax.Array,
  head_kernel: jax.Array,
  lipschitz: jax.typing.ArrayLike = 1.0,
) -> tuple[jax.Array, jax.Array]:
  """Predictions, and for every rival the radius within which it cannot win.

  Args:
    logits: see `certified_radius`.
    head_kernel: see `certified_radius`.
    lipschitz: see `certified_radius`.

  Returns:
    predictions [b] int32, radii [b, k] in [0, 1] pixel units, >= 0; infinite
    for the predicted class itself.

  >>> _, r = rival_radii(jnp.array([[0.0, 3.0, 1.0]]), jnp.eye(3))
  >>> [f'{value:.4f}' for value in r[0].tolist()]
  ['2.1213', 'inf', '1.4142']
  """
  k = logits.shape[-1]
  predictions = jnp.argmax(logits, axis=-1).astype(jnp.int32)
  distance = losses.row_distances(head_kernel)[predictions]  # [b, k]
  margin = jnp.max(logits, axis=-1, keepdims=True) - logits
  # Identical rows certify everything if the margin is positive, else nothing.
  # Only a distance that *is* zero may do so: a Λ or a row that is not a number
  # makes its quotient nan, which the last line below turns into radius 0.
  constant = jnp.where(margin > 0, jnp.inf, 0)
  apart = distance != 0
  slope = lipschitz * jnp.where(apart, distance, 1)
  radii = jnp.where(apart, margin / slope, constant)
  own = jax.nn.one_hot(predictions, k, dtype=bool)
  radii = jnp.where(own, jnp.inf, radii)
  sound = jnp.all(jnp.isfinite(logits), axis=-1) & (jnp.asarray(lipschitz) >= 0)
  return predictions, jnp.where(sound[:, None] & (radii > 0), radii, 0)


def certified_accuracy(
  predictions: np.ndarray,
  radii: np.ndarray,
  labels: np.ndarray,
  epsilons: Sequence[float],
) -> dict[float, float]:
  """CRA@ε: per cent of examples that are correct with radius > ε, strictly.

  Args:
    predictions: [n] int.
    radii: [n], ℓ2 in [0, 1] pixel units.
    labels: [n] int.
    epsilons: radii to report, same units.

  Returns:
    {ε: per cent}.

  Raises:
    ValueError: no examples.

  >>> import numpy as np
  >>> certified_accuracy(np.array([1, 1]), np.array([0.5, 0.25]),
  ...                    np.array([1, 0]), [0.25, 0.5])
  {0.25: 50.0, 0.5: 0.0}
  """
  predictions, radii, labels = map(np.asarray, (predictions, radii, labels))
  if not labels.size:
    raise ValueError('certified_accuracy needs at least one example.')
  correct = predictions == labels
  return {
    epsilon: 100 * float(np.mean(correct & (radii > epsilon)))
    for epsilon in epsilons
  }
