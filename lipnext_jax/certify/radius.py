"""Certified radii from margins and Lipschitz constants (paper §4)."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from lipnext_jax import losses

# Margins, and distances of unit rows, have to exceed so many units of roundoff
# of their operands to count as larger than 0.
SLACK = 64
# Range of numbers whose squares and quotients are accurate in float32.
SANE = (2.0**-60, 2.0**60)
# Largest |‖w‖² − 1| of a unit row. float32's normalisation errs by less.
_UNIT = 2.0**-11


def certified_radius(
  logits: jax.Array,
  head_kernel: jax.Array,
  lipschitz: jax.typing.ArrayLike = 1.0,
  floor: jax.typing.ArrayLike = 0.0,
) -> tuple[jax.Array, jax.Array]:
  """Computes predictions and the ℓ2 radii within which they cannot change.

      i = argmax f,   radius = min_{j≠i} (f_i − f_j) / (Λ ‖w_i − w_j‖)

  Each rival j, a class other than i, has its own margin f_i − f_j, whose
  Lipschitz constant is Λ‖w_i − w_j‖. The radius is 0 for ties, margins up to
  `floor`, logits that are not finite, rows that are not unit, and Λ outside
  [2⁻⁶⁰, 2⁶⁰]. Rows closer than 64 units of roundoff u (2⁻¹⁸ in float32), which
  rounding cannot tell apart, count as 64u apart.

  Args:
    logits: [b, k] float32 or float64, from products of that precision.
    head_kernel: [k, c] float32 or float64, unit rows (`models.head_kernel`).
    lipschitz: Λ, an upper bound on the backbone's Lipschitz constant
      (`lipschitz_bound`), a scalar.
    floor: part of the margins that may be rounding (`margin_floor`), [b] or a
      scalar; less than 0 counts as 0. At 0, margins only have to exceed 64u of
      the largest logit, and small radii may be rounding, as `lipschitz_bound`
      says.

  Returns:
    predictions [b] int32, and radii [b] >= 0 in [0, 1] pixel units. In exact
    arithmetic, the answer is constant on the open ball of that radius. `floor`
    estimates the rounding of the logits; it is no bound.

  Raises:
    ValueError: the shapes do not fit, or a dtype is narrower or complex; or
      rows that are not traced are not unit.

  >>> p, r = certified_radius(jnp.array([[0.0, 3.0, 1.0]]), jnp.eye(3))
  >>> p.tolist(), f'{r.item():.4f}'
  ([1], '1.4142')
  """
  predictions, radii = rival_radii(logits, head_kernel, lipschitz, floor)
  return predictions, jnp.min(radii, axis=-1)


def rival_radii(
  logits: jax.Array,
  head_kernel: jax.Array,
  lipschitz: jax.typing.ArrayLike = 1.0,
  floor: jax.typing.ArrayLike = 0.0,
) -> tuple[jax.Array, jax.Array]:
  """Computes predictions, and radii within which each rival cannot win.

  Args and Raises are those of `certified_radius`.

  Returns:
    predictions [b] int32, and radii [b, k] >= 0 in [0, 1] pixel units: infinite
    for the predicted class, and finite for all others.
  """
  logits, head_kernel = jnp.asarray(logits), jnp.asarray(head_kernel)
  _check(logits, head_kernel, lipschitz, floor)
  unit = float(jnp.finfo(logits.dtype).eps) / 2
  floor = jnp.maximum(jnp.asarray(floor, logits.dtype), 0).reshape(-1, 1)
  least = SLACK * unit * jnp.max(jnp.abs(logits), axis=-1, keepdims=True)
  predictions = jnp.argmax(logits, axis=-1).astype(jnp.int32)
  apart = SLACK * float(jnp.finfo(head_kernel.dtype).eps) / 2
  distance = jnp.maximum(losses.row_distances(head_kernel), apart)[predictions]
  margin = jnp.max(logits, axis=-1, keepdims=True) - logits
  radii = (margin - floor) / (lipschitz * distance)  # [b, k]
  # Comparisons with NaN are false.
  held = (margin > least) & (margin > floor) & (radii < jnp.inf)
  sound = jnp.all(jnp.isfinite(logits), axis=-1, keepdims=True)
  sound &= jnp.all(_are_unit(head_kernel))
  scale = jnp.asarray(lipschitz)
  sound &= (scale >= SANE[0]) & (scale <= SANE[1])
  own = jax.nn.one_hot(predictions, logits.shape[-1], dtype=bool)
  radii = jnp.where(own, jnp.inf, jnp.where(held, radii, 0))
  return predictions, jnp.where(sound, radii, 0)


def check_units(images: np.ndarray) -> None:
  """Raises ValueError for floats that are all whole numbers, some above 1.

  Such images hold bytes; their radii would be 255 times too large.
  """
  images = np.asarray(images)
  if images.dtype == np.uint8 or not np.any(images > 1):
    return
  if np.all(images == np.round(images)):
    raise ValueError(
      'images of whole numbers above 1: give floats in [0, 1], or uint8.'
    )


def _are_unit(rows: jax.Array) -> jax.Array:
  """Returns whether each row has unit norm: [k] bool."""
  return jnp.abs(jnp.sum(jnp.square(rows), axis=-1) - 1) < _UNIT


def _check(logits, head_kernel, lipschitz, floor) -> None:
  """Raises ValueError for shapes and dtypes that do not fit, or raw rows."""
  for name, array in (('logits', logits), ('head_kernel', head_kernel)):
    if array.dtype not in (jnp.float32, jnp.float64):
      raise ValueError(f'{name} of {array.dtype}: give float32 or float64.')
  if logits.ndim != 2 or head_kernel.ndim != 2:
    raise ValueError(
      f'{logits.shape=}, {head_kernel.shape=}: give [b, k], [k, c].'
    )
  (batch, classes), (rows, _) = logits.shape, head_kernel.shape
  if rows != classes:
    raise ValueError(f'head_kernel has {rows} rows for {classes} classes.')
  if jnp.shape(lipschitz) != ():
    raise ValueError(f'{jnp.shape(lipschitz)=}: Λ is one number.')
  if jnp.shape(floor) not in ((), (batch,)):
    raise ValueError(f'{jnp.shape(floor)=} is neither [] nor [{batch}].')
  traced = isinstance(head_kernel, jax.core.Tracer)
  if not traced and not np.all(_are_unit(head_kernel)):
    raise ValueError(
      'head_kernel has rows that are not unit: give models.head_kernel(…).'
    )


def certified_accuracy(
  predictions: np.ndarray,
  radii: np.ndarray,
  labels: np.ndarray,
  epsilons: Sequence[float],
) -> dict[float, float]:
  """Computes CRA@ε, the per cent of correct examples with a radius above ε.

  Args:
    predictions: [n] int, predicted classes.
    radii: [n], certified radii, ℓ2 in [0, 1] pixel units.
    labels: [n] int, true classes.
    epsilons: radii ε to report, in the same unit.

  Returns:
    {ε: per cent}.

  Raises:
    ValueError: the arrays do not have shape [n].

  >>> certified_accuracy(np.array([1, 1]), np.array([0.5, 0.25]),
  ...                    np.array([1, 0]), [0.25, 0.5])
  {0.25: 50.0, 0.5: 0.0}
  """
  predictions, labels = np.asarray(predictions), np.asarray(labels)
  radii = np.asarray(radii, np.float64)  # NumPy would round ε to float32.
  if not predictions.shape == radii.shape == labels.shape == (labels.size,):
    raise ValueError(
      f'{predictions.shape=}, {radii.shape=}, {labels.shape=}: give [n] each.'
    )
  correct = predictions == labels
  return {
    epsilon: 100 * float(np.mean(correct & (radii > epsilon)))
    for epsilon in epsilons
  }
