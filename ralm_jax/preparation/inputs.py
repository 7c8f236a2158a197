"""Finds a benchmark's files among what the user names."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
import dataclasses
import fnmatch
import os

from ralm_jax.files import atomic_files, byte_streams, input_files
from ralm_jax.preparation import archives, download, writing
from ralm_jax.preparation.catalogue import Benchmark, Part

_ENDINGS = ('.json', '.jsonl', '.tsv', '.csv', '.txt')


@dataclasses.dataclass(frozen=True)
class Found:
  """What there is of a benchmark."""

  files: dict[str, list[str]]  # By role, in the order in which they are read.
  archives: list[str]
  named: frozenset[str] = frozenset()  # Roles whose files were passed as ROLE=PATH.
  guessed: frozenset[str] = frozenset()  # Roles told by a name that the publisher does not use.

  def paths(self) -> list[str]:
    """All of them, each once."""
    files = [path for paths in self.files.values() for path in paths]
    return list(dict.fromkeys([*files, *self.archives]))


def find(benchmark: Benchmark, sources: Sequence[str], passing: Collection[str] = ()) -> Found:
  """Sorts files by their role.

  Args:
    sources: files, globs, folders (with those in them), or ROLE=PATH where the
      name does not say what a file is.
    passing: folders that are passed by where they lie in another one. So are
      outputs, whose files are called like a benchmark's.

  Raises:
    FileNotFoundError: there is no such file, or a folder holds none of the benchmark's.
    ValueError: a file's name says nothing, or two say the same.
  """
  roles = [part.role for part in benchmark.parts]
  named: dict[str, list[str]] = {}
  loose: list[str] = []
  held: list[str] = []
  for source in sources:
    role, equals, path = source.partition('=')
    if equals and role in roles:
      named.setdefault(role, []).extend(_files(path, passing))
      continue
    meant = role.replace('/', '_').replace('.', '_').isidentifier()
    if equals and meant and not os.path.exists(os.path.expanduser(source)):
      raise ValueError(
        f'--from {source}: {benchmark.title} has no part {role!r}; it has '
        f'{", ".join(roles)}. For a path with such a name write ./ in front.'
      )
    if os.path.isdir(os.path.expanduser(source)):
      kept, known = _in_folder(benchmark, source, passing)
      held += kept
      loose += known
      continue
    for path in input_files.expand_inputs(source):
      if archives.is_archive(path):
        held.append(path)
      elif _part(benchmark, path) is None:
        raise ValueError(
          f'{path}: its name does not say which part of {benchmark.title} it is; write --from '
          f'{benchmark.example()}={path} (parts: {", ".join(roles)})'
        )
      else:
        loose.append(path)
  files = sort(benchmark, loose, named)
  guessed = [
    role
    for role, paths in files.items()
    if role not in named and any(_exact(benchmark, p) is None for p in paths)
  ]
  return Found(files, list(dict.fromkeys(held)), frozenset(named), frozenset(guessed))


def _in_folder(
  benchmark: Benchmark, source: str, passing: Collection[str]
) -> tuple[list[str], list[str]]:
  """The benchmark's archives and loose files in a folder."""
  inside = list(_walk(os.path.expanduser(source), passing))
  own = [s.name for s in benchmark.sources]
  held = [p for p in inside if os.path.basename(p) in own and archives.is_archive(p)]
  loose = [p for p in inside if not archives.is_archive(p) and _part(benchmark, p) is not None]
  if not held and not loose:
    raise FileNotFoundError(
      f'{source}: no file of {benchmark.title} is in this folder; expected {benchmark.expected()}. '
      f'Other names are passed as --from {benchmark.example()}=FILE.'
    )
  return held, loose


def has(benchmark: Benchmark, found: Found, name: str) -> bool:
  """Whether there is an archive of this name, or the part that a file would be."""
  if archives.is_archive(name):
    return any(os.path.basename(p).lower() == name.lower() for p in found.archives)
  match = _part(benchmark, name)
  return match is not None and match[0].role in found.files


def unpack(
  benchmark: Benchmark, found: Found, folder: str, *, progress: bool = True
) -> dict[str, list[str]]:
  """Files by role, those in archives included.

  Files that were passed as ROLE=PATH are all of their part; else a file takes the place of one of
  an archive that is called the same.

  Raises ValueError where an archive is damaged, holds none of the benchmark's files, or has
  another file of a part that is one.
  """
  loose: list[str] = []

  def wanted(name: str) -> bool:
    return _exact(benchmark, name) is not None

  for number, archive in enumerate(found.archives):
    into = os.path.join(folder, str(number))
    files = archives.extract(archive, into, wanted, progress=progress)
    if not files:
      raise ValueError(
        f'{archive}: holds no file of {benchmark.title}; expected {benchmark.expected()}'
      )
    loose += files
  result = dict(found.files)
  parts = {part.role: part for part in benchmark.parts}
  for role, paths in sort(benchmark, loose, {}).items():
    if role not in found.named:
      result[role] = _merged(parts[role], found.files.get(role, []), paths)
  order = [part.role for part in benchmark.parts]
  return dict(sorted(result.items(), key=lambda item: order.index(item[0])))


def sort(
  benchmark: Benchmark, paths: Sequence[str], named: dict[str, list[str]]
) -> dict[str, list[str]]:
  """Gives each file its role by its name, those without one left out; `named` outdo others.

  Raises ValueError where two files are the same part, which is one.
  """
  result = {role: list(dict.fromkeys(files)) for role, files in named.items()}
  taken = {os.path.realpath(p) for files in result.values() for p in files}
  by_role: dict[str, list[tuple[int, str]]] = {}
  for path in dict.fromkeys(paths):
    match = _part(benchmark, path)
    if match is not None and os.path.realpath(path) not in taken:
      taken.add(os.path.realpath(path))
      by_role.setdefault(match[0].role, []).append((match[1], path))
  for part in benchmark.parts:
    if part.role in result:
      if len(result[part.role]) > 1 and not part.many:
        raise _ambiguous(part, result[part.role])
      continue
    candidates = by_role.get(part.role, [])
    if not candidates:
      continue
    candidates = [c for c in candidates if c[0] < len(part.names)] or candidates
    if not part.many:
      best = min(rank for rank, _ in candidates)
      candidates = [(rank, path) for rank, path in candidates if rank == best]
      if len(candidates) > 1:
        raise _ambiguous(part, [path for _, path in candidates])
    # By name, so that nothing hangs on how a disk lists its files.
    result[part.role] = sorted((path for _, path in candidates), key=_by_name)
  return result


def _by_name(path: str) -> tuple[str, str]:
  return os.path.basename(path), path


def _merged(part: Part, loose: list[str], unpacked: list[str]) -> list[str]:
  """Files of a part, of which some lie in archives."""
  there = {_plain(path)[-1] for path in loose}
  more = [path for path in unpacked if _plain(path)[-1] not in there]
  if loose and more and not part.many:
    raise ValueError(
      f'{loose[0]} and {os.path.basename(more[0])} of an archive are both {part.role!r} by their '
      f'names; say which one is: --from {part.role}=FILE'
    )
  return sorted(loose + more, key=_by_name)


def _ambiguous(part: Part, paths: Sequence[str]) -> ValueError:
  return ValueError(
    f'{" and ".join(paths[:3])} are both {part.role!r} by their names; say '
    f'which one is: --from {part.role}=FILE'
  )


def _part(benchmark: Benchmark, path: str) -> tuple[Part, int] | None:
  """The part that a file is by name, and how far down its patterns."""
  match = _exact(benchmark, path)
  if match is not None:
    return match
  name = _plain(path)[-1]
  if not name.endswith(_ENDINGS) or name.endswith('.idx.json'):
    return None  # Lists of indexes are only ever known by their exact name.
  for part in benchmark.parts:
    for rank, pattern in enumerate(part.others, len(part.names)):
      if fnmatch.fnmatchcase(name, pattern):
        return part, rank
  return None


def _exact(benchmark: Benchmark, path: str) -> tuple[Part, int] | None:
  parts = _plain(path)
  if parts[-1].startswith('.'):
    return None  # macOS leaves such companions in archives.
  for part in benchmark.parts:
    for rank, pattern in enumerate(part.names):
      tail = '/'.join(parts[-1 - pattern.count('/') :])
      if fnmatch.fnmatchcase(tail, pattern):
        return part, rank
  return None


def _plain(path: str) -> list[str]:
  """Folders and name in lower case, without the suffix of a compression."""
  path = path.lower().replace(os.sep, '/')
  for suffix in byte_streams.ENDINGS:
    path = path.removesuffix(suffix)
  return path.split('/')


def _files(path: str, passing: Collection[str]) -> list[str]:
  """A file, or all that are in a folder."""
  folder = os.path.expanduser(path)
  if not os.path.isdir(folder):
    return input_files.expand_inputs(path)
  if files := list(_walk(folder, passing)):
    return files
  raise FileNotFoundError(f'{path}: an empty folder')


def _walk(folder: str, passing: Collection[str]) -> Iterator[str]:
  """The files in a folder, but for what we put there."""
  passed = {os.path.realpath(path) for path in passing}

  def is_passed(path: str) -> bool:
    return os.path.realpath(path) in passed or writing.read_manifest(path) is not None

  for root, folders, names in os.walk(folder):
    folders[:] = sorted(
      name for name in folders if not _hidden(name) and not is_passed(os.path.join(root, name))
    )
    for name in sorted(names):
      if not _hidden(name) and not name.endswith(download.PARTIAL):
        yield os.path.join(root, name)


def _hidden(name: str) -> bool:
  return name.startswith('.') or atomic_files.UNFINISHED in name
