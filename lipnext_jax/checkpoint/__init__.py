"""Checkpoints and workdirs: saved, verified and restored.

A workdir holds `config.json`, with every field of the config, and a folder
`checkpoints/<step>/` per checkpoint, each with a manifest of checksums. The
newest two and the best are kept. What a run does when it starts depends on what
the workdir holds:

  1. nothing: the run starts from scratch;
  2. a config.json that differs in a field that matters: it is refused;
  3. checkpoints: it verifies and restores the newest, and resumes at its step;
  4. a damaged checkpoint: it sets it aside with a message, and uses the next
     older one;
  5. only damaged checkpoints: it is refused, because a new start would replace
     what can perhaps be saved;
  6. a config.json without a finished checkpoint: it starts from scratch.

`checkpoint.restore` turns a workdir back into a trained model.
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
