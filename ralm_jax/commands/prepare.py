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
from collections.abc import Iterable, Mapping, Sequence
import dataclasses
import importlib.metadata
import os
import shutil
import sys
from typing import Any

from ralm_jax.preparation import (
  catalogue,
  download as download_lib,
  fetched,
  inputs,
  output_folder,
  producing,
  protocols,
  writing,
)
from ralm_jax.preparation.catalogue import Benchmark
from ralm_jax.preparation.download import Patience
from ralm_jax.preparation.fetched import Download
from ralm_jax.preparation.inputs import Found
from ralm_jax.preparation.protocols import Inputs, Options
from ralm_jax.preparation.reading import Reader
from ralm_jax.preparation.writing import Written


@dataclasses.dataclass(frozen=True)
class Report:
  """What was prepared.

  Attributes:
    manifest: as written beside the files.
    made: whether anything was; False where it was all there already.
    lines: for people.
  """

  manifest: Mapping[str, Any]
  made: bool
  lines: list[str]


def prepare(
  benchmark: str,
  *,
  output: str,
  sources: Sequence[str] = (),
  variant: str | None = None,
  shots: int | None = None,
  shots_seed: int = 0,
  shots_list: str | None = None,
  on_error: str = 'raise',
  dev_fraction: float | None = None,
  test_fraction: float | None = None,
  years: Sequence[str] | None = None,
  auxiliary_valid: int | None = None,
  download: bool = False,
  downloads: str | None = None,
  sha256: Mapping[str, str] | None = None,
  addresses: Mapping[str, str] | None = None,
  patience: Patience = Patience(),
  overwrite: bool = False,
  progress: bool = True,
) -> Report:
  """Makes question files of a benchmark's published files.

  Args:
    benchmark: of `catalogue.BENCHMARKS`.
    output: folder to make.
    sources: files, folders, archives, or ROLE=PATH.
    variant: of the benchmark; None for its first one.
    shots: how many training questions to choose for train.SHOTS-shot.jsonl.
    shots_seed: of the choice.
    shots_list: file of the places or ids of the shots, in place of a choice.
    on_error: 'raise', or 'skip' to count malformed records and go on. What is
      damaged as a whole, such as a file that was cut short, is always an error.
    dev_fraction: of train that becomes dev where nothing says what does.
    test_fraction: likewise, of benchmarks without test questions.
    years: whose answers shall differ (templama); () for all questions.
    auxiliary_valid: how many auxiliary questions validate (mmlu transfer).
    download: fetch from the publisher what is not among `sources`.
    downloads: folder to fetch to, which is kept; None is 'OUTPUT.downloads'.
    sha256: of files to fetch, by name.
    addresses: in place of the publisher's, by name.
    patience: of a download.
    overwrite: take the place of an earlier output.
    progress: show bars.

  Raises:
    FileExistsError: there is another output, and `overwrite` is not set.
    FileNotFoundError: a file is missing, or a download is refused.
    ValueError: an option does not suit, a file is damaged, a record malformed.
    ConnectionError: a download broke off; the same call goes on.
  """
  known = catalogue.find(benchmark, variant)
  options = _options(
    known,
    dev_fraction=dev_fraction,
    test_fraction=test_fraction,
    years=years,
    auxiliary_valid=auxiliary_valid,
  )
  if (shots is not None or shots_list) and 'shots' not in known.options:
    raise ValueError(f'{known.title} has no training questions to choose shots of')
  if shots is not None and shots_list:
    raise ValueError('give shots or shots_list, not both')
  reader = Reader(on_error, progress=progress)
  output_folder.recover(output)
  paths, checksums = list(sources), {}
  downloads = downloads or f'{output.rstrip("/")}.downloads'
  ours = (output, downloads)
  if download:
    there = inputs.find(known, sources, ours) if sources else None
    for file in _fetch(known, there, downloads, sha256 or {}, addresses or {}, patience, progress):
      paths.append(file.path)
      checksums[file.path] = file.sha256
  elif sha256 or addresses:
    raise ValueError('--sha256 and --address are for --download')
  if not paths:
    raise ValueError(
      f'name the files of {known.title} with --from, or give --download. ' + known.by_hand()
    )
  found = inputs.find(known, paths, ours)
  manifest = {
    'format': writing.FORMAT,
    'benchmark': known.name,
    'variant': known.variant,
    'options': {
      **{
        name: value
        for name, value in (dataclasses.asdict(options) | {'years': list(options.years)}).items()
        if name in known.options
      },
      'shots': shots,
      'shots_seed': shots_seed,
      'on_error': on_error,
    },
    'sources': _sources(found, checksums, shots_list, progress),
    'version': _version(),
  }
  before = writing.read_manifest(output)
  difference = writing.difference(before, manifest) if before else ''
  if before is not None and not difference:
    problem = writing.damaged(output, before)
    if problem is None:
      return Report(before, False, [f'{output}: is made of the same files already, nothing to do'])
    if not overwrite:
      raise FileExistsError(f'{problem}; give --overwrite to make it again.')
  if before is not None and not overwrite:
    raise FileExistsError(
      f'{output} is made of other files or with other options: '
      f'{difference}. Give another folder, or --overwrite.'
    )
  with output_folder.creating(output, overwrite) as folder:
    unpacked = os.path.join(folder, '.unpacked')
    files = inputs.unpack(known, found, unpacked, progress=progress)
    written = producing.write(
      folder,
      protocols.PROTOCOLS[known.protocol](
        Inputs(known, files, reader, options, on_error == 'skip', found.guessed)
      ),
      shots,
      shots_seed,
      shots_list,
      progress,
    )
    shutil.rmtree(unpacked, ignore_errors=True)
    if (shots is not None or shots_list) and not any('-shot' in file.name for file in written):
      raise ValueError(
        f'there are no training questions of {known.title} among the files to '
        f'choose shots of; pass them with --from'
      )
    manifest |= {
      'files': [dataclasses.asdict(file) for file in written],
      'parts': {role: tally.to_json() for role, tally in reader.tallies.items()},
      'absent': _absent(known, files, written),
    }
    writing.write_manifest(folder, manifest)
  return Report(manifest, True, _lines(output, manifest))


def _options(known: Benchmark, **given: Any) -> Options:
  """The options that were given; ones that mean nothing here are errors."""
  chosen = {name: value for name, value in given.items() if value is not None}
  for name in chosen:
    if name not in known.options:
      raise ValueError(
        f'--{name} means nothing for {known.title}; it has '
        + (', '.join(f'--{option}' for option in known.options) or 'no options')
      )
  if 'years' in chosen:
    chosen['years'] = tuple(str(year) for year in chosen['years'])
  return Options(**chosen)


def _fetch(
  known: Benchmark,
  there: Found | None,
  folder: str,
  sha256: Mapping[str, str],
  addresses: Mapping[str, str],
  patience: Patience,
  progress: bool,
) -> Iterable[Download]:
  """Files of the publisher, but for those that are there."""
  if not known.sources:
    raise ValueError(f'{known.title} has no address to download from. {known.by_hand()}')
  names = [source.name for source in known.sources]
  for name in (*sha256, *addresses):
    if name not in names:
      raise ValueError(f'{name!r} is no file of {known.title}; they are {", ".join(names)}')
  for source in known.sources:
    if there and inputs.has(known, there, source.name):
      if source.name in (*sha256, *addresses):
        raise ValueError(
          f'{source.name} is not fetched, --from gives it already: leave out '
          f'--sha256 and --address of it'
        )
      continue
    given = sha256.get(source.name)
    moved = addresses.get(source.name)
    try:
      yield download_lib.fetch(
        moved or source.addresses,
        os.path.join(folder, source.name),
        sha256=given or source.sha256,
        # Of another file than the catalogue's the size is another, too.
        size=None if given else source.size,
        by_hand=known.by_hand(),
        patience=patience,
        progress=progress,
      )
    except FileNotFoundError as e:
      if not source.optional:
        raise
      print(f'{e} Going on without it.', file=sys.stderr)


def _version() -> str:
  try:
    return importlib.metadata.version('ralm_jax')
  except importlib.metadata.PackageNotFoundError:
    return 'unknown'  # A checkout that is not installed.


def _sources(
  found: Found, checksums: Mapping[str, str], shots_list: str | None, progress: bool
) -> list[dict[str, Any]]:
  roles = {path: role for role, paths in found.files.items() for path in paths}
  entries = [(roles.get(path, 'archive'), path) for path in found.paths()]
  if shots_list:
    entries.append(('shots_list', shots_list))
  return [
    {
      'role': role,
      'path': os.path.abspath(path),
      'bytes': os.path.getsize(path),
      'sha256': checksums.get(path) or fetched.file_sha256(path, show=progress),
    }
    for role, path in entries
  ]


def _absent(known: Benchmark, files: Mapping[str, Any], written: Sequence[Written]) -> list[str]:
  """Parts that one might miss; a set of KILT's without any file is not.

  Nor is a part that was made of another one.
  """
  made = {file.name.removesuffix('.jsonl') for file in written}
  sets = {role.rpartition('/')[0] for role in files}
  return [
    part.role
    for part in known.parts
    if not part.optional
    and part.role not in files
    and part.role not in made
    and part.role.rpartition('/')[0] in sets
  ]


def _lines(output: str, manifest: Mapping[str, Any]) -> list[str]:
  lines = [
    f'{os.path.join(output, file["name"])}: {file["records"]:,}'
    + (f' ({file["how"]})' if file['how'] else '')
    for file in manifest['files']
  ]
  for role, tally in manifest['parts'].items():
    left_out = sum(tally['skipped'].values())
    if left_out:
      lines.append(f'{role}: left out {left_out:,} malformed records:')
      lines += [f'  {count:,} x {reason}' for reason, count in tally['skipped'].items()]
      lines.append(f'  such as {tally["examples"][0]}')
    if tally['renamed_ids']:
      lines.append(f'{role}: {tally["renamed_ids"]:,} ids occurred again and got a number')
  if manifest['absent']:
    lines.append(f'not among the files: {", ".join(manifest["absent"])}')
  return lines


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
  arguments = vars(_parser(prog).parse_args(argv))
  arguments['sha256'] = _pairs(arguments['sha256'], '--sha256')
  arguments['addresses'] = _pairs(arguments.pop('address'), '--address')
  for line in prepare(arguments.pop('benchmark'), **arguments).lines:
    print(line)
