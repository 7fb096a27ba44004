import pytest

from lipnext_jax import config as config_lib
from lipnext_jax.config import recipes


@pytest.mark.parametrize(
  ('make', 'epsilon', 'end'),
  [
    (recipes.small_images, 36 / 255, 3.0),
    (lambda: recipes.imagenet('eps36/255'), 36 / 255, 2.0),
    (lambda: recipes.imagenet('eps1'), 1.0, 1.5),
  ],
)
def test_a_recipe_is_valid_and_has_the_radii_of_the_published_trainings(
  make, epsilon, end
):
  """ε·[a + (b − a)·min(2t/T, 1)]."""
  config = make()
  config_lib.validate(config)
  loss = config.loss
  assert (loss.epsilon, loss.epsilon_start, loss.epsilon_end) == (
    epsilon, 0.1, end
  )  # fmt: skip


def test_less_precise_steps_on_the_manifold_go_with_early_retractions():
  """bfloat16 products add to the defect, which retractions reset.

  The default of one retraction an epoch would let it grow for 1251 steps.
  """
  optimizer = recipes.imagenet('eps1').optimizer
  assert optimizer.precision == 'bfloat16'
  assert optimizer.retraction == 'newton_schulz'  # The SVD does not shard.
  assert optimizer.retraction_period == '100 steps'
  assert recipes.small_images().optimizer.precision == 'highest'
