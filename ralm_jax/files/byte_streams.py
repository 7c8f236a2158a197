"""The bytes of a user's file: decompressed, and none of what only looks like the file.

What a file is, its first bytes say, not its name.
"""

import bz2
from collections.abc import Callable, Iterator, Sequence
import contextlib
import gzip
import io
import lzma
from typing import Any, BinaryIO
import zlib


def _zstd(raw: BinaryIO) -> Any:
  import pyarrow  # Heavy.

  return io.BufferedReader(pyarrow.CompressedInputStream(pyarrow.PythonFile(raw, 'r'), 'zstd'))


# How a compressed file begins: its name, and what opens it.
COMPRESSIONS: dict[bytes, tuple[str, Callable[..., Any]]] = {
  b'\x1f\x8b': ('gzipped', gzip.open),
  b'BZh': ('bzip2', bz2.open),
  b'\xfd7zXZ\0': ('xz', lzma.open),
  b'\x28\xb5\x2f\xfd': ('zstd', _zstd),
}
ENDINGS = ('.gz', '.bz2', '.xz', '.zst')

_AS_TEXT = 'write its rows as jsonl (one JSON object a line), for example with Dataset.to_json'
_UNPACK = 'unpack it and name the files in it'
# How a file begins that is none of text, what it is, and the way to text.
_OTHERS: tuple[tuple[tuple[bytes, ...], str, str], ...] = (
  (
    (b'version https://git-lfs.github.com/spec/',),
    'a git-LFS pointer of three lines in place of the file',
    'fetch the file itself with `git lfs pull`, or download it from its page',
  ),
  (
    (b'<!doctype html', b'<html', b'<?xml'),
    'a web page (HTML or XML), perhaps the error or login page of a download',
    'open it in a browser to see what it says, then download the file itself',
  ),
  ((b'PAR1',), 'a parquet file', _AS_TEXT),
  ((b'ARROW1', b'\xff\xff\xff\xff'), 'an Arrow file', _AS_TEXT),
  ((b'SQLite format 3\0',), 'an SQLite database', 'write its rows as jsonl or tsv'),
  ((b'PK\x03\x04', b'PK\x05\x06'), 'a zip archive (or a spreadsheet or PyTorch file)', _UNPACK),
  ((b'7z\xbc\xaf\x27\x1c', b'Rar!'), 'an archive', _UNPACK),
  ((b'\x93NUMPY',), 'a NumPy array', 'name the file of the texts'),
  (
    tuple(bytes([0x80, version]) for version in range(2, 6)),
    'a pickle, which could run anything when opened',
    'write what it holds as jsonl, one JSON object a line',
  ),
  ((b'%PDF-',), 'a PDF', 'extract its text first'),
  (
    (b'\xff\xfe', b'\xfe\xff'),
    'a file in UTF-16',
    'convert it: iconv -f UTF-16 -t UTF-8 FILE > NEW',
  ),
)
_BEGINNING = 512
_TAR = (257, b'ustar')


@contextlib.contextmanager
def open_bytes(path: str) -> Iterator[BinaryIO]:
  """Opens a text file, plain or compressed (told by content); ValueError for what is no text."""
  with open(path, 'rb') as raw:
    yield decompressed(raw, path)


def decompressed(raw: BinaryIO, path: str) -> Any:
  """The content of a file that is open at its beginning; see `open_bytes`."""
  stream = opened(raw)
  with naming_damage(path, lambda: 1):
    beginning = stream.peek(_BEGINNING)  # type: ignore[attr-defined]
  problem = _problem(beginning[:_BEGINNING])
  if problem:
    raise ValueError(f'{path}: {problem}')
  return stream


def opened(raw: BinaryIO) -> Any:
  """The content, decompressed, of whatever file is open at its beginning."""
  name = compression(raw)
  return next((opens(raw) for known, opens in COMPRESSIONS.values() if known == name), raw)


def compression(raw: BinaryIO) -> str:
  """What a file is compressed with; '' where it is not."""
  beginning = raw.read(max(map(len, COMPRESSIONS)))
  raw.seek(0)
  known = (name for magic, (name, _) in COMPRESSIONS.items() if beginning.startswith(magic))
  return next(known, '')


@contextlib.contextmanager
def naming_damage(path: str, line: Callable[[], int] | None = None) -> Iterator[None]:
  """Makes a ValueError that names file (and line) of what damaged compressed data raise."""
  try:
    yield
  except (EOFError, zlib.error, lzma.LZMAError, OSError) as error:
    if isinstance(error, OSError) and error.errno is not None:
      raise  # Of the disk, not of the data: what decompresses raises bare ones.
    with open(path, 'rb') as raw:
      name = compression(raw)
    raise ValueError(
      f'{path}{f":{line()}" if line else ""}: the {name} file is damaged or cut short '
      f'({error}); fetch or compress it again'
    ) from error


def check_fetched(path: str) -> None:
  """Raises ValueError where a pointer or a web page lies in place of a file, of whatever kind."""
  with open(path, 'rb') as file:
    problem = _problem(file.read(_BEGINNING), _OTHERS[:2])
  if problem:
    raise ValueError(f'{path}: {problem}')


def _problem(beginning: bytes, others: Sequence[tuple[Any, str, str]] = _OTHERS) -> str:
  """What is wrong with a file that begins so; '' for text."""
  shown = beginning.lstrip().lower() if beginning.lstrip()[:1] == b'<' else beginning
  for magics, what, remedy in others:
    if shown.startswith(magics):
      return f'this is {what}; {remedy}'
  if others is not _OTHERS:
    return ''
  at, magic = _TAR
  if beginning[at : at + len(magic)] == magic:
    return f'this is a tar archive; {_UNPACK}'
  if beginning[1:2] == b'\0' or (b'\0' in beginning[:64] and beginning[:1] == b'\0'):
    return 'this is a file in UTF-16 or no text at all; convert it to UTF-8 (see iconv)'
  return ''
