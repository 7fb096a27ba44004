"""Checkpoints and workdirs: saved, verified and restored.

A workdir holds `config.json` (every field of the config that made it) and
`checkpoints/<step>/`, each with a manifest of checksums. The last two and the
best are kept: the last but one goes only when the save after next is complete.
What happens when a run starts:

  1. no workdir, or an empty one: it starts from scratch;
  2. a config.json that differs where it matters: it is refused;
  3. checkpoints: it verifies the newest, restores it and goes on at its step;
  4. one that is damaged: it is set aside with a message, and the next older
     one is used;
  5. all damaged: it is refused, because starting again would bury what is left;
  6. a config.json but no finished checkpoint: it starts from scratch.

`lipnext_jax.checkpoint.restore` turns a workdir back into a trained model.
"""

from lipnext_jax.checkpoint.checkpointer import Checkpointer
from lipnext_jax.checkpoint.lock import check_seen
from lipnext_jax.checkpoint.lock import Lock
from lipnext_jax.checkpoint.reader import CheckpointReader
from lipnext_jax.checkpoint.workdir import check_workdir
from lipnext_jax.checkpoint.workdir import hash_config
from lipnext_jax.checkpoint.workdir import read_config
from lipnext_jax.checkpoint.workdir import write_config

__all__ = [
  'CheckpointReader',
  'Checkpointer',
  'Lock',
  'check_seen',
  'check_workdir',
  'hash_config',
  'read_config',
  'write_config',
]
