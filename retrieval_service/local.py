"""The embedded default: a retrieval process that lives as long as its user."""

import logging
import os
import re
import select
import subprocess
import sys
import tempfile
import time

logger = logging.getLogger(__name__)

_READY = re.compile(r'retrieval process ready at (\S+:\d+) ')
_STDERR_BYTES = 4000


class LocalRetrievalServer:
  """Runs `python -m retrieval_service.server` on a free loopback port.

  The process ends with the context, and also when this program is killed:
  it watches for the end of its standard input.

      with LocalRetrievalServer(index) as server:
        with RetrievalClient(server.address) as client:
          ...

  Attributes:
    address: 'host:port'; the same after a restart.
    process: The running process.
  """

  def __init__(
    self, index_directory: str | os.PathLike, *, start_timeout_s: float = 300.0, **options
  ):
    """Starts the process and waits until it answers.

    Args:
      index_directory: The index folder.
      start_timeout_s: A large index is read whole before it is served.
      **options: The module's flags: `nprobe`, `rerank`, `threads`,
        `build_threads`, `verify_checksums`, `keep_generations`.

    Raises:
      RuntimeError: It did not start; the message holds what it said.
    """
    self._index_directory = os.fspath(index_directory)
    self._start_timeout_s = start_timeout_s
    self._options = options
    self._log = tempfile.TemporaryFile(prefix='retrieval-')
    self.process: subprocess.Popen | None = None
    self.address = 'localhost:0'
    self._start()

  def __enter__(self) -> 'LocalRetrievalServer':
    return self

  def __exit__(self, *unused_exception) -> None:
    self.stop()

  def ensure_alive(self) -> bool:
    """Restarts a dead process on its port; says whether that was needed."""
    if self.process is not None and self.process.poll() is None:
      return False
    if self.process is not None:
      logger.warning(
        'the retrieval process at %s ended with status %d; starting it again',
        self.address,
        self.process.returncode,
      )
      self._close_pipes()
    self._start()
    return True

  def stop(self, timeout_s: float = 10.0) -> None:
    """Ends the process."""
    if self.process is None:
      return
    self.process.terminate()
    try:
      self.process.wait(timeout_s)
    except subprocess.TimeoutExpired:
      self.process.kill()
      self.process.wait()
    self._close_pipes()
    self.process = None

  def messages(self) -> str:
    """The end of what the process wrote to its standard error."""
    size = os.fstat(self._log.fileno()).st_size
    tail = os.pread(self._log.fileno(), _STDERR_BYTES, max(0, size - _STDERR_BYTES))
    return tail.decode(errors='replace').strip()

  def _start(self) -> None:
    command = [
      sys.executable,
      '-m',
      'retrieval_service.server',
      '--index',
      self._index_directory,
      '--address',
      self.address,
      '--exit_with_parent',
    ]
    for name, value in self._options.items():
      if value is None:
        continue
      if isinstance(value, bool):
        command.append(f'--{name}' if value else f'--no-{name}')
      else:
        command += [f'--{name}', str(value)]
    environment = dict(os.environ)
    root = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    environment['PYTHONPATH'] = os.pathsep.join(
      path for path in (root, environment.get('PYTHONPATH')) if path
    )
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
    give_up = time.monotonic() + self._start_timeout_s
    output = b''
    while not output.endswith(b'\n'):
      readable, _, _ = select.select([self.process.stdout], [], [], 0.2)
      if readable:
        data = os.read(self.process.stdout.fileno(), 4096)
        if not data:
          raise RuntimeError(
            f'the retrieval process for {self._index_directory} ended with '
            f'status {self.process.wait()} before it was ready. It said: '
            f'{self.messages()}'
          )
        output += data
      elif time.monotonic() > give_up:
        raise RuntimeError(
          f'the retrieval process for {self._index_directory} was not ready '
          f'after {self._start_timeout_s:.0f} s. It said: {self.messages()}'
        )
    match = _READY.match(output.decode(errors='replace'))
    if not match:
      raise RuntimeError(f'the retrieval process said {output!r} instead of that it is ready')
    return match[1]

  def _close_pipes(self) -> None:
    self.process.stdin.close()
    self.process.stdout.close()
