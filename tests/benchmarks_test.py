"""Every benchmark runs, in small, through its command line."""

import pathlib
import subprocess
import sys

import pytest

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
      '--what converge --n 8 --horizons 5 --seeds 1 --problems Procrustes',
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
