"""One cell of an evaluation: its folder, who works on it, when it is finished.

    CELL/predictions.jsonl, metrics.json   the results
    CELL/manifest.json                     what they are of; written last
    CELL/claim-1                           of the worker that is at it
    CELL/work-3f2a91c0/                    what that worker has so far

Workers share nothing but the file system. A claim is a file that only one can create, and lives as
long as its owner touches it. To take over from a dead one, a worker creates the claim of the next
number, which again only one can; the dead one's stays until the cell is left, so that nobody finds
the folder unclaimed meanwhile. Numbers begin at 1 again then, but a claim also holds random
letters: a worker that wakes up after that does not take another's for its own.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
import contextlib
import json
import logging
import os
import pathlib
import re
import secrets
import shutil
import socket
import tempfile
import threading
from typing import Any

from ralm_jax.files import atomic_files

MANIFEST = 'manifest.json'
PREDICTIONS = 'predictions.jsonl'
METRICS = 'metrics.json'
_INPUTS = 'inputs.json'
_CLAIM = re.compile(r'claim-(\d+)')
_WORK = re.compile(r'work-\w+')


class LostClaimError(RuntimeError):
  """Another worker has taken the cell over."""


class Claim:
  """The right to work on a cell, kept up by a thread.

  Its number is larger than that of any other there is; its token is random
  letters, of this claim alone.
  """

  def __init__(self, folder: pathlib.Path, number: int, token: str, timeout_s: float):
    """Starts the heartbeat of a claim whose file exists; without, others take over."""
    self.number, self.token = number, token
    self._folder = folder
    self._stopping = threading.Event()
    self._thread = threading.Thread(
      target=self._beat, args=(timeout_s / 4,), daemon=True, name='claim'
    )
    self._thread.start()

  def check(self) -> None:
    """Raises LostClaimError: this program was stopped for longer than the time-out."""
    if not self._holds():
      raise LostClaimError(
        f'{self._folder}: another worker took this cell over, because this one gave no sign of '
        'life; its results are left to that one. Raise claim_timeout_s if workers are often '
        'suspended.'
      )

  def _holds(self) -> bool:
    return max(_numbers(self._folder), default=0) == self.number and self._is_ours()

  def _is_ours(self) -> bool:
    """Whether the file of our number is the one we made."""
    try:
      text = (self._folder / f'claim-{self.number}').read_text('utf-8')
    except FileNotFoundError:
      return False
    return _fields(text).get('token') == self.token

  def _beat(self, period_s: float) -> None:
    path = self._folder / f'claim-{self.number}'
    while not self._stopping.wait(period_s):
      try:
        if not self._is_ours():
          return
        os.utime(path)
      except FileNotFoundError:
        return
      except OSError as error:  # a network file system that is away for a while
        logging.warning('%s cannot be touched: %s', path, error)

  def release(self) -> None:
    """Gives the cell up; what was done of it stays."""
    self._stopping.set()
    self._thread.join()
    if self._holds():
      # The oldest last: whoever finds none may begin anew.
      for number in sorted(_numbers(self._folder), reverse=True):
        (self._folder / f'claim-{number}').unlink(missing_ok=True)


class Cell:
  """The folder of a cell, which may not exist yet."""

  def __init__(self, folder: str | os.PathLike[str]):
    self.folder = pathlib.Path(folder)

  def manifest(self) -> dict[str, Any] | None:
    """What the results are of; None where there are none, or not whole."""
    try:
      manifest = json.loads((self.folder / MANIFEST).read_text('utf-8'))
      for name, size in manifest['files'].items():
        if (self.folder / name).stat().st_size != size:
          return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
      return None
    return manifest

  def why_undone(self, inputs: Mapping[str, Any], ignore: tuple[str, ...] = ()) -> str | None:
    """Why the cell must be evaluated; None where its results are of `inputs`, see `differences`."""
    manifest = self.manifest()
    if manifest is None:
      started = (self.folder / MANIFEST).exists()
      return 'its files are damaged' if started else 'not evaluated yet'
    return differences(manifest.get('inputs'), inputs, ignore)

  @contextlib.contextmanager
  def claimed(self, timeout_s: float = 600.0) -> Iterator[Claim | None]:
    """The cell, for this worker alone; None where another one has it.

    A worker without a heartbeat counts as dead after `timeout_s`; one that has
    ended on this very machine is recognised at once.
    """
    token = secrets.token_hex(4)
    number = self._take(token, timeout_s)
    if number is None:
      yield None
      return
    claim = Claim(self.folder, number, token, timeout_s)
    try:
      yield claim
    finally:
      claim.release()

  def _take(self, token: str, timeout_s: float) -> int | None:
    """Creates the next claim; returns its number, None where another has it."""
    self.folder.mkdir(parents=True, exist_ok=True)
    last = max(_numbers(self.folder), default=0)
    if last:
      path = self.folder / f'claim-{last}'
      try:
        owner = path.read_text('utf-8')
        silent_s = _file_system_time(self.folder) - path.stat().st_mtime
      except FileNotFoundError:
        return None  # its owner has just left; it is looked at another time
      if silent_s < timeout_s and not _has_ended(owner):
        return None
      about = owner.strip() or 'unknown'
      logging.warning('%s: taking over from a worker that has ended (%s).', self.folder, about)
    number = last + 1
    path = self.folder / f'claim-{number}'
    try:
      descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
    except FileExistsError:
      return None
    us = {'host': socket.gethostname(), 'pid': os.getpid(), 'machine': _machine(), 'token': token}
    with open(descriptor, 'w', encoding='utf-8') as file:
      json.dump(us, file)
    if max(_numbers(self.folder), default=0) != number:
      path.unlink(missing_ok=True)
      return None
    return number

  def begin(self, claim: Claim, inputs: Mapping[str, Any]) -> pathlib.Path:
    """A folder to work in, with what an earlier worker left of the same.

    Copied, since that worker may only be slow, and still be writing.
    """
    claim.check()
    formers = [path for path in self.folder.iterdir() if _WORK.fullmatch(path.name)]
    work = self.folder / f'work-{claim.token}'
    work.mkdir()
    wanted = _as_json(inputs)
    for former in sorted(formers, key=_last_change, reverse=True):
      with contextlib.suppress(OSError, ValueError):
        if json.loads((former / _INPUTS).read_text('utf-8')) == wanted:
          for path in sorted(former.iterdir()):
            shutil.copy2(path, work / path.name)
          break
    for former in formers:
      shutil.rmtree(former, ignore_errors=True)
    atomic_files.write_json(work / _INPUTS, wanted, indent=2)
    return work

  def publish(
    self, claim: Claim, work: pathlib.Path, inputs: Mapping[str, Any], about: Mapping[str, Any]
  ) -> dict[str, Any]:
    """Makes what is in `work` the results of the cell; returns its manifest.

    `inputs` is all that decides the results, `about` what else is worth knowing.
    LostClaimError where another worker has the cell; nothing is changed then.
    """
    claim.check()
    (work / _INPUTS).unlink(missing_ok=True)
    files = {path.name: path.stat().st_size for path in sorted(work.iterdir()) if path.is_file()}
    manifest = {**_as_json(about), 'inputs': _as_json(inputs), 'files': files}
    # Never a manifest beside results that it is not of.
    (self.folder / MANIFEST).unlink(missing_ok=True)
    for path in self.folder.iterdir():
      if path.is_file() and not _CLAIM.fullmatch(path.name):
        path.unlink(missing_ok=True)
    for name in files:
      atomic_files.move(work / name, self.folder / name)
    atomic_files.write_json(self.folder / MANIFEST, manifest, indent=2, ensure_ascii=False)
    shutil.rmtree(work, ignore_errors=True)
    return manifest


def file_name(name: str) -> str:
  """A name as part of a path; ValueError where nothing of it can be."""
  safe = re.sub(r'[^\w.,=+-]+', '_', name).strip('._')
  if not safe:
    raise ValueError(f'{name!r} cannot be the name of a folder; choose another.')
  return safe


def differences(former: Any, now: Mapping[str, Any], ignore: Collection[str] = ()) -> str | None:
  """How inputs differ from the former ones of a manifest; None where they do not.

  Dotted names to `ignore` may differ, and all that begins with one of them.
  """
  changes = [
    text
    for name, text in _changes(former, _as_json(now))
    if not any(f'{name}.'.startswith(f'{one}.') for one in ignore)
  ]
  if not changes:
    return None
  return '; '.join(changes[:3]) + (f' (and {len(changes) - 3} more)' if len(changes) > 3 else '')


def _numbers(folder: pathlib.Path) -> set[int]:
  """Of all claims."""
  try:
    names = os.listdir(folder)
  except FileNotFoundError:
    return set()
  return {int(match[1]) for match in map(_CLAIM.fullmatch, names) if match}


def _last_change(folder: pathlib.Path) -> float:
  """Of anything in a folder; 0 where that is being removed."""
  try:
    return max(path.stat().st_mtime for path in (folder, *folder.iterdir()))
  except OSError:
    return 0.0


def _file_system_time(folder: pathlib.Path) -> float:
  """Now by the clock that stamps files, which may be another host's."""
  with tempfile.NamedTemporaryFile(dir=folder, prefix='.clock-') as file:
    return os.fstat(file.fileno()).st_mtime


def _machine() -> str:
  """Tells whether a process id means anything here."""
  try:
    boot = pathlib.Path('/proc/sys/kernel/random/boot_id').read_text('utf-8')
    return f'{boot.strip()} {os.readlink("/proc/self/ns/pid")}'
  except OSError:
    return ''


def _has_ended(owner: str) -> bool:
  """Whether the worker of a claim ran on this machine and does not any more."""
  fields = _fields(owner)
  try:
    machine, pid = fields['machine'], int(fields['pid'])
  except (ValueError, KeyError, TypeError):
    return False  # being written
  if not machine or machine != _machine():
    return False
  try:
    os.kill(pid, 0)
  except OSError as error:
    return isinstance(error, ProcessLookupError)
  return False


def _fields(claim: str) -> dict[str, Any]:
  """Of a claim's file; {} while it is being written."""
  try:
    fields = json.loads(claim)
  except ValueError:
    return {}
  return fields if isinstance(fields, dict) else {}


def _as_json(values: Mapping[str, Any]) -> dict[str, Any]:
  return json.loads(json.dumps(values))


def _changes(former: Any, now: Any, name: str = '') -> list[tuple[str, str]]:
  """Dotted names of what differs, each with a text that says how."""
  if isinstance(former, dict) and isinstance(now, dict):
    found = []
    for key in [*now, *(key for key in former if key not in now)]:
      part = f'{name}.{key}' if name else str(key)
      found += _changes(former.get(key), now.get(key), part)
    return found
  return [] if former == now else [(name, f'{name}: {former!r} is now {now!r}')]
