"""Names for the leaves of a tree."""

from typing import Any

import jax


def path_name(path: tuple[Any, ...]) -> str:
  """Joins the keys of a leaf's path in a JAX tree to 'a/b/leaf'."""
  return jax.tree_util.keystr(path, simple=True, separator='/')


def named_leaves(tree: Any) -> dict[str, Any]:
  """Returns the leaves of a tree by their names, 'a/b/leaf'.

  >>> named_leaves({'blocks': {'R': 0}})
  {'blocks/R': 0}
  """
  leaves = jax.tree_util.tree_leaves_with_path(tree)
  return {path_name(path): leaf for path, leaf in leaves}
