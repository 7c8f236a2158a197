"""Published files of a benchmark to question files of ours, with a manifest."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
import dataclasses
import importlib.metadata
import os
import shutil
import sys
from typing import Any

from ralm_jax.preparation import (
  download,
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
from ralm_jax.preparation.producing import Shots
from ralm_jax.preparation.protocols import Inputs, Options
from ralm_jax.preparation.reading import Reader
from ralm_jax.preparation.writing import Written

OPTIONS = tuple(field.name for field in dataclasses.fields(Options))


@dataclasses.dataclass(frozen=True)
class Fetch:
  """How to fetch from the publisher what is not there."""

  folder: str | None = None  # It is kept; None is 'OUTPUT.downloads'.
  sha256: Mapping[str, str] = dataclasses.field(default_factory=dict)
  # In place of the publisher's, by name.
  addresses: Mapping[str, str] = dataclasses.field(default_factory=dict)
  patience: Patience = Patience()


@dataclasses.dataclass(frozen=True)
class Report:
  """What was prepared."""

  manifest: Mapping[str, Any]
  made: bool  # False where it was all there already.
  lines: list[str]


def prepare(
  known: Benchmark,
  output: str,
  sources: Sequence[str] = (),
  *,
  options: Mapping[str, Any] | None = None,
  shots: Shots = Shots(),
  fetch: Fetch | None = None,
  on_error: str = 'raise',
  overwrite: bool = False,
  progress: bool = True,
) -> Report:
  """Makes question files of a benchmark's published files.

  Args:
    sources: files, folders, archives, or ROLE=PATH.
    options: of OPTIONS; None in place of a value for the benchmark's own choice.
    shots: of the training questions, for train.SHOTS-shot.jsonl.
    fetch: from the publisher what is not among `sources`; None fetches nothing.
    on_error: 'raise', or 'skip' to count malformed records and go on. What is
      damaged as a whole, such as a file that was cut short, is always an error.

  Raises:
    FileExistsError: there is another output, and `overwrite` is not set.
    FileNotFoundError: a file is missing, or a download is refused.
    ValueError: an option does not suit, a file is damaged, a record malformed.
    ConnectionError: a download broke off; the same call goes on.
  """
  chosen = _options(known, options or {})
  if shots and 'shots' not in known.options:
    raise ValueError(f'{known.title} has no training questions to choose shots of')
  reader = Reader(on_error, progress=progress)
  output_folder.recover(output)
  found, checksums = _find(known, output, sources, fetch, progress)
  manifest = {
    **_described(known, chosen, shots, on_error),
    'sources': _sources(found, checksums, shots.listed, progress),
    'version': _version(),
  }
  before = writing.read_manifest(output)
  if before is not None and _is_made(output, before, manifest, overwrite):
    return Report(before, False, [f'{output}: is made of the same files already, nothing to do'])
  with output_folder.creating(output, overwrite) as folder:
    unpacked = os.path.join(folder, '.unpacked')
    files = inputs.unpack(known, found, unpacked, progress=progress)
    given = Inputs(known, files, reader, chosen, on_error == 'skip', found.guessed)
    written = producing.write(folder, protocols.PROTOCOLS[known.protocol](given), shots, progress)
    shutil.rmtree(unpacked, ignore_errors=True)
    if shots and not any('-shot' in file.name for file in written):
      raise ValueError(
        f'there are no training questions of {known.title} among the files to choose shots of; '
        'pass them with --from'
      )
    manifest |= {
      'files': [dataclasses.asdict(file) for file in written],
      'parts': {role: tally.to_json() for role, tally in reader.tallies.items()},
      'absent': _absent(known, files, written),
    }
    writing.write_manifest(folder, manifest)
  return Report(manifest, True, _lines(output, manifest))


def _find(
  known: Benchmark, output: str, sources: Sequence[str], fetch: Fetch | None, progress: bool
) -> tuple[Found, dict[str, str]]:
  """The files, fetched where they are to be, and checksums known of them by path."""
  folder = fetch and fetch.folder or f'{output.rstrip("/")}.downloads'
  ours = (output, folder)
  paths, checksums = list(sources), {}
  if fetch is not None:
    there = inputs.find(known, sources, ours) if sources else None
    for file in _fetch(known, there, folder, fetch, progress):
      paths.append(file.path)
      checksums[file.path] = file.sha256
  if not paths:
    raise ValueError(
      f'name the files of {known.title} with --from, or give --download. ' + known.by_hand()
    )
  return inputs.find(known, paths, ours), checksums


def _is_made(
  output: str, before: dict[str, Any], manifest: Mapping[str, Any], overwrite: bool
) -> bool:
  """Whether an earlier output is what is asked for; raises where it must not be replaced."""
  difference = writing.difference(before, manifest)
  problem = None if difference else writing.damaged(output, before)
  if overwrite or not (difference or problem):
    return not (difference or problem)
  if problem:
    raise FileExistsError(f'{problem}; give --overwrite to make it again.')
  raise FileExistsError(
    f'{output} is made of other files or with other options: {difference}. Give another folder, '
    'or --overwrite.'
  )


def _described(known: Benchmark, options: Options, shots: Shots, on_error: str) -> dict[str, Any]:
  """What the user asked for, as the manifest has it."""
  values = dataclasses.asdict(options) | {'years': list(options.years)}
  return {
    'format': writing.FORMAT,
    'benchmark': known.name,
    'variant': known.variant,
    'options': {
      **{name: value for name, value in values.items() if name in known.options},
      **{'shots': shots.count, 'shots_seed': shots.seed, 'on_error': on_error},
    },
  }


def _options(known: Benchmark, given: Mapping[str, Any]) -> Options:
  """The options that were given; ones that mean nothing here are errors."""
  chosen = {name: value for name, value in given.items() if value is not None}
  for name in chosen:
    if name not in known.options:
      options = ', '.join(f'--{option}' for option in known.options) or 'no options'
      raise ValueError(f'--{name} means nothing for {known.title}; it has {options}')
  if 'years' in chosen:
    chosen['years'] = tuple(str(year) for year in chosen['years'])
  return Options(**chosen)


def _fetch(
  known: Benchmark, there: Found | None, folder: str, fetch: Fetch, progress: bool
) -> Iterator[Download]:
  """Files of the publisher, but for those that are there."""
  if not known.sources:
    raise ValueError(f'{known.title} has no address to download from. {known.by_hand()}')
  names = [source.name for source in known.sources]
  for name in (*fetch.sha256, *fetch.addresses):
    if name not in names:
      raise ValueError(f'{name!r} is no file of {known.title}; they are {", ".join(names)}')
  for source in known.sources:
    if there and inputs.has(known, there, source.name):
      if source.name in (*fetch.sha256, *fetch.addresses):
        raise ValueError(
          f'{source.name} is not fetched, --from gives it already: leave out '
          f'--sha256 and --address of it'
        )
      continue
    given = fetch.sha256.get(source.name)
    moved = fetch.addresses.get(source.name)
    try:
      yield download.fetch(
        moved or source.addresses,
        os.path.join(folder, source.name),
        sha256=given or source.sha256,
        # Of another file than the catalogue's the size is another, too.
        size=None if given else source.size,
        by_hand=known.by_hand(),
        patience=fetch.patience,
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
  """Parts to miss: no set of KILT's without any file, nor a part that was made of another."""
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
