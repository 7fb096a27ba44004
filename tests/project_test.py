"""The project as a whole: style, types, imports, README, pins, its files."""

import ast
import configparser
import json
import pathlib
import re
import runpy
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
README = (ROOT / 'README.md').read_text()
SETUP = configparser.ConfigParser()
SETUP.read(ROOT / 'setup.cfg')
EXTRAS = SETUP['options.extras_require']
PYTHONS = re.findall(r'Python :: (3\.\d+)', SETUP['metadata']['classifiers'])
PAGES = [*sorted(ROOT.glob('*.md')), *sorted((ROOT / 'docs').glob('*.md'))]


def load(path):
  return yaml.safe_load((ROOT / path).read_text())


CHECKS = ('ruff check .', 'ruff format --check .', 'mypy', 'codespell_lib')


@pytest.fixture(scope='session')
def run_module(run_command):
  """Runs `python -m` with these words."""
  return lambda words, **options: run_command(
    [sys.executable, '-m', *words.split()], **options
  )


@pytest.mark.parametrize('check', CHECKS)
def test_style_and_types_are_right(check, run_module):
  run_module(check)


def test_style_and_types_can_fail_and_commits_are_checked_for_them(
  tmp_path, run_module
):
  bad = tmp_path / 'bad.py'  # The word is not misspelt in this file.
  bad.write_text('import os\nx: int = "a"  # Rec' + 'ieves.\n')
  ruff = f'ruff check --config={ROOT}/pyproject.toml'
  for check in (ruff, 'mypy', 'codespell_lib'):
    assert run_module(f'{check} {bad}', code=None).returncode
  (commits,) = load('.pre-commit-config.yaml')['repos']
  assert commits['repo'] == 'local'  # No versions but those of constraints.txt.
  entries = [hook['entry'] for hook in commits['hooks']]
  assert entries == [f'.venv/bin/python -m {check}' for check in CHECKS]


def test_every_module_has_a_mirrored_test():
  package, tests = ROOT / 'lipnext_jax', ROOT / 'tests'
  for path in package.rglob('*.py'):
    mirrored = path.relative_to(package).with_name(f'{path.stem}_test.py')
    assert path.name == '__init__.py' or (tests / mirrored).exists(), path


# Words that start a fragment.
OPENINGS = re.compile('Of|What|So|By|How|Where|As|See|From|For')


def odd_docstrings(source):
  """Yields how docstrings open oddly: those of functions start with a verb."""
  for node in ast.walk(ast.parse(source)):
    if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
      word = (ast.get_docstring(node) or 'Gets').split()[0]
      decorators = map(ast.dump, getattr(node, 'decorator_list', []))
      is_property = 'property' in ''.join(decorators)
      acts = isinstance(node, ast.FunctionDef) and not is_property
      is_verb = re.fullmatch('[A-Z][a-z]+s', word)
      if OPENINGS.fullmatch(word) or (acts and not is_verb):
        yield word


def test_docstrings_open_with_a_verb_or_a_name():
  for path in (ROOT / 'lipnext_jax').rglob('*.py'):
    assert not list(odd_docstrings(path.read_text())), path
  for odd in (
    '"""Of what it makes."""',
    'def f():\n  """The sum."""',
    'class A:\n  """What it holds."""',
  ):
    assert list(odd_docstrings(odd))


# Packages of the extra `train`, except absl and orbax, which optax and flax
# import themselves.
TRAIN_PACKAGES = (
  'PIL cloudpickle filelock flatbuffers grain jinja2 ml_collections '
  'safetensors scipy sklearn tensorboardX tqdm'
)
IMPORT_ALONE = f"""
import importlib, runpy, sys
class Blocker:
  def find_spec(self, name, path=None, target=None):
    if name.split('.')[0] in {TRAIN_PACKAGES.split()!r}:
      raise ModuleNotFoundError(f'no {{name}}', name=name)
sys.meta_path.insert(0, Blocker())
for module in 'optim', 'models', 'losses', 'certify':
  importlib.import_module('lipnext_jax.' + module)
print('light')
for program in '', '.main', '.certify', '.attacks', '.data.prepare', '.report':
  if program == '.report':  # Its package needs the extra, too.
    sys.argv[0] = '-m'  # As Python has it while it imports the package.
  try:
    runpy.run_module('lipnext_jax' + program, run_name='__main__')
  except SystemExit as stop:
    print(stop.code)
"""


def test_the_libraries_need_jax_flax_optax_and_numpy_alone(run_command):
  needs = SETUP['options']['install_requires']
  names = re.findall(r'^\w+', needs, re.MULTILINE)
  assert sorted(names) == ['flax', 'jax', 'numpy', 'optax']
  done = run_command([sys.executable, '-c', IMPORT_ALONE])
  assert done.stdout.split() == ['light', *'222222'], done.stderr
  lines = done.stderr.splitlines()
  extras = [*4 * ['train'], 'data', 'train']
  for line, extra in zip(lines, extras, strict=True):
    assert 'needs a package that is not installed' in line
    assert f"pip install -c constraints.txt -e '.[{extra}]'" in line


PIN = r'^([\w.-]+==[\w.]+(?: ; [^\\\n]+)?)'


def read_pins(name, python):
  """Versions by name, for a Python such as '3.12' on Linux."""
  linux = {'python_full_version': f'{python}.1', 'sys_platform': 'linux'}
  pins = {}
  for line in re.findall(PIN, (ROOT / name).read_text(), flags=re.MULTILINE):
    pin = requirements.Requirement(line)
    if pin.marker is None or pin.marker.evaluate(linux):
      assert pin.name not in pins
      (version,) = pin.specifier
      pins[utils.canonicalize_name(pin.name)] = version.version
  return pins


@pytest.mark.parametrize('python', PYTHONS)
def test_every_dependency_is_justified_locked_and_pinned_within_its_floor(
  python,
):
  pins = read_pins('constraints.txt', python)
  justified = (ROOT / 'docs' / 'dependencies.md').read_text()
  lists = [SETUP['options']['install_requires'], *EXTRAS.values()]
  floors = [line for text in lists for line in text.split('\n') if '>' in line]
  assert len(floors) > 25
  for floor in map(requirements.Requirement, floors):
    assert f'`{floor.name}`' in justified, floor
    assert pins[utils.canonicalize_name(floor.name)] in floor.specifier, floor
  # Compilers for machines that are not here are gigabytes, and not locked.
  hardware = re.compile('libtpu|jax-cuda|nvidia-')
  lock = {n: v for n, v in pins.items() if not hardware.match(n)}
  assert read_pins('requirements.lock', python) == lock
  text = (ROOT / 'requirements.lock').read_text()
  entries = re.split(PIN, text, flags=re.MULTILINE)[2::2]
  assert all(re.search(r'--hash=sha256:[0-9a-f]{64}', e) for e in entries)


CLEAN = {'name': 'jax', 'version': '0.10.2', 'vulns': []}
FOUND = {'id': 'CVE-1', 'fix_versions': ['1.1']}
BAD = {'name': 'pillow', 'version': '1.0', 'vulns': [FOUND]}
UNKNOWN = {'name': 'zipp', 'skip_reason': 'not found'}
LOCAL = '/usr/bin/python: No module named pip_audit'


@pytest.mark.parametrize(
  ('report', 'complaint', 'says', 'code'),
  [
    ([CLEAN, UNKNOWN], '', '1 of 2 dependencies looked up', 0),
    ([CLEAN, BAD], '', 'pillow 1.0: CVE-1, fixed in 1.1', 1),
    ([UNKNOWN, UNKNOWN], '', 'SKIPPED', 0),
    ([], 'Failed to connect: Max retries exceeded', 'SKIPPED', 0),
    ([], LOCAL, LOCAL, 2),
  ],
)
def test_what_the_audit_of_dependencies_says(report, complaint, says, code):
  audit = runpy.run_path(str(ROOT / '.ci' / 'audit.py'))
  lines, found = audit['judge'](json.dumps({'dependencies': report}), complaint)
  assert says in '\n'.join(lines)
  assert found == code


def blocks(text, language):
  return re.findall(rf'```{language}\n(.*?)```', text, flags=re.DOTALL)


def test_ci_runs_the_test_command_of_the_readme_on_every_python():
  first_screen = '\n'.join(README.splitlines()[:60])
  train, test = map(str.strip, blocks(first_screen, 'bash')[:2])
  assert test in (ROOT / '.ci' / 'run').read_text().splitlines()
  assert train.endswith(
    '-m lipnext_jax.main --config=configs/digits.py --workdir=runs/digits'
  )
  workflow = load('.github/workflows/ci.yml')
  assert workflow['permissions'] == {'contents': 'read'}
  (job,) = workflow['jobs'].values()
  assert job['strategy']['matrix'] == {'python': PYTHONS}
  assert [s['run'] for s in job['steps'] if 'run' in s] == [test]


def test_python_blocks_of_the_documentation_run(run_command):
  """Blocks run one after the other in one process, with names of their own."""
  code = [b for path in PAGES for b in blocks(path.read_text(), 'python')]
  assert len(code) > 5
  program = (
    'import sys\n'
    'for block in sys.argv[1:]:\n'
    '  print(block, flush=True)\n'
    '  exec(block, {"__name__": "__main__"})\n'
  )
  run_command([sys.executable, '-c', program, *code])


def test_the_readme_links_every_page_and_lists_every_exit_code():
  pages = {str(path.relative_to(ROOT)) for path in PAGES} - {'README.md'}
  assert pages <= {*re.findall(r'\]\(([^)#:]+)\)', README)}
  first = re.findall(r'^\| ([\d, ]+) \|', README, re.MULTILINE)
  listed = {int(code) for codes in first for code in codes.split(', ')}
  kinds = [k for k in vars(errors).values() if hasattr(k, 'exit_code')]
  raised = {kind.exit_code for kind in (*kinds, attacks.BrokenCertificateError)}
  assert len(raised) == len(kinds) + 1 > 6
  ended = {128 + number for number in (signal.SIGTERM, signal.SIGINT)}
  assert listed == raised | ended | {0, terminal.CLOSED}


@pytest.mark.parametrize(
  ('names', 'schema'),
  [
    ('CITATION.cff', 'citation-file-format'),
    ('.github/workflows/*.yml', 'github-workflows'),
  ],
)
def test_a_file_is_what_its_schema_wants(names, schema, tmp_path, run_module):
  """The schemas are those that check-jsonschema brings along."""
  check = f'check_jsonschema --builtin-schema vendor.{schema}'
  for path in ROOT.glob(names):
    run_module(f'{check} {path}')
  bad = tmp_path / path.name
  bad.write_text(path.read_text() + 'no-such-key: 1\n')
  assert 'no-such-key' in run_module(f'{check} {bad}', code=1).stdout


def test_the_version_is_the_same_wherever_it_is_written():
  version = lipnext_jax.__version__
  assert load('CITATION.cff')['version'] == version
  assert f'version = {{{version}}}' in README
  assert version in (ROOT / 'CHANGELOG.md').read_text()
