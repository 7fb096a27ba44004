"""ImageNet-400: the 400 classes of the paper's scaling table.

The list is that of `torch.manual_seed(2023); torch.randperm(1000)[:400]`. It is
part of the package, which does not need torch.
"""

import numpy as np

from lipnext_jax.data import official
from lipnext_jax.data import records
from lipnext_jax.data import views


def class_ids() -> np.ndarray:
  """Returns the ImageNet labels of the 400 classes, ascending, int [400].

  >>> class_ids()[:6].tolist()
  [0, 2, 3, 5, 6, 7]
  """
  return np.array(official.class_names('imagenet400'), int)


def select(source: records.RecordSource) -> views.View:
  """Selects the examples of the 400 classes; their labels become 0 … 399.

  Args:
    source: a split of ImageNet.
  """
  new_labels = np.full(source.num_classes, -1, np.int32)
  new_labels[class_ids()] = np.arange(len(class_ids()))
  indices = np.flatnonzero(new_labels[source.read_labels()] >= 0)

  def change(example: views.Example) -> views.Example:
    return {**example, 'label': new_labels[int(example['label'])]}

  return views.View(source, indices, change)
