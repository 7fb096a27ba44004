import pytest
import tensorflow_datasets as tfds

from lipnext_jax.data import official


def test_names_versions_features_and_checksums_are_those_of_tfds():
  checked = set()
  for name, counts in (
    ('cifar10', (50_000, 10_000)),
    ('cifar100', (50_000, 10_000)),
    ('imagenet2012', (1_281_167, 50_000)),
    ('mnist', (60_000, 10_000)),
    ('fashion_mnist', (60_000, 10_000)),
    ('kmnist', (60_000, 10_000)),
  ):
    (facts,) = [s for s in official.SETS.values() if s.name == name]
    builder = tfds.builder_cls(name)
    assert str(builder.VERSION) == facts.version
    assert tuple(facts.splits.values()) == counts
    for url, info in builder.url_infos.items():
      file = url.rpartition('/')[2]
      checked.add(url)
      if name in official.IDX_CHECKSUMS:
        assert info.checksum in official.IDX_CHECKSUMS[name]
        continue
      archive = official.ARCHIVES[file]
      assert (archive.size, archive.checksum) == (info.size, info.checksum)
  # The binary CIFARs, ImageNet's tars, and four files of each MNIST.
  assert len(checked) == 4 + 3 * 4
  for facts in official.SETS.values():
    assert facts.test_split in facts.splits
    for split in facts.balanced:
      assert facts.splits[split] % facts.num_classes == 0
  names = {
    'label': official.class_names('cifar100'),
    'coarse_label': official.class_names('cifar100_coarse'),
  }
  features = official.build_features(official.CIFAR100, names)
  assert set(features) == {'id', 'image', 'label', 'coarse_label'}
  assert features['image'].shape == (32, 32, 3)
  assert features['coarse_label'].num_classes == 20


@pytest.mark.parametrize('name', official.IDX_CHECKSUMS)
def test_features_and_classes_of_the_mnists_are_those_of_tfds(name, tmp_path):
  theirs = tfds.builder_cls(name)(data_dir=tmp_path).info.features
  names = official.class_names(name)
  ours = official.build_features(official.SETS[name], {'label': names})
  assert ours.to_json() == theirs.to_json()
  assert theirs['label'].names == names


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
  wnids = official.imagenet_wnids()
  assert len(set(wnids)) == 1000
  assert wnids == sorted(wnids)
  validation = official.imagenet_validation_wnids()
  assert set(validation) == set(wnids)
  # Well-known ones: 1 is a snake, 293 of the validation images a tench.
  assert wnids.index(validation[0]) == 65
  assert validation[292] == 'n01440764'
