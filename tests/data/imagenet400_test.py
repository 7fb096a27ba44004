import hashlib

import numpy as np

from lipnext_jax.data import imagenet400


def test_the_classes_are_the_papers():
  ids = imagenet400.class_ids()
  assert ids[:12].tolist() == [0, 2, 3, 5, 6, 7, 8, 11, 13, 18, 19, 27]
  assert len(ids) == 400
  assert (np.diff(ids) > 0).all()
  assert ids[-1] < 1000
  # torch.manual_seed(2023); torch.randperm(1000)[:400], sorted, comma-joined.
  text = ','.join(map(str, ids)).encode()
  assert hashlib.sha256(text).hexdigest() == (
    '500b98fe372028ce11162bb1c72f975158df1571d3d23497a6f4ac7bc734992b'
  )


class Labelled:
  """What `Subset` needs of a source."""

  num_classes = 1000

  def __init__(self, labels):
    self._labels = labels

  def read_labels(self):
    return np.array(self._labels, np.int32)

  def __getitem__(self, index):
    return {'image': index, 'label': np.int32(self._labels[index])}


def test_the_other_classes_are_left_out_and_the_rest_is_relabelled():
  labels = [0, 1, 2, 4, 3, 999, 27, 2]
  subset = imagenet400.Subset(Labelled(labels))
  found = [
    (subset[i]['image'], int(subset[i]['label'])) for i in range(len(subset))
  ]
  ids = imagenet400.class_ids().tolist()
  assert found == [
    (i, ids.index(label)) for i, label in enumerate(labels) if label in ids
  ]
  assert [label for _, label in found] == [0, 1, 2, 11, 1]
  assert subset[0]['label'].dtype == np.int32


def test_every_class_is_mapped_to_its_rank():
  subset = imagenet400.Subset(Labelled(range(1000)))
  assert [int(subset[i]['label']) for i in range(400)] == list(range(400))
  assert [
    subset[i]['image'] for i in range(400)
  ] == imagenet400.class_ids().tolist()
