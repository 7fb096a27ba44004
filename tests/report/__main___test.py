from lipnext_jax.report import __main__ as command


def test_the_command_line_writes_the_page(make_workdir, tmp_path, capsys):
  workdir = make_workdir(tmp_path / 'run')
  (workdir / 'report.html').unlink()
  capsys.readouterr()
  assert command.main([f'--workdir={workdir}']) == 0
  assert capsys.readouterr().out.strip() == str(workdir / 'report.html')
  assert (workdir / 'report.html').read_text().startswith('<!doctype html>')


def test_a_workdir_without_an_evaluation_is_one_line(tmp_path, capsys):
  assert command.main([f'--workdir={tmp_path}']) == 1
  (line,) = capsys.readouterr().err.splitlines()
  assert line.startswith(f'error: {tmp_path}/eval.json is missing; evaluate')
