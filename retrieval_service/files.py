"""File habits that keep a folder whole: readers find a thing complete or not at all."""

from __future__ import annotations

from collections.abc import Iterator
import contextlib
import dataclasses
import fcntl
import functools
import hashlib
import os
import tempfile
from typing import IO, BinaryIO

PathLike = str | os.PathLike[str]

digest = functools.partial(hashlib.blake2b, digest_size=16)


@dataclasses.dataclass(frozen=True)
class FileRecord:
  """What a file must be: its size and the blake2b checksum of its bytes."""

  bytes: int
  checksum: str


class HashingFile:
  """A new file whose size and checksum are known when it is complete."""

  def __init__(self, path: str):
    self._file: BinaryIO = open(path, 'wb')
    self._hash = digest()
    self._bytes = 0

  def write(self, data) -> int:
    """Appends bytes, or any contiguous buffer."""
    data = memoryview(data).cast('B')
    self._file.write(data)
    self._hash.update(data)
    self._bytes += len(data)
    return len(data)

  def finish(self) -> FileRecord:
    """Flushes to the disk and closes."""
    flush_to_disk(self._file)
    self._file.close()
    return FileRecord(self._bytes, self._hash.hexdigest())

  def close(self) -> None:
    """Closes without a claim that the file is whole."""
    with contextlib.suppress(OSError):  # a full disk fails here once more
      self._file.close()


def checksum(path: str) -> str:
  """The blake2b checksum of a file."""
  with open(path, 'rb') as file:
    return hashlib.file_digest(file, digest).hexdigest()


def flush_to_disk(file: IO) -> None:
  file.flush()
  os.fsync(file.fileno())


def flush_folder(folder: str) -> None:
  """Makes renames inside a folder survive a power cut."""
  descriptor = os.open(folder, os.O_RDONLY)
  try:
    os.fsync(descriptor)
  finally:
    os.close(descriptor)


@contextlib.contextmanager
def replacing(path: str) -> Iterator[BinaryIO]:
  """Yields a file to write, which becomes `path` in one step if all goes well."""
  folder, name = os.path.split(path)
  descriptor, aside = tempfile.mkstemp(prefix=f'.tmp-{name}-', dir=folder)
  try:
    with os.fdopen(descriptor, 'wb') as file:
      yield file
      flush_to_disk(file)
    os.chmod(aside, 0o644)  # mkstemp's 0600 would hide it from other users
    os.replace(aside, path)
  except BaseException:
    with contextlib.suppress(FileNotFoundError):
      os.remove(aside)
    raise
  flush_folder(folder)


def write_text(path: str, text: str) -> None:
  """Replaces a small file in one step."""
  with replacing(path) as file:
    file.write(text.encode())


@contextlib.contextmanager
def lock(path: str) -> Iterator[None]:
  """Holds a lock among processes; the system drops it if the holder dies."""
  with open(path, 'ab') as file:
    fcntl.flock(file, fcntl.LOCK_EX)
    yield


def is_locked(path: str) -> bool:
  """Whether a living process holds the lock of a file, if there is one."""
  try:
    with open(path, 'r+b') as file:
      fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
  except (FileNotFoundError, NotADirectoryError):
    return False
  except BlockingIOError:
    return True
  return False
