from lipnext_jax.report import __main__ as command


def test_the_command_line_writes_the_page(copy, tmp_path, capsys):
  (copy / 'report.html').unlink()
  assert command.main([f'--workdir={copy}']) == 0
  assert capsys.readouterr().out.strip() == str(copy / 'report.html')
  assert (copy / 'report.html').read_text().startswith('<!doctype html>')
  assert command.main([f'--workdir={tmp_path}']) == 1
  (line,) = capsys.readouterr().err.splitlines()
  assert line.startswith(f'error: {tmp_path}/eval.json is missing; evaluate')
