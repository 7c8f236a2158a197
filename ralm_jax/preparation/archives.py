"""Takes files out of tar and zip archives.

An archive is read to its very end: one that is damaged or cut short is an error, however much of it
could be read. Only the bytes of plain files are taken: links, devices, permissions and owners of an
archive mean nothing here, and nothing is written outside of the folder.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
import contextlib
import lzma
import os
import pathlib
import stat
import tarfile
from typing import IO, Self
import zipfile
import zlib

from ralm_jax.files import byte_streams, progress as progress_lib

# Far above any benchmark's, far below what an archive can be made to claim.
MAX_BYTES = 64 << 30
_TAR = ('.tar', '.tar.gz', '.tgz', '.tar.bz2', '.tar.xz')
_CHUNK = 1 << 20
# What its reader raises there; without a name in the stubs.
_END: type[Exception] = vars(tarfile)['EOFHeaderError']


def is_archive(path: str) -> bool:
  """Whether a file's name is that of an archive of several files."""
  return path.lower().endswith((*_TAR, '.zip'))


def extract(
  archive: str,
  folder: str,
  wanted: Callable[[str], bool],
  *,
  max_bytes: int = MAX_BYTES,
  progress: bool = True,
) -> list[str]:
  """Writes an archive's files.

  Raises:
    ValueError: the archive is damaged, has a file that would lie outside of the
      folder, the same one twice, or more than `max_bytes`.
  """
  written: dict[str, None] = {}
  left = max_bytes
  members = _zip_members if archive.lower().endswith('.zip') else _tar_members
  desc = f'unpacking {os.path.basename(archive)}'
  bar = progress_lib.bar(desc=desc, unit=' files', show=progress)
  with _naming_damage(archive), bar:
    for name, content in members(archive, wanted):
      path = _inside(folder, name, archive)
      if path in written:
        raise ValueError(f'{archive}: holds {name!r} twice; fetch it again.')
      os.makedirs(os.path.dirname(path), exist_ok=True)
      left -= _copy(content, path, left, archive, max_bytes)
      written[path] = None
      bar.update()
  return list(written)


@contextlib.contextmanager
def _naming_damage(path: str) -> Iterator[None]:
  """Makes a ValueError that names the file of whatever says it is damaged."""
  try:
    yield
  except (tarfile.TarError, zipfile.BadZipFile, EOFError, zlib.error, lzma.LZMAError, OSError) as e:
    if isinstance(e, OSError) and e.errno is not None:
      raise  # Of the disk, not of the data: gzip and bz2 raise bare ones.
    raise ValueError(f'{path} is damaged or cut short ({e}); fetch it again.') from e


class _Header(tarfile.TarInfo):
  """A member of a tar; a damaged header, which `TarFile` takes for the end, is an error."""

  @classmethod
  def fromtarfile(cls, archive: tarfile.TarFile) -> Self:
    try:
      return super().fromtarfile(archive)
    except _END:
      raise  # A block of zeros, which is how an archive ends.
    except (tarfile.HeaderError, ValueError) as e:
      raise tarfile.ReadError(str(e)) from e


def _tar_members(path: str, wanted: Callable[[str], bool]) -> Iterator[tuple[str, IO[bytes]]]:
  # A stream: the members that nobody wants are read past once.
  with (
    open(path, 'rb') as raw,
    byte_streams.opened(raw) as stream,
    tarfile.open(fileobj=stream, mode='r:', tarinfo=_Header) as archive,
  ):
    for member in archive:
      if member.isfile() and wanted(member.name):
        content = archive.extractfile(member)
        assert content is not None  # It is a plain file.
        yield member.name, content
    # The checksum of all is behind the end of the archive.
    while chunk := stream.read(_CHUNK):
      if chunk.strip(b'\0'):
        raise tarfile.ReadError('it goes on behind its end')


def _zip_members(path: str, wanted: Callable[[str], bool]) -> Iterator[tuple[str, IO[bytes]]]:
  with zipfile.ZipFile(path) as archive:
    for member in archive.infolist():
      link = stat.S_ISLNK(member.external_attr >> 16)
      if member.is_dir() or link or not wanted(member.filename):
        continue
      if member.flag_bits & 1:
        raise ValueError(f'{path}: {member.filename!r} is encrypted; unpack it by hand.')
      with archive.open(member) as content:
        yield member.filename, content


def _inside(folder: str, name: str, archive: str) -> str:
  """The path of an archive's file in the folder."""
  parts = pathlib.PurePosixPath(name.replace('\\', '/')).parts
  if not parts or '..' in parts or parts[0] == '/' or ':' in parts[0] or ('\0' in name):
    raise ValueError(
      f'{archive}: holds the file {name!r}, which would lie outside of the '
      'folder; do not trust this archive.'
    )
  return os.path.join(os.path.abspath(folder), *parts)


def _copy(content: IO[bytes], path: str, left: int, archive: str, max_bytes: int) -> int:
  size = 0
  with open(path, 'xb') as file:
    while chunk := content.read(_CHUNK):
      size += len(chunk)
      if size > left:
        raise ValueError(
          f'{archive}: its files have more than {max_bytes:,} bytes; unpack '
          'it by hand if that is right.'
        )
      file.write(chunk)
  return size
