"""LipNeXt, its rivals and its ablations on digits, at equal time and size.

    python -m benchmarks.digits_models --out=runs/models.jsonl --seconds=60
    python -m benchmarks.digits_models --out=runs/models.jsonl --table

Every row has about 280,000 parameters and trains for `--seconds` (compilation
apart) on one device with EMMA, the same radii, augmentation and batch; then its
test split is certified with a proved Λ. One JSON line a run is appended to
`--out`, and runs that are there already are left out, so that the table can be
made in pieces: `--only models`, `--only bronet --seeds 1`. Learning rates and
logit scales were chosen with `--split=validation`.

Needs jax, flax, optax, numpy and scikit-learn; nothing of the data stack.
"""

import argparse
from collections.abc import Mapping
import json
import pathlib
import statistics
import time
from typing import Any
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from sklearn import datasets
from sklearn import model_selection

from lipnext_jax import certify
from lipnext_jax import losses
from lipnext_jax import models
from lipnext_jax import optim
from lipnext_jax.models import interface

BATCH = 64
EPSILON = 0.25  # ε_t goes from 0.1·ε to 2.1·ε in the first half, as configs do.
EPSILONS = (36 / 255, 0.25, 0.5, 1.0)
WARP = 0.35  # Standard deviation of the displacements, in pixels.
_PACE = 100  # Steps that are timed to find out how many fit.
WARMUP = 0.025  # Of the steps: 10 of 400 epochs.


class Row(NamedTuple):
  """One line of the table: a model and how it is trained."""

  group: str  # 'models', 'tokens' or 'bfloat16'.
  model: interface.CertifiedModel
  learning_rate: float = 5e-3
  logit_scale: float = 11.0
  loss: str = 'emma'
  optimizer: Mapping[str, Any] = {}  # Arguments of `optim.lipnext_optimizer`.


def _lion(rate):
  return optax.chain(optax.scale_by_lion(), optax.scale_by_learning_rate(rate))


def _momentum(rate):
  return optax.sgd(rate, momentum=0.9)


def build_rows() -> dict[str, Row]:
  """All rows by name."""
  # The configuration of configs/digits.py: a whole digit is one token.
  lipnext = models.LipNeXt(10, depth=8, width=128, patch_size=8)
  mapped = lipnext.clone(m_init='haar')
  liresnet = models.LiResNet(
    10, depth=4, width=48, patch_size=2, dense_depth=6, dense_width=128
  )
  bronet = models.BRONet(
    10, depth=7, width=96, patch_size=2, dense_depth=4, dense_width=192
  )
  rows = {
    'lipnext': Row('models', lipnext),
    'liresnet': Row('models', liresnet, 5e-3, 4.0),
    'bronet': Row('models', bronet),
    'cayley': Row('models', mapped.clone(parametrization='cayley')),
    'exponential': Row('models', mapped.clone(parametrization='exponential')),
    'cholesky': Row('models', mapped.clone(parametrization='cholesky')),
    # Its raw matrices are half as large.
    'block_reflector': Row(
      'models', mapped.clone(parametrization='block_reflector', width=180)
    ),
  }
  for name in ('lipnext', 'liresnet', 'bronet'):
    row = rows[name]
    low = row.model.clone(dtype=jnp.bfloat16)
    rows[f'{name} bfloat16'] = row._replace(group='bfloat16', model=low)
  # Training's own precision left alone, the manifold step's lowered.
  rows['lipnext, bfloat16 step'] = rows['lipnext']._replace(
    group='bfloat16',
    optimizer={'precision': jax.lax.DotAlgorithmPreset.BF16_BF16_F32},
  )

  # 2×2 tokens, so that shift, R and position are at work.
  base = models.LipNeXt(10, depth=8, width=128, patch_size=4)
  variants: dict[str, dict[str, Any]] = {
    'tokens': {},
    'zero padding': {'padding': 'zero'},
    'α = 1/16': {'shift_ratio': 1 / 16},
    'α = 0': {'shift_ratio': 0.0},
    'β = 1/4': {'beta': 0.25},
    'β = 3/4': {'beta': 0.75},
    'β = 1': {'beta': 1.0},
    'MinMax': {'activation': 'minmax'},
    'no position': {'position': False},
    'R identity': {'r_init': 'identity'},
    'M Haar': {'m_init': 'haar'},
  }
  for name, fields in variants.items():
    rows[name] = Row('tokens', base.clone(**fields))
  changed: dict[str, dict[str, Any]] = {
    'exact exponential': {'exponential': 'exact'},
    'SVD retraction': {'retraction': 'svd'},
    'retraction each step': {'retraction_period': 1},
    'no retraction': {'retraction_period': None},
    'no lookahead': {'lookahead_period': None},
    'inner adam': {'inner': optax.adam},
  }
  for name, options in changed.items():
    rows[name] = Row('tokens', base, optimizer=options)
  # Rules with another unit of length have another rate.
  rows['inner momentum'] = Row(
    'tokens', base, 0.1, optimizer={'inner': _momentum}
  )
  rows['inner lion'] = Row('tokens', base, 1e-3, optimizer={'inner': _lion})
  for loss in ('trades', 'logit_annealing', 'cross_entropy'):
    rows[f'loss {loss}'] = Row('tokens', base, loss=loss)
  return rows


def load_digits(split: str) -> dict[str, np.ndarray]:
  """The splits of `data.sources`; 'validation' holds 144 of training out."""
  digits = datasets.load_digits()
  images = (digits.images / 16).astype(np.float32)[..., None]
  labels = digits.target.astype(np.int32)
  train, test = model_selection.train_test_split(
    np.arange(len(images)), test_size=360, stratify=labels, random_state=0
  )
  if split == 'validation':
    train, test = model_selection.train_test_split(
      train, test_size=144, stratify=labels[train], random_state=0
    )
  return {
    'train_images': images[train], 'train_labels': labels[train],
    'images': images[test], 'labels': labels[test],
  }  # fmt: skip


def warp(image: jax.Array, key: jax.Array) -> jax.Array:
  """[8, 8, 1] displaced smoothly at random, as `transforms.affine` does."""
  size = image.shape[0]
  control = WARP * jax.random.normal(key, (2, 3, 3))
  moves = jax.image.resize(control, (2, size, size), 'linear')
  points = jnp.stack(jnp.mgrid[:size, :size]) + moves
  return jax.scipy.ndimage.map_coordinates(
    image[..., 0], list(points), order=1
  )[..., None]


class State(NamedTuple):
  """What training carries along."""

  step: jax.Array
  params: Any
  opt_state: Any


def build_optimizer(row: Row, total: jax.typing.ArrayLike):
  """The recipe with a schedule over `total` steps, which may be traced."""

  def rate(step):
    done = step / total
    cosine = 0.5 * (1 + jnp.cos(jnp.pi * jnp.minimum(done, 1)))
    return row.learning_rate * jnp.minimum(done / WARMUP, cosine)

  return optim.lipnext_optimizer(rate, **row.optimizer)


def make_step(row: Row, data: Mapping[str, np.ndarray]):
  """Jits (state, key, total steps) → (state, loss); data stay on the device.

  One step a call: XLA's CPU convolutions crawl inside a loop of its own.
  """
  images, labels = (
    jnp.asarray(data[name]) for name in ('train_images', 'train_labels')
  )
  per_epoch = len(images) // BATCH
  loss_fn = losses.LOSSES[row.loss]

  def draw(step, key):
    """The batch of this step: of an epoch's order, each image warped."""
    epoch, place = step // per_epoch, step % per_epoch
    order = jax.random.permutation(jax.random.fold_in(key, epoch), len(images))
    chosen = jax.lax.dynamic_slice_in_dim(order, place * BATCH, BATCH)
    keys = jax.random.split(jax.random.fold_in(key, -1 - step), BATCH)
    return jax.vmap(warp)(images[chosen], keys), labels[chosen]

  def step(state, key, total):
    x, y = draw(state.step, key)
    tx = build_optimizer(row, total)
    epsilon = EPSILON * (0.1 + 2 * jnp.minimum(2 * state.step / total, 1))

    def objective(params):
      variables = {'params': params}
      rows = models.head_kernel(variables)
      stretched = epsilon * row.model.lipschitz(params)
      logits = row.model.apply(variables, x)
      return loss_fn(logits, y, rows, stretched, logit_scale=row.logit_scale)

    loss, grads = jax.value_and_grad(objective)(state.params)
    updates, opt_state = tx.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    return State(state.step + 1, params, opt_state), loss

  return jax.jit(step)


def init_state(row: Row, seed: int) -> State:
  """Fresh parameters and optimizer."""

  @jax.jit
  def init(key):
    params = row.model.init(key, jnp.zeros((1, 8, 8, 1)))['params']
    return State(
      jnp.zeros([], jnp.int32), params, build_optimizer(row, 1).init(params)
    )

  return init(jax.random.key(seed))


def run(
  row: Row,
  data: Mapping[str, np.ndarray],
  seed: int,
  steps: int,
  seconds: float,
) -> dict[str, Any]:
  """Trains (so many steps, or seconds if that is 0) and certifies."""
  step, start = make_step(row, data), init_state(row, seed)
  key = jax.random.key(seed + 1000)

  def train(count, total):
    state, loss = start, jnp.nan
    began = time.perf_counter()
    for _ in range(count):
      state, loss = step(state, key, total)
    jax.block_until_ready(state)
    return state, loss, time.perf_counter() - began

  train(2, 1e6)  # Compiles.
  if not steps:
    steps = max(1, round(seconds * _PACE / train(_PACE, 1e6)[2]))
  state, loss, took = train(steps, float(steps))

  slow = optim.slow_params(state.opt_state, state.params)
  params = interface.certified_params(row.model, slow)
  constants = certify.prove_constants(jax.device_get(params))
  certifier = certify.fast_certifier(row.model, params, constants)
  predictions, rivals = map(np.asarray, certifier(data['images']))
  radii = np.min(rivals, axis=-1)
  correct = predictions == data['labels']
  cra = certify.certified_accuracy(predictions, radii, data['labels'], EPSILONS)
  return {
    'steps': int(state.step),
    'seconds': round(took, 1),
    'parameters': models.parameter_count(start.params),
    'loss': float(loss),
    'lipschitz_estimate': float(jnp.asarray(row.model.lipschitz(slow))),
    'lipschitz_bound': constants.lipschitz,
    'clean': 100 * float(np.mean(correct)),
    'cra': {f'{e:.4g}': value for e, value in cra.items()},
  }


def print_table(lines: list[dict[str, Any]]) -> None:
  """Mean ± standard deviation over the seeds, a row for each name."""
  names = list(dict.fromkeys(line['row'] for line in lines))
  radii = list(lines[0]['cra'])
  head = ['row', 'seeds', 'parameters', 'steps', 'clean']
  head += [f'CRA@{r}' for r in radii] + ['Λ']
  print('| ' + ' | '.join(head) + ' |')
  print('|' + '---|' * len(head))
  for name in names:
    runs = [line for line in lines if line['row'] == name]

    def cell(values):
      spread = statistics.stdev(values) if len(values) > 1 else 0.0
      return f'{statistics.fmean(values):.2f} ± {spread:.2f}'

    cells = [name, str(len(runs)), f'{runs[0]["parameters"]:,}']
    cells.append(f'{statistics.fmean(line["steps"] for line in runs):.0f}')
    cells.append(cell([line['clean'] for line in runs]))
    cells += [cell([line['cra'][r] for line in runs]) for r in radii]
    cells.append(f'{max(line["lipschitz_bound"] for line in runs):.6g}')
    print('| ' + ' | '.join(cells) + ' |')


def main() -> None:
  """Runs what is asked for and not done yet, or prints what was done."""
  rows = build_rows()
  groups = sorted({row.group for row in rows.values()})
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--out', type=pathlib.Path, required=True)
  parser.add_argument('--table', action='store_true', help='print, run nothing')
  parser.add_argument(
    '--only', nargs='+', choices=[*groups, *rows], default=groups
  )
  parser.add_argument('--seeds', type=int, nargs='+', default=[0, 1, 2])
  parser.add_argument('--seconds', type=float, default=60.0, help='of training')
  parser.add_argument('--steps', type=int, default=0, help='instead of seconds')
  parser.add_argument('--split', choices=['test', 'validation'], default='test')
  parser.add_argument('--rate', type=float, help='another learning rate')
  parser.add_argument('--scale', type=float, help='another logit scale τ')
  args = parser.parse_args()

  lines = []
  if args.out.exists():
    lines = [json.loads(line) for line in args.out.read_text().splitlines()]
  if args.table:
    print_table(lines)
    return
  data = load_digits(args.split)
  args.out.parent.mkdir(parents=True, exist_ok=True)
  for name, row in rows.items():
    if not {name, row.group} & set(args.only):
      continue
    if args.rate:
      row = row._replace(learning_rate=args.rate)
    if args.scale:
      row = row._replace(logit_scale=args.scale)
    for seed in args.seeds:
      settings = {
        'row': name,
        'seed': seed,
        'split': args.split,
        'learning_rate': row.learning_rate,
        'logit_scale': row.logit_scale,
        'budget': f'{args.steps} steps' if args.steps else f'{args.seconds} s',
        'device': jax.devices()[0].device_kind,
        'jax': jax.__version__,
      }
      if any(settings.items() <= line.items() for line in lines):
        continue
      line = settings | run(row, data, seed, args.steps, args.seconds)
      with args.out.open('a', encoding='utf-8') as file:
        file.write(json.dumps(line, ensure_ascii=False) + '\n')
      print(json.dumps(line, ensure_ascii=False), flush=True)


if __name__ == '__main__':
  main()
