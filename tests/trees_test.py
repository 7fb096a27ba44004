from lipnext_jax import trees


def test_leaves_in_every_kind_of_container_are_named():
  tree = {'blocks': [{'R': 0}, (1,)]}
  assert trees.named_leaves(tree) == {'blocks/0/R': 0, 'blocks/1/0': 1}
