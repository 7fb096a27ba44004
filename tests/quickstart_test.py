"""The notebook runs from start to end, and says what it said when committed."""

import copy
import pathlib
import re
import warnings

import nbclient
import nbformat
import pytest

NOTEBOOK = pathlib.Path(__file__).parent.parent / 'docs' / 'quickstart.ipynb'


def shares(outputs):
  """The percentages that a cell printed."""
  text = ''.join(output.get('text', '') for output in outputs)
  return [float(share) for share in re.findall(r'([\d.]+)%', text)]


@pytest.mark.slow  # It trains.
def test_the_notebook_runs_and_its_outputs_are_fresh(tmp_path, monkeypatch):
  monkeypatch.delenv('MPLBACKEND', raising=False)  # Figures go to the notebook.
  # Nothing is kept in the home folder.
  for name in ('IPYTHONDIR', 'JUPYTER_RUNTIME_DIR', 'JUPYTER_DATA_DIR'):
    monkeypatch.setenv(name, str(tmp_path))
  committed = nbformat.read(NOTEBOOK, as_version=4)
  fresh = copy.deepcopy(committed)
  client = nbclient.NotebookClient(
    fresh,
    timeout=300,
    coalesce_streams=True,
    resources={'metadata': {'path': str(tmp_path)}},
  )
  with warnings.catch_warnings():
    warnings.simplefilter('ignore')  # Those of the kernel's own packages.
    client.execute()

  found = []
  for old, new in zip(committed.cells, fresh.cells, strict=True):
    outputs = [cell.get('outputs', []) for cell in (old, new)]
    kinds = [[(o.output_type, 'data' in o) for o in side] for side in outputs]
    assert kinds[0] == kinds[1]
    assert shares(outputs[0]) == pytest.approx(shares(outputs[1]), abs=5)
    found += shares(outputs[1])
  clean, certified, within, beyond = found
  assert clean > certified > 75
  assert within == 0  # No certificate breaks.
  assert beyond > 50
