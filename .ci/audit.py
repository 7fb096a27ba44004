"""Looks the locked dependencies up in the database of known vulnerabilities.

    .venv/bin/python .ci/audit.py

Exit code 1 names those that have one. Without a network (the database is not
kept here) it says so and ends with 0: a missing answer fails no build. What is
wrong here (no pip-audit, a lock file that it does not read) ends with 2.
"""

import json
import pathlib
import subprocess
import sys

LOCK = pathlib.Path(__file__).resolve().parent.parent / 'requirements.lock'
SECONDS = 300


# What pip-audit says of faults that no network would mend.
LOCAL = ('No module named', 'contain a hash', 'requirement', 'usage:')


def judge(report: str, complaint: str = '') -> tuple[list[str], int]:
  """What to print, and the exit code, for pip-audit's JSON and stderr."""
  try:
    found = json.loads(report)['dependencies']
  except (ValueError, KeyError, TypeError):
    found = []
  looked_up = [d for d in found if 'skip_reason' not in d]
  if not looked_up:
    last = complaint.strip().splitlines()[-1:]
    if last and any(word in last[0] for word in LOCAL):
      return [f'audit: FAILED, {last[0]}'], 2
    return ['audit: SKIPPED, the database cannot be reached'], 0
  lines = [
    f'audit: {d["name"]} {d["version"]}: {v["id"]}, fixed in '
    f'{", ".join(v["fix_versions"]) or "no version"}'
    for d in looked_up
    for v in d['vulns']
  ]
  total = f'audit: {len(looked_up)} of {len(found)} dependencies looked up'
  return [*lines, total], int(bool(lines))


def main() -> int:
  """Runs pip-audit on the lock file; no package is installed or resolved."""
  command = ['pip_audit', '--format=json', '--disable-pip', '--require-hashes']
  try:
    done = subprocess.run(
      [sys.executable, '-m', *command, f'--requirement={LOCK}'],
      capture_output=True,
      text=True,
      check=False,
      timeout=SECONDS,
    )
    report, complaint = done.stdout, done.stderr
  except subprocess.TimeoutExpired:
    report = complaint = ''
  lines, code = judge(report, complaint)
  print('\n'.join(lines))
  return code


if __name__ == '__main__':
  sys.exit(main())
