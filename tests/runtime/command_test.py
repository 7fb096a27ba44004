import jax
import jax.numpy as jnp
import pytest

from lipnext_jax import errors
from lipnext_jax.runtime import command


def test_a_mistake_is_raised():
  parser = command.Parser('program', 'Does things.')
  parser.add_argument('--number', type=int)
  assert parser.parse_args(['--number=3']).number == 3
  for wrong in (['--number=x'], ['--numb=3'], ['more']):
    with pytest.raises(errors.ConfigError, match='is wrong'):
      parser.parse_args(wrong)


@pytest.mark.parametrize(
  ('error', 'code', 'line'),
  [
    (errors.CheckpointError('the disk is full'), 4, 'the disk is full'),
    (KeyboardInterrupt(), 130, 'stopped by SIGINT; what was saved is intact'),
    (OSError(28, 'No space left', 'x.json'), 7, 'x.json: No space left; '),
    (MemoryError('8 EiB'), 8, 'out of memory (8 EiB): lower dataset.workers'),
  ],
)
def test_a_known_error_becomes_a_line_and_its_exit_code(
  capsys, error, code, line
):
  def main(error):
    raise error

  assert command.run(lambda: main(error)) == code
  assert capsys.readouterr().err.startswith(f'error: {line}')
  with pytest.raises(KeyError):  # A fault of the program is a traceback.
    command.run(lambda: main(KeyError('x')))
  assert command.run(lambda: 7) == 7


def test_memory_that_a_device_lacks_is_explained():
  """2⁴⁶ bytes: no machine has them. The error is the runtime's own."""
  with pytest.raises(jax.errors.JaxRuntimeError) as raised:
    jax.block_until_ready(jnp.zeros((1 << 23, 1 << 23), jnp.uint8))
  known = command.explain(raised.value)
  assert type(known) is errors.OutOfMemoryError
  for part in ('batch_size', 'model.remat', 'mesh.fsdp', 'Out of memory'):
    assert part.lower() in str(known).lower()


def test_a_process_that_is_gone_is_only_one_of_several(monkeypatch):
  gone = jax.errors.JaxRuntimeError(
    'UNKNOWN: Gloo AllGather failed: Connection closed by peer'
  )
  assert command.explain(gone) is None
  monkeypatch.setattr(jax, 'process_count', lambda: 2)
  known = command.explain(gone)
  assert type(known) is errors.LostProcessError
  assert str(known).startswith('process 0 of 2: another one is gone or does')
  assert command.explain(jax.errors.JaxRuntimeError('INTERNAL: bug')) is None
