"""Finds the first array of a training step that is not finite."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from lipnext_jax import models
from lipnext_jax import trees
from lipnext_jax.models import layers

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
  """Repeats the forward and backward pass of a step, and checks every array.

  All processes of a run must call this function.

  Args:
    model: model that maps images to logits.
    loss_fn: (logits, labels, head rows, ε) → loss.
    params: parameters of the model.
    images: [b, H, W, ch], uint8 or float32 in [0, 1].
    labels: [b] int32.
    epsilon: training radius ε_t of the step.
    on_all: replicated layout, for several devices.

  Returns:
    The name of the first array with an infinity or a NaN, e.g. 'activations of
    blocks, layer 3', in the order of computation: images, parameters, outputs
    of the modules, loss, gradients from the head to the stem. None if all are
    finite.
  """
  names: list[str] = []  # Names of the flags in order, filled by tracing.

  def check(params, images, labels, epsilon):
    images = layers.to_unit(images)
    modules: dict[str, None] = {}  # An ordered set: by the end of their calls.

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
    flags = {'images': all_finite(images)}
    for name, leaf in trees.named_leaves(params).items():
      flags[f'parameter {name}'] = _finite_layers(leaf)
    outputs = trees.named_leaves(seen)
    for name in modules:
      what = f'activations of {name}' if name else 'logits'
      # A scan that does not carry the collection drops the flags inside it.
      if (flag := outputs.get(f'{name}/{_FLAG}/0'.lstrip('/'))) is not None:
        flags[what] = flag
    flags['loss'] = jnp.isfinite(loss)
    backward = [f'{name}/' for name in reversed(modules) if name]
    for module in [*backward, '']:  # '' matches every other parameter.
      for name, leaf in trees.named_leaves(grads).items():
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
  """Returns whether a tree of arrays has neither infinities nor NaNs."""
  leaves = [jnp.isfinite(x).all() for x in jax.tree.leaves(tree)]
  return jnp.stack(leaves).all()


def _finite_layers(x: jax.Array) -> jax.Array:
  """Returns a flag per layer of a stack [l, …, m, n], else one flag."""
  axes = tuple(range(1, x.ndim)) if x.ndim > 2 else None
  return jnp.isfinite(x).all(axis=axes)
