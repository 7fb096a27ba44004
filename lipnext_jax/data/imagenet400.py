"""ImageNet-400: the 400 classes of the paper's scaling table.

They are `torch.manual_seed(2023); torch.randperm(1000)[:400]`, labelled anew in
ascending order; the list ships, so that nobody needs torch.
"""

from importlib import resources

import numpy as np

from lipnext_jax.data import records


def class_ids() -> np.ndarray:
  """Returns the ImageNet labels of the 400 classes, ascending, int [400].

  >>> class_ids()[:6].tolist()
  [0, 2, 3, 5, 6, 7]
  """
  lists = resources.files('lipnext_jax.data') / 'class_lists'
  text = (lists / 'imagenet400.txt').read_text(encoding='utf-8')
  return np.array(text.split(), int)


class Subset:
  """The examples of an ImageNet split whose class is one of the 400."""

  def __init__(self, source: records.RecordSource):
    """Finds the examples by their labels; see `RecordSource.read_labels`."""
    self._source = source
    self._new_labels = np.full(source.num_classes, -1, np.int32)
    self._new_labels[class_ids()] = np.arange(len(class_ids()))
    self._indices = np.flatnonzero(self._new_labels[source.read_labels()] >= 0)

  def __len__(self) -> int:
    return len(self._indices)

  def __getitem__(self, index: int) -> dict[str, np.ndarray | np.generic]:
    """Returns the example, its label from 0 to 399."""
    example = self._source[int(self._indices[index])]
    return {**example, 'label': self._new_labels[int(example['label'])]}

  def names(self) -> list[str]:
    """Returns the names of the chosen records."""
    names = self._source.names()
    return [names[i] for i in self._indices] if names else []
