"""Runs every benchmark at a small size through its command line."""

import collections
import importlib
import json
import pathlib
import shutil
import sys
import tempfile
import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from benchmarks import compare
from benchmarks import optimizer_convergence
from benchmarks import optimizer_peers
from benchmarks import optimizer_rivals
from benchmarks import runs
from benchmarks import soak
from benchmarks import train_step
from benchmarks import weak_scaling
from lipnext_jax import config as config_lib
from lipnext_jax.aot import collectives
from lipnext_jax.aot import compile as compile_lib
from lipnext_jax.aot import flops
from lipnext_jax.data import sources
from lipnext_jax.models import parameter_count
from lipnext_jax.models import registry
from lipnext_jax.optim import orthogonality_error

pytestmark = pytest.mark.slow  # Whole programs, and comparisons of optimizers.


@pytest.fixture
def run(monkeypatch, capsys):
  """Runs a command line in this process; returns what it printed."""

  def call(name, *options):
    module = importlib.import_module(f'benchmarks.{name}')
    monkeypatch.setattr(sys, 'argv', [name, *options])
    with jax.numpy_rank_promotion('allow'):
      module.main()
    return capsys.readouterr().out

  return call


# Command lines → parts of what they print.
COMMANDS = {
  'train_step --size tiny --batch_size 8 --repeats 1 --rivals liresnet '
  '--shift_ratio 0.0625 --profile {folder}/trace': [
    'matmul ceiling: ', '| LipNeXt |', '| LiResNet |', 'kernels of 4',
  ],
  'weak_scaling --chip=h100': ['| 1024 | 128 × 8 |', '1.00 … 1.00'],
  'optimizer --what time --sizes 16 --stack 2 --repeats 1 '
  '--only 2|Cayley|svd': ['| 16 | ours, order 2 |', '| 16 | Cayley |'],
  'optimizer --what precision --n 16': ['| tf32 |'],
  'optimizer --what converge --n 8 --horizons 5 --seeds 1 '
  '--problems Procrustes --only Adam --rates 0.1': [
    'Procrustes, n=8', '| Cayley Adam | its own | > 5 |',
  ],
  'data --images=2 --repeats=2 --batch=2 --batches=4 --workers=1': [
    'RandAugment', 'sum of the parts', 'cores feed 2400 images/s',
  ],
  'certificates --depth 1 --width 16 --batch 2': [
    '| E, largest of the batch | ', '| rigorous, seconds an image |',
  ],
  'corruption --trials 3': ['3 of 3'],
  'kills --config=configs/digits.py:smoke --kills=1 --longest=0.5 '
  '--workdir={folder}': ['1 kills', 'the same, bit for bit'],
}  # fmt: skip


@pytest.mark.parametrize('command', COMMANDS)
def test_a_benchmark_prints_what_it_measured(run, tmp_path, command):
  out = run(*command.format(folder=tmp_path).split())
  for part in COMMANDS[command]:
    assert part in out
  assert 'nan' not in out


@pytest.mark.parametrize('name', ['literal', 'torch'])
def test_a_transcription_is_the_same_step(name):
  """A comparison of times is fair only if both compute the same."""
  if name == 'torch':
    pytest.importorskip('torch', reason='PyTorch is no dependency')
  shape = train_step.Shape(*train_step.SIZES['tiny'], 8, jnp.float32, 1 / 16)
  batch = train_step.make_batch(shape)
  ours = train_step.lipnext(shape, 'products', False, 'highest', batch)
  with jax.numpy_rank_promotion('allow'):  # The paper's equations promote.
    theirs = train_step.RIVALS[name](shape, batch)
    for steps in (0, 7, 7):  # Two syncs of the lookahead.
      ours.steps(steps)
      theirs.steps(steps)
      # A loss of 2.7 has an ulp of 2e-7; 14 steps add up to several ulps.
      np.testing.assert_allclose(theirs.forward(), ours.forward(), rtol=5e-6)


@pytest.mark.parametrize('rival', ['liresnet', 'bronet'])
def test_baselines_have_as_many_parameters(rival, monkeypatch):
  """Their width, 152 channels and more, changes in steps of 8."""

  def candidate(name, logits_fn, init_fn, *_):
    return parameter_count(jax.eval_shape(init_fn, jax.random.key(0)))

  monkeypatch.setattr(train_step, 'Candidate', candidate)
  shape = train_step.Shape(*train_step.SIZES['L8W512'], 32, jnp.float32)
  theirs = train_step.RIVALS[rival](shape, None)
  ours = train_step.lipnext(shape, 'products', False, 'highest', None)
  assert 0.9 * ours < theirs <= ours


def test_the_formulae_of_weak_scaling_are_those_of_programs(make_tiny_config):
  depth, width, images, data, fsdp = 8, 32, 4, 2, 4
  c = make_tiny_config()
  c.model.depth, c.model.width, c.model.patch_size = depth, width, 2
  c.model.shift_ratio = 1 / 8
  c.batch_size = images * data * fsdp
  c.optimizer.name, c.optimizer.lookahead_period = 'momentum', 0
  c.optimizer.retraction_period = '0 steps'
  c.mesh.data, c.mesh.fsdp = data, fsdp
  info = sources.DatasetInfo((8, 8, 1), np.dtype(np.float32), 10, 160)
  compiled = compile_lib.compile_step(c, jax.devices(), info)
  sizes = weak_scaling.Sizes(
    depth, width, 16, images, gathered=4, shift_ratio=1 / 8
  )
  step = weak_scaling.predict(sizes, data, fsdp)
  sent = collections.Counter()
  for found in collectives.read(compiled.executable.as_text()):
    sent[found.kind, found.group] += found.sent
  assert sent['all-gather', fsdp] == step.gathers
  assert sent['reduce-scatter', fsdp] == step.reductions
  assert sent['all-to-all', fsdp] == step.swaps
  replicas = sent['all-gather', data] + sent['all-reduce', data]
  assert replicas == pytest.approx(step.replicas, rel=0.02)
  # Stem and head, which the formulae leave out, are small even at width 32.
  whole = flops.count(compiled.jaxpr).total
  update = flops.count(compiled.jaxpr, 'optimizer').total
  assert step.passes < (whole - update) / (data * fsdp) < 1.1 * step.passes


def test_compare_trains_rows_for_equal_time_and_prints_their_spread(
  run, trained_run, tmp_path, monkeypatch
):
  """On runs that a stand-in for the command line makes."""
  (finished, summary, config), commands = trained_run, []

  def launch(name, workdir, *flags):
    commands.append({'--config': name} | dict(f.split('=', 1) for f in flags))
    shutil.copytree(finished, workdir)
    lines = [{'train/images_per_second': rate} for rate in (9, 64, 64)]
    text = '\n'.join(map(json.dumps, lines))
    pathlib.Path(workdir, 'metrics.jsonl').write_text(text)
    return types.SimpleNamespace(wait=lambda: 0)

  monkeypatch.setattr(runs, 'launch', launch)

  options = ['models', f'--workdir={tmp_path}', '--seeds', '0', '7']
  only = ['--only', 'bronet', 'lipnext, L2 pool', '--seconds', '50']
  run('compare', *options, *only, '--', '--config.log.every=1 steps')
  steps = f'{50 * 64 // config.batch_size} steps'
  durations = [c['--config.duration'] for c in commands]
  assert durations == ['2 epochs', steps, steps] * 2
  assert [c.get('--config.seed') for c in commands] == [None, '0', '7'] * 2
  assert commands[0]['--config'] == 'configs/fashion_mnist.py:model=bronet'
  assert commands[-1]['--config.model.pool'] == 'l2'
  assert commands[-1]['--config.log.every'] == '1 steps'
  run('compare', *options, *only)
  assert len(commands) == 6  # All were finished.
  *table, _, interval = run('compare', *options, '--table').splitlines()
  head, _, *rows = (line.split(' | ') for line in table)
  assert [row[0] for row in rows] == ['| lipnext, L2 pool', '| bronet']
  assert all(len(row) == len(head) for row in rows)
  assert rows[0][4] == f'{summary["clean"]:.2f} ± 0.00'
  # Student's t of one degree of freedom is 12.7 at 97.5 %.
  assert interval.endswith('of 2 seeds: ± 8.98 standard deviations')


@pytest.mark.parametrize('group', compare.ROWS)
def test_the_rows_of_a_comparison_are_valid_and_of_one_size(group):
  counts = {}
  for name, (path, fields) in compare.ROWS[group].items():
    module, _, words = path.partition('.py:')
    module = module.removesuffix('.py').replace('/', '.')
    config = importlib.import_module(module).get_config(words)
    config.update_from_flattened_dict(dict(fields))
    config_lib.validate(config)
    model = registry.build_model(config.model, 10)
    image = jnp.zeros((1, 28, 28, 1) if 'fashion' in module else (1, 8, 8, 1))
    shapes = jax.eval_shape(model.init, jax.random.key(0), image)
    counts[name] = parameter_count(shapes['params'])
  first = next(iter(counts.values()))
  same = all(abs(count / first - 1) < 0.05 for count in counts.values())
  assert same or group == 'ablations'


def test_the_tables_of_peers_say_what_is_not_installed(run, monkeypatch):
  monkeypatch.setitem(sys.modules, 'geoopt', None)  # As if not installed.
  command = (
    'optimizer_peers --shapes 6x6 24x3 --repeats 1 --largest 20 --n 6 '
    '--eigenspace 24x3 --length 100 --seeds 1 --gap 0.05 --rates 0.001 0.1 '
    '--steps 2 --drift_shapes 24x3 --only ours,.Adam$|algebra|geoopt.Adam,.e'
  )
  lines = run(*command.split()).splitlines()
  rows = [line.strip('| ').split(' | ') for line in lines if line[:1] == '|']
  missing = [row for row in rows if row[1:2] == ['not installed']]
  assert [row[0] for row in missing] == ['geoopt Adam, euclidean'] * 5
  assert sum('not run: m×m arrays' in line for line in lines) == 1
  # Seconds to the gap at the larger rate, on two problems, and a defect.
  *reached, drift = [row for row in rows if row[0] == 'ours, Adam'][-3:]
  for _, steps, _, rate, end in reached:
    assert (0 < int(steps) <= 100, rate) == (True, '0.1')
    assert float(end) < 1e-3
  assert float(drift[2]) < 1e-6


def test_eigenvectors_are_the_optimum_of_the_tall_problem():
  loss, data, start, best = optimizer_peers.eigenspace((12, 3), seed=0)
  vectors = np.linalg.eigh(np.asarray(data[0], np.float64))[1][:, :-4:-1]
  value = loss(jnp.float32(vectors), data)
  np.testing.assert_allclose(value, best, rtol=1e-6)
  assert loss(start, data) > 0.9 * best
  assert best < 0


def test_crafted_weights_break_untested_certificates_alone(run, trained_run):
  options = ['--workdir', trained_run[0], '--examples', '20', '--rounds', '2']
  lines = run('crafted_weights', *options).splitlines()
  rows = [line.split(' | ') for line in lines[3:14]]
  assert rows[0][0] == '| untouched'
  broken = [[int(cell.split(' / ')[1]) for cell in row[1:]] for row in rows]
  assert not np.any(np.array(broken)[:, 1:])
  assert np.any(np.array(broken)[:, 0])


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
def test_every_method_descends_and_stays_orthogonal(method):
  """Comparing with a broken method would show nothing."""
  loss, data, x, best = optimizer_convergence.procrustes(6, seed=0)
  tx = optimizer_convergence.METHODS[method](0.03)
  gap = loss(x, data) / best - 1
  state = tx.init(x)
  update = jax.jit(tx.update)
  for _ in range(100):
    updates, state = update(jax.grad(loss)(x, data), state, x)
    x = optax.apply_updates(x, updates)
  assert loss(x, data) / best - 1 < gap / 3
  # Two fixed-point iterations leave Cayley's map a defect of third order.
  assert orthogonality_error(x) < 1e-2


def test_cayley_and_qr_steps_are_their_definitions():
  a, eye = np.random.default_rng(0).normal(size=(5, 5)), np.eye(5)
  a = np.float32(a - a.T)
  x = np.float32(np.linalg.qr(a + eye)[0])
  got = optimizer_rivals.cayley(x, a)
  want = x @ np.linalg.inv(eye - a / 2) @ (eye + a / 2)
  np.testing.assert_allclose(got, want, atol=1e-5)
  # X(I + A) = QR with RᵀR = (I + A)ᵀ(I + A) = I − A².
  got = optimizer_rivals.qr(x, a)
  want = x @ (eye + a) @ np.linalg.inv(np.linalg.cholesky(eye - a @ a).T)
  np.testing.assert_allclose(got, want, atol=1e-5)


@pytest.mark.parametrize(
  ('memory', 'error', 'time', 'verdict'),
  [
    (0, 0, 1, None),
    (2, 0, 1, 'memory GROWS'),
    (0, 1, 1, 'the matrices DRIFT'),
    (0, 0, 2, 'it gets SLOWER'),
  ],
)
def test_the_soak_benchmark_sees_what_drifts(memory, error, time, verdict):
  """Judges planted figures: a slope, and two exponents."""
  seen, metrics = {}, []
  for at in range(1, 11):
    step, defect = 10_000 * at, 1e-6 * at**error
    seen[at] = 450 + memory * at, at**time, step
    metrics.append({'step': step, 'train/orthogonality_error': defect})
  assert soak.judge(seen, metrics, 10_000) == verdict


def test_the_soak_benchmark_follows_a_run(tmp_path):
  with tempfile.TemporaryFile() as log:
    process = soak.launch(str(tmp_path), 120, 40, log)
    seen = soak.follow(process, str(tmp_path), 40, 0.01)
    assert process.wait() == 0
  assert seen.keys() <= {1, 2, 3}
  assert all(100 < memory < 10_000 for memory, _, _ in seen.values())
  assert len(soak.read_metrics(str(tmp_path))) == 120
