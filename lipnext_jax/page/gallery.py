"""Which examples the report shows, and `gallery.npz` that keeps them.

An evaluation holds no images, and the page is made from files alone: so the
few that it shows are written when the evaluation is.
"""

import os
from typing import Any

import numpy as np

from lipnext_jax import files
from lipnext_jax.data import sources

PER_GROUP = 8


def choose(
  labels: np.ndarray, predictions: np.ndarray, radii: np.ndarray
) -> dict[str, np.ndarray]:
  """Positions of the examples worth seeing, at most `PER_GROUP` of a kind.

  Args:
    labels: [n] int.
    predictions: [n] int.
    radii: [n], ℓ2 in [0, 1] pixel units.

  Returns:
    'robust': correct, largest radii first; 'fragile': correct and certified,
    smallest first; 'wrong': misclassified, largest radii first. No position
    is in two of them.

  >>> groups = choose(np.zeros(3), np.array([0, 0, 1]), np.array([0.1, 2, 1]))
  >>> {name: chosen.tolist() for name, chosen in groups.items()}
  {'robust': [1], 'fragile': [0], 'wrong': [2]}
  """
  correct = labels == predictions
  by_radius = np.argsort(radii, kind='stable')
  certified = by_radius[correct[by_radius] & (radii[by_radius] > 0)]
  half = (len(certified) + 1) // 2
  return {
    'robust': certified[::-1][: min(PER_GROUP, half)],
    'fragile': certified[: min(PER_GROUP, len(certified) - half)],
    'wrong': by_radius[~correct[by_radius]][::-1][:PER_GROUP],
  }


def write_gallery(workdir: str, result: Any, source: sources.Source) -> None:
  """Writes `gallery.npz`: group, id, label, prediction, radius and image.

  Args:
    workdir: where to.
    result: the `evaluate.Evaluation`.
    source: the split that it evaluated; only the chosen examples are read.
      Images are kept as they are there, uint8 or float32 in [0, 1].
  """
  groups = choose(result.labels, result.predictions, result.radii)
  chosen = np.concatenate(list(groups.values()))
  images = [source[int(result.ids[i])]['image'] for i in chosen]
  files.write_arrays(
    os.path.join(workdir, 'gallery.npz'),
    {
      'group': np.repeat(list(groups), [len(g) for g in groups.values()]),
      'id': result.ids[chosen],
      'label': result.labels[chosen],
      'prediction': result.predictions[chosen],
      'radius': result.radii[chosen],
      'image': np.stack(images) if images else np.zeros((0, 1, 1, 1)),
    },
  )
