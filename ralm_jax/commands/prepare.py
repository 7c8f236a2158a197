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

from collections.abc import Sequence
from typing import Any

from ralm_jax.commands import flags
from ralm_jax.commands.flags import Parser
from ralm_jax.preparation import catalogue


def _pairs(arguments: Sequence[str], flag: str) -> dict[str, str]:
  pairs = {}
  for argument in arguments:
    name, equals, value = argument.partition('=')
    if not (name and equals and value):
      raise ValueError(f'{flag} {argument}: write NAME=VALUE')
    pairs[name] = value
  return pairs


def _parser(prog: str | None) -> Parser:
  benchmarks = '\n'.join(
    f'  {name:<16}' + ', '.join(filter(None, variants))
    for name, variants in catalogue.BENCHMARKS.items()
  )
  parser = Parser(prog, (__doc__ or '').replace('{benchmarks}', benchmarks))
  add = parser.add_argument
  add('benchmark', choices=catalogue.BENCHMARKS, metavar='BENCHMARK', help='one of the above')
  add('--variant', help='of the benchmark (default: the first)')
  several: dict[str, Any] = {'nargs': '+', 'action': 'extend', 'default': []}
  text = (
    'files, folders or archives as published; PART= where the name of a file does not say which '
    'part it is (default: none, which needs --download)'
  )
  add('--from', dest='sources', metavar='[PART=]PATH', help=text, **several)
  add('--output', required=True, metavar='DIR', help='the folder to make')
  text = 'also write train.N-shot.jsonl, chosen by hash (default: no such file)'
  add('--shots', type=flags.COUNT, metavar='N', help=text)
  flags.shared(parser, 'shots_seed')
  text = (
    'the shots as somebody else has chosen them: a JSON list, or one a line, of places in the '
    'published training file (from 0) or of ids (default: as --shots chooses)'
  )
  add('--shots_list', metavar='FILE', help=text)
  flags.shared(parser, 'on_error')
  text = 'of train that becomes dev where no file says what does (default: 0.1)'
  add('--dev_fraction', type=flags.SHARE, help=text)
  add('--test_fraction', type=flags.SHARE, help='likewise, for jeopardy (default: 0.2)')
  text = 'whose answers differ; none for all questions of templama (default: 2017 2020)'
  add('--years', nargs='*', help=text)
  text = "questions of MMLU's auxiliary ones for validation (default: 5000)"
  add('--auxiliary_valid', type=flags.NUMBER, help=text)
  add('--overwrite', action='store_true', help='take the place of an earlier output')
  add = parser.add_argument_group('download').add_argument
  add('--download', action='store_true', help='fetch from the publisher')
  text = 'where to keep what was fetched (default: DIR.downloads)'
  add('--downloads', metavar='FOLDER', help=text)
  text = 'that a file must have (default: as the catalogue says)'
  add('--sha256', metavar='FILE=SHA256', help=text, **several)
  add('--address', metavar='FILE=ADDRESS', help="of a copy (default: the publisher's)", **several)
  return parser


def main(argv: Sequence[str] | None = None, prog: str | None = None) -> None:
  """Prepares from command-line flags."""
  arguments = _parser(prog).parse_args(argv)
  from ralm_jax.preparation import prepare
  from ralm_jax.preparation.prepare import Fetch
  from ralm_jax.preparation.producing import Shots

  sha256, addresses = _pairs(arguments.sha256, '--sha256'), _pairs(arguments.address, '--address')
  fetch = Fetch(arguments.downloads, sha256=sha256, addresses=addresses)
  if not arguments.download and (sha256 or addresses):
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
