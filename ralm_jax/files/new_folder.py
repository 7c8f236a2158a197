"""A folder that is either whole or not there."""

from __future__ import annotations

from collections.abc import Iterator
import contextlib
import glob
import os
import shutil

from ralm_jax.files import atomic_files
from ralm_jax.files.atomic_files import UNFINISHED, PathLike


@contextlib.contextmanager
def creating(directory: PathLike) -> Iterator[str]:
  """Yields a folder to fill, which becomes `directory` when all went well.

  On an error nothing is left; what a killed process left is removed.

  Raises:
    OSError: it cannot be made, or there is something in it (FileExistsError).
  """
  directory = os.path.abspath(os.fspath(directory))
  check(directory)
  _remove_abandoned(directory)
  aside = f'{directory}{UNFINISHED}{os.getpid()}'
  try:
    os.makedirs(aside)
  except OSError as e:
    raise type(e)(f'{directory} cannot be made: {e.strerror}.') from e
  try:
    yield aside
    for folder, _, files in os.walk(aside):
      for name in files:
        atomic_files.synchronise(os.path.join(folder, name))
      atomic_files.synchronise(folder)
    if os.path.isdir(directory):
      os.rmdir(directory)
    os.rename(aside, directory)
    atomic_files.synchronise(os.path.dirname(directory))
  finally:
    shutil.rmtree(aside, ignore_errors=True)


def check(directory: PathLike) -> None:
  """Raises FileExistsError or NotADirectoryError, before any work, for what cannot be made."""
  if os.path.exists(directory) and (not os.path.isdir(directory) or os.listdir(directory)):
    raise FileExistsError(
      f'{os.fspath(directory)} exists already; give another folder, or remove it.'
    )
  above = os.path.abspath(os.fspath(directory))
  while not os.path.lexists(above):
    above = os.path.dirname(above)
  if not os.path.isdir(above):
    raise NotADirectoryError(f'{os.fspath(directory)} cannot be made: {above} is not a folder.')


def _remove_abandoned(directory: str) -> None:
  for path in glob.glob(f'{glob.escape(directory)}{UNFINISHED}*'):
    process = path.rpartition('-')[2]
    try:
      os.kill(int(process), 0)
    except ProcessLookupError:
      shutil.rmtree(path, ignore_errors=True)
    except (ValueError, PermissionError):
      pass  # Not ours to judge.
