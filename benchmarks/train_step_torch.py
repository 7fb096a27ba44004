"""The paper as printed, in eager PyTorch on the CPU, to compare the step with.

A block has three token products, gradients come from autograd, and the
optimizer walks the matrices in Python: NAdam in the algebra, FastExp with
separate powers by the norm of the step, lookahead, a global clip. The project
does not depend on PyTorch: `pip install torch`.
"""

import importlib
import math
import time

import jax
import numpy as np

from benchmarks import train_step_literal

LEARNING_RATE, CLIP, PERIOD, ALPHA = 1e-3, 3.0, 6, 0.5
B1, B2, EPS, DECAY = 0.9, 0.999, 1e-8, 0.004  # torch's NAdam.


class Candidate:
  """The parts of a step, with the methods of `train_step.Candidate`."""

  name = 'literal, PyTorch'

  def __init__(self, shape, epsilon, batch):
    self.torch = importlib.import_module('torch')
    begin = time.perf_counter()
    self.shape, self.epsilon, self.batch = shape, epsilon, batch
    model = shape.lipnext()
    images = np.zeros((1, shape.side, shape.side, shape.channels), np.float32)
    params = jax.jit(model.init)(jax.random.key(0), images)['params']
    params = train_step_literal.square(params)
    tensor = self._tensor
    blocks = params['blocks']
    self.blocks = [
      {name: tensor(leaf[i]) for name, leaf in blocks.items()}
      for i in range(shape.depth)
    ]
    self.stem = {name: tensor(leaf) for name, leaf in params['stem'].items()}
    self.head = {name: tensor(leaf) for name, leaf in params['head'].items()}
    self.matrices = [b[name] for b in self.blocks for name in ('R', 'M')]
    self.matrices.append(self.stem['Q'])
    vectors = [b[name] for b in self.blocks for name in ('bias', 'pos')]
    self.vectors = [*vectors, self.stem['bias'], *self.head.values()]
    leaves = [*self.matrices, *self.vectors]
    zeros = self.torch.zeros_like
    self.mu = [zeros(p) for p in leaves]
    self.nu = [zeros(p) for p in leaves]
    self.slow = [p.detach().clone() for p in leaves]
    self.total = [zeros(p) for p in self.matrices]
    self.count, self.product = 0, 1.0
    self.compile_seconds = time.perf_counter() - begin

  def _tensor(self, leaf):
    tensor = self.torch.tensor(np.asarray(leaf))
    tensor.requires_grad_(True)
    return tensor

  # -- Forward ----------------------------------------------------------------

  def _loss(self):
    torch, s = self.torch, self.shape
    images, labels = map(torch.from_numpy, self.batch)
    x = images.float() / 255 - 0.5
    side = s.side // s.patch
    x = x.reshape(-1, side, s.patch, side, s.patch, s.channels)
    x = x.permute(0, 1, 3, 2, 4, 5).reshape(len(images), side, side, -1)
    q = self.stem['Q']
    x = torch.nn.functional.pad(x, (0, len(q) - x.shape[-1]))
    x = self._beta_abs((x @ q.T)[..., : s.width] + self.stem['bias'])
    for p in self.blocks:
      y = self._shift((x + p['pos']) @ p['R'].T)
      x = self._beta_abs(y @ p['R'] @ p['M'].T + p['bias'])
    pooled = x.square().sum((1, 2)).sqrt()
    kernel = self.head['kernel']
    kernel = kernel / kernel.norm(dim=1, keepdim=True)
    logits = pooled @ kernel.T + self.head['bias']
    labels = labels.long()
    reach = self.epsilon * (kernel[labels][:, None] - kernel[None]).norm(dim=-1)
    margin = logits.gather(1, labels[:, None]) - logits
    ratio = (margin / reach.clamp(min=1e-8)).clamp(0.01, 1).detach()
    return torch.nn.functional.cross_entropy(ratio * reach - margin, labels)

  def _beta_abs(self, x):
    half = x.shape[-1] // 2
    return self.torch.cat([x[..., :half].abs(), x[..., half:]], dim=-1)

  def _shift(self, x):
    k = int(self.shape.shift_ratio * x.shape[-1])
    moves = ((-1, 1), (1, 1), (-1, 2), (1, 2))
    groups = [
      self.torch.roll(x[..., i * k : (i + 1) * k], step, axis)
      for i, (step, axis) in enumerate(moves)
    ]
    return self.torch.cat([*groups, x[..., 4 * k :]], dim=-1)

  # -- Optimizer --------------------------------------------------------------

  def _nadam(self, i, g):
    mu, nu = self.mu[i], self.nu[i]
    mu.mul_(B1).add_(g, alpha=1 - B1)
    nu.mul_(B2).addcmul_(g, g, value=1 - B2)
    t = self.count
    now, after = (B1 * (1 - 0.5 * 0.96 ** (s * DECAY)) for s in (t, t + 1))
    u = (1 - now) / (1 - self.product) * g
    u = u + after / (1 - self.product * after) * mu
    root = (nu / (1 - B2**t)).sqrt() + EPS
    return -LEARNING_RATE * u / root

  def _fast_exp(self, a):
    torch = self.torch
    norm = a.norm().item()
    if norm >= 1 or not math.isfinite(norm):
      return torch.matrix_exp(a)
    out = torch.eye(len(a)) + a + a @ a / 2
    if norm >= 0.05:
      out = out + a @ a @ a / 6
    if norm >= 0.25:
      out = out + a @ a @ a @ a / 24
    return out

  def _update(self):
    torch = self.torch
    leaves = [*self.matrices, *self.vectors]
    torch.nn.utils.clip_grad_norm_(leaves, CLIP)
    self.count += 1
    self.product *= B1 * (1 - 0.5 * 0.96 ** (self.count * DECAY))
    sync = self.count % PERIOD == 0
    for i, x in enumerate(self.matrices):
      omega = x.T @ x.grad
      delta = self._nadam(i, (omega - omega.T) / 2)
      self.total[i] += delta
      if sync:
        x.copy_(self.slow[i] @ self._fast_exp(ALPHA * self.total[i]))
        self.slow[i].copy_(x)
        self.total[i].zero_()
      else:
        x.copy_(x @ self._fast_exp(delta))
    for i, x in enumerate(self.vectors, len(self.matrices)):
      x += self._nadam(i, x.grad)
      if sync:  # The first sync creates the slow copy.
        self.slow[i].lerp_(x, ALPHA if self.count > PERIOD else 1)
        x.copy_(self.slow[i])

  # -- What is timed ----------------------------------------------------------

  def forward(self):
    """Returns the loss."""
    with self.torch.no_grad():
      return float(self._loss())

  def backward(self):
    """Computes the gradients, by a forward and a backward pass."""
    for p in (*self.matrices, *self.vectors):
      p.grad = None
    self._loss().backward()

  def optimizer(self):
    """Updates the parameters; returns the seconds it took."""
    if self.vectors[0].grad is None:
      self.backward()
    begin = time.perf_counter()
    with self.torch.no_grad():
      self._update()
    return time.perf_counter() - begin

  def steps(self, count):
    """Takes `count` steps."""
    for _ in range(count):
      self.backward()
      self.optimizer()

  def data(self):
    """Returns a batch as tensors, without a copy."""
    return [self.torch.from_numpy(part) for part in self.batch]

  def parameters(self):
    """Counts the parameters."""
    return sum(x.numel() for x in (*self.matrices, *self.vectors))

  def state_bytes(self):
    """Counts the bytes of parameters and optimizer."""
    kept = (self.mu, self.nu, self.slow, self.total)
    leaves = [
      *self.matrices,
      *self.vectors,
      *(x for part in kept for x in part),
    ]
    return sum(x.numel() * x.element_size() for x in leaves)

  def peak_bytes(self):
    """Returns nan: eager PyTorch on a CPU does not tell."""
    return math.nan
