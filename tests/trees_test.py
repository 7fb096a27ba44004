import jax

from lipnext_jax import trees


def test_paths_name_every_kind_of_container():
  tree = {'blocks': [{'R': 0}, (1, jax.ShapeDtypeStruct((), 'int32'))]}
  leaves = jax.tree_util.tree_leaves_with_path(tree)
  names = [trees.path_name(path) for path, _ in leaves]
  assert names == ['blocks/0/R', 'blocks/1/0', 'blocks/1/1']
  assert trees.path_name(()) == ''
