"""Candidates that `train_step` times: our step and literal ones.

A candidate is a model with its optimizer, cut into the parts of a step.
"""

from collections.abc import Callable
import dataclasses
import functools
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks import train_step_literal
from benchmarks import train_step_torch
from lipnext_jax import config
from lipnext_jax import losses
from lipnext_jax import models
from lipnext_jax import optim

# Name → depth, width, patch, image side, channels, classes.
SIZES = {
  'tiny': (2, 16, 2, 8, 3, 10),
  'digits': (8, 128, 2, 8, 1, 10),
  'L4W512': (4, 512, 2, 32, 3, 10),
  'L8W512': (8, 512, 2, 32, 3, 10),
  'L32W1024': (32, 1024, 2, 32, 3, 10),
  '64M': (32, 1024, 14, 224, 3, 1000),
  '256M': (32, 2048, 14, 224, 3, 1000),
  '1B': (32, 4096, 14, 224, 3, 1000),
}
PRECISIONS = {
  **config.PRECISIONS,
  'tf32': jax.lax.DotAlgorithmPreset.TF32_TF32_F32,
}
EPSILON = 36 / 255


@dataclasses.dataclass(frozen=True)
class Shape:
  """Sizes of a model and of a batch."""

  depth: int
  width: int
  patch: int
  side: int
  channels: int
  classes: int
  batch: int
  dtype: Any
  shift_ratio: float = 1 / 8

  def lipnext(self, **options) -> models.LipNeXt:
    """Returns the model of this size."""
    return models.LipNeXt(
      self.classes,
      self.depth,
      self.width,
      self.patch,
      self.shift_ratio,
      dtype=self.dtype,
      **options,
    )

  @property
  def tokens(self) -> int:
    """Number of tokens in the batch."""
    return self.batch * (self.side // self.patch) ** 2

  @property
  def flops(self) -> float:
    """FLOPs of the products that both passes need."""
    per_token = (1 + 8 * self.shift_ratio) * self.depth * self.width**2
    per_token += self.width * self.channels * self.patch**2
    head = self.batch * self.width * self.classes
    return 3 * 2 * (self.tokens * per_token + head)

  @property
  def saved(self) -> int:
    """Bytes saved for backward: u and the moved channels of every block."""
    one = self.tokens * self.width * jnp.dtype(self.dtype).itemsize
    return round(((1 + 4 * self.shift_ratio) * self.depth + 1) * one)


class Candidate:
  """A model and its optimizer with their state, and the parts of a step."""

  def __init__(self, name, logits_fn, init_fn, tx, batch):
    self.name, self.batch = name, batch

    def loss(params, images, labels):
      images = images.astype(jnp.float32) / 255
      logits, kernel = logits_fn(params, images)
      return losses.emma_loss(logits, labels, kernel, EPSILON)

    def update(params, opt_state, grads):
      updates, opt_state = tx.update(grads, opt_state, params)
      return optax.apply_updates(params, updates), opt_state

    def step(params, opt_state, images, labels):
      value, grads = jax.value_and_grad(loss)(params, images, labels)
      return *update(params, opt_state, grads), value

    self.params = jax.jit(init_fn)(jax.random.key(0))
    self.opt_state = jax.jit(tx.init)(self.params)
    self._grads = None
    state = self.params, self.opt_state
    on_device = jax.device_put(batch)
    begin = time.perf_counter()
    step = jax.jit(step, donate_argnums=(0, 1))
    self._step: Any = step.lower(*state, *on_device).compile()
    self.compile_seconds = time.perf_counter() - begin
    self._forward = jax.jit(loss)
    self._grad = jax.jit(jax.grad(loss))
    self._update = jax.jit(update, donate_argnums=(0, 1))
    self._on_device = on_device

  def forward(self):
    """Returns the loss."""
    return self._forward(self.params, *self._on_device)

  def backward(self):
    """Returns the gradients, by a forward and a backward pass."""
    return self._grad(self.params, *self._on_device)

  def optimizer(self):
    """Updates the parameters with old gradients; returns the seconds taken."""
    if self._grads is None:
      self._grads = self.backward()
    keep = jax.tree.map(jnp.copy, self._grads)
    jax.block_until_ready(keep)
    begin = time.perf_counter()
    self.params, self.opt_state = self._update(
      self.params, self.opt_state, keep
    )
    jax.block_until_ready(self.params)
    return time.perf_counter() - begin

  def steps(self, count):
    """Takes steps as the training loop does, and returns the last loss.

    A batch travels to the device while the step before computes.
    """
    self._grads = None
    batch = jax.device_put(self.batch)
    value = None
    for _ in range(count):
      self.params, self.opt_state, value = self._step(
        self.params, self.opt_state, *batch
      )
      batch = jax.device_put(self.batch)
    return value

  def data(self):
    """Puts a batch on the device."""
    return jax.device_put(self.batch)

  def parameters(self):
    """Counts the parameters."""
    return models.parameter_count(self.params)

  def state_bytes(self):
    """Counts the bytes of parameters and optimizer."""
    leaves = jax.tree.leaves((self.params, self.opt_state))
    return sum(leaf.nbytes for leaf in leaves)

  def peak_bytes(self):
    """Returns the memory of the compiled step, state included."""
    m = self._step.memory_analysis()
    return (
      m.argument_size_in_bytes
      + m.output_size_in_bytes
      + m.temp_size_in_bytes
      - m.alias_size_in_bytes
    )


def make_batch(shape: Shape):
  """Makes random pixels and labels on the host."""
  rng = np.random.default_rng(0)
  size = (shape.batch, shape.side, shape.side, shape.channels)
  images = rng.integers(0, 256, size, np.uint8)
  labels = rng.integers(0, shape.classes, shape.batch).astype(np.int32)
  return images, labels


def _init(model, shape, rng):
  images = jnp.zeros((1, shape.side, shape.side, shape.channels))
  return model.init(rng, images)['params']


def lipnext(shape: Shape, remat, unroll, precision, batch):
  """Makes the candidate of this package, as training composes it."""
  model = shape.lipnext(remat=remat, unroll=unroll)

  def logits_fn(params, images):
    variables = {'params': params}
    return model.apply(variables, images), models.head_kernel(variables)

  init_fn = functools.partial(_init, model, shape)
  tx = optim.lipnext_optimizer(
    1e-3, precision=PRECISIONS[precision], retraction_period=100
  )
  return Candidate('LipNeXt', logits_fn, init_fn, tx, batch)


def literal(shape: Shape, batch):
  """Makes the candidate of the paper as printed, with a square R."""
  model = shape.lipnext()

  def logits_fn(params, images):
    images = images.astype(shape.dtype)
    return train_step_literal.logits(params, images, shape.shift_ratio)

  def init_fn(rng):
    return train_step_literal.square(_init(model, shape, rng))

  tx = train_step_literal.optimizer(1e-3)
  return Candidate('literal', logits_fn, init_fn, tx, batch)


def torch(shape: Shape, batch):
  """Makes the candidate of the paper as printed in eager PyTorch."""
  if jax.default_backend() == 'gpu' or jnp.dtype(shape.dtype) != jnp.float32:
    raise SystemExit('--rivals torch needs a CPU and --dtype=float32.')
  return train_step_torch.Candidate(shape, EPSILON, batch)


RIVALS: dict[str, Callable[[Shape, Any], Any]] = {
  'literal': literal,
  'torch': torch,
}
