import subprocess
import sys

from lipnext_jax.page import __main__ as command


def test_the_command_line_writes_the_report(make_workdir, tmp_path):
  workdir = make_workdir(tmp_path / 'run')
  done = subprocess.run(
    [sys.executable, '-m', 'lipnext_jax.page', f'--workdir={workdir}'],
    capture_output=True,
    text=True,
    check=True,
  )
  assert done.stdout.strip() == str(workdir / 'report.html')
  assert (workdir / 'report.html').read_text().startswith('<!doctype html>')


def test_a_workdir_without_an_evaluation_is_one_line_and_an_exit_code(
  tmp_path, capsys
):
  assert command.main([f'--workdir={tmp_path}']) == 1
  lines = capsys.readouterr().err.splitlines()
  assert len(lines) == 1
  assert lines[0].startswith('error: ')
  assert 'eval.json is missing' in lines[0]
