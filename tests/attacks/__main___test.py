import json
import pathlib
import re
import shutil

import numpy as np
import pytest

from lipnext_jax import certify
from lipnext_jax import errors
from lipnext_jax.attacks import __main__ as cli
from lipnext_jax.attacks import target as target_lib
from lipnext_jax.checkpoint import restore
from lipnext_jax.data import sources

pytestmark = pytest.mark.slow  # It attacks a run with all there is.
QUICK = ('--examples=16', '--restarts=1', '--steps=5')
RIGOROUS = ('--certificate=rigorous', *QUICK)


@pytest.fixture(scope='module')
def attacked(trained_run, tmp_path_factory):
  """A workdir whose certificates were attacked."""
  workdir = str(tmp_path_factory.mktemp('attacked') / 'run')
  shutil.copytree(trained_run[0], workdir)
  assert cli.main([f'--workdir={workdir}', *RIGOROUS]) == 0
  return workdir


def read(workdir):
  return json.loads(pathlib.Path(workdir, 'attack.json').read_bytes())


def test_files_and_table_hold_what_they_promise(attacked, trained_run, capsys):
  found = read(attacked)
  assert (found['step'], found['examples']) == (4, 16)
  assert found['certificate'] == 'rigorous'
  assert found['settings']['steps'] == 5
  # Four gradient attacks with and without a box, three walks.
  assert found['runs'] == 16 * (4 * 2 + 3)
  assert set(found['epsilons']) == {'0.25', '0.5'}
  lower, upper = found['lipschitz_lower_bound'], found['lipschitz_bound']
  assert 0.9 < lower < upper + 1e-8 < 1 + 1e-4
  assert 0 < found['logit_lipschitz_lower_bound'] <= lower + 1e-8
  page = pathlib.Path(attacked, 'report.html').read_text()
  assert f'{found["runs"]} attack runs up to the certified' in page
  cli.print_table(found, 'digits', (0.25, 0.5))
  table = capsys.readouterr().out
  assert 'digits, test split, rigorous certificates' in table
  assert f'runs at a certified radius  {found["runs"]:>10d}\n' in table
  assert 'certificates broken                  0\n' in table
  assert len(table.splitlines()) == 10

  run = restore.restore(attacked)
  test = sources.load_dataset(run.config.dataset).test
  images = np.stack([test[i]['image'] for i in range(16)])
  wanted = certify.rigorous_radius(run.model, run.params, images)
  table = np.loadtxt(f'{trained_run[0]}/radii.csv', delimiter=',', skiprows=1)
  with np.load(f'{attacked}/attack.npz') as stored:
    columns = [stored[name] for name in ('id', 'label', 'prediction')]
    np.testing.assert_array_equal(np.transpose(columns), table[:16, :3])
    # The table is of fast certificates, which subtract more.
    assert np.all(stored['radius'] >= table[:16, 3])
    np.testing.assert_allclose(stored['radius'], wanted.radii, rtol=1e-9)


def test_broken_certificates_fail_loudly_with_files(
  attacked, tmp_path, monkeypatch, capsys
):
  """Planted: radii fifty times too large, and a table that makes no page."""
  certified_target = target_lib.certified_target

  def inflated(*args, **options):
    target = certified_target(*args, **options)
    return target._replace(radii=50 * target.radii)

  monkeypatch.setattr(target_lib, 'certified_target', inflated)
  workdir = str(tmp_path / 'run')
  shutil.copytree(attacked, workdir)
  pathlib.Path(workdir, 'radii.csv').write_text('')
  assert cli.main([f'--workdir={workdir}', *RIGOROUS]) == 5
  *_, page, last = capsys.readouterr().err.splitlines()
  assert page.startswith('no report.html: ')
  assert last.startswith('error: ')
  assert 'rigorous certificates are BROKEN' in last
  found = read(workdir)
  assert found['broken'] == len(found['broken_ids']) > 0
  # A Lipschitz bound below what was found is broken, too.
  found = read(attacked)
  cli.check(found)
  found['lipschitz_bound'] = found['lipschitz_lower_bound'] - 1e-6
  with pytest.raises(cli.BrokenCertificateError, match=r'bound .* is BROKEN'):
    cli.check(found)


@pytest.mark.parametrize(
  ('flags', 'problem'),
  [
    (['--workdir=/no/where'], r"--workdir='/no/where' holds no config\.json"),
    ([], 'command line=.*--workdir'),
    (['--workdir=x', '--steps=0'], '--steps must be at least 1'),
    (['--workdir=x', '--certificate=slow'], 'invalid choice'),
  ],
)
def test_mistakes_are_one_line(flags, problem, capsys):
  assert cli.main(flags) == errors.ConfigError.exit_code
  captured = capsys.readouterr()
  assert not captured.out
  (line,) = captured.err.splitlines()
  assert re.match(f'error: .*{problem}', line)
