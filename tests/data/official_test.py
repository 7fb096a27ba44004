import hashlib

import tensorflow_datasets as tfds

from lipnext_jax.data import official


def test_names_versions_features_and_checksums_are_those_of_tfds():
  checked = set()
  for name, counts in {
    'cifar10': [50_000, 10_000],
    'cifar100': [50_000, 10_000],
    'imagenet': [1_281_167, 50_000],
    'mnist': [60_000, 10_000],
    'fashion_mnist': [60_000, 10_000],
    'kmnist': [60_000, 10_000],
  }.items():
    facts = official.SETS[name]
    builder = tfds.builder_cls(facts.name)
    assert str(builder.VERSION) == facts.version
    assert [*facts.splits.values()] == counts
    for url, info in builder.url_infos.items():
      checked.add(url)
      if name in official.IDX_CHECKSUMS:
        assert info.checksum in official.IDX_CHECKSUMS[name]
      else:
        archive = official.ARCHIVES[url.rpartition('/')[2]]
        assert archive == (info.size, f'sha256:{info.checksum}')
  # The binary CIFARs, ImageNet's tars, and four files of each MNIST.
  assert len(checked) == 4 + 3 * 4


def test_class_names_are_the_official_ones_in_their_order():
  names = official.class_names('cifar10')
  assert ' '.join(names) == (
    'airplane automobile bird cat deer dog frog horse ship truck'
  )
  # Both lists of CIFAR-100 are alphabetical, its labels their positions.
  for name, count in (('cifar100', 100), ('cifar100_coarse', 20)):
    listed = official.class_names(name)
    assert len(set(listed)) == count
    assert listed == sorted(listed)


def test_imagenet_labels_are_positions_in_the_sorted_synsets():
  wnids = official.imagenet_words('labels.txt')
  assert len(set(wnids)) == 1000
  assert wnids == sorted(wnids)
  validation = official.imagenet_words('validation_labels.txt')
  assert set(validation) == set(wnids)
  # Well-known ones: 1 is a snake, 293 of the validation images a tench.
  assert wnids.index(validation[0]) == 65
  assert validation[292] == 'n01440764'


def test_the_400_classes_are_the_papers():
  # torch.manual_seed(2023); torch.randperm(1000)[:400], sorted, comma-joined.
  ids = official.imagenet400_ids()
  assert hashlib.sha256(','.join(map(str, ids)).encode()).hexdigest() == (
    '500b98fe372028ce11162bb1c72f975158df1571d3d23497a6f4ac7bc734992b'
  )
