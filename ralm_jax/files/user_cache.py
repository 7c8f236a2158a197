"""What is kept in the user's cache folder: it may be removed at any time, and is made again."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import logging
import os
import pathlib
import platform
import shutil
import sys
import zlib

from ralm_jax.files.atomic_files import PathLike

OFF = 'off'
_MAX_BYTES = 2 << 30
_MIN_FREE_BYTES = 64 << 20
_CHECKED = 'checked'
_PROGRAMS = '*-cache'  # As JAX names them.


def folder(*names: str) -> str:
  """A folder of ours in the user's cache, as the platform has it; it need not exist."""
  home = '~/Library/Caches' if sys.platform == 'darwin' else '~/.cache'
  root = os.environ.get('XDG_CACHE_HOME') or os.path.expanduser(home)
  return os.path.join(root, 'ralm', *names)


def keep_compiled_programs(place: PathLike | None = None) -> None:
  """Has JAX, before it is imported, keep compiled programs on disk and use those that are there.

  A folder that cannot be written to is told of in a line, and programs are compiled as ever.

  Args:
    place: a folder; 'off'; None for the user's cache, or what JAX_COMPILATION_CACHE_DIR says.
  """
  if 'jax' in sys.modules:
    return  # A program of the user's own, which has set it up as it likes.
  if place == OFF:
    os.environ['JAX_ENABLE_COMPILATION_CACHE'] = 'false'
    return
  if place is None and 'JAX_COMPILATION_CACHE_DIR' in os.environ:
    return
  # Machine code runs on its own kind of processor, be a home folder shared by several.
  directory = pathlib.Path(place or folder('compiled'), _machine())
  try:
    directory.mkdir(parents=True, exist_ok=True)
    if not os.access(directory, os.W_OK):
      raise PermissionError(13, 'it is read-only')
    if shutil.disk_usage(directory).free < _MIN_FREE_BYTES:
      raise OSError(28, 'the disk is full')
    _tidy(directory)
  except OSError as error:
    logging.warning(
      'Compiled programs are not kept in %s: %s. Name another folder, or off, with '
      '--compilation_cache.',
      directory,
      error.strerror,
    )
    return
  os.environ['JAX_COMPILATION_CACHE_DIR'] = str(directory)
  # Small ones, too: a session has a hundred of them.
  os.environ.setdefault('JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS', '0')
  os.environ.setdefault('JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES', '-1')


def _machine() -> str:
  """Names this kind of processor, and the compiler."""
  features = f'{platform.machine()} {platform.processor()}'
  with contextlib.suppress(OSError), open('/proc/cpuinfo', encoding='utf-8') as file:
    features += next((line for line in file if line.startswith(('flags', 'Features'))), '')
  digest = hashlib.sha256(features.encode()).hexdigest()[:8]
  return f'jaxlib-{importlib.metadata.version("jaxlib")}-{digest}'


def _tidy(directory: pathlib.Path) -> None:
  """Removes what was cut short, which JAX would complain of ever after, and the oldest of much."""
  mark = directory / _CHECKED
  checked_ns = mark.stat().st_mtime_ns if mark.exists() else 0
  found = [(path, path.stat()) for path in directory.glob(_PROGRAMS)]
  mark.touch()
  for path, status in found:
    if status.st_mtime_ns >= checked_ns and not _is_whole(path):
      path.unlink(missing_ok=True)
  total = sum(status.st_size for _, status in found)
  for path, status in sorted(found, key=lambda one: one[1].st_atime_ns):
    if total <= _MAX_BYTES:
      break
    path.unlink(missing_ok=True)
    total -= status.st_size


def _is_whole(program: pathlib.Path) -> bool:
  content = program.read_bytes()
  if content[:1] != b'\x78':
    return bool(content)  # Not by zlib: JAX found another library.
  try:
    zlib.decompress(content)
  except zlib.error:
    return False
  return True
