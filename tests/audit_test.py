"""The lock file and what is said of it."""

import importlib.util
import json
import pathlib
import re

from packaging import requirements
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


PIN = r'^([\w.-]+==[\w.]+(?: ; [^\\\n]+)?)'


def read_pins(name, python):
  """Versions by name, for a Python such as '3.12' on Linux."""
  linux = {
    'python_version': python,
    'python_full_version': f'{python}.1',
    'platform_machine': 'x86_64',
    'platform_python_implementation': 'CPython',
    'sys_platform': 'linux',
  }
  pins = {}
  for line in re.findall(PIN, (ROOT / name).read_text(), flags=re.MULTILINE):
    pin = requirements.Requirement(line)
    if pin.marker is None or pin.marker.evaluate(linux):
      assert pin.name not in pins
      pins[utils.canonicalize_name(pin.name)] = str(pin.specifier)
  return pins


PYTHONS = ('3.11', '3.12', '3.13')


@pytest.mark.parametrize('python', PYTHONS)
def test_the_lock_file_is_the_constraints_with_hashes(python):
  lock = read_pins('requirements.lock', python)
  pins = read_pins('constraints.txt', python)
  # Compilers for machines that are not here are gigabytes, and not locked.
  hardware = re.compile('libtpu|jax-cuda|nvidia-')
  assert lock == {n: v for n, v in pins.items() if not hardware.match(n)}
  text = (ROOT / 'requirements.lock').read_text()
  entries = re.split(PIN, text, flags=re.MULTILINE)[2::2]
  assert all(re.search(r'--hash=sha256:[0-9a-f]{64}', e) for e in entries)


def test_every_python_of_the_project_has_its_jax():
  """3.11 ends at jax 0.10; the others take the newest."""
  declared = re.findall(r'Python :: (3\.\d+)', (ROOT / 'setup.cfg').read_text())
  assert tuple(declared) == PYTHONS
  versions = [read_pins('constraints.txt', python) for python in PYTHONS]
  assert len({pins['jax'] for pins in versions}) == 2
  for pins in versions:
    assert pins['jaxlib'] == pins['jax'] == pins['jax-cuda13-pjrt']
