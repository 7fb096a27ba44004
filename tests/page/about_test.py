import html
import json
import re

import pytest

from lipnext_jax.page import about
from lipnext_jax.page import data


@pytest.fixture
def run(workdir):
  return data.read_run(str(workdir))


def test_every_field_of_the_config_is_there_once(run):
  markup = about.provenance(run)
  rows = re.findall(
    r'<th scope="row">([^<]*)</th><td>([^<]*)</td>',
    markup.split('<details>')[1],
  )
  shown = {name: html.unescape(value) for name, value in rows}
  assert len(rows) == len(run.config)
  assert shown['sharding'] == json.dumps([['^params/', []]])
  assert shown['loss.epsilon'] == '0.25'
  assert shown['dataset.name'] == 'rings'


def test_the_last_start_is_described(run):
  markup = about.provenance(run)
  assert 'c' * 40 + ' with uncommitted changes' in markup
  assert 'jax 0.10.2' in markup
  assert 'kind cpu, count 1' in markup
  assert 'main.py --workdir=x' in markup


def test_odd_records_do_not_stop_the_page(run):
  starts = [{'command': 'x', 'packages': None, 'mesh': 3, 'python': 3}]
  assert '–' in about.provenance(run._replace(starts=starts))
  bare = run._replace(starts=[], config={}, notes={'run.json': 'not there'})
  assert 'not there' in about.provenance(bare)


@pytest.mark.parametrize(
  ('mode', 'words'),
  [
    ('fast', 'rounding is not subtracted'),
    ('rigorous', 'holds for the arithmetic'),
    ('<x>', 'of kind &#x27;&lt;x&gt;&#x27;'),
  ],
)
def test_the_arithmetic_is_said(run, mode, words):
  evaluation = run.evaluation | {'certificate': mode}
  assert words in about.meaning(run._replace(evaluation=evaluation))


def test_the_rounding_that_was_subtracted_is_said(run):
  evaluation = run.evaluation | {'certificate': 'rigorous', 'logit_error': 3e-9}
  words = about.meaning(run._replace(evaluation=evaluation))
  assert 'is 3.0\u00a0×\u00a010⁻⁹.' in words
  assert 'largest such bound' not in about.meaning(run)
