"""Where it went wrong: the first array of a step that is not finite."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from lipnext_jax import models
from lipnext_jax.optim import trees

# Flax' collection for what modules tell on the way; scanned models carry it.
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
    images: [b, H, W, ch] float32.
    labels: [b] int32.
    epsilon: training radius ε_t of the step.
    on_all: the layout of something that all devices have; for several.

  Returns:
    The first that holds an infinity or a NaN, e.g. 'activations of blocks,
    layer 3'; None: all are finite.

  >>> model = models.LipNeXt(num_classes=2, depth=2, width=8, patch_size=2)
  >>> images = jnp.zeros((1, 4, 4, 1))
  >>> params = model.init(jax.random.key(0), images)['params']
  >>> loss_fn = lambda logits, *rest: jnp.log(jnp.sum(0 * logits))
  >>> find_not_finite(
  ...   model, loss_fn, params, images, jnp.zeros(1, jnp.int32), 0.1)
  'loss'
  """
  order: dict[str, None] = {}  # Of the modules, as they end; filled by tracing.

  def watch(call, args, kwargs, context):
    out = call(*args, **kwargs)
    if context.method_name == '__call__':
      order.setdefault('/'.join(context.module.path))
      context.module.sow(_COLLECTION, _FLAG, all_finite(out))
    return out

  def check(params, images, labels, epsilon):
    def objective(params):
      with nn.intercept_methods(watch):
        logits, seen = model.apply(
          {'params': params}, images, mutable=[_COLLECTION]
        )
      kernel = models.head_kernel({'params': params})
      loss = loss_fn(logits, labels, kernel, epsilon)
      return loss, seen.get(_COLLECTION, {})

    (loss, seen), grads = jax.value_and_grad(objective, has_aux=True)(params)
    return (
      jnp.isfinite(images).all(),
      jax.tree.map(_finite_layers, params),
      seen,
      jnp.isfinite(loss),
      jax.tree.map(_finite_layers, grads),
    )

  jitted = (
    jax.jit(check) if on_all is None else jax.jit(check, out_shardings=on_all)
  )
  image, param, seen, loss, grads = jax.device_get(
    jitted(params, images, labels, epsilon)
  )
  if not image:
    return 'images'
  for name, flags in _named(param).items():
    if not flags.all():
      return f'parameter {name}{_layer(flags, first=True)}'
  outputs = _named(seen)
  for name in order:
    # A module in a scan that does not carry the collection left nothing.
    flags = outputs.get(f'{name}/{_FLAG}/0'.lstrip('/'))
    if flags is not None and not flags.all():
      what = f'activations of {name}' if name else 'logits'
      return f'{what}{_layer(flags, first=True)}'
  if not loss:
    return 'loss'
  named = _named(grads)
  backward = [f'{name}/' for name in reversed(order) if name]
  for module in [*backward, '']:  # '': whatever no module holds.
    for name, flags in named.items():
      if name.startswith(module) and not flags.all():
        return f'gradient of {name}{_layer(flags, first=False)}'
  return None


def all_finite(tree: Any) -> jax.Array:
  """Whether a tree of arrays holds neither an infinity nor a NaN.

  >>> bool(all_finite({'a': jnp.ones(2), 'b': jnp.array([1, jnp.nan])}))
  False
  """
  leaves = [jnp.isfinite(x).all() for x in jax.tree.leaves(tree)]
  return jnp.stack(leaves).all()


def _finite_layers(x: jax.Array) -> jax.Array:
  """Of stacks [l, …, m, n], one flag a layer; of what has fewer axes, one."""
  axes = tuple(range(1, x.ndim)) if x.ndim > 2 else None
  return jnp.isfinite(x).all(axis=axes)


def _named(tree: Any) -> dict[str, Any]:
  leaves = jax.tree_util.tree_leaves_with_path(tree)
  return {trees.path_name(path): leaf for path, leaf in leaves}


def _layer(flags, first: bool) -> str:
  """The first or the last layer of a stack that is not finite, counted at 0."""
  if not flags.ndim:
    return ''
  at = [i for i, finite in enumerate(flags) if not finite]
  return f', layer {at[0 if first else -1]}'
