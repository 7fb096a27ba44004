"""Certifies image files: prints the class and the proved radius of each.

    python -m lipnext_jax.certify --workdir=DIR IMAGE…
    python -m lipnext_jax.certify --workdir=DIR --export=FILE
    python -m lipnext_jax.certify --predictor=FILE IMAGE…

Certificates are rigorous for a LipNeXt on a CPU or GPU: weights may come from
anyone, and may be made to fool float32. Others are fast, and a line says why.

An IMAGE is a file, a folder, or `-` for names on standard input. The exit code
is 1 if an image could not be read (the others are certified all the same), and
else one of the README's.
"""

import argparse
from collections.abc import Iterator
from collections.abc import Sequence
import itertools
import json
import sys
from typing import Any

import jax
import numpy as np

from lipnext_jax import certify
from lipnext_jax import errors
from lipnext_jax.certify import decimals
from lipnext_jax.certify import predictor as predictor_lib
from lipnext_jax.certify import rigorous

with errors.needing_extra('train', __name__):
  from lipnext_jax import config as config_lib
  from lipnext_jax.checkpoint import restore
  from lipnext_jax.data import inputs
  from lipnext_jax.runtime import command

_CLAIMS = {
  'fast': 'fast: float32 at the highest product precision; 64 units of '
  'rounding are subtracted from every margin, an estimate and no proof',
  'rigorous': 'rigorous: float64, its rounding E subtracted',
}
_BATCH = 64  # Images per call. The last batch is padded: one program.


def main(argv: Sequence[str] | None = None) -> int:
  """Runs the command; returns its exit code."""
  return command.run(lambda: _run(_parse(argv)))


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
  """Parses the flags; raises ConfigError if they do not fit."""
  parser = command.Parser(
    'python -m lipnext_jax.certify', __doc__.split('\n')[0]
  )
  add = parser.add_argument
  add('images', nargs='*', metavar='IMAGE', help='file, folder, or -')
  add('--workdir', metavar='DIR', help='workdir of a training run')
  add('--predictor', metavar='FILE', help='file of --export')
  add('--export', metavar='FILE', help='file to write the predictor to')
  add(
    '--export_program',
    metavar='FILE',
    help='file to write the fast predictor to, as a program for JAX alone',
  )
  add(
    '--certificate',
    choices=certify.CERTIFICATES,
    help='float32, or float64 with its rounding subtracted (the default, where '
    'model and device allow it)',
  )
  add('--checkpoint', choices=('last', 'best'), default='last')
  add(
    '--top_k',
    type=int,
    default=0,
    metavar='K',
    help='print the K nearest other classes, each with its own radius',
  )
  add('--resize', action='store_true', help='scale images of other sizes')
  add('--json', action='store_true', help='print JSON')
  args = parser.parse_args(argv)
  if bool(args.workdir) == bool(args.predictor):
    parser.error('give either --workdir=DIR or --predictor=FILE')
  exports = bool(args.export or args.export_program)
  if bool(args.images) == exports:
    parser.error('give images to certify, or --export=FILE')
  if args.predictor and exports:
    parser.error('a --predictor is exported already, use --workdir')
  if args.top_k < 0:
    parser.error('--top_k must be at least 0')
  return args


def _run(args: argparse.Namespace) -> int:
  """Exports or certifies, as the flags say; returns the exit code."""
  if args.predictor:
    contents = predictor_lib.read_contents(args.predictor)
    name = args.predictor
  else:
    run = restore.restore(args.workdir, {'eval.checkpoint': args.checkpoint})
    contents = certify.Contents(
      run.model,
      run.params,
      run.image_shape,
      class_names=run.class_names,
      resize=run.resize,
      config={**config_lib.flatten(run.config), 'step': run.step},
    )
    name = f'{args.workdir}, step {run.step}'
  why = 'asked for'
  if args.certificate != 'fast':
    why = rigorous.obstacle(contents.model, jax.default_backend())
  certificate = args.certificate or ('fast' if why else 'rigorous')
  try:
    if not args.images:
      _export(args, contents)
      return 0
    predictor = certify.Predictor(contents._replace(certificate=certificate))
  except ValueError as error:
    raise errors.ConfigError(
      '--predictor' if args.predictor else '--workdir',
      args.predictor or args.workdir,
      f'holds weights that cannot be certified ({error})',
      'name another run, or another --checkpoint',
    ) from None
  h, w, ch = contents.image_shape
  how = inputs.Preprocessing((h, w, ch), contents.resize or h * args.resize)
  facts = {
    'model': name,
    'certificate': _CLAIMS[certificate],
    'note': '',
    'lipschitz_bound': predictor.lipschitz,
    'preprocessing': how.describe(),
    'conversions': inputs.CONVERSIONS,
    'units': 'radius: ℓ2 distance between images as the network gets them, '
    'pixels in [0, 1]; grey_levels: radius × 255',
  }
  if certificate == 'fast':
    facts['note'] = (
      f'fast because: {why}; for weights that you did not train, rigorous '
      'certificates are the ones to trust'
    )
  return _certify_all(args, predictor, how, facts)


def _export(args: argparse.Namespace, contents: certify.Contents) -> None:
  """Writes the files that --export and --export_program name."""
  if args.export:
    kind = args.certificate or 'fast'
    manifest = certify.export_predictor(
      args.export,
      *contents[:3],
      certificate=kind,
      class_names=contents.class_names,
      resize=contents.resize,
      config=contents.config,
    )
    excess = decimals.excess_up(manifest['lipschitz_bound'])
    print(f'{args.export}: {kind} predictor; Λ = 1 + {excess}')
  if args.export_program:
    certify.export_program(args.export_program, *contents[:3])
    platforms = ', '.join(predictor_lib.PLATFORMS)
    print(f'{args.export_program}: program for {platforms}')


def _certify_all(
  args: argparse.Namespace,
  predictor: certify.Predictor,
  how: inputs.Preprocessing,
  facts: dict[str, Any],
) -> int:
  """Certifies and prints all images; returns the exit code."""
  found, failed = [], []

  def readable() -> Iterator[tuple[str, np.ndarray, list[str]]]:
    for path in inputs.expand(args.images, sys.stdin):
      try:
        yield path, *inputs.read(path, how)
      except inputs.BadInputError as error:
        failed.append({'path': path, 'error': str(error)})
        print(f'error: {errors.printable(path)} {error}.', file=sys.stderr)

  names = predictor.class_names
  width = max(map(len, ('name', *names))) + 2 if names else 0
  if not args.json:
    _print_head(facts, width)
  pairs = readable()
  while batch := list(itertools.islice(pairs, _BATCH)):
    for entry in _certify_batch(predictor, batch, args.top_k):
      found.append(entry)
      if not args.json:
        _print_entry(entry, width)
  if args.json:
    output = {**facts, 'images': found, 'errors': failed}
    text = json.dumps(output, indent=2, ensure_ascii=False)
    # Bytes of file names that are no UTF-8 become JSON's \u escapes.
    print(text.encode('utf-8', 'backslashreplace').decode())
  return 1 if failed else 0


def _certify_batch(
  predictor: certify.Predictor,
  batch: Sequence[tuple[str, np.ndarray, list[str]]],
  top_k: int,
) -> Iterator[dict[str, Any]]:
  """Yields the JSON entry of each image of a batch."""
  images = np.stack([image for _, image, _ in batch])
  padding = [(0, _BATCH - len(images)), (0, 0), (0, 0), (0, 0)]
  classes, rivals, rounding = predictor.certify(
    np.pad(images, padding, mode='edge')
  )
  names = predictor.class_names

  def describe(j: int, radius: np.ndarray) -> dict[str, Any]:
    name = {'class_name': names[j]} if names else {}
    return {'class': int(j), **name, 'radius': decimals.below(float(radius))}

  for i, (path, _, done) in enumerate(batch):
    radius = np.min(rivals[i])
    entry = {
      'path': path,
      **describe(classes[i], radius),
      'grey_levels': decimals.below(float(radius), 255),
      'done': done,
    }
    if rounding is not None:
      entry['logit_error'] = float(decimals.up(float(rounding[i]), 15))
    if top_k:
      order = np.argsort(rivals[i], kind='stable')
      nearest = order[order != classes[i]][:top_k]
      entry['rivals'] = [describe(j, rivals[i][j]) for j in nearest]
    yield entry


def _print_head(facts: dict[str, Any], width: int) -> None:
  """Prints the facts about all images, for class names of a width."""
  excess = decimals.excess_up(facts['lipschitz_bound'])
  for title, text in (
    ('model', facts['model']),
    ('certificate', f'{facts["certificate"]}; Λ = 1 + {excess}'),
    ('', facts['note']),
    ('images', facts['preprocessing']),
    ('', facts['conversions']),
    ('units', facts['units']),
  ):
    if text:
      print(f'{title:<14}{text}')
  name = 'name'.ljust(width)[:width]
  print(f'class  {name}ℓ2 radius in [0, 1]  in grey levels  image')


def _print_entry(entry: dict[str, Any], width: int) -> None:
  """Prints the lines of one image."""
  radius = decimals.down(entry['radius'], 6)
  levels = decimals.down(entry['grey_levels'], 2)
  path = errors.printable(entry['path'])
  name = entry.get('class_name', '').ljust(width)
  print(
    f'{entry["class"]:>5d}  {name}{radius:>19}  {levels:>14}  {path}',
    flush=True,
  )
  if entry['done'] and not path.endswith('.npy'):  # The head says it of arrays.
    print(f'{"":7}{"; ".join(entry["done"])}')
  for rival in entry.get('rivals', ()):
    shown = decimals.down(rival['radius'], 6)
    known = f' ({rival["class_name"]})' if 'class_name' in rival else ''
    print(f'{"":{7 + width}}{shown:>19}  against class {rival["class"]}{known}')


if __name__ == '__main__':
  sys.exit(main())
