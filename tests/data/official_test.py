import tensorflow_datasets as tfds

from lipnext_jax.data import official


def test_sets_have_the_counts_that_their_classes_give():
  for name, official_set in official.SETS.items():
    for split in official_set.balanced:
      count = official_set.splits[split]
      assert count % official_set.num_classes == 0, (name, split)
    assert official_set.test_split in official_set.splits
  assert official.IMAGENET.splits == {'train': 1281167, 'validation': 50000}


def test_names_and_features_are_those_of_tfds():
  for name in ('cifar10', 'cifar100', 'imagenet2012'):
    (official_set,) = [s for s in official.SETS.values() if s.name == name]
    builder = tfds.builder_cls(name)
    assert str(builder.VERSION) == official_set.version
  features = official.build_features(
    official.CIFAR100,
    {
      'label': official.class_names('cifar100'),
      'coarse_label': official.class_names('cifar100_coarse'),
    },
  )
  assert set(features) == {'id', 'image', 'label', 'coarse_label'}
  assert features['image'].shape == (32, 32, 3)
  assert features['coarse_label'].num_classes == 20


def test_class_names_are_the_official_ones_in_their_order():
  names = official.class_names('cifar10')
  assert names == [
    'airplane',
    'automobile',
    'bird',
    'cat',
    'deer',
    'dog',
    'frog',
    'horse',
    'ship',
    'truck',
  ]
  fine = official.class_names('cifar100')
  coarse = official.class_names('cifar100_coarse')
  # Both lists of CIFAR-100 are alphabetical, its labels their positions.
  for listed, count in ((fine, 100), (coarse, 20)):
    assert len(set(listed)) == count
    assert listed == sorted(listed)


def test_imagenet_labels_are_positions_in_the_sorted_synsets():
  wnids = official.imagenet_wnids()
  assert len(set(wnids)) == 1000
  assert wnids == sorted(wnids)
  validation = official.imagenet_validation_wnids()
  assert set(validation) == set(wnids)
  # Well-known ones: 1 is a snake, 293 of the validation images a tench.
  assert validation[0] == 'n01751748'
  assert wnids.index('n01751748') == 65
  assert validation[292] == 'n01440764'
