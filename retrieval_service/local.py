"""The embedded default: a retrieval process that lives as long as its user."""

from __future__ import annotations

import logging
import os
import re
import select
import subprocess
import sys
import tempfile
import time
from typing import Any

from retrieval_service.files import PathLike

logger = logging.getLogger(__name__)

_READY = re.compile(r'retrieval process ready at (\S+:\d+) ')
_STDERR_BYTES = 4000
_START_TIMEOUT_S = 300


class LocalRetrievalServer:
  """Runs `python -m retrieval_service.server` on a free loopback port.

  The process ends with the context, and also when this program is killed: it watches for the end of
  its standard input. Its `address` stays the same after a restart.

      with LocalRetrievalServer(index) as server:
        with RetrievalClient(server.address) as client:
          ...
  """

  def __init__(self, index_directory: PathLike, **options: Any):
    """Starts the process and waits until it answers.

    For the options see `ServingOptions`. If it does not start, the RuntimeError holds what it said.
    """
    self._index_directory = os.fspath(index_directory)
    self._options = options
    self._log = tempfile.TemporaryFile(prefix='retrieval-')
    self.address = 'localhost:0'
    self._start()

  def __enter__(self) -> LocalRetrievalServer:
    return self

  def __exit__(self, *unused_exception) -> None:
    self.stop()

  def ensure_alive(self) -> bool:
    """Restarts a dead process on its port; says whether that was needed."""
    if self.process.poll() is None:
      return False
    ended = 'the retrieval process at %s ended with status %d; starting it again'
    logger.warning(ended, self.address, self.process.returncode)
    self._close_pipes()
    self._start()
    return True

  def stop(self, timeout_s: float = 10.0) -> None:
    """Ends the process."""
    self.process.terminate()
    try:
      self.process.wait(timeout_s)
    except subprocess.TimeoutExpired:
      self.process.kill()
      self.process.wait()
    self._close_pipes()

  def messages(self) -> str:
    """The end of what the process wrote to its standard error."""
    size = os.fstat(self._log.fileno()).st_size
    tail = os.pread(self._log.fileno(), _STDERR_BYTES, max(0, size - _STDERR_BYTES))
    return tail.decode(errors='replace').strip()

  def _start(self) -> None:
    command = [sys.executable, '-m', 'retrieval_service.server', '--exit_with_parent']
    command += ['--index', self._index_directory, '--address', self.address]
    for name, value in self._options.items():
      if isinstance(value, bool):
        command.append(f'--{name}' if value else f'--no-{name}')
      elif value is not None:
        command += [f'--{name}', str(value)]
    environment = dict(os.environ)
    root = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    environment['PYTHONPATH'] = os.pathsep.join(filter(None, (root, os.environ.get('PYTHONPATH'))))
    self.process = subprocess.Popen(
      command,
      env=environment,
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      stderr=self._log,
      # An interrupt typed at the terminal is for the program, which still
      # needs its searches while it saves.
      start_new_session=True,
    )
    try:
      self.address = self._read_address()
    except BaseException:
      self.stop()
      raise

  def _read_address(self) -> str:
    give_up = time.monotonic() + _START_TIMEOUT_S
    pipe = self.process.stdout
    assert pipe is not None
    output = b''
    while not output.endswith(b'\n'):
      readable, _, _ = select.select([pipe], [], [], 0.2)
      if readable:
        data = os.read(pipe.fileno(), 4096)
        if not data:
          raise RuntimeError(
            f'the retrieval process for {self._index_directory} ended with status '
            f'{self.process.wait()} before it was ready. It said: {self.messages()}'
          )
        output += data
      elif time.monotonic() > give_up:
        raise RuntimeError(
          f'the retrieval process for {self._index_directory} was not ready '
          f'after {_START_TIMEOUT_S} s. It said: {self.messages()}'
        )
    match = _READY.match(output.decode(errors='replace'))
    if not match:
      raise RuntimeError(f'the retrieval process said {output!r} instead of that it is ready')
    return match[1]

  def _close_pipes(self) -> None:
    for pipe in (self.process.stdin, self.process.stdout):
      if pipe is not None:
        pipe.close()
