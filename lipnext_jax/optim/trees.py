"""Names of the leaves of a tree."""

from typing import Any

import jax


def path_name(path: tuple[Any, ...]) -> str:
  """Joins the keys of a path that `tree_leaves_with_path` gives: 'a/b/leaf'.

  >>> leaves = jax.tree_util.tree_leaves_with_path({'blocks': {'R': 0}})
  >>> [path_name(path) for path, _ in leaves]
  ['blocks/R']
  """
  return jax.tree_util.keystr(path, simple=True, separator='/')
