"""Tests that the command certifies files as evaluation does."""

import io
import json
import shutil

import jax
import numpy as np
from PIL import Image
import pytest

from lipnext_jax import certify
from lipnext_jax.certify import __main__ as command
from lipnext_jax.certify import predictor
from lipnext_jax.checkpoint import restore
from lipnext_jax.data import sources


@pytest.fixture(scope='module')
def run(trained_run, tmp_path_factory):
  """(flag of the workdir, folder with digits as .npy, rows of radii.csv)."""
  workdir, _, config = trained_run
  folder = tmp_path_factory.mktemp('images')
  source = sources.load_dataset(config.dataset).test
  for i in range(3):
    np.save(folder / f'{i}.npy', source[i]['image'])
  table = np.loadtxt(f'{workdir}/radii.csv', delimiter=',', skiprows=1)
  return f'--workdir={workdir}', str(folder), table[:3]


def call(capsys, *args):
  return command.main(list(args)), *capsys.readouterr()


def certify_json(capsys, *args):
  code, out, err = call(capsys, '--json', *args)
  return code, json.loads(out), err


@pytest.mark.parametrize('certificate', ['fast', 'rigorous'])
def test_files_get_the_radii_of_the_evaluation(run, capsys, certificate):
  flag, folder, table = run
  args = flag, folder, f'--certificate={certificate}'
  code, found, _ = certify_json(capsys, '--top_k=9', *args)
  assert code == 0
  assert found['lipschitz_bound'] > 1
  assert found['preprocessing'] == 'grey, 8×8 as it is, values / 255'
  assert found['certificate'].startswith(certificate)
  asked = found['note'].startswith('fast because: asked for')
  assert asked == (certificate == 'fast')
  for entry, (_, _, label, radius) in zip(found['images'], table, strict=True):
    assert entry['class'] == label
    assert entry['radius'] == pytest.approx(radius, rel=1e-4, abs=1e-4)
    assert entry['grey_levels'] == pytest.approx(255 * entry['radius'])
    assert 0 < entry.get('logit_error', 1e-10) < 1e-9
    radii = [rival['radius'] for rival in entry['rivals']]  # Nearest first.
    assert radii == sorted(radii)
    assert radii[0] == entry['radius']
    classes = {rival['class'] for rival in entry['rivals']}
    assert classes == set(range(10)) - {entry['class']}

  # The table for people says the same.
  _, out, _ = call(capsys, '--top_k=2', *args)
  lines = out.splitlines()
  assert lines[0].endswith(f'{flag.removeprefix("--workdir=")}, step 4')
  assert f'{found["certificate"]}; Λ = 1 + ' in lines[1]
  rows = [line for line in lines if line.endswith('.npy')]
  for line, entry in zip(rows, found['images'], strict=True):
    label, radius, levels, _ = line.split()
    assert int(label) == entry['class']
    assert float(radius) == pytest.approx(entry['radius'], abs=3e-6)
    assert float(levels) == pytest.approx(255 * entry['radius'], abs=0.02)
  assert sum('against class' in line for line in lines) == 6
  assert found['note'] in out


def test_certificates_are_rigorous_unless_they_cannot_be(
  run, capsys, monkeypatch
):
  args = run[:2]
  _, found, _ = certify_json(capsys, *args)
  assert found['certificate'].startswith('rigorous')
  assert not found['note']
  monkeypatch.setattr(jax, 'default_backend', lambda: 'tpu')
  _, found, _ = certify_json(capsys, *args)
  assert found['certificate'].startswith('fast')
  assert 'a tpu has no IEEE double' in found['note']


def test_weights_that_cannot_be_certified_are_one_line(
  run, capsys, monkeypatch, tmp_path
):
  flag, folder, _ = run
  restored = restore.restore(flag.removeprefix('--workdir='))
  for scale, options in (
    (1e20, ['--certificate=fast', folder]),
    (np.nan, [folder]),
    (1e-25, [f'--export={tmp_path}/x']),
  ):
    kernel = restored.params['head']['kernel'] * scale
    head = restored.params['head'] | {'kernel': kernel}
    broken = restored._replace(params=restored.params | {'head': head})
    monkeypatch.setattr(restore, 'restore', lambda *_, found=broken: found)
    code, _, err = call(capsys, flag, *options)
    assert code == 2
    assert len(err.splitlines()) == 1
    assert 'cannot be certified' in err
  assert not list(tmp_path.iterdir())


def test_what_is_done_to_files_is_said_or_why_they_cannot_be_read(
  run, capsys, monkeypatch, tmp_path
):
  flag, folder, _ = run
  array, clear, small = f'{folder}/0.npy', 'clear.png', 'small.png'
  monkeypatch.chdir(tmp_path)
  Image.new('LA', (8, 8), (9, 0)).save(clear)
  Image.new('L', (4, 6), 99).save(small)
  (tmp_path / 'bad.png').write_text('no image')
  names = f'bad.png\n{array}\n{clear}\n{small}\nnone\n'
  monkeypatch.setattr('sys.stdin', io.StringIO(names))
  code, found, err = certify_json(capsys, flag, '--resize', '-')
  assert code == 1
  assert [e['path'] for e in found['errors']] == ['bad.png', 'none']
  assert len(err.splitlines()) == 2
  done = {entry['path']: entry['done'] for entry in found['images']}
  assert done.keys() == {array, clear, small}
  assert done[array] == ['float32 array as it is']
  assert done[clear] == ['alpha dropped']
  assert done[small][0].startswith('scaled up by 2, where its own pixels')
  assert found['preprocessing'].startswith('grey, shorter side scaled to 8')
  assert 'as the network gets them' in found['units']
  _, out, _ = call(capsys, flag, '--resize', clear, small)
  said = [found['units'], found['conversions'], *done[clear], *done[small]]
  assert all(part in out for part in said)
  _, _, err = call(capsys, flag, small)
  assert '--resize' in err


def test_names_of_files_reach_the_terminal_as_text(run, capsys, tmp_path):
  """Names may contain control characters, line ends and invalid UTF-8."""
  flag, folder, _ = run
  whole, bad = 'a\x1b[2J\n\udcff.npy', 'b\x1b[2J\n\udcff.npy'
  shutil.copy(f'{folder}/0.npy', tmp_path / whole)
  (tmp_path / bad).touch()
  code, out, err = call(capsys, flag, str(tmp_path))
  assert code == 1
  assert out.splitlines()[-1].endswith(r'a\x1b[2J\n\udcff.npy')
  assert r'b\x1b[2J\n\udcff.npy' in err
  assert '\x1b' not in out + err
  assert len(err.splitlines()) == 1
  (out + err).encode()
  _, out, _ = call(capsys, flag, '--json', str(tmp_path))
  out.encode()
  found = json.loads(out)
  assert found['images'][0]['path'] == f'{tmp_path}/{whole}'
  assert found['errors'][0]['path'] == f'{tmp_path}/{bad}'


def test_an_exported_predictor_is_read_and_names_its_classes(
  run, capsys, tmp_path
):
  """`journey_test` compares its radii with the evaluation's."""
  flag, folder, _ = run
  path, program = f'{tmp_path}/digits.lipnext', f'{tmp_path}/digits.program'
  exports = f'--export={path}', f'--export_program={program}'
  code, out, _ = call(capsys, flag, *exports)
  assert code == 0
  assert 'fast predictor; Λ = 1 + ' in out
  assert 'cpu, cuda, tpu' in out
  assert (tmp_path / 'digits.program').stat().st_size > 1000
  model, params, shape, *_ = predictor.read_contents(path)
  names = [f'digit {i}' for i in range(10)]
  certify.export_predictor(path, model, params, shape, class_names=names)
  _, found, _ = certify_json(capsys, f'--predictor={path}', folder)
  assert found['certificate'].startswith('rigorous')  # Whoever made the file.
  for entry in found['images']:
    assert entry['class_name'] == f'digit {entry["class"]}'
  _, out, _ = call(capsys, f'--predictor={path}', '--top_k=1', folder)
  head, *rows = out[out.index('class  name') :].splitlines()
  for row, entry in zip(rows[::2], found['images'], strict=True):
    assert row[7 : head.index('ℓ2')].strip() == entry['class_name']
    assert row.endswith(entry['path'])
  assert all(' (digit ' in row for row in rows[1::2])


@pytest.mark.parametrize(
  ('args', 'problem'),
  [
    (['a.png'], 'give either --workdir'),
    (['--workdir=d'], 'give images'),
    (['--workdir=d', '--export=f', 'a.png'], 'give images'),
    (['--predictor=f', '--export=g'], 'use --workdir'),
    (['--workdir=d', '--top_k=-1', 'a.png'], '--top_k'),
    (['--predictor=/none', 'a.png'], 'is no file'),
  ],
)
def test_mistakes_on_the_command_line_are_one_line(capsys, args, problem):
  code, _, err = call(capsys, *args)
  assert code == 2
  assert problem in err
  assert len(err.splitlines()) == 1
