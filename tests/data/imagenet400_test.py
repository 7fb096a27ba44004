import hashlib

import numpy as np

from lipnext_jax.data import imagenet400


class Labelled:
  """A source with the methods that `select` uses."""

  num_classes = 1000

  def __init__(self, labels):
    self._labels = labels

  def read_labels(self):
    return np.array(self._labels, np.int32)

  def __getitem__(self, index):
    return {'image': index, 'label': np.int32(self._labels[index])}


def test_the_classes_are_the_papers_and_keep_their_order():
  # torch.manual_seed(2023); torch.randperm(1000)[:400], sorted, comma-joined.
  ids = imagenet400.class_ids()
  assert hashlib.sha256(','.join(map(str, ids)).encode()).hexdigest() == (
    '500b98fe372028ce11162bb1c72f975158df1571d3d23497a6f4ac7bc734992b'
  )
  subset = imagenet400.select(Labelled(range(1000)))
  assert len(subset) == 400
  assert [subset[i]['image'] for i in range(400)] == ids.tolist()
  assert [int(subset[i]['label']) for i in range(400)] == list(range(400))


def test_the_other_classes_are_left_out_and_the_rest_is_relabelled():
  subset = imagenet400.select(Labelled([0, 1, 2, 4, 3, 999, 27, 2]))
  found = [subset[i] for i in range(len(subset))]
  assert [example['image'] for example in found] == [0, 2, 4, 6, 7]
  assert [int(example['label']) for example in found] == [0, 1, 2, 11, 1]
  assert found[0]['label'].dtype == np.int32
