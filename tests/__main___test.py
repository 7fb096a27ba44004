import pathlib
import sys

import lipnext_jax

CONFIGS = pathlib.Path(__file__).resolve().parent.parent / 'configs'
HELP = (
  *(f'--mode={mode}' for mode in ('train', 'eval', 'compile', 'config')),
  *(f'configs/{path.name}' for path in CONFIGS.glob('*.py')),
  'lipnext_jax/config/fields.py',
  'python -m lipnext_jax.certify',
  '--workdir: Where checkpoints',
)
RUN = ('--config=configs/digits.py', '--workdir=x')


def test_it_is_the_main_program_and_helps_in_any_encoding(run_command):
  for flags, code, parts in (
    ([], 0, HELP),
    (['--version'], 0, (f'lipnext_jax {lipnext_jax.__version__}\n',)),
    ([*RUN, '--coordinator=auto'], 2, ("='auto' finds no cluster here",)),
  ):
    command = [sys.executable, '-m', 'lipnext_jax', *flags]
    done = run_command(command, code=code, PYTHONIOENCODING='ascii')
    for part in parts:
      assert part in done.stdout + done.stderr
