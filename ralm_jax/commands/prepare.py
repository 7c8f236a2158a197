"""Prepare a benchmark: its published files to question files of ours.

  ralm prepare nq_open --from FOLDER --output DIR --shots 64
  ralm prepare triviaqa --variant filtered --from triviaqa-rc.tar.gz --output DIR
  ralm prepare mmlu --variant transfer --from data.tar --output DIR
  ralm prepare fever --from train=claims.jsonl dev=more.jsonl --output DIR
  ralm prepare kilt --variant zsre --download --output DIR

DIR gets a jsonl file for each split, and `manifest.json`: source files with
SHA-256, how many records were read, written and left out and why. The same
command again finds that there is nothing to do.

Benchmarks (--variant):
{benchmarks}
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from ralm_jax.preparation import catalogue, prepare
from ralm_jax.preparation.prepare import Fetch
from ralm_jax.preparation.producing import Shots


def _pairs(arguments: Sequence[str], flag: str) -> dict[str, str]:
  pairs = {}
  for argument in arguments:
    name, equals, value = argument.partition('=')
    if not (name and equals and value):
      raise ValueError(f'{flag} {argument}: write NAME=VALUE')
    pairs[name] = value
  return pairs


def _parser(prog: str | None) -> argparse.ArgumentParser:
  benchmarks = '\n'.join(
    f'  {name:<16}' + ', '.join(filter(None, variants))
    for name, variants in catalogue.BENCHMARKS.items()
  )
  parser = argparse.ArgumentParser(
    prog=prog,
    description=(__doc__ or '').replace('{benchmarks}', benchmarks),
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  parser.add_argument('benchmark', choices=catalogue.BENCHMARKS, metavar='BENCHMARK')
  parser.add_argument('--variant', help='of the benchmark (default: the first)')
  parser.add_argument(
    '--from',
    dest='sources',
    nargs='+',
    action='extend',
    default=[],
    metavar='[PART=]PATH',
    help='files, folders or archives as published; PART= where the name of a '
    'file does not say which part it is',
  )
  parser.add_argument('--output', required=True, metavar='DIR')
  parser.add_argument(
    '--shots', type=int, metavar='N', help='also write train.N-shot.jsonl, chosen by hash'
  )
  parser.add_argument('--shots_seed', type=int, default=0)
  parser.add_argument(
    '--shots_list',
    metavar='FILE',
    help='the shots as somebody else has chosen them: a JSON list, or one a '
    'line, of places in the published training file (from 0) or of ids',
  )
  parser.add_argument(
    '--on_error',
    choices=('raise', 'skip'),
    default='raise',
    help='skip: count malformed records and go on',
  )
  parser.add_argument(
    '--dev_fraction',
    type=float,
    help='of train that becomes dev where no file says what does (0.1)',
  )
  parser.add_argument('--test_fraction', type=float, help='likewise, for jeopardy (0.2)')
  parser.add_argument(
    '--years',
    nargs='*',
    help='whose answers differ (2017 2020); none for all questions of templama',
  )
  parser.add_argument(
    '--auxiliary_valid', type=int, help="questions of MMLU's auxiliary ones for validation (5000)"
  )
  parser.add_argument(
    '--overwrite', action='store_true', help='take the place of an earlier output'
  )
  fetching = parser.add_argument_group('download')
  fetching.add_argument('--download', action='store_true', help='fetch from the publisher')
  fetching.add_argument(
    '--downloads', metavar='FOLDER', help='where to keep what was fetched (default: DIR.downloads)'
  )
  fetching.add_argument(
    '--sha256',
    nargs='+',
    action='extend',
    default=[],
    metavar='FILE=SHA256',
    help='that a file must have',
  )
  fetching.add_argument(
    '--address',
    nargs='+',
    action='extend',
    default=[],
    metavar='FILE=ADDRESS',
    help="of a copy, in place of the publisher's",
  )
  return parser


def main(argv: Sequence[str] | None = None, prog: str | None = None) -> None:
  """Prepares from command-line flags."""
  arguments = _parser(prog).parse_args(argv)
  fetch = Fetch(
    arguments.downloads,
    sha256=_pairs(arguments.sha256, '--sha256'),
    addresses=_pairs(arguments.address, '--address'),
  )
  if not arguments.download and (fetch.sha256 or fetch.addresses):
    raise ValueError('--sha256 and --address are for --download')
  report = prepare.prepare(
    catalogue.find(arguments.benchmark, arguments.variant),
    arguments.output,
    arguments.sources,
    options={name: getattr(arguments, name) for name in prepare.OPTIONS},
    shots=Shots(arguments.shots, arguments.shots_seed, arguments.shots_list),
    fetch=fetch if arguments.download else None,
    on_error=arguments.on_error,
    overwrite=arguments.overwrite,
  )
  for line in report.lines:
    print(line)
