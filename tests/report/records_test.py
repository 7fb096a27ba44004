import json

import ml_collections

from lipnext_jax.parallel import mesh as mesh_lib
from lipnext_jax.report import records


def test_a_run_is_described_by_versions_devices_and_commit():
  mesh = mesh_lib.make_mesh(ml_collections.ConfigDict({'data': -1, 'fsdp': 1}))
  run = records.describe_run(mesh)
  assert run['devices']['count'] == 8
  assert run['mesh'] == {'data': 8, 'fsdp': 1, 'tensor': 1}
  assert run['packages']['jax'].count('.') >= 2
  assert run['commit']
  json.dumps(run)
