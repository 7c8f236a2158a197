"""A generation's manifest, and the file habits that keep a folder whole.

Everything is written aside, flushed to the disk and renamed, so that a reader
finds a thing complete or not at all.
"""

from collections.abc import Iterator
import contextlib
import dataclasses
import fcntl
import hashlib
import json
import os
import tempfile
from typing import Any, BinaryIO

from retrieval_service.options import IndexOptions

FORMAT_VERSION = 1
MANIFEST = 'manifest.json'
INDEX = 'index.faiss'
EMBEDDINGS = 'embeddings.float16'
IDS = 'ids.int64'
WRITER_LOCK = 'writer.lock'

_BLOCK_BYTES = 8 << 20


@dataclasses.dataclass(frozen=True)
class FileRecord:
  """What a file must be: its size and the blake2b checksum of its bytes."""

  bytes: int
  checksum: str


@dataclasses.dataclass(frozen=True)
class Manifest:
  """What a generation is.

  Attributes:
    generation: Its number, from 1.
    dim: Embedding size.
    count: Number of vectors.
    options: The index options asked for.
    factory: The FAISS factory string they came to.
    fallback: Whether a flat index stands in because the corpus is tiny.
    files: Size and checksum of each file beside the manifest.
    created: UTC time, ISO 8601.
    metadata: The builder's own JSON: corpus, fingerprint, checkpoint...
    build_id: What the builder called this build; a repeat is recognised by it.
    make_current: Whether it was built to be served at once.
    edits_applied: The last edit its vectors know of: vectors put by this edit
      or an earlier one give way to those of the generation.
    edits_forgotten: This edit and earlier ones do not hold in it at all.
    next_id: One past the largest id of this and earlier generations; 0: not
      recorded.
  """

  generation: int
  dim: int
  count: int
  options: IndexOptions
  factory: str
  fallback: bool
  files: dict[str, FileRecord]
  created: str
  metadata: dict[str, Any]
  build_id: str = ''
  make_current: bool = True
  edits_applied: int = 0
  edits_forgotten: int = 0
  next_id: int = 0
  format_version: int = FORMAT_VERSION

  def to_json(self) -> str:
    return json.dumps(dataclasses.asdict(self), indent=2) + '\n'

  @classmethod
  def read(cls, folder: str) -> 'Manifest':
    """Reads a folder's manifest.

    Raises:
      FileNotFoundError: There is none.
      ValueError: It is not one of ours, or is damaged.
    """
    path = os.path.join(folder, MANIFEST)
    with open(path, encoding='utf-8') as file:
      text = file.read()
    try:
      fields = json.loads(text)
      if fields['format_version'] != FORMAT_VERSION:
        raise ValueError(
          f'format version {fields["format_version"]}, and this program reads {FORMAT_VERSION}'
        )
      fields['options'] = IndexOptions.from_dict(fields['options'])
      fields['files'] = {name: FileRecord(**record) for name, record in fields['files'].items()}
      return cls(**fields)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
      raise ValueError(
        f'{path} is not a readable manifest ({len(text)} characters): {error}'
      ) from error


class HashingFile:
  """A new file whose size and checksum are known when it is complete."""

  def __init__(self, path: str):
    self._file: BinaryIO = open(path, 'wb')
    self._hash = hashlib.blake2b(digest_size=16)
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
  digest = hashlib.blake2b(digest_size=16)
  with open(path, 'rb') as file:
    while block := file.read(_BLOCK_BYTES):
      digest.update(block)
  return digest.hexdigest()


def flush_to_disk(file) -> None:
  file.flush()
  os.fsync(file.fileno())


def flush_folder(folder: str) -> None:
  """Makes renames inside a folder survive a power cut."""
  descriptor = os.open(folder, os.O_RDONLY)
  try:
    os.fsync(descriptor)
  finally:
    os.close(descriptor)


def write_text(path: str, text: str) -> None:
  """Replaces a small file in one step."""
  folder, name = os.path.split(path)
  descriptor, aside = tempfile.mkstemp(prefix=f'.tmp-{name}-', dir=folder)
  try:
    with os.fdopen(descriptor, 'w', encoding='utf-8') as file:
      file.write(text)
      flush_to_disk(file)
    os.chmod(aside, 0o644)  # mkstemp's 0600 would hide it from other users
    os.replace(aside, path)
  except BaseException:
    with contextlib.suppress(FileNotFoundError):
      os.remove(aside)
    raise
  flush_folder(folder)


@contextlib.contextmanager
def file_lock(path: str) -> Iterator[None]:
  """Holds a lock among processes; the system drops it if the holder dies."""
  with open(path, 'a', encoding='utf-8') as file:
    fcntl.flock(file, fcntl.LOCK_EX)
    yield
