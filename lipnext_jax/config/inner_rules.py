"""Optax rules that a config can lift to the orthogonal group, by name."""

from collections.abc import Callable
from typing import Any

import optax

from lipnext_jax import optim


def _momentum(
  learning_rate: optax.ScalarOrSchedule, mu_dtype: Any = None
) -> optax.GradientTransformation:
  """Returns SGD with momentum 0.9."""
  return optax.sgd(learning_rate, momentum=0.9, accumulator_dtype=mu_dtype)


def _lion(
  learning_rate: optax.ScalarOrSchedule, mu_dtype: Any = None
) -> optax.GradientTransformation:
  """Returns Lion without the weight decay that `optax.lion` adds."""
  return optax.chain(
    optax.scale_by_lion(mu_dtype=mu_dtype),
    optax.scale_by_learning_rate(learning_rate),
  )


# Functions (learning_rate, mu_dtype=None) → rule, each elementwise and odd, as
# `optim.orthogonal` requires.
INNER_RULES: dict[str, Callable[..., optax.GradientTransformation]] = {
  'nadam': optim.scheduled_nadam,
  'adam': optax.adam,
  'momentum': _momentum,
  'lion': _lion,
}
