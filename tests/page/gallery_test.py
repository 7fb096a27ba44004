import os

from hypothesis import given
from hypothesis import strategies as st
import numpy as np

from lipnext_jax import evaluate
from lipnext_jax.data import sources
from lipnext_jax.page import gallery

ROWS = st.lists(
  st.tuples(st.booleans(), st.sampled_from([0.0, 0.1, 0.2, 0.3, 9.0])),
  max_size=60,
)


@given(rows=ROWS)
def test_the_chosen_are_the_extremes_of_their_kind(rows):
  right = np.array([c for c, _ in rows], bool)
  radii = np.array([r for _, r in rows])
  groups = gallery.choose(np.zeros(len(rows)), np.where(right, 0, 1), radii)
  chosen = np.concatenate(list(groups.values()))
  assert len(set(chosen)) == len(chosen)
  assert all(len(group) <= gallery.PER_GROUP for group in groups.values())
  certified = [i for i in range(len(rows)) if right[i] and radii[i] > 0]
  both = {*groups['robust'], *groups['fragile']}
  assert both <= set(certified)
  assert len(both) == min(len(certified), 2 * gallery.PER_GROUP)
  for i in set(certified) - both:
    assert all(radii[i] <= radii[j] for j in groups['robust'])
    assert all(radii[i] >= radii[j] for j in groups['fragile'])
  wrong = [i for i in range(len(rows)) if not right[i]]
  assert set(groups['wrong']) <= set(wrong)
  assert len(groups['wrong']) == min(len(wrong), gallery.PER_GROUP)


def evaluation(labels, predictions, radii):
  return evaluate.Evaluation(
    ids=np.arange(len(labels)),
    labels=np.array(labels),
    predictions=np.array(predictions),
    radii=np.array(radii, np.float32),
    lipschitz_bound=1.0,
  )


def test_the_file_holds_the_images_of_the_split_as_they_are(tmp_path):
  images = np.random.default_rng(0).integers(0, 256, (4, 2, 3, 1), np.uint8)
  source = sources.ArraySource(images, np.array([0, 1, 1, 0]))
  result = evaluation([0, 1, 1, 0], [0, 1, 0, 0], [0.5, 0.1, 0.2, 0.0])
  gallery.write_gallery(str(tmp_path), result, source)
  with np.load(tmp_path / 'gallery.npz') as stored:
    assert stored['group'].tolist() == ['robust', 'fragile', 'wrong']
    assert stored['id'].tolist() == [0, 1, 2]
    assert stored['radius'].dtype == np.float32
    np.testing.assert_array_equal(stored['image'], images[:3])
    assert stored['image'].dtype == np.uint8
  assert os.listdir(tmp_path) == ['gallery.npz']


def test_a_run_without_any_certificate_has_an_empty_gallery(tmp_path):
  source = sources.ArraySource(np.zeros((1, 2, 2, 1), np.uint8), np.array([0]))
  gallery.write_gallery(str(tmp_path), evaluation([0], [0], [0.0]), source)
  with np.load(tmp_path / 'gallery.npz') as stored:
    assert stored['image'].shape[0] == 0
