"""Synthetic images mixed into every batch."""

import os
from typing import NamedTuple

import ml_collections

from lipnext_jax import errors
from lipnext_jax.data import npz
from lipnext_jax.data import sources
from lipnext_jax.data import views


class Extra(NamedTuple):
  """Examples that are mixed into the real ones."""

  source: views.Source
  ratio: int  # Mixed-in examples per real one.


def load_extra(
  config: ml_collections.ConfigDict, dataset: sources.Dataset
) -> Extra | None:
  """Opens what the config wants mixed in, or returns None.

  Args:
    config: its `dataset.extra_npz`, `dataset.extra_ratio` and `augment`.
    dataset: the real one, for its classes and the shape of its images.

  Raises:
    ConfigError: a file that is missing or malformed, or has other classes or
      images that do not end up in the shape of the real ones.
  """
  path = os.path.expanduser(config.dataset.extra_npz)
  augment = config.augment
  if not config.dataset.extra_ratio:
    return None

  def error(problem: object) -> errors.ConfigError:
    return errors.ConfigError(
      'dataset.extra_npz',
      path,
      str(problem),
      'it needs `image` [n, H, W, ch] uint8 and `label` [n] int, with the '
      'classes and the shape of the real images',
    )

  if not os.path.exists(path):
    raise error('does not exist')
  try:
    source = npz.NpzSource(path)
  except ValueError as problem:
    raise error(problem) from None
  # Only a resize, which ends in a crop, takes images of another size.
  resized = augment.extra.as_real and (augment.resize.max or dataset.resize)
  kept = slice(2 if resized else 0, 3)
  shape = source.images.shape[1:]
  if shape[kept] != dataset.image_shape[kept]:
    raise error(
      f'has images of shape {shape}; the real ones end up as '
      f'{dataset.image_shape}'
    )
  if source.labels.max() >= dataset.num_classes:
    raise error(
      f'has labels up to {source.labels.max()}; the {dataset.num_classes} '
      f'classes are 0 … {dataset.num_classes - 1}'
    )
  return Extra(source, config.dataset.extra_ratio)
