"""Minimal-distance attacks of foolbox: DeepFool, DDN, Carlini–Wagner.

They look for the nearest adversarial example, wherever it is. Not among them is
foolbox's L2 Fast-Minimum-Norm: its projection multiplies by norms/norms, so
that the distances it finds are several times too large (foolbox 3.3.4).
"""

from collections.abc import Iterator
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lipnext_jax import errors
from lipnext_jax.attacks import target as target_lib

ATTACKS = ('deepfool', 'ddn', 'carlini_wagner')


def _build(logits_fn, low, high, steps, scale) -> tuple[Any, dict[str, Any]]:
  """The model as foolbox wants it, and the attacks by name."""
  try:
    import foolbox  # An extra: slow to import, and needs git.
  except ImportError as error:
    raise errors.ConfigError(
      'attack',
      'foolbox',
      f'cannot be imported ({error})',
      "pip install 'lipnext_jax[attack]', and git",
    ) from None
  attacks = foolbox.attacks
  return foolbox.JAXModel(logits_fn, bounds=(low, high)), {
    'deepfool': attacks.L2DeepFoolAttack(steps=steps, overshoot=0.002),
    'ddn': attacks.DDNAttack(init_epsilon=scale, steps=steps),
    'carlini_wagner': attacks.L2CarliniWagnerAttack(
      binary_search_steps=4, steps=steps, stepsize=0.02, initial_const=1.0
    ),
  }


@functools.partial(jax.jit, static_argnums=(0, 1))
def _wide_logits(apply, dtype, params, x):
  """Through the arithmetic of the claim, from and to the search's format."""
  return apply(params, x.astype(dtype)).astype(x.dtype)


def minimal(
  target: target_lib.Target,
  names: tuple[str, ...] = ATTACKS,
  *,
  steps: int = 50,
  box: bool = True,
) -> Iterator[tuple[str, np.ndarray, dict[str, Any]]]:
  """Runs the attacks, each once on every image.

  Args:
    target: what is attacked; the answers to change are its predictions.
    names: of `ATTACKS`.
    steps: of each (Carlini–Wagner: four times, for its constant).
    box: stay in [0, 1]; otherwise in an interval so wide that no ball that
      matters reaches its ends.

  Yields:
    Name, points [n, H, W, ch] (the image itself, or something that is not
    adversarial, where it failed), settings for the record.

  Raises:
    ConfigError: foolbox is not installed.
  """
  if not names:
    return
  held = target.radii[(target.radii > 0) & np.isfinite(target.radii)]
  low, high = 0.0, 1.0
  if not box:  # Nothing within this distance leaves the interval.
    reach = max(1.0, 2 * float(np.max(held, initial=0)))
    low, high = -reach, 1 + reach
  # DDN changes its norm by a twentieth a step: it should start near the edges.
  scale = 2 * float(np.median(held)) if held.size else 1.0
  wide = target.search_dtype()
  model, attacks = _build(
    lambda x: _wide_logits(target.apply, target.images.dtype, target.params, x),
    low,
    high,
    steps,
    scale,
  )
  with target.arithmetic():
    for name in names:
      points = []
      for images, labels, valid in target_lib.batches(
        target.batch_size,
        target.images.astype(wide),
        target.predictions.astype(np.int32),
      ):
        found, _, _ = attacks[name](
          model, jnp.asarray(images), jnp.asarray(labels), epsilons=None
        )
        points.append(np.asarray(found)[:valid])
      yield name, np.concatenate(points), {'steps': steps, 'box': box}
