"""The lock file and what is said of it."""

import importlib.util
import json
import pathlib
import re

from packaging import utils
import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent
CLEAN = {'name': 'jax', 'version': '0.10.2', 'vulns': []}
BAD = {
  'name': 'pillow',
  'version': '1.0',
  'vulns': [{'id': 'CVE-1', 'fix_versions': ['1.1']}],
}
UNKNOWN = {'name': 'zipp', 'skip_reason': 'not found'}


def load_audit():
  spec = importlib.util.spec_from_file_location('audit', ROOT / '.ci/audit.py')
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


@pytest.mark.parametrize(
  ('dependencies', 'says', 'code'),
  [
    ([CLEAN, UNKNOWN], '1 of 2 dependencies looked up', 0),
    ([CLEAN, BAD], 'pillow 1.0: CVE-1, fixed in 1.1', 1),
    ([UNKNOWN, UNKNOWN], 'SKIPPED', 0),
    ([], 'SKIPPED', 0),
  ],
)
def test_what_the_audit_says(dependencies, says, code):
  report = json.dumps({'dependencies': dependencies, 'fixes': []})
  lines, found = load_audit().judge(report)
  assert says in '\n'.join(lines)
  assert found == code


def test_an_audit_that_failed_is_said_to_be_skipped():
  assert 'SKIPPED' in load_audit().judge('Traceback …')[0][0]


@pytest.mark.parametrize(
  'complaint',
  [
    '/usr/bin/python: No module named pip_audit',
    'ERROR:pip_audit._cli:requirement jax does not contain a hash',
  ],
)
def test_a_fault_that_is_ours_fails(complaint):
  lines, code = load_audit().judge('', complaint)
  assert code == 2
  assert complaint in lines[0]


def test_a_network_that_is_away_does_not():
  complaint = 'ERROR:pip_audit._cli:Failed to connect: Max retries exceeded'
  assert load_audit().judge('', complaint)[1] == 0


def read_pins(name):
  text = (ROOT / name).read_text()
  pins = re.findall(r'^([\w.-]+)==([\w.]+)', text, flags=re.MULTILINE)
  return {utils.canonicalize_name(n): version for n, version in pins}


def test_the_lock_file_is_the_constraints_with_hashes():
  lock, pins = read_pins('requirements.lock'), read_pins('constraints.txt')
  tools = {'pip', 'setuptools', 'wheel'}  # Of pip-tools; never constrained.
  # Compilers for machines that are not here are gigabytes, and not locked.
  pins = {
    name: version
    for name, version in pins.items()
    if not re.match('libtpu|jax-cuda|nvidia-', name)
  }
  assert lock.keys() - tools == pins.keys()
  assert {name: lock[name] for name in pins} == pins
  entries = re.split(
    r'^(?=[\w.-]+==)', (ROOT / 'requirements.lock').read_text(), flags=re.M
  )[1:]
  assert len(entries) == len(lock)
  assert all(re.search(r'--hash=sha256:[0-9a-f]{64}', e) for e in entries)
