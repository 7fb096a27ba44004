import pytest

from lipnext_jax import config as config_lib
from lipnext_jax import errors
from lipnext_jax import recipes

FAMILIES = {
  'small images': recipes.small_images,
  'ImageNet, 36/255': lambda: recipes.imagenet('eps36/255'),
  'ImageNet, 1': lambda: recipes.imagenet('eps1'),
}


@pytest.mark.parametrize('family', FAMILIES)
def test_a_recipe_is_valid_and_shares_nothing_with_the_next(family):
  first, second = FAMILIES[family](), FAMILIES[family]()
  config_lib.validate(first)
  first.loss.epsilon = 7.0
  assert second.loss.epsilon != 7.0


def test_the_schedule_of_the_radius_is_that_of_the_recipe():
  """ε·[a + (b − a)·min(2t/T, 1)]: a, b of the published trainings."""
  ends = {}
  for family, make in FAMILIES.items():
    loss = make().loss
    assert loss.epsilon_start == 0.1
    ends[family] = loss.epsilon, loss.epsilon_end
  assert ends == {
    'small images': (36 / 255, 3.0),
    'ImageNet, 36/255': (36 / 255, 2.0),
    'ImageNet, 1': (1.0, 1.5),
  }


def test_less_precise_steps_on_the_manifold_go_with_early_retractions():
  """bfloat16 products add to the defect, which retractions reset.

  The default of one retraction an epoch would let it grow for 1251 steps.
  """
  optimizer = recipes.imagenet('eps1').optimizer
  assert optimizer.precision == 'bfloat16'
  assert optimizer.retraction == 'newton_schulz'  # The SVD does not shard.
  assert optimizer.retraction_period == '100 steps'
  assert recipes.small_images().optimizer.precision == 'highest'


@pytest.mark.parametrize('size', ['L32', 'W32L4', 'L3.5W8', 'L-1W8', 'l8w8'])
def test_what_is_no_size_is_refused(size):
  with pytest.raises(errors.ConfigError, match=f'size={size!r} is not a size'):
    recipes.set_size(config_lib.default_config(), size)


def test_an_unknown_radius_is_refused_with_those_there_are():
  with pytest.raises(errors.ConfigError, match='choose from eps36/255, eps1'):
    recipes.imagenet('eps2')
