"""What the certificate says, and what ran."""

import itertools
import json
from typing import Any

from lipnext_jax.page import markup
from lipnext_jax.page.data import Run
from lipnext_jax.page.markup import el
from lipnext_jax.page.markup import Html

_ARITHMETIC = {
  'fast': (
    'The proof is for exact arithmetic on the stored weights. The logits are '
    'float32 at the highest product precision; their own rounding is not '
    'subtracted from the margins.'
  ),
  'rigorous': (
    'The logits are float64, and a proved bound on their rounding error is '
    'subtracted from the margins: the radius holds for the arithmetic that '
    'ran.'
  ),
}


def meaning(run: Run) -> Html:
  """What a radius proves, how it is computed, and what it leaves open."""
  mode = str(run.evaluation.get('certificate', 'fast'))
  error = ''
  if isinstance(largest := run.evaluation.get('logit_error'), int | float):
    error = f' The largest such bound here is {markup.scientific(largest)}.'
  says = (
    'Within the stated ℓ2 distance of an image, every input gets the same '
    'answer from this network. This is a proof, not an estimate.',
    markup.join(
      [
        'The radius is the smallest of (f',
        el('sub', 'p'),
        ' − f',
        el('sub', 'j'),
        ') / (Λ‖w',
        el('sub', 'p'),
        ' − w',
        el('sub', 'j'),
        '‖) over the other classes j, where p is the answer, f the logits, w '
        'the unit-norm rows of the head, and Λ a proved upper bound on the '
        'Lipschitz constant of everything before it. No matrix is assumed to '
        'be exactly orthogonal.',
      ]
    ),
    'Lengths are in the pixels of the image as given, each in [0, 1]; one '
    'grey level of one pixel is 1/255. Ties certify nothing, and certified '
    'accuracy counts radii strictly above ε.',
    _ARITHMETIC.get(mode, f'The certificates are of kind {mode!r}.') + error,
  )
  says_not = (
    'That the answer is right: a wrong answer can be stable too. Certified '
    'accuracy counts right answers only.',
    'Anything about other distances (ℓ∞, rotations, blur) or about images '
    'further away than the radius: there, the answer may still hold.',
    'Anything about what happens to an image before it reaches the network: '
    'cropping, resizing and quantisation come first, and are not covered.',
  )
  return markup.join(
    [
      el('h3', 'What it says'),
      el('ul', *(el('li', text) for text in says)),
      el('h3', 'What it does not say'),
      el('ul', *(el('li', text) for text in says_not)),
    ]
  )


def _flat(value: Any) -> str:
  return value if isinstance(value, str) else json.dumps(value)


def _listing(caption: str, rows: list[list[object]]) -> Html:
  return markup.table(caption, ['What', 'Value'], rows, class_='listing')


def provenance(run: Run) -> Html:
  """Step, commit, versions, devices and every field of the config."""
  rows: list[list[object]] = [
    ['Run', run.name],
    ['Step evaluated', markup.count(run.evaluation['step'])],
  ]
  if run.starts:
    start = run.starts[-1]
    uncommitted = ' with uncommitted changes'
    changed = uncommitted if start.get('uncommitted_changes') else ''
    command = start.get('command', [])
    if isinstance(command, list):
      command = ' '.join(map(str, command))
    devices, packages = start.get('devices'), start.get('packages')
    rows += [
      ['Starts (resumed runs have several)', markup.count(len(run.starts))],
      ['Commit', f'{start.get("commit", "–")}{changed}'],
      ['Command', str(command)],
      ['Python', _flat(start.get('python', '–'))],
      ['Packages', _pairs(packages)],
      ['Devices', _pairs(devices)],
      ['Mesh', _pairs(start.get('mesh'))],
      ['Data', _pairs(start.get('data'))],
    ]
  parts = [_listing('What ran', rows)]
  for name in ('run.json', 'config.json'):
    if name in run.notes:
      parts.append(el('p', run.notes[name], class_='status'))
  if run.config:
    tables = []
    names = sorted(run.config, key=lambda name: ('.' in name, name))
    for group, fields in itertools.groupby(names, _group):
      tables.append(
        _listing(group, [[name, _flat(run.config[name])] for name in fields])
      )
    parts.append(
      el(
        'details',
        el(
          'summary', f'Config of the training run: all {len(run.config)} fields'
        ),
        el('div', *tables, class_='columns'),
      )
    )
  return markup.join(parts)


def _group(name: str) -> str:
  return name.split('.')[0] if '.' in name else 'general'


def _pairs(value: Any) -> str:
  if not isinstance(value, dict):
    return '–'
  return ', '.join(f'{key} {item}' for key, item in value.items())
