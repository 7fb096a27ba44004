"""The config files: their arguments, the paper's sizes, their documentation."""

import functools
import importlib
import itertools
import json
import pathlib
import re

import jax
import jax.numpy as jnp
import pytest

from lipnext_jax import config as config_lib
from lipnext_jax import models
from lipnext_jax import parallel
from lipnext_jax import schedules
from lipnext_jax import train_step
from lipnext_jax.config import validation
from lipnext_jax.data import official
from lipnext_jax.models import lipnext
from lipnext_jax.models import registry

ROOT = pathlib.Path(__file__).resolve().parent.parent
FILES = {
  path.stem: importlib.import_module(f'configs.{path.stem}')
  for path in sorted((ROOT / 'configs').glob('*.py'))
}


def arguments(groups):
  """Returns every combination of words, without the first of each group."""
  choices = (['', *words[1:]] for words in groups)
  return [','.join(filter(None, some)) for some in itertools.product(*choices)]


CASES = [
  (name, arg) for name in FILES for arg in arguments(FILES[name].ARGUMENTS)
]


@pytest.mark.parametrize(('name', 'arg'), CASES)
def test_every_combination_of_arguments_is_a_valid_config(name, arg):
  config = FILES[name].get_config(arg)
  config_lib.validate(config)
  if 'smoke' in arg:
    assert config.duration == '2 steps'
    assert (config.model.depth, config.model.width) == (2, 16)
    if config.model.name != 'lipnext':
      assert config.model.baseline.dense_width == 16
    assert config.dataset.name in ('digits', 'synthetic')
  else:
    known = (name, name.split('_')[0])  # A set, or a set and a size.
    assert config.dataset.name in known or name == 'imagenet400_scaling'


@pytest.mark.parametrize('name', FILES)
def test_a_docstring_names_every_argument_and_says_how_to_launch(name):
  text = FILES[name].__doc__
  assert 'python -m lipnext_jax.main' in text
  assert f'--config=configs/{name}.py' in text
  for group in FILES[name].ARGUMENTS:
    for word in group[0 if len(group) == 1 else 1 :]:
      assert re.search(rf'[`:,]{re.escape(word)}`', text), word


# ── The command line ─────────────────────────────────────────────────────────

# Fields that do not change the compiled program.
FREE = ('loss.epsilon', 'eval.epsilons', 'augment.', 'dataset.syn')


def program(name, arg):
  fields = config_lib.flatten(FILES[name].get_config(arg)).items()
  return str([item for item in fields if not item[0].startswith(FREE)])


# One smoke config for every compiled program.
SMOKES = {program(*case): case for case in CASES if 'smoke' in case[1]}


@pytest.mark.slow  # Each compiles a train step and an evaluation.
@pytest.mark.parametrize(('name', 'arg'), SMOKES.values())
def test_every_program_runs_two_steps_through_the_command_line(
  name, arg, tmp_path, run_main, monkeypatch
):
  """On one device, for which programs compile in seconds."""
  one = functools.partial(parallel.make_mesh, devices=jax.devices()[:1])
  monkeypatch.setattr(parallel, 'make_mesh', one)
  config = FILES[name].get_config(arg)
  flags = [f'--config=configs/{name}.py:{arg}', f'--workdir={tmp_path}/run']
  if config.dataset.name == 'synthetic':
    # With 3×3 tokens and ten classes, configs of a family share a program.
    side = config.dataset.synthetic.image_size
    validation.check_image(config.model, (side, side, 3))
    flags.append('--config.dataset.synthetic.num_classes=10')
    side = 3 * config.model.patch_size
    flags.append(f'--config.dataset.synthetic.image_size={side}')
  code, out, err = run_main(*flags)
  assert not code, err
  assert f'{config.dataset.name}, test split' in out
  evaluation = json.loads((tmp_path / 'run' / 'eval.json').read_text())
  assert evaluation['step'] == 2


# ── What is trained ──────────────────────────────────────────────────────────

# Side, classes, training examples (about, for imagenet400).
SETS = {
  'cifar10': (32, 10, 50_000),
  'cifar100': (32, 100, 50_000),
  'tiny_imagenet': (64, 200, 100_000),
  'imagenet': (224, 1000, 1_281_167),
  'imagenet400': (224, len(official.imagenet400_ids()), 512_000),
}


@functools.cache
def measure(name, arg):
  """Counts numbers in R and M, tokens of an image, bytes of the state."""
  config = FILES[name].get_config(arg)
  side, classes, examples = SETS[config.dataset.name]
  model = registry.build_model(config.model, classes)
  plan = schedules.make_plan(config, examples)
  tx = train_step.build_optimizer(config.optimizer, plan)
  state = jax.eval_shape(
    functools.partial(train_step.init_state, model, tx, (side, side, 3)),
    jax.random.key(0),
  )
  *_, h, w, _ = state.params['blocks']['pos'].shape
  size = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))
  return lipnext.paper_parameter_count(state.params), h * w, size


@pytest.mark.parametrize(
  ('name', 'arg'),
  [
    (name, arg)
    for name, arg in CASES
    if name.startswith(tuple(SETS)) and not re.search('smoke|eps', arg)
  ],
)
def test_r_and_m_hold_as_many_numbers_as_the_paper_says(name, arg):
  words = f'{arg} {FILES[name].ARGUMENTS[0][0]} {FILES[name].__doc__}'
  depth, width = re.search(r'L(\d+)W(\d+)', words).groups()
  numbers, tokens, _ = measure(name, arg)
  assert numbers == 2 * int(depth) * int(width) ** 2
  assert tokens == 16 * 16
  config = FILES[name].get_config(arg)
  if name == 'imagenet400_scaling':
    assert (config.dataset.name, config.loss.epsilon) == ('imagenet400', 1.0)
  smoke = FILES[name].get_config(f'{arg},smoke'.lstrip(','))
  assert smoke.dataset.synthetic.num_classes == SETS[config.dataset.name][1]


# ── docs/reproduce.md ────────────────────────────────────────────────────────


PAGE = (ROOT / 'docs' / 'reproduce.md').read_text()
ROW = r'^\|.*`configs/(\w+)\.py:?([^`]*)`[^|]*\| (.*) \|$'
# (file, argument, cells after the config) of every row with a config.
ROWS = [
  (name, arg, re.split(r'\s*\|\s*', cells))
  for name, arg, cells in re.findall(ROW, PAGE, re.MULTILINE)
]
PUBLISHED = [row for row in ROWS if row[2][-1] == 'not run']
NEEDS = [row for row in ROWS if row not in PUBLISHED and len(row[2]) == 5]


def says(name, number):
  return re.search(rf'(?<![\d.]){number}(?![\d.])', FILES[name].__doc__)


def test_every_row_of_the_paper_is_a_config_that_says_the_same():
  """Table 1 has four rows of LipNeXt, Table 3 four, Table 4 five."""
  assert len({row[:2] for row in PUBLISHED}) == len(PUBLISHED) == 4 + 4 + 5
  for name, arg, cells in PUBLISHED:
    assert (name, arg) in CASES  # A valid config.
    numbers = [cell for cell in cells[:-1] if cell]
    assert numbers
    assert all(says(name, number) for number in numbers), (name, arg)
  assert not says('cifar100', '45.9')  # Of cifar10.
  assert not says('cifar10', '5.9')  # Nor a part of one.


@pytest.mark.parametrize(('name', 'arg', 'cells'), NEEDS)
def test_what_a_row_needs_is_what_its_shapes_say(name, arg, cells):
  config = FILES[name].get_config(arg)
  numbers, tokens, size = measure(name, arg)
  examples = SETS[config.dataset.name][-1]
  assert config.model.remat == 'products'
  item = {'float32': 4, 'bfloat16': 2}[config.model.dtype]
  depth, width = config.model.depth, config.model.width
  alpha = config.model.shift_ratio
  token = (1 + 4 * alpha) * depth * width * item  # u, and what moves.
  products = 3 * (1 + 8 * alpha) * depth * width**2  # Forward and backward.
  assert cells == [
    f'{numbers}',
    f'{size / 2**30:.1f}',
    f'{config.batch_size * tokens * token / 2**30:.0f}',
    f'{2 * products * tokens * examples / 1e15:.1f}',  # PFLOP
    config.duration.removesuffix(' epochs'),
  ]


def test_the_command_of_a_rival_in_the_docs_is_as_they_say():
  command = re.search(r'--workdir=runs/rival (?s:.*?)\n\n', PAGE)[0]
  config = FILES['cifar10'].get_config().lock()
  for field, value in re.findall(r'--config\.([\w.]+)=(\S+)', command):
    known = int(value) if value.isdigit() else value
    config.update_from_flattened_dict({field: known})
  config_lib.validate(config)
  assert config.model.name == 'liresnet'
  model = registry.build_model(config.model, 10)
  images = jnp.zeros((1, 32, 32, 3))
  shapes = jax.eval_shape(model.init, jax.random.key(0), images)
  count = models.parameter_count(shapes['params'])
  assert f'This LiResNet has {count / 1e6:.1f}M parameters' in PAGE
