"""The paper's equations as printed, in JAX, to compare the train step with.

A block has three token products (R, Rᵀ, M). Blocks and matrices follow each
other in Python, all gradients come from autodiff, and FastExp uses separate
powers, then X·F. NAdam, lookahead and clip are those of the package.
"""

import jax
import jax.numpy as jnp
import optax

from benchmarks import optimizer_rivals as rivals
from lipnext_jax import optim


def square(params):
  """Completes R [l, k, c] to square matrices with the same first k rows."""
  r = params['blocks']['R']
  rest = jnp.linalg.svd(r, full_matrices=True)[2][:, r.shape[1] :]
  whole = jnp.concatenate([r, rest], axis=1)
  return {**params, 'blocks': {**params['blocks'], 'R': whole}}


def logits(params, images, shift_ratio):
  """Maps images [b, H, W, ch] to logits [b, k] and head rows [k, c]."""
  stem, blocks = params['stem'], params['blocks']
  depth, h, w, _ = blocks['pos'].shape
  width = blocks['bias'].shape[1]
  b, height, _, channels = images.shape
  patch = height // h
  x = (images - 0.5).reshape(b, h, patch, w, patch, channels)
  x = x.transpose(0, 1, 3, 2, 4, 5).reshape(b, h, w, -1)
  q = stem['Q']
  x = jnp.pad(x, [(0, 0)] * 3 + [(0, q.shape[0] - x.shape[-1])])
  x = x.astype(images.dtype)
  x = _beta_abs((x @ q.T.astype(x.dtype))[..., :width] + _cast(stem, x)['bias'])
  for i in range(depth):
    p = _cast(jax.tree.map(lambda leaf, i=i: leaf[i], blocks), x)
    y = (x + p['pos']) @ p['R'].T
    y = _shift(y, shift_ratio)
    y = y @ p['R'] @ p['M'].T
    x = _beta_abs(y + p['bias'])
  pooled = jnp.sqrt(jnp.sum(jnp.square(x.astype(jnp.float32)), axis=(1, 2)))
  kernel = params['head']['kernel']
  kernel = kernel / jnp.linalg.norm(kernel, axis=1, keepdims=True)
  return pooled @ kernel.T + params['head']['bias'], kernel


def _cast(tree, x):
  return jax.tree.map(lambda leaf: leaf.astype(x.dtype), tree)


def _beta_abs(x):
  half = x.shape[-1] // 2
  return jnp.concatenate([jnp.abs(x[..., :half]), x[..., half:]], axis=-1)


def _shift(x, shift_ratio):
  k = int(shift_ratio * x.shape[-1])
  moves = ((-1, 1), (1, 1), (-1, 2), (1, 2))
  groups = [
    jnp.roll(x[..., i * k : (i + 1) * k], step, axis)
    for i, (step, axis) in enumerate(moves)
  ]
  return jnp.concatenate([*groups, x[..., 4 * k :]], axis=-1)


def orthogonal(inner, lookahead_period=6, alpha=0.5):
  """Lifts `inner` with FastExp as printed and lookahead, matrix by matrix."""

  def split(x):
    return list(x.reshape(-1, *x.shape[-2:]))

  def init(params):
    algebra = jax.tree.map(split, params)
    zeros = jax.tree.map(jnp.zeros_like, algebra)
    slow = jax.tree.map(jnp.copy, algebra)
    return {
      'count': jnp.zeros([], jnp.int32),
      'inner': inner.init(zeros),
      'slow': slow,
      'total': zeros,
    }

  def update(grads, state, params):
    x = jax.tree.map(split, params)
    g = jax.tree.map(split, grads)
    count = state['count'] + 1
    omega = jax.tree.map(lambda x, g: rivals.skew(rivals.mm(x.T, g)), x, g)
    delta, inner_state = inner.update(omega, state['inner'])
    total = jax.tree.map(jnp.add, state['total'], delta)

    def sync():
      slow = jax.tree.map(
        lambda s, t: rivals.literal(s, alpha * t), state['slow'], total
      )
      return slow, slow, jax.tree.map(jnp.zeros_like, total)

    def step():
      return jax.tree.map(rivals.literal, x, delta), state['slow'], total

    new, slow, total = jax.lax.cond(count % lookahead_period == 0, sync, step)
    updates = jax.tree.map(
      lambda p, n: jnp.stack(n).reshape(p.shape) - p,
      params,
      new,
    )
    state = {
      'count': count,
      'inner': inner_state,
      'slow': slow,
      'total': total,
    }
    return updates, state

  return optax.GradientTransformation(init, update)


def optimizer(learning_rate):
  """Returns `optim.lipnext_optimizer` with the literal manifold part."""
  return optax.chain(
    optax.clip_by_global_norm(3.0),
    optax.partition(
      {
        'orthogonal': orthogonal(optim.scheduled_nadam(learning_rate)),
        'euclidean': optim.lookahead(optim.scheduled_nadam(learning_rate)),
      },
      optim.orthogonal_labels,
    ),
  )
