"""An output folder that is whole, and may take the place of an earlier one.

Whatever lies beside the output under a name that a user might give is the
user's. Folders of our own have the names that `_private` makes.
"""

from __future__ import annotations

from collections.abc import Iterator
import contextlib
import fcntl
import os
import re
import secrets
import shutil

from ralm_jax.files import new_folder
from ralm_jax.preparation import writing


@contextlib.contextmanager
def creating(output: str, overwrite: bool) -> Iterator[str]:
  """Yields a folder to fill, which becomes the output when all went well.

  Args:
    overwrite: whether an output of ours may take the place of an earlier one.

  Raises:
    FileExistsError: there is something at `output`, or something that is not
      ours in the output to replace.
  """
  output = os.path.realpath(output)  # A link goes on to lead there.
  if not overwrite or writing.read_manifest(output) is None:
    with new_folder.creating(output) as folder:
      yield folder
    return
  _check_ours(output)
  process = f'{os.getpid()}-{secrets.token_hex(4)}'
  made = _private(output, 'made', process)
  replaced = _private(output, 'replaced', process)
  try:
    with contextlib.ExitStack() as stack:
      with new_folder.creating(made) as folder:
        stack.enter_context(_locked(folder))  # Under its next name, too.
        yield folder
      stack.enter_context(_locked(os.path.dirname(output)))
      _check_ours(output)
      os.rename(output, replaced)
      try:
        os.rename(made, output)
      except BaseException:
        os.rename(replaced, output)
        raise
    shutil.rmtree(replaced, ignore_errors=True)
  finally:
    shutil.rmtree(made, ignore_errors=True)


def recover(output: str) -> None:
  """Ends what a process that was killed had begun.

  Killed while it put a new output in the place of an earlier one, it left both
  under names of their own: the new one, which is whole, becomes the output.
  """
  output = os.path.realpath(output)
  folder, name = os.path.split(output)
  if not os.path.isdir(folder):
    return
  ours = re.compile(
    rf'\.{re.escape(name)}\.(?P<what>made|replaced)'
    r'-(?P<process>\d+-[0-9a-f]{8})(\.unfinished-.*)?'
  )
  left = [match for entry in os.listdir(folder) if (match := ours.fullmatch(entry))]
  if not left:
    return
  # Who holds the lock is between two names for one moment only: what is there
  # in between now is there for good.
  with _locked(folder):
    for match in left:
      path = os.path.join(folder, match[0])
      if match['what'] == 'made' or not os.path.isdir(path):
        continue
      if not os.path.exists(output) or not os.listdir(output):
        made = _private(output, 'made', match['process'])
        os.rename(made if os.path.isdir(made) else path, output)
      if writing.read_manifest(output) is not None:
        shutil.rmtree(path, ignore_errors=True)
    for match in left:
      path = os.path.join(folder, match[0])
      # A process that still fills its folder holds the lock of that.
      with contextlib.suppress(BlockingIOError, FileNotFoundError):
        if match['what'] == 'made':
          with _locked(path, fcntl.LOCK_NB):
            shutil.rmtree(path, ignore_errors=True)


def _private(output: str, what: str, process: str) -> str:
  folder, name = os.path.split(output)
  return os.path.join(folder, f'.{name}.{what}-{process}')


def _check_ours(output: str) -> None:
  """Raises FileExistsError if there is what its manifest does not know."""
  manifest = writing.read_manifest(output) or {'files': []}
  known = {writing.MANIFEST, *(file['name'] for file in manifest['files'])}
  for folder, _, names in os.walk(output):
    for name in names:
      path = os.path.join(folder, name)
      if os.path.relpath(path, output) not in known:
        raise FileExistsError(
          f'{path} is in the output that would be replaced, but not of it; '
          'move it away, or give another folder.'
        )


@contextlib.contextmanager
def _locked(folder: str, flag: int = 0) -> Iterator[None]:
  """Keeps other processes from a folder; waits for them unless `flag` forbids.

  The lock ends with the process. At the end the folder is on the disk.
  """
  descriptor = os.open(folder, os.O_RDONLY)
  try:
    fcntl.flock(descriptor, fcntl.LOCK_EX | flag)
    yield
    os.fsync(descriptor)
  finally:
    os.close(descriptor)
