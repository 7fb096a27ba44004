"""Every benchmark runs, in small, through its command line."""

import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from benchmarks import optimizer_convergence
from benchmarks import optimizer_rivals
from lipnext_jax.optim import orthogonality_error

ROOT = pathlib.Path(__file__).resolve().parent.parent


def run(module, *flags):
  done = subprocess.run(
    [sys.executable, '-m', f'benchmarks.{module}', *flags],
    cwd=ROOT,
    capture_output=True,
    text=True,
    timeout=300,
    check=False,
  )
  assert done.returncode == 0, done.stderr
  return done.stdout


def test_compile_time_prints_each_depth_and_the_ratio():
  flags = '--depths 1 3 --width 8 --side 4 --batch_size 2 --repeats 1'
  lines = run('compile_time', *flags.split()).splitlines()
  assert lines[0].startswith('depth    1: ')
  assert lines[1].startswith('depth    3: ')
  assert float(lines[2].removeprefix('ratio: ')) > 0


def test_weak_scaling_prints_a_row_for_every_number_of_chips():
  lines = run('weak_scaling', '--chip=h100', '--model=1b').splitlines()
  rows = [line.split('|')[1:-1] for line in lines[2:] if line[0] == '|'][2:]
  assert [int(row[0]) for row in rows] == [16, 32, 64, 128, 256, 512, 1024]
  assert rows[0][1].strip() == '2 × 8'
  assert rows[0][-1].strip() == '1.00 … 1.00'


def test_digits_seeds_prints_each_seed_mean_and_spread(tmp_path):
  config = '--config=configs/digits.py:smoke'
  out = run('digits_seeds', config, f'--workdir={tmp_path}', '--seeds', '0')
  lines = [line.split() for line in out.splitlines()]
  names = [line[0] for line in lines]
  assert names == ['seed', '0', 'mean', 'std', 'min', 'max']
  seed, mean = lines[1], lines[2]
  assert mean[1:] == seed[1 : len(mean)]
  assert len(mean) == 1 + len(lines[0][1:])  # Clean and one per radius.


@pytest.mark.parametrize(
  ('flags', 'shows'),
  [
    ('--what time --sizes 16 --stack 2 --repeats 1', '16'),
    ('--what precision --n 16', 'tf32'),
    (
      '--what converge --n 8 --horizons 5 --seeds 1 --problems Procrustes '
      '--only Adam --rates 0.1',
      'Procrustes, n=8',
    ),
  ],
)
def test_the_optimizer_benchmark_prints_its_tables(flags, shows):
  out = run('optimizer', *flags.split())
  assert shows in out
  assert 'nan' not in out


def test_the_data_benchmark_adds_its_stages_up():
  flags = '--images=2 --repeats=2 --batch=2 --batches=4 --workers=1'
  out = run('data', *flags.split())
  rows = [line.split() for line in out.splitlines()[2:]]
  numbers = [float(row[-2]) for row in rows[1:8]]  # Without raw decoding.
  # Seven stages of 1 µs resolution, and their sum.
  assert rows[8][:2] == ['sum', 'of']
  assert abs(float(rows[8][-2]) - sum(numbers)) <= 8 * 0.0005
  assert 'cores feed 2400 images/s' in out


def test_the_data_benchmark_compares_ways_of_decoding():
  out = run('data', *['--what=decode', '--images=1', '--repeats=1'])
  lines = [line.split() for line in out.splitlines()[1:]]
  assert [line[2] for line in lines] == ['full', 'draft'] * 2
  # At 500×375 nothing can be halved: the same pixels.
  assert [float(line[-1]) for line in lines[:3]] == [0, 0, 0]
  assert 0 < float(lines[3][-1]) < 5


def test_the_certificate_benchmark_prints_its_table():
  out = run('certificates', *['--depth', '1', '--width', '16', '--batch', '2'])
  rows = dict(line.strip('|').split('|') for line in out.splitlines()[3:])
  values = {name.strip(): float(value) for name, value in rows.items()}
  assert 0 < values['Λ − 1'] < 1e-5
  assert 0 < values['E, largest of the batch'] < 1e-9
  assert values['largest difference of fast and rigorous radii'] < 1e-4


@pytest.mark.parametrize('problem', optimizer_convergence.PROBLEMS)
def test_the_optimum_of_each_problem_is_one(problem):
  """No start ends below it, and descent ends at it."""
  make = optimizer_convergence.PROBLEMS[problem]
  loss, data, x, best = make(6, seed=0)
  assert loss(x, data) > best * 1.01
  rate = {'Procrustes': 0.3, 'eigenspace': 1, 'joint diagonalisation': 1}
  method = optimizer_convergence.METHODS['ours, projected', 'Nesterov 0.9']
  descend = optimizer_convergence.descent(method, loss)
  end = float(descend(x, data, rate[problem], 400))
  assert abs(end / best - 1) < 1e-5


@pytest.mark.parametrize('method', optimizer_convergence.METHODS, ids=', '.join)
def test_every_rival_descends_and_stays_orthogonal(method):
  """Comparing with a broken rival would show nothing."""
  loss, data, x, best = optimizer_convergence.procrustes(6, seed=0)
  tx = optimizer_convergence.METHODS[method](0.03)
  gap = loss(x, data) / best - 1
  state = tx.init(x)
  update = jax.jit(tx.update)
  for _ in range(100):
    updates, state = update(jax.grad(loss)(x, data), state, x)
    x = optax.apply_updates(x, updates)
  assert loss(x, data) / best - 1 < gap / 3
  # Cayley's fixed point is iterated twice: its defect is third order.
  assert orthogonality_error(x) < 1e-2


def test_rival_steps_are_their_definitions():
  a = np.random.default_rng(0).normal(size=(5, 5)).astype(np.float32)
  a = a - a.T
  x = np.linalg.qr(a + np.eye(5, dtype=np.float32))[0]
  half = np.eye(5) - a / 2, np.eye(5) + a / 2
  want = {
    'cayley': x @ np.linalg.inv(half[0]) @ half[1],
    'qr': np.linalg.cholesky(np.eye(5) - a @ a),
  }
  got = optimizer_rivals.cayley(jnp.asarray(x), jnp.asarray(a))
  np.testing.assert_allclose(got, want['cayley'], atol=1e-5)
  # X(I + A) = QR with RᵀR = (I + A)ᵀ(I + A) = I − A².
  got = optimizer_rivals.qr(jnp.asarray(x), jnp.asarray(a))
  want_q = x @ (np.eye(5) + a) @ np.linalg.inv(want['qr'].T)
  np.testing.assert_allclose(got, want_q, atol=1e-5)


def test_the_corruption_benchmark_finds_what_it_damages():
  out = run('corruption', '--trials', '3')
  assert out.splitlines()[-1].split() == ['found', '3', 'of', '3']


def test_the_kill_benchmark_ends_in_the_same_arrays(tmp_path):
  out = run(
    'kills',
    '--config=configs/digits.py:smoke',
    '--kills=1',
    '--longest=0.5',
    f'--workdir={tmp_path}',
  )
  assert '1 kills' in out
  assert out.splitlines()[-1].startswith('the same, bit for bit')
