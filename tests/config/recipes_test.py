import pytest

from lipnext_jax import config as config_lib
from lipnext_jax import errors
from lipnext_jax.config import recipes


@pytest.mark.parametrize(
  ('argument', 'problem'),
  [
    ('W64', 'is unknown; append nothing, .* any of W16, W32, smoke'),
    ('W32,W16', "excludes 'W32'; keep one"),
    # A word may be empty in a group, and never in an argument.
    ('smoke,', "argument='' is unknown"),
  ],
)
def test_words_that_make_no_sense_are_refused(argument, problem):
  with pytest.raises(errors.ConfigError, match=problem):
    config_lib.parse_argument(argument, ('W16', 'W32'), config_lib.SMOKE)


@pytest.mark.parametrize(
  ('config', 'epsilon', 'end'),
  [
    (recipes.small_images('L8W64'), 36 / 255, 3.0),
    (recipes.imagenet('L8W64', 'eps36/255'), 36 / 255, 2.0),
    (recipes.imagenet('L8W64', 'eps1'), 1.0, 1.5),
  ],
)
def test_a_recipe_is_valid_and_has_the_radii_of_the_published_trainings(
  config, epsilon, end
):
  """ε·[a + (b − a)·min(2t/T, 1)]."""
  config_lib.validate(config)
  loss = config.loss
  assert (loss.epsilon, loss.epsilon_start) == (epsilon, 0.1)
  assert loss.epsilon_end == end
  # Products in bfloat16 add to the defect, which retractions reset. The default
  # of one an epoch would let it grow for 1251 steps of ImageNet.
  optimizer = config.optimizer
  rounded = config.dataset.name == 'imagenet'
  assert optimizer.precision == ('bfloat16' if rounded else 'highest')
  assert optimizer.retraction_period == ('100 steps' if rounded else '1 epochs')
  assert optimizer.retraction == 'newton_schulz'  # The SVD does not shard.
