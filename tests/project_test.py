"""The project as a whole: style, types, imports, README."""

import ast
import collections
import configparser
import importlib
import importlib.util
import pathlib
import pkgutil
import re
import signal
import sys

from packaging import requirements
from packaging import utils
import pytest
import yaml

import lipnext_jax
from lipnext_jax import errors
from lipnext_jax import terminal
from lipnext_jax.attacks import __main__ as attacks

ROOT = pathlib.Path(__file__).resolve().parent.parent
MODULES = sorted(
  module.name
  for module in pkgutil.walk_packages(lipnext_jax.__path__, 'lipnext_jax.')
)


LINTERS = ['ruff check .', 'ruff format --check .', 'mypy', 'codespell_lib']


@pytest.mark.slow  # It starts programs.
@pytest.mark.parametrize('command', LINTERS)
def test_style_and_types(command, run_command):
  done = run_command([sys.executable, '-m', *command.split()])
  assert done.returncode == 0, done.stdout + done.stderr


def test_commits_are_checked_by_the_same_linters():
  config = yaml.safe_load((ROOT / '.pre-commit-config.yaml').read_text())
  (local,) = config['repos']
  assert local['repo'] == 'local'  # No versions but those of constraints.txt.
  entries = [hook['entry'] for hook in local['hooks']]
  assert entries == [f'.venv/bin/python -m {command}' for command in LINTERS]
  assert not any(hook['pass_filenames'] for hook in local['hooks'])


@pytest.mark.slow  # It starts programs.
def test_style_and_types_can_fail(tmp_path, run_command):
  bad = tmp_path / 'bad.py'  # The word is not misspelt in this file.
  bad.write_text('import os\nx: int = "a"  # Rec' + 'ieves.\n')
  for command in (
    f'ruff check --config={ROOT}/pyproject.toml', 'mypy', 'codespell_lib'
  ):  # fmt: skip
    done = run_command([sys.executable, '-m', *command.split(), str(bad)])
    assert done.returncode


@pytest.mark.parametrize('module', MODULES)
def test_every_module_imports_and_says_what_it_is_for(module):
  assert importlib.import_module(module).__doc__


def test_every_module_has_a_mirrored_test():
  missing = []
  for path in (ROOT / 'lipnext_jax').rglob('*.py'):
    if path.name != '__init__.py':
      name = path.relative_to(ROOT / 'lipnext_jax').with_suffix('')
      test = ROOT / 'tests' / name.parent / f'{name.name}_test.py'
      if not test.exists():
        missing.append(str(name))
  assert not missing


# Words that start a fragment.
OPENINGS = re.compile('Of|What|So|By|How|Where|As|See|From|For')


def odd_docstrings(source):
  """Yields docstrings that open oddly: functions start with a verb."""
  for node in ast.walk(ast.parse(source)):
    if not isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
      continue
    text = ast.get_docstring(node)
    if text is None:
      continue
    summary = text.split('\n\n')[0]
    word = summary.split()[0]
    decorators = getattr(node, 'decorator_list', [])
    is_property = any('property' in ast.dump(d) for d in decorators)
    is_function = isinstance(node, ast.FunctionDef) and not is_property
    if (
      OPENINGS.fullmatch(word)
      or not summary.endswith(('.', ':'))
      or (is_function and not re.fullmatch('[A-Z][a-z]+s', word))
    ):
      yield summary


@pytest.mark.parametrize('module', MODULES)
def test_docstrings_open_with_a_verb_or_a_name(module):
  path = importlib.util.find_spec(module).origin
  assert not list(odd_docstrings(pathlib.Path(path).read_text()))


def test_odd_docstrings_are_found():
  sources = (
    '"""Of what it makes."""',
    'def f():\n  """The sum."""',
    'def f():\n  """Adds"""',
    'class A:\n  """What it holds."""',
  )
  assert all(list(odd_docstrings(source)) for source in sources)
  plain = '"""Sums."""\ndef f():\n  """Adds [t, c] up."""'
  assert not list(odd_docstrings(plain))


LIGHT = ('optim', 'models', 'losses', 'certify')


# Packages of the extra `train`, except absl and orbax, which optax and flax
# import themselves.
TRAIN_PACKAGES = (
  'PIL cloudpickle filelock flatbuffers grain jinja2 ml_collections '
  'safetensors scipy sklearn tensorboardX tqdm'
)
PROGRAMS = (
  '', '.main', '.certify', '.attacks', '.data.prepare', '.report'
)  # fmt: skip
IMPORT_ALONE = f"""
import importlib, runpy, sys
class Blocker:
  def find_spec(self, name, path=None, target=None):
    if name.split('.')[0] in {TRAIN_PACKAGES.split()!r}:
      raise ModuleNotFoundError(f'no {{name}}', name=name)
sys.meta_path.insert(0, Blocker())
for module in {LIGHT!r}:
  importlib.import_module('lipnext_jax.' + module)
print('light')
for program in {PROGRAMS!r}:
  if program == '.report':  # Its package needs the extra, too.
    sys.argv[0] = '-m'  # As Python has it while it imports the package.
  try:
    runpy.run_module('lipnext_jax' + program, run_name='__main__')
  except SystemExit as stop:
    print(stop.code)
"""


@pytest.mark.slow  # It starts programs.
def test_the_libraries_need_jax_flax_optax_and_numpy_alone(run_command):
  done = run_command([sys.executable, '-c', IMPORT_ALONE])
  assert done.stdout.split() == ['light', *'222222'], done.stderr
  lines = done.stderr.splitlines()
  extras = [*4 * ['train'], 'data', 'train']
  for line, extra in zip(lines, extras, strict=True):
    assert 'needs a package that is not installed' in line
    assert f"pip install -c constraints.txt -e '.[{extra}]'" in line


def test_the_core_is_declared_to_need_no_more():
  setup = configparser.ConfigParser()
  setup.read(ROOT / 'setup.cfg')
  needs = setup['options']['install_requires'].split('\n')
  names = {requirements.Requirement(line).name for line in needs if line}
  assert names == {'jax', 'flax', 'optax', 'numpy'}


def test_every_benchmark_is_run_by_a_test_or_needs_what_ci_lacks():
  paths = sorted((ROOT / 'benchmarks').glob('*.py'))
  # A benchmark must be named in the tests or imported by another one.
  readers = [ROOT / 'tests' / 'benchmarks_test.py', *paths]
  tests = '\n'.join(path.read_text() for path in readers)
  for path in paths:
    # matplotlib draws one figure of the docs; the package does without it.
    needs_matplotlib = 'import matplotlib' in path.read_text()
    named = f"'{path.stem}'" in tests or f'import {path.stem}\n' in tests
    assert needs_matplotlib or named, path.name


PAGES = sorted((ROOT / 'docs').glob('*.md'))
MARKDOWN = [*sorted(ROOT.glob('*.md')), *PAGES]
README = (ROOT / 'README.md').read_text()


def blocks(text, language):
  return re.findall(rf'```{language}\n(.*?)```', text, flags=re.DOTALL)


def test_ci_runs_the_test_command_of_the_readme():
  train, test = blocks(README, 'bash')[:2]
  assert test.strip() in (ROOT / '.ci' / 'run').read_text().splitlines()
  assert train.strip().endswith(
    '-m lipnext_jax.main --config=configs/digits.py --workdir=runs/digits'
  )
  first_screen = README.splitlines()[:60]
  for command in (train, test):
    assert command.strip() in '\n'.join(first_screen)


@pytest.mark.slow  # They train.
def test_python_blocks_of_the_documentation_run(run_command):
  """Blocks run one after the other in one process, with names of their own."""
  code = [b for path in MARKDOWN for b in blocks(path.read_text(), 'python')]
  assert len(code) > 5
  program = (
    'import sys\n'
    'for i, block in enumerate(sys.argv[1:]):\n'
    '  print(block, flush=True)\n'
    '  exec(compile(block, f"block {i}", "exec"), {"__name__": "__main__"})\n'
  )
  done = run_command([sys.executable, '-c', program, *code])
  assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize('path', MARKDOWN, ids=lambda path: path.name)
def test_links_and_paths_of_the_documentation_exist(path):
  for target in re.findall(r'\]\(([^)#:]+)\)', path.read_text()):
    assert (path.parent / target).exists(), target


def test_the_readme_links_every_page():
  linked = set(re.findall(r'\]\(([^)#:]+)\)', README))
  pages = {str(path.relative_to(ROOT)) for path in MARKDOWN} - {'README.md'}
  assert pages <= linked


def test_the_readme_lists_every_exit_code():
  first = re.findall(r'^\| ([\d, ]+) \|', README, re.MULTILINE)
  listed = {int(code) for codes in first for code in codes.split(', ')}
  kinds = [k for k in vars(errors).values() if hasattr(k, 'exit_code')]
  raised = {kind.exit_code for kind in kinds}
  assert len(raised) > 5
  ended = {0, attacks.BrokenCertificateError.exit_code, terminal.CLOSED}
  ended |= {128 + number for number in (signal.SIGTERM, signal.SIGINT)}
  assert listed == raised | ended


def test_every_dependency_is_justified_and_pinned_within_its_floor():
  pins = collections.defaultdict(list)
  for line in (ROOT / 'constraints.txt').read_text().splitlines():
    if line and not line.startswith('#'):
      pin = requirements.Requirement(line)
      (version,) = pin.specifier
      pins[utils.canonicalize_name(pin.name)].append(version.version)
  text = (ROOT / 'setup.cfg').read_text()
  justified = (ROOT / 'docs' / 'dependencies.md').read_text()
  floors = re.findall(
    r'^    ([\w-]+(?:\[\w+\])? >= .+)$', text, flags=re.MULTILINE
  )
  assert len(floors) > 25
  for floor in map(requirements.Requirement, floors):
    found = pins[utils.canonicalize_name(floor.name)]
    assert found, floor
    assert all(floor.specifier.contains(pin) for pin in found), (floor, found)
    assert f'`{floor.name}`' in justified, floor
