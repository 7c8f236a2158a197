"""Checksums that downloads bring along, compared with what lies on the disk.

Nobody has to ask for it: the files of the Hugging Face hub carry their SHA-256
in the cache (`blobs/<sha256>`) or beside a local folder
(`.cache/huggingface/download`), others in `SHA256SUMS` or `FILE.sha256`.
"""

from __future__ import annotations

from collections.abc import Callable
import contextlib
import hashlib
import json
import os
import re
import time
from typing import Any

from ralm_jax.files import atomic_files, progress as bars
from ralm_jax.files.atomic_files import PathLike

_SHA256 = re.compile(r'[0-9a-f]{64}')
_LISTS = ('SHA256SUMS', 'SHA256SUMS.txt', 'sha256sums.txt')
_CHUNK = 1 << 20
_TICK_NS = 2_000_000_000


def sha256_of(path: PathLike, read: Callable[[int], Any] | None = None) -> str:
  """SHA-256 of a file's bytes, hexadecimal; `read` is told how many were read."""
  digest = hashlib.sha256()
  with open(path, 'rb') as file:
    while chunk := file.read(_CHUNK):
      digest.update(chunk)
      if read is not None:
        read(len(chunk))
  return digest.hexdigest()


def verify(path: str, *, progress: bool = True) -> int:
  """Compares a file, or the files of a folder, with their known checksums.

  Folders in a folder are looked into, theirs are not. Returns how many checksums are known.

  Raises:
    ValueError: a file is not what its checksum says, or a `.sha256` says none.
  """
  root, files = os.path.dirname(path), [path]
  if os.path.isdir(path):
    root, files = path, _files(path)
    for folder in (os.path.join(path, name) for name in sorted(os.listdir(path))):
      if os.path.isdir(folder):
        files += _files(folder)
  expected = {
    file: known for file in files if os.path.isfile(file) and (known := _expected(file, root))
  }
  total = sum(os.path.getsize(file) for file in expected)
  with bars.bar(
    desc='checksums', unit='B', unit_scale=True, total=total, show=progress and bool(expected)
  ) as bar:
    for file, (checksum, origin) in expected.items():
      found = sha256_of(file, bar.update)
      if found != checksum:
        raise ValueError(
          f'{file} has the SHA-256 {found}, expected {checksum} by {origin}; it is damaged, '
          'fetch it again.'
        )
  return len(expected)


def _files(folder: str) -> list[str]:
  paths = (os.path.join(folder, name) for name in sorted(os.listdir(folder)))
  return [path for path in paths if os.path.isfile(path)]


def _expected(file: str, root: str) -> tuple[str, str] | None:
  """The SHA-256 that a file should have, and who says so: its folder or the `root`."""
  folder, name = os.path.split(os.path.abspath(file))
  # Where something may be said of it, under which name.
  places = {folder: name}
  places[os.path.abspath(root)] = os.path.relpath(file, root or '.')
  if os.path.isfile(f'{file}.sha256'):
    found = _SHA256.search(_text(f'{file}.sha256').lower())
    if not found:
      raise ValueError(
        f'{file}.sha256 holds no SHA-256 (64 hexadecimal digits); fetch it again, or remove it.'
      )
    return found[0], f'{file}.sha256'
  for place, known_as in places.items():
    for listing in _LISTS:
      for line in _text(os.path.join(place, listing)).splitlines():
        checksum, _, of = line.strip().partition(' ')
        # A star in front of the name means binary mode.
        if of.strip().removeprefix('*').removeprefix('./') == known_as and (
          _SHA256.fullmatch(checksum.lower())
        ):
          return checksum.lower(), os.path.join(place, listing)
  # The hub's cache: a link to a blob that is named by its content.
  blob = os.path.realpath(file)
  if os.path.basename(os.path.dirname(blob)) == 'blobs' and (
    _SHA256.fullmatch(os.path.basename(blob))
  ):
    return os.path.basename(blob), 'its name in the cache'
  # A local folder of the hub: commit, entity tag and time, a line each. The
  # tag of a large file is its SHA-256.
  for place, known_as in places.items():
    note = os.path.join(place, '.cache', 'huggingface', 'download', f'{known_as}.metadata')
    lines = _text(note).splitlines()
    if len(lines) > 1 and _SHA256.fullmatch(lines[1].strip()):
      return lines[1].strip(), note
  return None


def _text(path: str) -> str:
  try:
    with open(path, encoding='utf-8', errors='replace') as file:
      return file.read()
  except (FileNotFoundError, NotADirectoryError):
    return ''


class Remembered:
  """SHA-256 of files, read again where their status has changed, as git does it.

  A file that was written just before it was read could be written again within one tick of the
  clock, and is not remembered.
  """

  def __init__(self, path: PathLike):
    """What the file `path` remembers; nothing where it cannot be read."""
    self._path = path
    self._before: dict[str, list[Any]] = {}
    with contextlib.suppress(OSError, ValueError), open(path, encoding='utf-8') as file:
      content = json.load(file)
      self._before = content if isinstance(content, dict) else {}
    self._known: dict[str, list[Any]] = {}

  def sha256_of(self, path: PathLike) -> str:
    name = os.path.realpath(path)
    status = os.stat(name)
    own = [status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns]
    before = self._before.get(name)
    if isinstance(before, list) and before[:-1] == own:
      found = before[-1]
    else:
      started_ns = time.time_ns()
      found = sha256_of(name)
      if started_ns - max(own[2:]) < _TICK_NS:
        return found
    self._known[name] = [*own, found]
    return found

  def save(self) -> None:
    """Keeps what was asked for, and what is known of other files that are still there."""
    rest = {n: v for n, v in self._before.items() if n not in self._known and os.path.exists(n)}
    if (known := rest | self._known) != self._before:
      atomic_files.write_json(self._path, known)
