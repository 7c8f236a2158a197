"""What is known of fetched files: `checksums.json` beside them."""

from __future__ import annotations

from collections.abc import Iterator
import contextlib
import dataclasses
import fcntl
import json
import os
import re
from typing import Any

from ralm_jax.files import atomic_files, checksums, progress

CHECKSUMS = 'checksums.json'
_SHA256 = re.compile(r'[0-9a-f]{64}')


@dataclasses.dataclass(frozen=True)
class Download:
  """A file that is there."""

  path: str
  sha256: str
  size: int
  address: str = ''  # Where it came from; '' for one that lay there unknown.
  fetched: bool = False
  resumed_at: int = 0  # Bytes that earlier connections had brought.


def checked_sha256(text: str, name: str) -> str:
  """A SHA-256 in lower case; ValueError where it is none."""
  if not _SHA256.fullmatch(text.lower()):
    raise ValueError(f'{name}: {text!r:.80} is no SHA-256 (64 hexadecimal digits)')
  return text.lower()


def read_checksums(folder: str) -> dict[str, dict[str, Any]]:
  """Name to sha256, size and address of a folder's files; ValueError where the list is damaged."""
  path = os.path.join(folder, CHECKSUMS)
  try:
    with open(path, encoding='utf-8') as file:
      known = json.load(file)
    if all(_SHA256.fullmatch(entry['sha256']) for entry in known.values()):
      return known
  except FileNotFoundError:
    return {}
  except (ValueError, TypeError, KeyError, AttributeError):
    pass
  raise ValueError(
    f'{path} is no list of checksums; remove it, and what was fetched will be taken as it is.'
  )


def note(file: Download) -> None:
  """Writes a file into the list of checksums beside it."""
  folder, name = os.path.split(os.path.abspath(file.path))
  descriptor = os.open(folder, os.O_RDONLY)
  try:
    # Two processes may fetch two files; the list is of both.
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    known = read_checksums(folder)
    known[name] = {'sha256': file.sha256, 'size': file.size, 'address': file.address}
    atomic_files.write_json(os.path.join(folder, CHECKSUMS), known, indent=2, sort_keys=True)
  finally:
    os.close(descriptor)


@contextlib.contextmanager
def only_process(path: str) -> Iterator[None]:
  """Keeps other processes from fetching the same file; BlockingIOError where another one does."""
  lock = f'{path}.lock'
  # The lock dies with its process, the file may stay.
  with open(lock, 'w', encoding='utf-8') as file:
    try:
      fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as e:
      raise BlockingIOError(f'{path} is being fetched by another process; wait for it.') from e
    yield
    # Only once the file is there, which whoever waits looks for first.
    os.remove(lock)


def file_sha256(path: str, *, show: bool = False) -> str:
  """SHA-256 of a file's bytes, hexadecimal; `show` shows a bar."""
  with bytes_bar(f'checking {os.path.basename(path)}', os.path.getsize(path), show) as bar:
    return checksums.sha256_of(path, bar.update)


def bytes_bar(desc: str, total: int | None, show: bool, initial: int = 0) -> Any:
  """A progress bar that counts bytes."""
  return progress.bar(desc=desc, unit='B', unit_scale=True, total=total, initial=initial, show=show)
