"""Finds the first array of a training step that is not finite."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from lipnext_jax import models
from lipnext_jax.models import layers
from lipnext_jax.optim import trees

# Flax's collection for intermediate values, which scanned models carry.
_COLLECTION = 'intermediates'
_FLAG = 'all_finite'


def find_not_finite(
  model: nn.Module,
  loss_fn: Callable[..., jax.Array],
  params: Any,
  images: jax.Array,
  labels: jax.Array,
  epsilon: jax.Array,
  on_all: jax.sharding.Sharding | None = None,
) -> str | None:
  """Repeats a step's forward and backward pass and looks at every array.

  In the order of computation: images, parameters, the outputs of the modules,
  the loss, and the gradients from the head down to the stem. All processes of
  a run call it together.

  Args:
    model: images → logits.
    loss_fn: (logits, labels, head rows, epsilon) → loss.
    params: of the model.
    images: [b, H, W, ch], uint8 or float32 in [0, 1].
    labels: [b] int32.
    epsilon: training radius ε_t of the step.
    on_all: the replicated layout, for several devices.

  Returns:
    The first that holds an infinity or a NaN, e.g. 'activations of blocks,
    layer 3'; None: all are finite.
  """
  names: list[str] = []  # Of the flags, in order; filled by tracing.

  def check(params, images, labels, epsilon):
    images = layers.to_unit(images)
    modules: dict[str, None] = {}  # In the order in which they end.

    def watch(call, args, kwargs, context):
      out = call(*args, **kwargs)
      if context.method_name == '__call__':
        modules.setdefault('/'.join(context.module.path))
        context.module.sow(_COLLECTION, _FLAG, all_finite(out))
      return out

    def objective(params):
      with nn.intercept_methods(watch):
        logits, seen = model.apply(
          {'params': params}, images, mutable=[_COLLECTION]
        )
      kernel = models.head_kernel({'params': params})
      loss = loss_fn(logits, labels, kernel, epsilon)
      return loss, seen.get(_COLLECTION, {})

    (loss, seen), grads = jax.value_and_grad(objective, has_aux=True)(params)
    flags = {'images': jnp.isfinite(images).all()}
    for name, leaf in _named(params).items():
      flags[f'parameter {name}'] = _finite_layers(leaf)
    outputs = _named(seen)
    for name in modules:
      what = f'activations of {name}' if name else 'logits'
      # A module in a scan that does not carry the collection left nothing.
      if (flag := outputs.get(f'{name}/{_FLAG}/0'.lstrip('/'))) is not None:
        flags[what] = flag
    flags['loss'] = jnp.isfinite(loss)
    backward = [f'{name}/' for name in reversed(modules) if name]
    for module in [*backward, '']:  # '': whatever no module holds.
      for name, leaf in _named(grads).items():
        if name.startswith(module):
          flags.setdefault(f'gradient of {name}', _finite_layers(leaf))
    names.extend(flags)
    return list(flags.values())

  jitted = jax.jit(check, out_shardings=on_all)
  flags = jax.device_get(jitted(params, images, labels, epsilon))
  for name, flag in zip(names, flags, strict=True):
    bad = np.flatnonzero(~flag)
    if bad.size:
      # Gradients are computed from the last layer to the first.
      layer = bad[-1] if name.startswith('gradient') else bad[0]
      return f'{name}, layer {layer}' if flag.ndim else name
  return None


def all_finite(tree: Any) -> jax.Array:
  """Returns whether a tree of arrays holds neither an infinity nor a NaN.

  >>> bool(all_finite({'a': jnp.ones(2), 'b': jnp.array([1, jnp.nan])}))
  False
  """
  leaves = [jnp.isfinite(x).all() for x in jax.tree.leaves(tree)]
  return jnp.stack(leaves).all()


def _finite_layers(x: jax.Array) -> jax.Array:
  """Returns one flag per layer of a stack [l, …, m, n], else one in all."""
  axes = tuple(range(1, x.ndim)) if x.ndim > 2 else None
  return jnp.isfinite(x).all(axis=axes)


def _named(tree: Any) -> dict[str, Any]:
  leaves = jax.tree_util.tree_leaves_with_path(tree)
  return {trees.path_name(path): leaf for path, leaf in leaves}
