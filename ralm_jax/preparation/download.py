"""Fetches files over HTTP(S), so that what lies at the end is whole and known.

A file is written as FILE.partial until all of it is there and its checksum is
right. A cut connection goes on where it stopped, now or in another process, if
the server says that the file is still the same one. What was fetched is noted
in `checksums.json` beside it and compared with that ever after.
"""

from __future__ import annotations

from collections.abc import Sequence
import contextlib
import dataclasses
import email.message
import http.client
import json
import logging
import os
import re
import time
from typing import Any, BinaryIO
import urllib.error
import urllib.parse
import urllib.request

from ralm_jax.files import atomic_files
from ralm_jax.preparation import fetched
from ralm_jax.preparation.fetched import Download

_Response = http.client.HTTPResponse
PARTIAL = '.partial'
_CHUNK = 1 << 18
_MAX_WAIT_S = 60.0
# Answers after which the same question may find another one.
_PASSING = (408, 425, 429, 500, 502, 503, 504)
_CONTENT_RANGE = re.compile(r'bytes (?:(\d+)-(\d+)|\*)/(\d+|\*)')


@dataclasses.dataclass(frozen=True)
class Patience:
  """How long to try."""

  timeout_s: float = 60.0  # Without a byte until a connection counts as dead.
  attempts: int = 5  # So many in a row that bring nothing.
  back_off_s: float = 1.0  # To wait after the first of them; doubles each time.


class _Refused(Exception):
  """An address that will not give the file; the message says why."""


def fetch(
  addresses: str | Sequence[str],
  path: str,
  *,
  sha256: str | None = None,
  size: int | None = None,
  by_hand: str = '',
  patience: Patience = Patience(),
  progress: bool = True,
) -> Download:
  """Makes sure that a file is there and is what it should be.

  Args:
    addresses: of http or https; the next one is tried where one refuses.
    path: where to put it. What lies there is only checked.
    sha256: that it must have; None for what an earlier download had, if any.
    by_hand: where else to get the file and how to pass it, for errors.

  Raises:
    FileNotFoundError: every address refuses the file, or has another thing.
    ConnectionError: the connection fails again and again, or cannot be made; what came is kept.
    ValueError: no address, or not the file that the checksum is of.
    BlockingIOError: another process is fetching it.
  """
  addresses = [addresses] if isinstance(addresses, str) else list(addresses)
  for address in addresses:
    if urllib.parse.urlsplit(address).scheme not in ('http', 'https'):
      raise ValueError(f'{address}: expected an address of http or https')
  folder, name = os.path.split(os.path.abspath(path))
  known = fetched.read_checksums(folder).get(name, {})
  origin = 'the catalogue'
  if sha256 is None and known:
    sha256, origin = known['sha256'], os.path.join(folder, fetched.CHECKSUMS)
  elif sha256 is not None:
    sha256 = fetched.checked_sha256(sha256, name)
  if os.path.exists(path):
    return _existing(path, sha256, origin, known, progress)
  if not addresses:
    raise ValueError(f'{name}: there is no address to fetch it from. {by_hand}')
  os.makedirs(folder, exist_ok=True)
  with fetched.only_process(path):
    if os.path.exists(path):  # Another process was faster.
      return _existing(path, sha256, origin, known, progress)
    refusals = []
    kind: type[OSError] = FileNotFoundError
    for address in addresses:
      try:
        return _fetch(address, path, sha256, size, patience, origin, progress)
      except _Refused as e:
        refusals.append(f'{address} {e}')
      except ConnectionError as e:
        if _length(path + PARTIAL):
          raise  # What came is worth more than another copy.
        refusals.append(str(e))
        kind = ConnectionError
      logging.warning('%s', refusals[-1])
  raise kind(f'{name} cannot be fetched: {"; ".join(refusals)}. {by_hand}'.rstrip())


def _existing(
  path: str, sha256: str | None, origin: str, known: dict[str, Any], progress: bool
) -> Download:
  found = fetched.file_sha256(path, show=progress)
  if sha256 is not None and found != sha256:
    raise ValueError(
      f'{path} has the SHA-256 {found}, expected {sha256} by {origin}; remove it to fetch it '
      f'again, or give --sha256 {os.path.basename(path)}={found} if you trust it.'
    )
  file = Download(path, found, os.path.getsize(path), known.get('address', ''))
  if known.get('sha256') != found:
    fetched.note(file)
  return file


def _fetch(
  address: str,
  path: str,
  sha256: str | None,
  size: int | None,
  patience: Patience,
  origin: str,
  progress: bool,
) -> Download:
  """One address, as often as it takes."""
  partial = path + PARTIAL
  failures = 0
  while True:
    before = _length(partial)
    try:
      checked = sha256 is not None
      resumed_at = _connect(address, partial, size, patience.timeout_s, checked, progress)
    except _Passing as e:
      failures = 0 if _length(partial) > before else failures
      failures += 1
      if failures >= patience.attempts:
        how = f'{address} {e}, {failures} times in a row'
        if kept := _length(partial):
          how += f'. {kept:,} bytes are in {partial}; the same command goes on from there.'
        raise ConnectionError(how) from e
      wait = min(max(patience.back_off_s * 2 ** (failures - 1), e.wait_s), _MAX_WAIT_S)
      logging.warning('%s %s; trying again in %.0f s', address, e, wait)
      time.sleep(wait)
      continue
    found = fetched.file_sha256(partial)
    if sha256 is None or found == sha256:
      break
    _forget(partial)
    if not resumed_at:
      raise ValueError(
        f'{address} has the SHA-256 {found}, expected {sha256} by {origin}: '
        'the publisher has changed the file, or it is another one. If you '
        f'trust it, give --sha256 {os.path.basename(path)}={found}.'
      )
    logging.warning(
      '%s: the parts of several connections do not make the file; fetching it anew', address
    )
  result = Download(path, found, _length(partial), address, fetched=True, resumed_at=resumed_at)
  fetched.note(result)
  atomic_files.move(partial, path)
  _forget(partial)
  return result


class _Passing(Exception):
  """What may go away when one tries again."""

  def __init__(self, message: str, wait_s: float = 0.0):
    super().__init__(message)
    self.wait_s = wait_s


def _connect(
  address: str, partial: str, size: int | None, timeout_s: float, checked: bool, progress: bool
) -> int:
  """Fetches what is missing; how many bytes of earlier connections the file begins with.

  Raises _Passing or _Refused.
  """
  state = _state(partial)
  start = _length(partial)
  headers = {'Accept-Encoding': 'identity', 'User-Agent': 'ralm-prepare'}
  validator = state.get('validator') if state.get('address') == address else None
  # Without a validator only a checksum can tell a splice from the file.
  if start and (validator or (checked and state.get('address') == address)):
    headers['Range'] = f'bytes={start}-'
    if validator:
      headers['If-Range'] = validator
  else:
    start = 0
  request = urllib.request.Request(address, headers=headers)
  try:
    response = urllib.request.urlopen(request, timeout=timeout_s)
  except urllib.error.HTTPError as e:
    with e:
      if e.code == 416 and start:
        said = _CONTENT_RANGE.fullmatch(e.headers.get('Content-Range') or '')
        if said and said[3] == str(start) and size in (None, start):
          return start  # All of it was there already.
        _forget(partial)
        raise _Passing('has another file now') from e
      if e.code in _PASSING:
        raise _Passing(f'answers {e.code} {e.reason}', _retry_after(e.headers)) from e
      raise _Refused(f'answers {e.code} {e.reason}') from e
  except (OSError, http.client.HTTPException) as e:
    reason = e.reason if isinstance(e, urllib.error.URLError) else e or type(e).__name__
    raise _Passing(f'cannot be reached ({reason})') from e
  with response:
    _receive(response, address, partial, start, size, progress)
  return start if response.status == 206 else 0


def _receive(
  response: _Response, address: str, partial: str, start: int, size: int | None, progress: bool
) -> None:
  """Writes what a response brings behind `start`, or, of the whole file, from 0 on."""
  total = _total(response, start)
  if total is None:
    _forget(partial)
    raise _Passing('answers with another part of the file')
  if response.status != 206:
    start = 0
  _check_kind(response, address)
  if size is not None:
    if total not in (-1, size):
      raise _Refused(f'has a file of {total:,} bytes, expected {size:,}')
    total = size
  if not start:
    # Before the state says of what file the bytes are: whatever happens in
    # between, those of another one never count as of this.
    open(partial, 'wb').close()
    atomic_files.synchronise(partial)
  _write_state(partial, address, response)
  with open(partial, 'r+b') as file:
    file.seek(start)
    file.truncate()
    _copy(response, file, start, total, progress)


def _copy(response: _Response, file: BinaryIO, start: int, total: int, progress: bool) -> None:
  received = start
  with fetched.bytes_bar(
    os.path.basename(file.name).removesuffix(PARTIAL),
    total if total >= 0 else None,
    progress,
    initial=start,
  ) as bar:
    while True:
      try:
        chunk = response.read(_CHUNK)
      except (OSError, http.client.HTTPException) as e:
        what = e or type(e).__name__
        raise _Passing(f'broke the connection at {received:,} bytes ({what})') from e
      if not chunk:
        break
      received += len(chunk)
      if received > total >= 0:
        _forget(file.name)
        raise _Refused(f'has a file of more than {total:,} bytes')
      file.write(chunk)
      bar.update(len(chunk))
  # A body that ends early is no error to http.client.
  if received < total:
    raise _Passing(f'ended the connection at {received:,} of {total:,} bytes')


def _total(response: http.client.HTTPResponse, start: int) -> int | None:
  """Size of the whole file; -1 if unsaid, None if the part is not what we want."""
  if response.status == 206:
    match = _CONTENT_RANGE.fullmatch(response.headers.get('Content-Range') or '')
    if not match or match[1] is None or int(match[1]) != start:
      return None
    return -1 if match[3] == '*' else int(match[3])
  length = response.headers.get('Content-Length')
  return int(length) if length and length.isdigit() else -1


def _check_kind(response: http.client.HTTPResponse, address: str) -> None:
  """A moved file's address often answers with a page that says so."""
  kind = response.headers.get_content_type()
  if kind in ('text/html', 'application/xhtml+xml') and not address.endswith(('.html', '.htm')):
    moved = '' if response.geturl() == address else f', {response.geturl()},'
    raise _Refused(f'answers with a web page{moved} in place of the file')


def _retry_after(headers: email.message.Message) -> float:
  value = headers.get('Retry-After') or ''
  return float(value) if value.isdigit() else 0.0


def _length(path: str) -> int:
  return os.path.getsize(path) if os.path.exists(path) else 0


def _write_state(partial: str, address: str, response: http.client.HTTPResponse) -> None:
  """Notes what the partial file is a part of."""
  tag = response.headers.get('ETag') or ''
  # A weak tag is of equal meaning, not of equal bytes.
  validator = tag if tag.startswith('"') else response.headers.get('Last-Modified')
  atomic_files.write_json(f'{partial}.json', {'address': address, 'validator': validator})


def _state(partial: str) -> dict[str, Any]:
  try:
    with open(f'{partial}.json', encoding='utf-8') as file:
      state = json.load(file)
  except (FileNotFoundError, ValueError):
    return {}
  return state if isinstance(state, dict) else {}


def _forget(partial: str) -> None:
  for path in (partial, f'{partial}.json'):
    with contextlib.suppress(FileNotFoundError):
      os.remove(path)
