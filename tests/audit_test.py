"""The lock file and what is said of it."""

import json
import pathlib
import re
import runpy

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


LOCAL = '/usr/bin/python: No module named pip_audit'
AWAY = 'ERROR:pip_audit._cli:Failed to connect: Max retries exceeded'


@pytest.mark.parametrize(
  ('report', 'complaint', 'says', 'code'),
  [
    ([CLEAN, UNKNOWN], '', '1 of 2 dependencies looked up', 0),
    ([CLEAN, BAD], '', 'pillow 1.0: CVE-1, fixed in 1.1', 1),
    ([UNKNOWN, UNKNOWN], '', 'SKIPPED', 0),
    ([], AWAY, 'SKIPPED', 0),
    ([], LOCAL, LOCAL, 2),
  ],
)
def test_what_the_audit_says(report, complaint, says, code):
  audit = runpy.run_path(str(ROOT / '.ci' / 'audit.py'))
  lines, found = audit['judge'](json.dumps({'dependencies': report}), complaint)
  assert says in '\n'.join(lines)
  assert found == code


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


@pytest.mark.parametrize('python', ['3.11', '3.12', '3.13'])
def test_the_lock_file_is_the_constraints_with_hashes(python):
  lock = read_pins('requirements.lock', python)
  pins = read_pins('constraints.txt', python)
  # Compilers for machines that are not here are gigabytes, and not locked.
  hardware = re.compile('libtpu|jax-cuda|nvidia-')
  assert lock == {n: v for n, v in pins.items() if not hardware.match(n)}
  text = (ROOT / 'requirements.lock').read_text()
  entries = re.split(PIN, text, flags=re.MULTILINE)[2::2]
  assert all(re.search(r'--hash=sha256:[0-9a-f]{64}', e) for e in entries)
