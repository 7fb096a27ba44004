"""The files that a project is joined, cited and checked by."""

import configparser
import pathlib
import re
import subprocess
import sys

import pytest
import yaml

import lipnext_jax

ROOT = pathlib.Path(__file__).resolve().parent.parent
README = (ROOT / 'README.md').read_text()
SETUP = configparser.ConfigParser()
SETUP.read(ROOT / 'setup.cfg')
WORKFLOWS = sorted((ROOT / '.github' / 'workflows').glob('*.yml'))


def load(path):
  return yaml.safe_load((ROOT / path).read_text())


def check(path, schema):
  """Validates against a schema that check-jsonschema brings along."""
  flags = ['--builtin-schema', f'vendor.{schema}', str(path)]
  return subprocess.run(
    [sys.executable, '-m', 'check_jsonschema', *flags],
    capture_output=True,
    text=True,
    check=False,
  )


@pytest.mark.parametrize(
  ('path', 'schema'),
  [
    (ROOT / 'CITATION.cff', 'citation-file-format'),
    *((path, 'github-workflows') for path in WORKFLOWS),
  ],
)
def test_a_file_is_what_its_schema_wants(path, schema, tmp_path):
  done = check(path, schema)
  assert done.returncode == 0, done.stdout + done.stderr
  bad = tmp_path / path.name
  bad.write_text(path.read_text() + 'no-such-key: 1\n')
  assert 'no-such-key' in check(bad, schema).stdout


def test_the_citation_is_the_readmes():
  found, paper = load('CITATION.cff'), load('CITATION.cff')['references'][0]
  assert found['version'] == lipnext_jax.__version__
  assert found['license'] == SETUP['metadata']['license']
  article, software = re.findall(r'^@(?s:.*?)^}', README, re.MULTILINE)
  names = (f'{a["family-names"]}, {a["given-names"]}' for a in paper['authors'])
  assert f'author = {{{" and ".join(names)}}}' in article
  assert f'year = {{{paper["year"]}}}' in article
  assert f'version = {{{found["version"]}}}' in software


def test_the_changelog_keeps_its_form():
  text = (ROOT / 'CHANGELOG.md').read_text()
  versions = re.findall(r'^## (.*)$', text, re.MULTILINE)
  assert versions[0] == '[Unreleased]'
  for version in versions[1:]:
    assert re.fullmatch(r'\[\d+\.\d+\.\d+\] - \d{4}-\d\d-\d\d', version)
  kinds = {'Added', 'Changed', 'Deprecated', 'Removed', 'Fixed', 'Security'}
  assert {*re.findall(r'^### (.*)$', text, re.MULTILINE)} <= kinds
  # The version at hand is either released or announced.
  assert lipnext_jax.__version__ in text


def test_the_workflow_runs_the_readmes_command_on_every_python():
  workflow = load('.github/workflows/ci.yml')
  assert workflow['permissions'] == {'contents': 'read'}
  (job,) = workflow['jobs'].values()
  classifiers = re.findall(
    r'Python :: (3\.\d+)', SETUP['metadata']['classifiers']
  )
  assert job['strategy']['matrix'] == {'python': classifiers}
  command = re.findall(r'```bash\n(.*?)\n```', README, flags=re.DOTALL)[1]
  assert [s['run'] for s in job['steps'] if 'run' in s] == [command]
  for step in job['steps']:
    if 'uses' in step:
      assert re.fullmatch(r'actions/[\w-]+@v\d+', step['uses'])
      cached = step.get('with', {}).get('cache-dependency-path', '').split()
      for name in cached:
        assert (ROOT / name).exists()
