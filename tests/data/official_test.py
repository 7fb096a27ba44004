import hashlib

import tensorflow_datasets as tfds

from lipnext_jax.data import official


def test_names_versions_features_and_checksums_are_those_of_tfds():
  checked = set()
  for names, counts in (
    (['cifar10', 'cifar100'], [50_000, 10_000]),
    (['imagenet'], [1_281_167, 50_000]),
    (official.IDX_CHECKSUMS, [60_000, 10_000]),
  ):
    for name in names:
      facts = official.SETS[name]
      assert [*facts.splits.values()] == counts
      builder = tfds.builder_cls(facts.name)
      assert str(builder.VERSION) == facts.version
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
  # The other lists are alphabetical, labels their positions.
  wnids = official.imagenet_words('labels.txt')
  for listed, count in (
    (official.class_names('cifar100'), 100),
    (official.class_names('cifar100_coarse'), 20),
    (wnids, 1000),
  ):
    assert len(listed) == count
    assert listed == sorted({*listed})
  validation = official.imagenet_words('validation_labels.txt')
  assert set(validation) == set(wnids)
  # Well-known ones: 1 is a snake, 293 of the validation images a tench.
  assert wnids.index(validation[0]) == 65
  assert validation[292] == 'n01440764'


def test_the_400_classes_are_the_papers():
  ids = official.imagenet400_ids()
  assert hashlib.sha256(','.join(map(str, ids)).encode()).hexdigest() == (
    '500b98fe372028ce11162bb1c72f975158df1571d3d23497a6f4ac7bc734992b'
  )
