"""Names of the leaves of a tree."""

from typing import Any

import jax


def path_name(path: tuple[Any, ...]) -> str:
  """Joins the keys of a tree path: 'a/b/leaf'.

  Args:
    path: a key path, as `jax.tree_util.tree_leaves_with_path` gives it.

  >>> [path_name(p) for p, _ in jax.tree_util.tree_leaves_with_path(
  ...   {'blocks': {'R': 0}})]
  ['blocks/R']
  """
  return jax.tree_util.keystr(path, simple=True, separator='/')
