"""Device mesh, layouts of arrays on it, and processes that form one run."""

from lipnext_jax.parallel.distributed import barrier
from lipnext_jax.parallel.distributed import largest
from lipnext_jax.parallel.distributed import on_first
from lipnext_jax.parallel.distributed import on_others
from lipnext_jax.parallel.distributed import start
from lipnext_jax.parallel.distributed import to_host
from lipnext_jax.parallel.mesh import batch_sharding
from lipnext_jax.parallel.mesh import check_batch_size
from lipnext_jax.parallel.mesh import layout_table
from lipnext_jax.parallel.mesh import local_bytes
from lipnext_jax.parallel.mesh import make_mesh
from lipnext_jax.parallel.mesh import model_devices
from lipnext_jax.parallel.mesh import move
from lipnext_jax.parallel.mesh import put_batch
from lipnext_jax.parallel.mesh import replicated
from lipnext_jax.parallel.mesh import slice_of
from lipnext_jax.parallel.mesh import stack_sharding
from lipnext_jax.parallel.mesh import tree_shardings
from lipnext_jax.parallel.mesh import with_shardings

__all__ = [
  'barrier',
  'batch_sharding',
  'check_batch_size',
  'largest',
  'layout_table',
  'local_bytes',
  'make_mesh',
  'model_devices',
  'move',
  'on_first',
  'on_others',
  'put_batch',
  'replicated',
  'slice_of',
  'stack_sharding',
  'start',
  'to_host',
  'tree_shardings',
  'with_shardings',
]
