"""Checkpoints and workdirs: saved, verified and restored.

A workdir holds `config.json`, with every field of the config, and a folder
`checkpoints/<step>/` per checkpoint, each with a manifest of checksums. The
newest two and the best are kept. A run that starts refuses a workdir of another
config, sets damaged checkpoints aside, and resumes at the newest that is left.
Without any checkpoint it starts from scratch; if all are damaged it is refused,
because a new start would replace what can perhaps be saved.

`checkpoint.restore` turns a workdir back into a trained model.
"""

from lipnext_jax.checkpoint.checkpointer import Checkpointer
from lipnext_jax.checkpoint.checkpointer import CheckpointReader
from lipnext_jax.checkpoint.workdir import check_workdir
from lipnext_jax.checkpoint.workdir import hash_config
from lipnext_jax.checkpoint.workdir import Lock
from lipnext_jax.checkpoint.workdir import read_config
from lipnext_jax.checkpoint.workdir import write_config

__all__ = [
  'CheckpointReader',
  'Checkpointer',
  'Lock',
  'check_workdir',
  'hash_config',
  'read_config',
  'write_config',
]
